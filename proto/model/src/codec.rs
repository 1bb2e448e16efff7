//! How rows of the meta store and commands are written: MessagePack with field names.
//!
//! Field names make rows readable by later versions (`#[serde(default)]` for new fields) and keep every f64 and
//! byte string as it is. Deterministic, as long as types hold no hash maps: use `BTreeMap` and `Vec`.

use serde::{Serialize, de::DeserializeOwned};

/// A row or command that could not be read: damage, or a version from the future.
#[derive(Debug, thiserror::Error)]
#[error("cannot read a stored {what}: {why}")]
pub struct DecodeError {
    pub what: &'static str,
    pub why: String,
}

/// Encodes a value.
///
/// # Panics
/// When the type cannot be serialised at all (a map with a struct key, say): a bug of ours, found by its first test.
pub fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("rows are plain data")
}

pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    rmp_serde::from_slice(bytes).map_err(|e| DecodeError {
        what: std::any::type_name::<T>(),
        why: e.to_string(),
    })
}
