//! Definitions of series as bytes: what a file of them holds. Layout: `FORMAT-index.md`.
//!
//! A definition is a shape (which labels), an owner and one number per label. Numbers of one label lie in one column,
//! as differences: the series of a scrape share most values, and the next scraped target repeats the steps of the one
//! before, so zstd finds long equal runs.
//!
//! Decoding takes any bytes. Besides what the file's own length bounds, it allocates at most `RAW_BYTES_MAX` for the
//! unpacked body, `TEXT_BYTES_MAX` for values, `SETS_BYTES_MAX` for label sets, and 24 bytes per 1,024 skipped ids.

use super::directory::Directory;
use super::values::{Texts, Values};
use crate::cursor::{Bad, Cursor, put_bytes, put_signed, put_varint};
use hindcast_env::fuzz::sum_fits;
use hindcast_model::{Kind, Owner, ResourceId, TenantId};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::Range;

const MAGIC: &[u8; 8] = b"HCSERIE\n";
const VERSION: u16 = 1;
const ZSTD_LEVEL: i32 = 3;
const CRC_BYTES: usize = 4;
/// Bodies larger than this were not written by us.
const RAW_BYTES_MAX: u64 = 1 << 32;
/// So were distinct values of more text than this, written out.
const TEXT_BYTES_MAX: usize = 1 << 32;
/// And label sets of more memory than this.
const SETS_BYTES_MAX: usize = 1 << 34;
/// In the column of shapes: ids of which nothing is known any more; their number follows.
const GAP: u64 = 0;

// ---- writing ----

/// Numbers as differences from the one before.
#[derive(Default)]
struct Column {
    bytes: Vec<u8>,
    last: u32,
}

impl Column {
    fn put(&mut self, n: u32) {
        put_signed(&mut self.bytes, i64::from(n) - i64::from(self.last));
        self.last = n;
    }
}

struct Label {
    name: String,
    values: Texts,
    column: Column,
}

struct Space {
    tenant: TenantId,
    streams: bool,
    labels: Vec<Label>,
    by_name: BTreeMap<String, u32>,
}

impl Space {
    fn label(&mut self, name: &str) -> u32 {
        if let Some(&known) = self.by_name.get(name) {
            return known;
        }
        let at = self.labels.len() as u32;
        self.by_name.insert(name.to_owned(), at);
        self.labels.push(Label {
            name: name.to_owned(),
            values: Texts::default(),
            column: Column::default(),
        });
        at
    }
}

/// Gives each new thing the next number.
struct Numbers<T> {
    numbers: BTreeMap<T, u32>,
    in_order: Vec<T>,
}

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self {
            numbers: BTreeMap::new(),
            in_order: vec![],
        }
    }
}

impl<T: Ord + Clone> Numbers<T> {
    fn of(&mut self, thing: &T) -> u32 {
        if let Some(&known) = self.numbers.get(thing) {
            return known;
        }
        let n = self.in_order.len() as u32;
        self.numbers.insert(thing.clone(), n);
        self.in_order.push(thing.clone());
        n
    }
}

#[derive(Default)]
struct Writer {
    spaces: Vec<Space>,
    /// By the directory's number.
    space_numbers: BTreeMap<u32, u32>,
    /// Space, then labels in the order of names.
    shapes: Numbers<Vec<u32>>,
    owners: Numbers<Owner>,
    shape_column: Vec<u8>,
    owner_column: Column,
    gap: u32,
    scratch: Vec<u32>,
}

impl Writer {
    fn space(&mut self, number: u32, tenant: &TenantId, streams: bool) -> u32 {
        let next = self.spaces.len() as u32;
        let known = *self.space_numbers.entry(number).or_insert(next);
        if known == next {
            self.spaces.push(Space {
                tenant: tenant.clone(),
                streams,
                labels: vec![],
                by_name: BTreeMap::new(),
            });
        }
        known
    }

