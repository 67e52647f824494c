//! What a running list has mentioned so far. What it does not mention by its end is gone.

use std::collections::HashSet;

use crate::objects::ObjectKey;

#[derive(Debug, Default)]
pub struct Relist {
    seen: HashSet<ObjectKey>,
}

impl Relist {
    pub fn saw(&mut self, key: &ObjectKey) {
        self.seen.insert(key.clone());
    }

    pub fn forget(&mut self, key: &ObjectKey) {
        self.seen.remove(key);
    }

    pub fn has(&self, key: &ObjectKey) -> bool {
        self.seen.contains(key)
    }
}
