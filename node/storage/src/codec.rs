//! A line as it passes through head, segments and readers, and its metadata as bytes.

use crate::cursor::{Bad, Cursor, put_bytes};
use bytes::Bytes;
use hindcast_model::{LogLine, TimestampNs};

/// A line as it lies in a head or block.
#[derive(Clone, Copy, Debug)]
pub struct RawLine<'a> {
    pub at: i64,
    pub line: &'a [u8],
    /// As `put_metadata` wrote it.
    pub metadata: &'a [u8],
}

impl RawLine<'_> {
    pub fn to_line(self) -> Result<LogLine, Bad> {
        Ok(LogLine {
            at: TimestampNs(self.at),
            line: Bytes::copy_from_slice(self.line),
            metadata: get_metadata(self.metadata)?,
        })
    }
    pub const fn bytes(&self) -> usize {
        self.line.len() + self.metadata.len()
    }
}

/// Nothing for no metadata; else each name and value.
pub fn put_metadata(out: &mut Vec<u8>, metadata: &[(String, String)]) {
    for (name, value) in metadata {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

fn get_metadata(bytes: &[u8]) -> Result<Vec<(String, String)>, Bad> {
    let mut c = Cursor(bytes);
    let mut metadata = vec![];
    while !c.0.is_empty() {
        metadata.push((c.text()?.to_owned(), c.text()?.to_owned()));
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn metadata_come_back(given in prop::collection::vec((".{0,5}", ".{0,5}"), 0..4)) {
            let mut bytes = vec![];
            put_metadata(&mut bytes, &given);
            prop_assert_eq!(get_metadata(&bytes).unwrap(), given);
        }

        #[test]
        fn any_bytes_are_metadata_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = get_metadata(&bytes);
        }
    }
}