    fn add(&mut self, directory: &Directory, id: u32) {
        let (Some(series), Some(number)) = (directory.get(id), directory.space_of_id(id)) else {
            self.gap += 1;
            return;
        };
        self.end_gap();
        let at = self.space(number, series.tenant(), series.streams);
        let mut shape = std::mem::take(&mut self.scratch);
        shape.clear();
        shape.push(at);
        let space = &mut self.spaces[at as usize];
        for (name, value) in series.labels().iter() {
            let label = space.label(name);
            shape.push(label);
            let label = &mut space.labels[label as usize];
            // Most series have the value of the one before.
            let last = label.column.last;
            let same = (last as usize) < label.values.len() && label.values.get(last) == value;
            let n = if same { last } else { label.values.find_or_add(value).0 };
            label.column.put(n);
        }
        put_varint(&mut self.shape_column, GAP + 1 + u64::from(self.shapes.of(&shape)));
        self.scratch = shape;
        let owner = match series.owner {
            Owner::None => 0,
            owner => 1 + self.owners.of(&owner),
        };
        self.owner_column.put(owner);
    }

    fn end_gap(&mut self) {
        if self.gap > 0 {
            put_varint(&mut self.shape_column, GAP);
            put_varint(&mut self.shape_column, u64::from(self.gap));
            self.gap = 0;
        }
    }

    fn body(mut self, first_id: u32, ids: u32) -> Vec<u8> {
        self.end_gap();
        let mut out = vec![];
        put_varint(&mut out, u64::from(first_id));
        put_varint(&mut out, u64::from(ids));
        put_varint(&mut out, self.spaces.len() as u64);
        for space in &self.spaces {
            put_bytes(&mut out, space.tenant.as_str().as_bytes());
            out.push(u8::from(space.streams));
            put_varint(&mut out, space.labels.len() as u64);
            for label in &space.labels {
                put_bytes(&mut out, label.name.as_bytes());
                put_texts(&mut out, &label.values);
            }
        }
        put_varint(&mut out, self.shapes.in_order.len() as u64);
        for shape in &self.shapes.in_order {
            put_varint(&mut out, u64::from(shape[0]));
            put_varint(&mut out, shape.len() as u64 - 1);
            shape[1..].iter().for_each(|l| put_varint(&mut out, u64::from(*l)));
        }
        put_varint(&mut out, self.owners.in_order.len() as u64);
        for owner in &self.owners.in_order {
            put_owner(&mut out, owner);
        }
        put_bytes(&mut out, &self.shape_column);
        put_bytes(&mut out, &self.owner_column.bytes);
        for label in self.spaces.iter().flat_map(|s| &s.labels) {
            put_bytes(&mut out, &label.column.bytes);
        }
        out
    }
}

fn put_texts(out: &mut Vec<u8>, texts: &Texts) {
    put_varint(out, texts.len() as u64);
    let mut last = "";
    for text in texts.iter() {
        let both = last.char_indices().zip(text.char_indices());
        let same = both.take_while(|(a, b)| a == b);
        let shared = same.last().map_or(0, |((at, c), _)| at + c.len_utf8());
        put_varint(out, shared as u64);
        put_bytes(out, &text.as_bytes()[shared..]);
        last = text;
    }
}

fn put_owner(out: &mut Vec<u8>, owner: &Owner) {
    if let Owner::Resource { id, kind } = owner {
        // The order of `Kind::ALL`: kinds are only ever added at its end.
        let code = Kind::ALL.iter().position(|k| k == kind).expect("all kinds are listed");
        out.push(code as u8);
        out.extend_from_slice(&id.0);
    }
}

fn pack(raw: &[u8]) -> Vec<u8> {
    assert!(
        raw.len() as u64 <= RAW_BYTES_MAX,
        "definitions stay below {RAW_BYTES_MAX} bytes"
    );
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(raw.len() as u64).to_le_bytes());
    out.extend(zstd::bulk::compress(raw, ZSTD_LEVEL).expect("memory is all that packing needs"));
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

