//! A file, read through a window of bounded size.

use super::Damage;
use bytes::Bytes;
use hindcast_env::{Disk, ReadAt};
use std::sync::Arc;

/// What is read at once where reading goes on.
const WINDOW_BYTES: usize = 256 * 1024;

pub struct Window {
    file: Arc<dyn ReadAt>,
    pub path: String,
    start: u64,
    bytes: Bytes,
    pub len: u64,
}

impl Window {
    pub fn open(disk: &dyn Disk, path: &str) -> Result<Self, Damage> {
        let file = disk
            .open_read(path)
            .map_err(|e| Damage::new(path, 0, format_args!("it cannot be opened: {}", e.source)))?;
        Ok(Self {
            len: file.len(),
            file,
            path: path.to_owned(),
            start: 0,
            bytes: Bytes::new(),
        })
    }

    /// The same file through a window of its own.
    pub fn again(&self) -> Self {
        Self {
            file: self.file.clone(),
            path: self.path.clone(),
            start: 0,
            bytes: Bytes::new(),
            len: self.len,
        }
    }

    /// Exactly these bytes.
    pub fn get(&mut self, offset: u64, len: usize) -> Result<Bytes, Damage> {
        let bytes = self.up_to(offset, len)?;
        if bytes.len() < len {
            return Err(self.damage(offset, "the file ends too early"));
        }
        Ok(bytes)
    }

    /// These bytes, or as many of them as the file has.
    pub fn up_to(&mut self, offset: u64, len: usize) -> Result<Bytes, Damage> {
        let left = self.len.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(len);
        if let Some(at) = offset.checked_sub(self.start)
            && let Ok(at) = usize::try_from(at)
            && self.bytes.len().checked_sub(at).is_some_and(|n| n >= len)
        {
            return Ok(self.bytes.slice(at..at + len));
        }
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(len.max(WINDOW_BYTES));
        let read = self.file.read_at(offset, wanted);
        self.bytes = read.map_err(|e| self.damage(offset, format_args!("it cannot be read: {}", e.source)))?;
        self.start = offset;
        Ok(self.bytes.slice(..len))
    }

    /// The checksum of these bytes, a window at a time.
    pub fn checksum(&mut self, from: u64, to: u64) -> Result<u32, Damage> {
        let (mut at, mut sum) = (from, 0);
        while at < to {
            let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(WINDOW_BYTES);
            sum = crc32c::crc32c_append(sum, &self.get(at, len)?);
            at += len as u64;
        }
        Ok(sum)
    }

    pub fn is_zero_from(&mut self, from: u64) -> Result<bool, Damage> {
        let mut at = from;
        while at < self.len {
            let bytes = self.up_to(at, WINDOW_BYTES)?;
            if bytes.iter().any(|b| *b != 0) {
                return Ok(false);
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }

    pub fn damage(&self, offset: u64, why: impl std::fmt::Display) -> Damage {
        Damage::new(&self.path, offset, why)
    }
}
