//! Samples as a log entry brings them: many series at the same times, named by their ids.

/// Consecutive ids of a shard's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: u32,
    pub len: u32,
}

impl Run {
    pub fn ids(self) -> impl Iterator<Item = u32> {
        self.first..self.first + self.len
    }
}

/// One block of samples: each series of `runs`, in their order, at each of `times`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Event times in nanoseconds, in any order.
    pub times: &'a [i64],
    pub runs: &'a [Run],
    /// Little-endian f64, row after row: `times.len() * width` of them.
    pub values: &'a [u8],
}

pub const VALUE_BYTES: usize = 8;

impl<'a> Rows<'a> {
    /// Series of a row.
    pub fn width(&self) -> usize {
        self.runs.iter().map(|r| r.len as usize).sum()
    }

    pub fn ids(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.runs.iter().flat_map(|r| r.ids())
    }

    pub fn value(&self, at: usize) -> f64 {
        let bytes = &self.values[at * VALUE_BYTES..][..VALUE_BYTES];
        f64::from_le_bytes(bytes.try_into().unwrap_or_default())
    }
}