// ---- reading ----

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, Bad> {
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or("ends too early")?;
    if !sum_fits(crc32c::crc32c(body) == u32::from_le_bytes(*crc)) {
        return Err("the checksum does not fit");
    }
    let rest = body.strip_prefix(MAGIC).ok_or("these are not definitions of series")?;
    let (version, rest) = rest.split_first_chunk().ok_or("ends too early")?;
    if u16::from_le_bytes(*version) != VERSION {
        return Err("an unknown version of definitions");
    }
    let (len, frame) = rest.split_first_chunk().ok_or("ends too early")?;
    let len = u64::from_le_bytes(*len);
    if len > RAW_BYTES_MAX {
        return Err("is larger than definitions can be");
    }
    // Grows with what really comes out, whatever length is claimed.
    let mut raw = vec![];
    let mut unpacked = zstd::stream::read::Decoder::new(frame)
        .map_err(|_| "does not decompress")?
        .take(len + 1);
    unpacked.read_to_end(&mut raw).map_err(|_| "does not decompress")?;
    if raw.len() as u64 != len {
        return Err("has another length than it says");
    }
    Ok(raw)
}

/// A column while it is read.
struct Numbered<'a> {
    rest: Cursor<'a>,
    last: u32,
}

impl<'a> Numbered<'a> {
    fn read(c: &mut Cursor<'a>) -> Result<Self, Bad> {
        let rest = Cursor(c.bytes()?);
        Ok(Self { rest, last: 0 })
    }

    fn next(&mut self) -> Result<u32, Bad> {
        let n = i64::from(self.last).checked_add(self.rest.signed()?);
        let n = n
            .and_then(|n| u32::try_from(n).ok())
            .ok_or("a number is out of range")?;
        self.last = n;
        Ok(n)
    }
}

/// A label of the file as the directory has it.
struct ReadLabel<'a> {
    label: u32,
    values: Vec<u32>,
    column: Numbered<'a>,
    /// Ids that are not posted yet: those that follow each other and have this value, and those that have any.
    value: u32,
    of_value: Range<u32>,
    of_any: Range<u32>,
}

impl ReadLabel<'_> {
    /// The series of a scrape follow each other and share most values: a posting takes them as one run, which costs as
    /// much as a single one.
    fn post(&mut self, id: u32, value: u32, values: &mut Values) {
        if self.of_value.end != id || self.value != value {
            self.post_value(values);
            (self.value, self.of_value) = (value, id..id);
        }
        if self.of_any.end != id {
            self.post_any(values);
            self.of_any = id..id;
        }
        self.of_value.end = id + 1;
        self.of_any.end = id + 1;
    }

    fn post_value(&self, values: &mut Values) {
        if !self.of_value.is_empty() {
            values.add_run(self.value, self.of_value.clone());
        }
    }

    fn post_any(&self, values: &mut Values) {
        if !self.of_any.is_empty() {
            values.add_present(self.of_any.clone());
        }
    }
}

struct ReadSpace<'a> {
    /// The directory's.
    number: u32,
    labels: Vec<ReadLabel<'a>>,
    /// Ids that are not posted yet.
    ids: Range<u32>,
}

struct Reader<'a> {
    spaces: Vec<ReadSpace<'a>>,
    /// Place in `spaces`, and places in its labels.
    shapes: Vec<(usize, Vec<usize>)>,
    owners: Vec<Owner>,
    shape_column: Cursor<'a>,
    owner_column: Numbered<'a>,
}

