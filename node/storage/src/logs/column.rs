//! Columns of a block: the values of one variable over the lines that have it, as numbers or as strings.
//!
//! Numbers, by tag: 0 one value:varint; 1 differences:signed (wrapping, the first from 0); 2 planes: least:varint,
//! bytes per value:u8, then all lowest bytes of value - least, all second bytes, …; 3 dictionary: values in tag 1's
//! form behind their count:varint, then the place of each row's value in planes of one or two bytes.
//!
//! Strings, by tag: 0 list: one string per row; 1 dictionary: count:varint, list, the place of each row's in planes of
//! one to three bytes (none for one string). A list starts with its form: 0 lengths:varint …, bytes; 1 length:varint,
//! bytes; 2 as 1, of lower-case hex digits, two to a byte; 3 UUIDs, 16 bytes each.

use super::template::is_uuid;
use super::words::{DELIMITER, KINDS};
use crate::cursor::{Bad, Cursor, put_signed, put_varint, unzigzag, zigzag};
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

const ONE: u8 = 0;
const STEPS: u8 = 1;
const PLANES: u8 = 2;
const DICTIONARY: u8 = 3;
/// Below so many rows a dictionary is not tried.
const DICTIONARY_ROWS_MIN: usize = 16;
const DICTIONARY_MAX: usize = 1 << 16;

const fn bits(v: u64) -> usize {
    64 - v.leading_zeros() as usize
}

fn put_planes(out: &mut Vec<u8>, values: impl Iterator<Item = u64> + Clone, width: usize) {
    for plane in 0..width {
        out.extend(values.clone().map(|v| (v >> (8 * plane)) as u8));
    }
}

fn get_planes(c: &mut Cursor<'_>, rows: usize, width: usize) -> Result<Vec<u64>, Bad> {
    if width > 8 {
        return Err("a number has too many bytes");
    }
    let planes = c.take(rows.checked_mul(width).ok_or("a column is too long")?)?;
    let mut values = vec![0u64; rows];
    for plane in 0..width {
        let bytes = &planes[plane * rows..(plane + 1) * rows];
        for (v, &b) in values.iter_mut().zip(bytes) {
            *v |= u64::from(b) << (8 * plane);
        }
    }
    Ok(values)
}

/// Bytes that hold any of `n` places.
pub const fn place_bytes(n: usize) -> usize {
    match n {
        0..=1 => 0,
        2..=0x100 => 1,
        0x101..=0x1_0000 => 2,
        _ => 3,
    }
}

/// Memory that columns are encoded with.
#[derive(Default)]
pub struct Scratch {
    table: HashTable<u32>,
    distinct: Vec<u64>,
    places: Vec<u32>,
}

impl Scratch {
    /// Fills `distinct` and `places`; false if there are too many to pay.
    fn collect(&mut self, values: &[u64], hash: impl Fn(u64) -> u64, same: impl Fn(u64, u64) -> bool) -> bool {
        self.table.clear();
        self.distinct.clear();
        self.places.clear();
        let most = (values.len() / 2).min(DICTIONARY_MAX);
        let mut last = None;
        for &v in values {
            // Neighbours are often the same.
            if let Some((w, place)) = last
                && w == v
            {
                self.places.push(place);
                continue;
            }
            let h = hash(v);
            let found = self.table.find(h, |&p| same(self.distinct[p as usize], v)).copied();
            let place = match found {
                Some(place) => place,
                None if self.distinct.len() >= most => return false,
                None => {
                    let place = self.distinct.len() as u32;
                    let distinct = &mut self.distinct;
                    distinct.push(v);
                    self.table.insert_unique(h, place, |&p| hash(distinct[p as usize]));
                    place
                }
            };
            self.places.push(place);
            last = Some((v, place));
        }
        true
    }

    fn places(&self) -> impl Iterator<Item = u64> + Clone {
        self.places.iter().map(|&p| u64::from(p))
    }
}

