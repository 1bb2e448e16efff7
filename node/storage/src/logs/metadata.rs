//! Structured metadata of a block's lines: lines with the same names in the same order share a shape, and each name of
//! a shape is a column of strings.
//!
//! Layout: shapes:varint { 0, or 1 + names:varint { name:bytes } }, the shape of each row in planes, then per shape
//! and name the column as `bytes`. Shape 0 has one column of lines' metadata as they are: bytes that are no names and
//! values.

use super::column::{Scratch, Strings, get_strings, place_bytes, put_strings};
use crate::cursor::{Bad, Cursor, put_bytes, put_varint};
use std::collections::BTreeMap;

/// Lines of more shapes than this are kept as they are.
const SHAPES_MAX: usize = 4096;

/// Values of one line: where names end and values lie, as place << 32 | length.
#[derive(Default)]
pub struct MetadataEncoder {
    bytes: Vec<u8>,
    shapes: BTreeMap<Vec<u8>, u32>,
    order: Vec<Vec<u8>>,
    rows: Vec<Row>,
    values: Vec<u64>,
    key: Vec<u8>,
    any: bool,
}

#[derive(Clone, Copy)]
struct Row {
    shape: u32,
    values: u32,
}

/// Names of a shape stand in its key as `bytes`; this one stands for lines that are kept as they are.
const AS_IT_IS: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

impl MetadataEncoder {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.shapes.clear();
        self.order.clear();
        self.rows.clear();
        self.values.clear();
        self.any = false;
    }

    pub fn push(&mut self, metadata: &[u8]) {
        self.any |= !metadata.is_empty();
        let base = self.bytes.len();
        self.bytes.extend_from_slice(metadata);
        let first = self.values.len();
        self.key.clear();
        if self.pairs(metadata, base).is_err() {
            self.as_it_is(first, base, metadata.len());
        }
        let shape = match self.shapes.get(&self.key[..]) {
            Some(&shape) => shape,
            None => {
                if self.order.len() >= SHAPES_MAX && self.key != AS_IT_IS {
                    self.as_it_is(first, base, metadata.len());
                }
                let next = self.order.len() as u32;
                let shape = *self.shapes.entry(self.key.clone()).or_insert(next);
                if shape == next {
                    self.order.push(self.key.clone());
                }
                shape
            }
        };
        self.rows.push(Row {
            shape,
            values: first as u32,
        });
    }

    fn as_it_is(&mut self, first: usize, base: usize, len: usize) {
        self.values.truncate(first);
        self.values.push((base as u64) << 32 | len as u64);
        self.key.clear();
        self.key.extend_from_slice(AS_IT_IS);
    }

    fn pairs(&mut self, metadata: &[u8], base: usize) -> Result<(), Bad> {
        let c = &mut Cursor(metadata);
        let mut canonical = 0;
        while !c.0.is_empty() {
            let name = c.bytes()?;
            put_bytes(&mut self.key, name);
            let value = c.bytes()?;
            let at = base + metadata.len() - c.0.len() - value.len();
            self.values.push((at as u64) << 32 | value.len() as u64);
            canonical += crate::cursor::varint_len(name.len() as u64) + name.len();
            canonical += crate::cursor::varint_len(value.len() as u64) + value.len();
        }
        // Lengths that were not written in the shortest way would not come back.
        if canonical == metadata.len() {
            Ok(())
        } else {
            Err("a number is too long")
        }
    }

    /// Nothing if no line has metadata.
    pub fn put(&mut self, out: &mut Vec<u8>, scratch: &mut Scratch) {
        if !self.any {
            return;
        }
        put_varint(out, self.order.len() as u64);
        let names: Vec<usize> = self.order.iter().map(|key| put_names(out, key)).collect();
        for plane in 0..place_bytes(self.order.len()) {
            out.extend(self.rows.iter().map(|r| (r.shape >> (8 * plane)) as u8));
        }
        let (mut column, mut body) = (vec![], vec![]);
        for (shape, names) in names.into_iter().enumerate() {
            for name in 0..names {
                let of_shape = self.rows.iter().filter(|r| r.shape as usize == shape);
                column.clear();
                column.extend(of_shape.map(|r| self.values[r.values as usize + name]));
                body.clear();
                put_strings(&mut body, &self.bytes, &column, scratch);
                put_bytes(out, &body);
            }
        }
    }
}

/// Writes a shape; returns how many columns it has.
fn put_names(out: &mut Vec<u8>, key: &[u8]) -> usize {
    if key == AS_IT_IS {
        out.push(0);
        return 1;
    }
    let mut c = Cursor(key);
    let mut names = vec![];
    while let Ok(name) = c.bytes() {
        names.push(name);
        if c.0.is_empty() {
            break;
        }
    }
    put_varint(out, names.len() as u64 + 1);
    names.iter().for_each(|name| put_bytes(out, name));
    names.len()
}

struct Shape {
    /// None: the line's bytes as they are.
    names: Option<Vec<Vec<u8>>>,
    columns: Vec<Strings>,
}

/// The metadata of a block, unpacked.
pub struct Metadata {
    shapes: Vec<Shape>,
    /// Of each row: its shape, and its place among the rows of that shape.
    rows: Vec<(u32, u32)>,
}

impl Metadata {
    pub fn parse(bytes: &[u8], rows: usize) -> Result<Self, Bad> {
        let c = &mut Cursor(bytes);
        let n = c.count()?;
        let mut shapes = Vec::with_capacity(n);
        for _ in 0..n {
            let names = match c.count()? {
                0 => None,
                names => {
                    let names = (1..names).map(|_| c.bytes().map(<[u8]>::to_vec));
                    Some(names.collect::<Result<Vec<_>, Bad>>()?)
                }
            };
            shapes.push(Shape { names, columns: vec![] });
        }
        let width = place_bytes(n);
        let planes = c.take(rows * width)?;
        let mut counts = vec![0u32; n];
        let mut placed = Vec::with_capacity(rows);
        for row in 0..rows {
            let shape = (0..width).fold(0, |v, plane| v | (planes[plane * rows + row] as usize) << (8 * plane));
            let count = counts.get_mut(shape).ok_or("an unknown shape of metadata")?;
            placed.push((shape as u32, *count));
            *count += 1;
        }
        for (shape, &count) in shapes.iter_mut().zip(&counts) {
            for _ in 0..shape.names.as_ref().map_or(1, Vec::len) {
                shape.columns.push(get_strings(c.bytes()?, count as usize)?);
            }
        }
        c.end()?;
        Ok(Self { shapes, rows: placed })
    }

    /// Appends a row's metadata as it was given.
    pub fn put(&self, row: usize, out: &mut Vec<u8>) {
        let (shape, at) = self.rows[row];
        let shape = &self.shapes[shape as usize];
        match &shape.names {
            None => out.extend_from_slice(shape.columns[0].get(at as usize)),
            Some(names) => {
                for (name, column) in names.iter().zip(&shape.columns) {
                    put_bytes(out, name);
                    put_bytes(out, column.get(at as usize));
                }
            }
        }
    }
}