impl<'a> Reader<'a> {
    /// Reads all but the columns, and enters labels and values into `directory`.
    fn read(c: &mut Cursor<'a>, directory: &mut Directory) -> Result<Self, Bad> {
        let mut text_bytes = 0;
        let spaces = (0..c.count()?)
            .map(|_| read_space(c, directory, &mut text_bytes))
            .collect::<Result<Vec<_>, Bad>>()?;
        let numbers: BTreeSet<u32> = spaces.iter().map(|s| s.number).collect();
        if numbers.len() < spaces.len() {
            // Runs of ids wait in each: of one label they would come out of order.
            return Err("a tenant occurs twice");
        }
        let shapes = (0..c.count()?)
            .map(|_| read_shape(c, directory, &spaces))
            .collect::<Result<Vec<_>, Bad>>()?;
        let owners = (0..c.count()?)
            .map(|_| read_owner(c))
            .collect::<Result<Vec<_>, Bad>>()?;
        let mut r = Self {
            spaces,
            shapes,
            owners,
            shape_column: Cursor(c.bytes()?),
            owner_column: Numbered::read(c)?,
        };
        for label in r.spaces.iter_mut().flat_map(|s| &mut s.labels) {
            label.column = Numbered::read(c)?;
        }
        c.end()?;
        Ok(r)
    }

    /// The next definition, or a gap.
    fn define(&mut self, directory: &mut Directory, pairs: &mut Vec<(u32, u32)>, ids_max: u32) -> Result<(), Bad> {
        let code = self.shape_column.varint()?;
        if code == GAP {
            let ids: u32 = self.shape_column.number()?;
            if ids == 0 || ids > ids_max {
                return Err("a gap has an impossible length");
            }
            return directory.skip(ids);
        }
        let shape = usize::try_from(code - GAP - 1).ok().and_then(|at| self.shapes.get(at));
        let (at, shape) = shape.ok_or("an unknown shape")?;
        let space = &mut self.spaces[*at];
        let id = directory.next_id();
        pairs.clear();
        for at in shape {
            let label = &mut space.labels[*at];
            let n = label.column.next()?;
            let value = *label.values.get(n as usize).ok_or("an unknown value")?;
            pairs.push((label.label, value));
            label.post(
                id,
                value,
                directory.spaces[space.number as usize].values_mut(label.label),
            );
        }
        let owner = match self.owner_column.next()? {
            0 => Owner::None,
            n => *self.owners.get(n as usize - 1).ok_or("an unknown owner")?,
        };
        if space.ids.end != id {
            directory.spaces[space.number as usize].post_run(space.ids.clone());
            space.ids = id..id;
        }
        space.ids.end = id + 1;
        directory.add_pairs(space.number, pairs, owner);
        Ok(())
    }

    /// Posts what waits.
    fn post_rest(&self, directory: &mut Directory) {
        for space in &self.spaces {
            let index = &mut directory.spaces[space.number as usize];
            index.post_run(space.ids.clone());
            for label in &space.labels {
                let values = index.values_mut(label.label);
                label.post_value(values);
                label.post_any(values);
            }
        }
    }

    fn end(&self) -> Result<(), Bad> {
        self.shape_column.end()?;
        self.owner_column.rest.end()?;
        let mut columns = self.spaces.iter().flat_map(|s| &s.labels);
        columns.try_for_each(|l| l.column.rest.end())
    }
}

fn read_space<'a>(c: &mut Cursor<'a>, directory: &mut Directory, text_bytes: &mut usize) -> Result<ReadSpace<'a>, Bad> {
    let tenant = TenantId::new(text(c)?).map_err(|_| "a tenant has an impossible name")?;
    let streams = match c.byte()? {
        0 => false,
        1 => true,
        _ => return Err("an unknown kind of rows"),
    };
    let number = directory.space(&tenant, streams);
    let (mut labels, mut seen) = (vec![], BTreeSet::new());
    for _ in 0..c.count()? {
        let label = directory.spaces[number as usize].label(text(c)?);
        if !seen.insert(label) {
            return Err("a label occurs twice");
        }
        labels.push(ReadLabel {
            label,
            values: read_values(c, directory, (number, label), text_bytes)?,
            column: Numbered {
                rest: Cursor(&[]),
                last: 0,
            },
            value: 0,
            of_value: 0..0,
            of_any: 0..0,
        });
    }
    Ok(ReadSpace {
        number,
        labels,
        ids: 0..0,
    })
}

