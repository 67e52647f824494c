//! A field that cannot fail to be read.
//!
//! serde stops at the first value of an unexpected type, and with it stops the whole list or file the value is part
//! of. [`Field`] takes whatever stands there, in one pass and without an intermediate tree, remembers what it was,
//! and leaves the verdict to the reader of that one object. Only broken syntax is still an error of the document.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use crate::objects::annotations;

/// A text value.
pub type Text = Box<str>;

/// What stands where a `T` may stand. `null` is the same as nothing.
#[derive(Clone, Debug, Default)]
pub enum Field<T> {
    #[default]
    Absent,
    Value(T),
    /// Something of another type; says what, with its article.
    Wrong(&'static str),
}

/// A value in a place where it cannot be used: `path` as in `spec.ports[0].port`, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {text}")]
pub struct BadField {
    pub path: String,
    pub text: String,
}

impl BadField {
    pub fn new(path: impl fmt::Display, text: impl Into<String>) -> Self {
        BadField { path: path.to_string(), text: text.into() }
    }
}

impl<T: Shape> Field<T> {
    /// The value; `None` when there is none.
    ///
    /// # Errors
    /// A value of another type, named by `path`.
    pub fn get(self, path: impl fmt::Display) -> Result<Option<T>, BadField> {
        match self {
            Field::Absent => Ok(None),
            Field::Value(value) => Ok(Some(value)),
            Field::Wrong(found) => Err(BadField::new(path, format!("expected {}, found {found}", T::WANT))),
        }
    }

    /// The value if it is there and of the right type.
    pub fn peek(&self) -> Option<&T> {
        match self {
            Field::Value(value) => Some(value),
            Field::Absent | Field::Wrong(_) => None,
        }
    }
}

/// Which of the data model's values make a `Self`. Every method that is not overridden refuses.
pub trait Shape: Sized {
    /// What is expected, with its article.
    const WANT: &'static str;

    fn from_text(_: &str) -> Option<Self> {
        None
    }
    fn from_bool(_: bool) -> Option<Self> {
        None
    }
    fn from_integer(_: i64) -> Option<Self> {
        None
    }
    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Field<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Wrong("a list"))
    }
    fn from_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Field<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Wrong("an object"))
    }
}

impl Shape for Text {
    const WANT: &'static str = "a string";
    fn from_text(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

impl Shape for bool {
    const WANT: &'static str = "true or false";
    fn from_bool(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl Shape for i64 {
    const WANT: &'static str = "a whole number";
    fn from_integer(value: i64) -> Option<Self> {
        Some(value)
    }
}

/// A number or a text (`IntOrString` of the API).
#[derive(Clone, Debug)]
pub enum NumberOrText {
    Number(i64),
    Text(Text),
}

impl Shape for NumberOrText {
    const WANT: &'static str = "a whole number or a string";
    fn from_text(text: &str) -> Option<Self> {
        Some(NumberOrText::Text(text.into()))
    }
    fn from_integer(value: i64) -> Option<Self> {
        Some(NumberOrText::Number(value))
    }
}

impl<T: Shape> Shape for Vec<Field<T>> {
    const WANT: &'static str = "a list";
    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Field<Self>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Field::Value(items))
    }
}

/// A map of texts; `labels`.
#[derive(Clone, Debug, Default)]
pub struct TextMap(pub BTreeMap<Text, Field<Text>>);

impl Shape for TextMap {
    const WANT: &'static str = "an object";
    fn from_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Field<Self>, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = object.next_entry()? {
            map.insert(key, value);
        }
        Ok(Field::Value(TextMap(map)))
    }
}

/// `annotations`, of which only those are kept that somebody reads: kubectl stores whole objects in its own ones.
#[derive(Clone, Debug, Default)]
pub struct OurAnnotations(pub BTreeMap<Text, Field<Text>>);

impl Shape for OurAnnotations {
    const WANT: &'static str = "an object";
    fn from_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Field<Self>, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = object.next_key::<Text>()? {
            if annotations::is_read(&key) {
                map.insert(key, object.next_value()?);
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Field::Value(OurAnnotations(map)))
    }
}

/// Marks a derived struct whose fields are all [`Field`]s, so that reading it cannot fail either.
pub trait Section: DeserializeOwned {}

impl<T: Section> Shape for T {
    const WANT: &'static str = "an object";
    fn from_object<'de, A: MapAccess<'de>>(object: A) -> Result<Field<Self>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(object)).map(Field::Value)
    }
}

impl<'de, T: Shape> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Taker(PhantomData))
    }
}

struct Taker<T>(PhantomData<T>);

impl<'de, T: Shape> Visitor<'de> for Taker<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(T::from_text(value).map_or(Field::Wrong("a string"), Field::Value))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(T::from_bool(value).map_or(Field::Wrong("a boolean"), Field::Value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(T::from_integer(value).map_or(Field::Wrong("a number"), Field::Value))
    }

    // No number we read has more than 32 bits: beyond i64 the exact value does not matter, it is out of range.
    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        self.visit_i64(i64::try_from(value).unwrap_or(i64::MAX))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Self::Value, E> {
        self.visit_i64(i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX }))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Self::Value, E> {
        self.visit_i64(i64::try_from(value).unwrap_or(i64::MAX))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Field::Wrong("a number that is too large or not whole"))
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<Self::Value, E> {
        Ok(Field::Wrong("binary data"))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Field::Absent)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Field::Absent)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        T::from_list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Self::Value, A::Error> {
        T::from_object(object)
    }
}
