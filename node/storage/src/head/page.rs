//! One series' values in a chunk: packed when the chunk closes, unpacked when it is read. Never leaves memory.

use crate::metric::{Encoder, Page, Scratch};

/// Packs values; keeps its buffers between pages.
#[derive(Default)]
pub struct Packer(Encoder);

impl Packer {
    pub fn put(&mut self, values: &[f64], out: &mut Vec<u8>) {
        if !values.is_empty() {
            self.0.encode(values, out);
        }
    }
}

/// Unpacks pages; keeps its buffers between them.
#[derive(Default)]
pub struct Unpacker(Scratch);

impl Unpacker {
    /// Appends the `n` values of a page.
    pub fn append(&mut self, page: &[u8], n: usize, values: &mut Vec<f64>) {
        if n > 0 {
            let decoded = Page::parse(page, n).and_then(|p| p.decode_into(values, &mut self.0));
            decoded.expect("a page in memory is what was packed");
        }
    }
}