fn read_values(
    c: &mut Cursor<'_>,
    directory: &mut Directory,
    (space, label): (u32, u32),
    text_bytes: &mut usize,
) -> Result<Vec<u32>, Bad> {
    let values = directory.spaces[space as usize].values_mut(label);
    let (mut numbers, mut last) = (vec![], String::new());
    for _ in 0..c.count()? {
        let shared: usize = c.number()?;
        if !last.is_char_boundary(shared) {
            return Err("a value shares more than there is");
        }
        last.truncate(shared);
        last.push_str(text(c)?);
        *text_bytes += last.len();
        if last.is_empty() || *text_bytes > TEXT_BYTES_MAX {
            return Err("a value has an impossible length");
        }
        numbers.push(values.value(&last));
    }
    Ok(numbers)
}

fn read_shape(c: &mut Cursor<'_>, directory: &Directory, spaces: &[ReadSpace<'_>]) -> Result<(usize, Vec<usize>), Bad> {
    let at: usize = c.number()?;
    let ReadSpace { number, labels, .. } = spaces.get(at).ok_or("an unknown tenant")?;
    let name = |place: &usize| directory.spaces[*number as usize].name(labels[*place].label);
    let shape = (0..c.count()?)
        .map(|_| {
            c.number().and_then(|l| {
                if l < labels.len() {
                    Ok(l)
                } else {
                    Err("an unknown label")
                }
            })
        })
        .collect::<Result<Vec<usize>, Bad>>()?;
    if !shape.is_sorted_by(|a, b| name(a) < name(b)) {
        return Err("labels do not ascend");
    }
    Ok((at, shape))
}

fn read_owner(c: &mut Cursor<'_>) -> Result<Owner, Bad> {
    let kind = *Kind::ALL
        .get(usize::from(c.byte()?))
        .ok_or("an unknown kind of resource")?;
    let id = c.take(16)?.try_into().map_err(|_| "ends too early")?;
    Ok(Owner::Resource {
        id: ResourceId(id),
        kind,
    })
}

fn text<'a>(c: &mut Cursor<'a>) -> Result<&'a str, Bad> {
    std::str::from_utf8(c.bytes()?).map_err(|_| "a text is not UTF-8")
}

/// Definitions of all ids from `first_id` on, before they are packed.
pub(super) fn body_of(directory: &Directory, first_id: u32) -> Vec<u8> {
    let mut w = Writer::default();
    let next_id = directory.next_id();
    let first_id = first_id.min(next_id);
    (first_id..next_id).for_each(|id| w.add(directory, id));
    w.body(first_id, next_id - first_id)
}

impl Directory {
    /// The definitions of all ids from `first_id` on, as one file.
    pub fn encode_from(&self, first_id: u32) -> Vec<u8> {
        pack(&body_of(self, first_id))
    }

    /// Adds what `encode_from` wrote; its first id must be the next one here. After an error the directory holds some
    /// of it and is of no use any more.
    pub fn load(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        self.load_body(&unpack(bytes)?)
    }

    pub(super) fn load_body(&mut self, raw: &[u8]) -> Result<(), Bad> {
        let mut c = Cursor(raw);
        if c.number::<u32>()? != self.next_id() {
            return Err("the ids do not follow those before");
        }
        let end = self
            .next_id()
            .checked_add(c.number()?)
            .ok_or("there are too many ids")?;
        let (mut reader, mut pairs) = (Reader::read(&mut c, self)?, vec![]);
        let first_id = self.next_id();
        let sets_bytes_max = self.label_bytes() + SETS_BYTES_MAX;
        while self.next_id() < end {
            reader.define(self, &mut pairs, end - self.next_id())?;
            if self.label_bytes() > sets_bytes_max {
                return Err("label sets are larger than they can be");
            }
        }
        reader.end()?;
        self.enter_from(first_id)?;
        reader.post_rest(self);
        self.shrink();
        Ok(())
    }
}
