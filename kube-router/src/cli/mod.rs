//! (room under construction)
pub mod dump;
