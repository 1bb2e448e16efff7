//! The newest event time of every series, as a file: what decides when a series is over.

use crate::cursor::{Bad, Cursor, put_signed, put_varint};

const ZSTD_LEVEL: i32 = 1;
/// A signed varint takes no more.
const TIME_BYTES_MAX: usize = 10;

pub fn encode(newest: &[i64]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(newest.len() * 3);
    let mut before = 0i64;
    for &at in newest {
        put_signed(&mut raw, at.wrapping_sub(before));
        before = at;
    }
    let mut out = vec![];
    put_varint(&mut out, newest.len() as u64);
    let packed = zstd::bulk::compress(&raw, ZSTD_LEVEL).expect("compressing into memory cannot fail");
    out.extend_from_slice(&packed);
    out
}

/// The times of ids below `ids`, which a directory knows.
pub fn decode(bytes: &[u8], ids: u32) -> Result<Vec<i64>, Bad> {
    let mut c = Cursor(bytes);
    let n: u32 = c.number()?;
    if n > ids {
        return Err("it has more series than the directory");
    }
    let raw = zstd::bulk::decompress(c.0, n as usize * TIME_BYTES_MAX).map_err(|_| "it does not decompress")?;
    let mut c = Cursor(&raw);
    let mut at = 0i64;
    let mut newest = Vec::with_capacity(n as usize);
    for _ in 0..n {
        at = at.wrapping_add(c.signed()?);
        newest.push(at);
    }
    c.end()?;
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_come_back(times in prop::collection::vec(any::<i64>(), 0..50)) {
            prop_assert_eq!(decode(&encode(&times), times.len() as u32).unwrap(), times);
        }

        #[test]
        fn any_bytes_are_times_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&bytes, 1000);
        }
    }
}
