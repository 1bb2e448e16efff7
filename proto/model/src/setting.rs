//! Settings that are read from a text of a configuration.
//!
//! Pure. A text is checked while it is read: whoever reads the file knows then at which place the mistake stands. It is taken as it is
//! written: `0x1F` is no other way to write 31.

use crate::{SpanNs, TenantId};
use serde::de::{self, Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;

/// What a text stands for, or why for nothing, in words for people.
pub trait FromText: Sized {
    fn from_text(text: &str) -> Result<Self, String>;
}

/// A setting whose text was read into a `T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<T>(pub T);

impl<'de, T: FromText> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<T: FromText> de::Visitor<'_> for Visitor<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
                T::from_text(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor(PhantomData)).map(Self)
    }
}

impl FromText for SpanNs {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| format!("{text:?} is no length of time; write 15s or 1m30s"))
    }
}

impl FromText for TenantId {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::new(text).map_err(|e| e.to_string())
    }
}