fn mixed(v: u64) -> u64 {
    let x = (v ^ (v >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

pub fn put_numbers(out: &mut Vec<u8>, values: &[u64], scratch: &mut Scratch) {
    let (least, most) = values.iter().fold((u64::MAX, 0), |(a, b), &v| (a.min(v), b.max(v)));
    if least >= most {
        out.push(ONE);
        put_varint(out, values.first().copied().unwrap_or(0));
        return;
    }
    let range = bits(most - least);
    let (mut last, mut stepped) = (0u64, 0);
    for &v in values {
        stepped += bits(zigzag(v.wrapping_sub(last) as i64)) + 1;
        last = v;
    }
    let planes = values.len() * range;
    let stepping = stepped * 10 < planes * 9;
    if range > 8 && values.len() >= DICTIONARY_ROWS_MIN && scratch.collect(values, mixed, |a, b| a == b) {
        let n = scratch.distinct.len();
        let cost = values.len() * bits(n as u64 - 1) + n * (range + 4);
        if cost * 10 < stepped.min(planes) * 9 {
            out.push(DICTIONARY);
            put_varint(out, n as u64);
            put_steps(out, &scratch.distinct);
            put_planes(out, scratch.places(), place_bytes(n));
            return;
        }
    }
    if stepping {
        out.push(STEPS);
        put_steps(out, values);
    } else {
        out.push(PLANES);
        put_varint(out, least);
        let width = range.div_ceil(8);
        out.push(width as u8);
        put_planes(out, values.iter().map(|v| v - least), width);
    }
}

fn put_steps(out: &mut Vec<u8>, values: &[u64]) {
    let mut last = 0u64;
    for &v in values {
        put_signed(out, v.wrapping_sub(last) as i64);
        last = v;
    }
}

fn get_steps(c: &mut Cursor<'_>, n: usize) -> Result<Vec<u64>, Bad> {
    if n > c.0.len() {
        return Err("a column is cut short");
    }
    let mut values = Vec::with_capacity(n);
    let mut last = 0u64;
    for _ in 0..n {
        last = last.wrapping_add(unzigzag(c.varint()?) as u64);
        values.push(last);
    }
    Ok(values)
}

/// `rows` was checked against the block's; so nothing larger than a block's rows is allocated.
pub fn get_numbers(bytes: &[u8], rows: usize) -> Result<Vec<u64>, Bad> {
    let c = &mut Cursor(bytes);
    let values = match c.byte()? {
        ONE => vec![c.varint()?; rows],
        STEPS => get_steps(c, rows)?,
        PLANES => {
            let (least, width) = (c.varint()?, c.byte()?);
            let mut values = get_planes(c, rows, width as usize)?;
            values.iter_mut().for_each(|v| *v = v.wrapping_add(least));
            values
        }
        DICTIONARY => {
            let n = c.count()?;
            let distinct = get_steps(c, n)?;
            let mut values = get_planes(c, rows, place_bytes(n))?;
            for v in &mut values {
                *v = *distinct.get(*v as usize).ok_or("a value is not in the dictionary")?;
            }
            values
        }
        _ => return Err("an unknown kind of numbers"),
    };
    c.end()?;
    Ok(values)
}

/// The value of one row, without unpacking those behind it. `row` is below `rows`.
pub fn number_at(bytes: &[u8], rows: usize, row: usize) -> Result<u64, Bad> {
    let c = &mut Cursor(bytes);
    Ok(match c.byte()? {
        ONE => c.varint()?,
        STEPS => {
            let mut value = 0u64;
            for _ in 0..=row {
                value = value.wrapping_add(unzigzag(c.varint()?) as u64);
            }
            value
        }
        PLANES => {
            let (least, width) = (c.varint()?, c.byte()?);
            least.wrapping_add(plane_value(c, rows, width as usize, row)?)
        }
        DICTIONARY => {
            let n = c.count()?;
            let distinct = get_steps(c, n)?;
            let place = plane_value(c, rows, place_bytes(n), row)?;
            *distinct.get(place as usize).ok_or("a value is not in the dictionary")?
        }
        _ => return Err("an unknown kind of numbers"),
    })
}

fn plane_value(c: &mut Cursor<'_>, rows: usize, width: usize, row: usize) -> Result<u64, Bad> {
    if width > 8 {
        return Err("a number has too many bytes");
    }
    let planes = c.take(rows.checked_mul(width).ok_or("a column is too long")?)?;
    Ok((0..width).fold(0, |v, plane| v | u64::from(planes[plane * rows + row]) << (8 * plane)))
}

const LIST: u8 = 0;
const DISTINCT: u8 = 1;
const ANY: u8 = 0;
const EVEN: u8 = 1;
const HEXED: u8 = 2;
const UUIDS: u8 = 3;

/// Which bytes strings may hold: lets a search rule a column out unread.
pub mod holds {
    pub const DIGITS: u8 = 1;
    pub const A_TO_F: u8 = 2;
    pub const OTHER_LOWER: u8 = 4;
    pub const UPPER: u8 = 8;
    pub const DASH: u8 = 16;
    /// Other bytes of words.
    pub const OTHER: u8 = 32;
    /// Delimiters but the dash.
    pub const DELIMITERS: u8 = 64;
}

pub const fn held(b: u8) -> u8 {
    match b {
        b'0'..=b'9' => holds::DIGITS,
        b'a'..=b'f' => holds::A_TO_F,
        b'g'..=b'z' => holds::OTHER_LOWER,
        b'A'..=b'Z' => holds::UPPER,
        b'-' => holds::DASH,
        _ if KINDS[b as usize] & DELIMITER != 0 => holds::DELIMITERS,
        _ => holds::OTHER,
    }
}

const HELD: [u8; 256] = {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = held(b as u8);
        b += 1;
    }
    table
};

fn slice(text: &[u8], value: u64) -> &[u8] {
    let (at, len) = ((value >> 32) as usize, value as u32 as usize);
    &text[at..at + len]
}

/// Strings that lie in `text` at place << 32 | length. Returns what they hold.
pub fn put_strings(out: &mut Vec<u8>, text: &[u8], values: &[u64], scratch: &mut Scratch) -> u8 {
    let hash = |v: u64| xxh3_64(slice(text, v));
    let same = |a: u64, b: u64| slice(text, a) == slice(text, b);
    let first = values.first().copied().unwrap_or(0);
    if values.iter().all(|&v| same(v, first)) {
        out.extend_from_slice(&[DISTINCT, 1]);
        return put_list(out, text, &[first]);
    }
    if values.len() >= 4 && scratch.collect(values, hash, same) {
        let n = scratch.distinct.len();
        out.push(DISTINCT);
        put_varint(out, n as u64);
        let held = put_list(out, text, &scratch.distinct);
        put_planes(out, scratch.places(), place_bytes(n));
        return held;
    }
    out.push(LIST);
    put_list(out, text, values)
}

fn put_list(out: &mut Vec<u8>, text: &[u8], values: &[u64]) -> u8 {
    let mut all = 0;
    let len = slice(text, values[0]).len();
    let (mut even, mut uuids) = (true, true);
    for &v in values {
        let s = slice(text, v);
        even &= s.len() == len;
        uuids = uuids && is_uuid(s);
        all = s.iter().fold(all, |all, &b| all | HELD[b as usize]);
    }
    let nibble = |b: u8| if b <= b'9' { b - b'0' } else { b - b'a' + 10 };
    if uuids {
        out.push(UUIDS);
        for &v in values {
            let s = slice(text, v);
            let mut digits = s.iter().filter(|&&b| b != b'-');
            while let (Some(&a), Some(&b)) = (digits.next(), digits.next()) {
                out.push(nibble(a) << 4 | nibble(b));
            }
        }
    } else if even && len > 0 && len.is_multiple_of(2) && all & !(holds::DIGITS | holds::A_TO_F) == 0 {
        out.push(HEXED);
        put_varint(out, len as u64);
        for &v in values {
            out.extend(slice(text, v).chunks_exact(2).map(|p| nibble(p[0]) << 4 | nibble(p[1])));
        }
    } else if even {
        out.push(EVEN);
        put_varint(out, len as u64);
        values.iter().for_each(|&v| out.extend_from_slice(slice(text, v)));
    } else {
        out.push(ANY);
        values.iter().for_each(|&v| put_varint(out, v as u32 as u64));
        values.iter().for_each(|&v| out.extend_from_slice(slice(text, v)));
    }
    all
}

/// A column of strings, unpacked.
#[derive(Debug)]
pub struct Strings {
    text: Vec<u8>,
    /// Ends of the distinct strings in `text`.
    ends: Vec<u32>,
    /// The place of each row's string; none: row by row, or all the same.
    places: Option<Vec<u64>>,
    one: bool,
}

impl Strings {
    pub fn get(&self, row: usize) -> &[u8] {
        match &self.places {
            Some(places) => self.distinct(places[row] as usize),
            None if self.one => self.distinct(0),
            None => self.distinct(row),
        }
    }

    fn distinct(&self, place: usize) -> &[u8] {
        let start = if place == 0 { 0 } else { self.ends[place - 1] as usize };
        &self.text[start..self.ends[place] as usize]
    }
}

/// Strings of one list unpack to at most so much: a block's text is smaller.
const TEXT_BYTES_MAX: usize = 1 << 28;

pub fn get_strings(bytes: &[u8], rows: usize) -> Result<Strings, Bad> {
    let c = &mut Cursor(bytes);
    let strings = match c.byte()? {
        LIST => {
            let (text, ends) = get_list(c, rows)?;
            Strings {
                text,
                ends,
                places: None,
                one: false,
            }
        }
        DISTINCT => {
            let n = c.number()?;
            if n == 0 || n > rows.max(1) {
                return Err("a dictionary has an impossible length");
            }
            let (text, ends) = get_list(c, n)?;
            let width = place_bytes(n);
            let places = if width == 0 {
                None
            } else {
                Some(get_planes(c, rows, width)?)
            };
            if places.iter().flatten().any(|&p| p >= n as u64) {
                return Err("a string is not in the dictionary");
            }
            Strings {
                text,
                ends,
                places,
                one: width == 0,
            }
        }
        _ => return Err("an unknown kind of strings"),
    };
    c.end()?;
    Ok(strings)
}

fn get_list(c: &mut Cursor<'_>, n: usize) -> Result<(Vec<u8>, Vec<u32>), Bad> {
    let form = c.byte()?;
    let mut ends = Vec::with_capacity(n.min(TEXT_BYTES_MAX));
    if form == ANY {
        let mut end = 0u32;
        for _ in 0..n {
            end = end.checked_add(c.number()?).ok_or("a string is too long")?;
            ends.push(end);
        }
        return Ok((c.take(end as usize)?.to_vec(), ends));
    }
    let len = if form == UUIDS { 36 } else { c.number::<usize>()? };
    let total = len
        .checked_mul(n)
        .filter(|&t| t <= TEXT_BYTES_MAX)
        .ok_or("strings are too long")?;
    ends.extend((1..=n).map(|i| (i * len) as u32));
    const DIGITS_OF: &[u8; 16] = b"0123456789abcdef";
    let text = match form {
        EVEN => c.take(total)?.to_vec(),
        HEXED if len.is_multiple_of(2) => {
            let packed = c.take(total / 2)?;
            let pairs = packed
                .iter()
                .flat_map(|&b| [DIGITS_OF[b as usize >> 4], DIGITS_OF[b as usize & 15]]);
            pairs.collect()
        }
        UUIDS => {
            let mut text = Vec::with_capacity(total);
            for uuid in c.take(n * 16)?.chunks_exact(16) {
                for (i, &b) in uuid.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        text.push(b'-');
                    }
                    text.extend_from_slice(&[DIGITS_OF[b as usize >> 4], DIGITS_OF[b as usize & 15]]);
                }
            }
            text
        }
        _ => return Err("an unknown form of strings"),
    };
    Ok((text, ends))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(values in prop_oneof![
            prop::collection::vec(any::<u64>(), 1..100),
            prop::collection::vec(0u64..500, 1..300),
            prop::collection::vec((0u64..20).prop_map(|v| v * 1_000_003 + (1 << 62)), 1..300),
            (any::<u64>(), 1usize..300).prop_map(|(v, n)| (0..n as u64).map(|i| v.wrapping_add(i * i)).collect()),
        ]) {
            let mut out = vec![];
            put_numbers(&mut out, &values, &mut Scratch::default());
            let one_by_one: Result<Vec<u64>, Bad> = (0..values.len()).map(|row| number_at(&out, values.len(), row)).collect();
            prop_assert_eq!(one_by_one.unwrap(), &values[..]);
            prop_assert_eq!(get_numbers(&out, values.len()).unwrap(), values);
        }

        #[test]
        fn strings_come_back(values in prop_oneof![
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..10), 1..100),
            prop::collection::vec("[a-c]{1,2}".prop_map(String::into_bytes), 1..400),
            prop::collection::vec("[a-f0-9]{8}".prop_map(String::into_bytes), 1..100),
            prop::collection::vec("[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12}".prop_map(String::into_bytes), 1..40),
        ]) {
            let text = values.concat();
            let mut at = 0;
            let places: Vec<u64> = values.iter().map(|v| {
                at += v.len() as u64;
                (at - v.len() as u64) << 32 | v.len() as u64
            }).collect();
            let mut out = vec![];
            put_strings(&mut out, &text, &places, &mut Scratch::default());
            let back = get_strings(&out, values.len()).unwrap();
            let back: Vec<&[u8]> = (0..values.len()).map(|i| back.get(i)).collect();
            prop_assert_eq!(back, values);
        }

        #[test]
        fn any_bytes_are_a_column_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 1..60), rows in 1usize..50, tag in 0u8..5) {
            bytes[0] = tag;
            if let Ok(all) = get_numbers(&bytes, rows) {
                (0..rows).for_each(|row| assert_eq!(number_at(&bytes, rows, row), Ok(all[row])));
            }
            for row in 0..rows {
                let _ = number_at(&bytes, rows, row);
            }
            if let Ok(strings) = get_strings(&bytes, rows) {
                (0..rows).for_each(|i| { strings.get(i); });
            }
        }
    }
}
