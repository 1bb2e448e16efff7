//! One series' values in a chunk: packed when the chunk closes, unpacked when it is read. Never leaves memory.

/// Packs values; keeps its buffers between pages.
#[derive(Default)]
pub struct Packer;

impl Packer {
    pub fn put(&mut self, values: &[f64], out: &mut Vec<u8>) {
        for v in values {
            out.extend_from_slice(&v.to_le_bytes());
        }
    }
}

/// The `n` values of a page.
pub fn unpack(page: &[u8], n: usize, values: &mut Vec<f64>) {
    values.clear();
    let (page, _) = page.as_chunks::<8>();
    values.extend(page.iter().take(n).map(|v| f64::from_le_bytes(*v)));
}
