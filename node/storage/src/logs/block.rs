//! A block: the lines of one stream over some time, ascending; lines of one time in the order they were given.
//!
//! Lines are split (`template.rs`) and kept column by column, or, when they have no templates to speak of, as plain
//! text. A block is a few sections, each packed and checked alone, so that a query reads only those it needs.

use super::column::{Scratch, Strings, get_numbers, get_strings, number_at, place_bytes, put_numbers, put_strings};
use super::metadata::{Metadata, MetadataEncoder};
use super::template::{Splitter, Token, Var, put_value, template_words, tokens};
use super::times::{Times, put_times};
use super::words::{Words, each_word};
use crate::codec::RawLine;
use crate::container::Unpacker;
use crate::cursor::{Bad, Cursor, put_bytes, put_signed, put_varint};
use crate::error::{Damage, ReadError};
use bytes::Bytes;
use hashbrown::HashTable;
use hindcast_env::fuzz::sum_fits;
use hindcast_env::planted::{Bug, planted};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use xxhash_rust::xxh3::xxh3_64;

/// Rows of one block.
pub const ROWS_MAX: usize = 1 << 20;
/// Lines of one block that a head or a file takes, however short.
pub const BLOCK_ROWS_MAX: usize = 1 << 17;
/// No section is larger, unpacked.
pub const SECTION_BYTES_MAX: usize = 1 << 28;
/// With more templates than a line in so many, lines are kept as plain text.
const LINES_PER_TEMPLATE_MIN: usize = 8;
/// Splitting is given up early beyond this, if every other line brings a template.
const TEMPLATES_EARLY: usize = 2048;
/// A split block larger than text / 4 is compared with plain text.
const PAYS_BELOW: usize = 4;
/// Variables of a common prefix whose columns all templates share.
const SHARED_MAX: usize = 16;
/// Of a block's rows fewer than one in so many are few.
const FEW: usize = 256;
const CRC_BYTES: usize = 4;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// A section of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Section {
    Times,
    /// Templates and where the columns lie; none in a block of plain text.
    Templates,
    /// The template of each row.
    Ids,
    Numbers,
    /// Strings, or the plain text.
    Strings,
    Metadata,
    Words,
}

pub const SECTIONS: usize = 7;

/// Length of a section as stored (with tag and CRC) and unpacked; all 0: there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    pub stored: u32,
    pub raw: u32,
}

/// What is known of a block without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    pub rows: u32,
    /// Text of all lines.
    pub raw_bytes: u64,
    pub first: i64,
    pub last: i64,
    /// Sections in their order in the file.
    pub pieces: [Piece; SECTIONS],
}

impl BlockInfo {
    /// Bytes of all sections.
    pub fn stored(&self) -> u64 {
        self.pieces.iter().map(|p| u64::from(p.stored)).sum()
    }

    pub fn piece(&self, section: Section) -> Piece {
        self.pieces[section as usize]
    }

    /// Where a section starts, from the first one's start.
    pub fn offset(&self, section: Section) -> u64 {
        self.pieces[..section as usize]
            .iter()
            .map(|p| u64::from(p.stored))
            .sum()
    }

    /// Whether lines are kept as plain text.
    pub fn is_plain(&self) -> bool {
        self.piece(Section::Templates).stored == 0
    }

    /// `base`: the time that the first one is told from.
    pub fn put(&self, out: &mut Vec<u8>, base: i64) {
        put_varint(out, u64::from(self.rows));
        put_varint(out, self.raw_bytes);
        put_signed(out, self.first.wrapping_sub(base));
        put_varint(out, self.last.wrapping_sub(self.first) as u64);
        for p in &self.pieces {
            put_varint(out, u64::from(p.stored));
            if p.stored > 0 {
                put_varint(out, u64::from(p.raw));
            }
        }
    }

    pub fn get(c: &mut Cursor<'_>, base: i64) -> Result<Self, Bad> {
        let rows: u32 = c.number()?;
        if rows == 0 || rows as usize > ROWS_MAX {
            return Err("a block has an impossible number of rows");
        }
        let raw_bytes = c.varint()?;
        let first = base.wrapping_add(c.signed()?);
        let last = first.wrapping_add(c.varint()? as i64);
        let mut pieces = [Piece::default(); SECTIONS];
        for p in &mut pieces {
            p.stored = c.number()?;
            if p.stored > 0 {
                p.raw = c.number()?;
            }
            if p.raw as usize > SECTION_BYTES_MAX {
                return Err("a section is too large");
            }
        }
        Ok(Self {
            rows,
            raw_bytes,
            first,
            last,
            pieces,
        })
    }
}

// ---- writing ----

/// Takes lines and makes blocks of them; keeps its memory from block to block.
#[derive(Default)]
pub struct BlockEncoder {
    times: Vec<i64>,
    text: Vec<u8>,
    /// Where each line ends in `text`.
    ends: Vec<u32>,
    metadata: MetadataEncoder,
    splitter: Splitter,
    words: Words,
    templates: Templates,
    scratch: Scratch,
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
    raw: Vec<u8>,
    packed: Vec<u8>,
    /// Of the block that is packed into memory.
    sections: Vec<u8>,
}

/// The templates of a block, in the order in which they were seen.
#[derive(Default)]
struct Templates {
    table: HashTable<u32>,
    text: Vec<u8>,
    ends: Vec<u32>,
    hashes: Vec<u64>,
    rows: Vec<u32>,
    /// Of each line: its template, and where its values start.
    ids: Vec<u32>,
    values: Vec<u32>,
}

impl Templates {
    fn clear(&mut self) {
        self.table.clear();
        self.text.clear();
        self.ends.clear();
        self.hashes.clear();
        self.rows.clear();
        self.ids.clear();
        self.values.clear();
    }

    fn get(&self, id: usize) -> &[u8] {
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        &self.text[start..self.ends[id] as usize]
    }

    /// The id of a template, and whether it is new.
    fn id(&mut self, template: &[u8]) -> (u32, bool) {
        let hash = xxh3_64(template);
        let same = |&id: &u32| self.hashes[id as usize] == hash && self.get(id as usize) == template;
        if let Some(&id) = self.table.find(hash, same) {
            return (id, false);
        }
        let id = self.ends.len() as u32;
        self.text.extend_from_slice(template);
        self.ends.push(self.text.len() as u32);
        self.hashes.push(hash);
        self.rows.push(0);
        let hashes = &self.hashes;
        self.table.insert_unique(hash, id, |&id| hashes[id as usize]);
        (id, true)
    }

    fn push(&mut self, template: &[u8], values: usize, words: &mut Words) {
        let (id, new) = self.id(template);
        if new {
            template_words(template, words);
        }
        self.rows[id as usize] += 1;
        self.ids.push(id);
        self.values.push(values as u32);
    }
}

impl BlockEncoder {
    /// Appends the sections of a block. Lines ascend by time; there is at least one, at most `ROWS_MAX`, and text and
    /// metadata stay below `SECTION_BYTES_MAX` together. `level`: of zstd.
    pub fn encode<'a>(&mut self, lines: impl Iterator<Item = RawLine<'a>>, level: i32, out: &mut Vec<u8>) -> BlockInfo {
        self.clear();
        let mut splitting = true;
        for line in lines {
            let base = self.text.len();
            self.times.push(line.at);
            self.text.extend_from_slice(line.line);
            self.ends.push(self.text.len() as u32);
            self.metadata.push(line.metadata);
            if splitting {
                let values = self.splitter.values.len();
                self.splitter.split(line.line, base, &mut self.words);
                self.templates.push(&self.splitter.template, values, &mut self.words);
                let (seen, rows) = (self.templates.ends.len(), self.ends.len());
                splitting = seen < TEMPLATES_EARLY || seen * 2 < rows;
            }
        }
        assert!(
            !self.times.is_empty() && self.times.len() <= ROWS_MAX,
            "a block has rows"
        );
        splitting &= self.templates.ends.len() * LINES_PER_TEMPLATE_MIN <= self.ends.len();
        let mut info = BlockInfo {
            rows: self.times.len() as u32,
            raw_bytes: self.text.len() as u64,
            first: self.times[0],
            last: self.times[self.times.len() - 1],
            pieces: [Piece::default(); SECTIONS],
        };
        self.raw.clear();
        put_times(&mut self.raw, &self.times);
        info.pieces[Section::Times as usize] = self.pack(level, out);
        let start = out.len();
        if splitting {
            self.put_split(level, out, &mut info);
        }
        if !splitting || (out.len() - start) * PAYS_BELOW > self.text.len() {
            self.put_plain(level, out, &mut info, start);
        }
        self.raw.clear();
        self.metadata.put(&mut self.raw, &mut self.scratch);
        info.pieces[Section::Metadata as usize] = self.pack(level, out);
        self.put_words(splitting, out, &mut info);
        info
    }

    fn clear(&mut self) {
        self.times.clear();
        self.text.clear();
        self.ends.clear();
        self.metadata.clear();
        self.splitter.values.clear();
        self.words.clear();
        self.templates.clear();
    }

    fn put_words(&mut self, split: bool, out: &mut Vec<u8>, info: &mut BlockInfo) {
        if !split {
            self.words.clear();
            let words = &mut self.words;
            let mut start = 0;
            for &end in &self.ends {
                each_word(&self.text[start..end as usize], |_, word| words.word(word));
                start = end as usize;
            }
        }
        self.raw.clear();
        self.words.put_filter(&mut self.raw);
        // Random by design: packing would find nothing.
        info.pieces[Section::Words as usize] = frame(PLAIN, &self.raw, self.raw.len(), out);
    }

    /// Packs `raw` as a section; none if it is empty.
    fn pack(&mut self, level: i32, out: &mut Vec<u8>) -> Piece {
        if self.zstd.as_ref().is_none_or(|(l, _)| *l != level) {
            self.zstd = zstd::bulk::Compressor::new(level).ok().map(|c| (level, c));
        }
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(self.raw.len()));
        let packed = self
            .zstd
            .as_mut()
            .map(|(_, z)| z.compress_to_buffer(&self.raw[..], &mut self.packed));
        match packed {
            Some(Ok(n)) if n < self.raw.len() => frame(ZSTD, &self.packed, self.raw.len(), out),
            _ => frame(PLAIN, &self.raw, self.raw.len(), out),
        }
    }

    /// Puts the text as it is, if that is smaller than what `out` holds from `start`.
    fn put_plain(&mut self, level: i32, out: &mut Vec<u8>, info: &mut BlockInfo, start: usize) {
        self.raw.clear();
        let mut from = 0;
        for &end in &self.ends {
            put_varint(&mut self.raw, u64::from(end - from));
            from = end;
        }
        from = 0;
        for &end in &self.ends {
            self.raw.extend_from_slice(&self.text[from as usize..end as usize]);
            self.raw.push(b'\n');
            from = end;
        }
        let split = out.len() - start;
        let piece = self.pack(level, out);
        if split > 0 && piece.stored as usize >= split {
            out.truncate(start + split);
            return;
        }
        out.drain(start..start + split);
        let times = info.piece(Section::Times);
        info.pieces = [Piece::default(); SECTIONS];
        info.pieces[Section::Times as usize] = times;
        info.pieces[Section::Strings as usize] = piece;
    }

    fn put_split(&mut self, level: i32, out: &mut Vec<u8>, info: &mut BlockInfo) {
        let t = &self.templates;
        let parsed: Vec<Vec<Token>> = (0..t.ends.len())
            .map(|id| tokens(t.get(id)).unwrap_or_default())
            .collect();
        let (prefix, shared) = common_prefix(t, &parsed);
        let (mut directory, mut numbers, mut strings) = (vec![], vec![], vec![]);
        put_varint(&mut directory, t.ends.len() as u64);
        put_bytes(&mut directory, &prefix);
        for id in 0..t.ends.len() {
            put_varint(&mut directory, t.get(id).len() as u64);
            put_varint(&mut directory, u64::from(t.rows[id]));
        }
        directory.extend_from_slice(&t.text);

        let aligned: Vec<bool> = (0..t.ends.len()).map(|id| t.get(id).starts_with(&prefix)).collect();
        let mut put = |var: Var, column: &[u64]| {
            if var.is_string() {
                let start = strings.len();
                let held = put_strings(&mut strings, &self.text, column, &mut self.scratch);
                directory.push(held);
                put_varint(&mut directory, (strings.len() - start) as u64);
            } else {
                let start = numbers.len();
                put_numbers(&mut numbers, column, &mut self.scratch);
                put_varint(&mut directory, (numbers.len() - start) as u64);
            }
        };
        let mut column = vec![];
        for (slot, &var) in shared.iter().enumerate() {
            column.clear();
            let rows = t.ids.iter().zip(&t.values).filter(|(id, _)| aligned[**id as usize]);
            column.extend(rows.map(|(_, &at)| self.splitter.values[at as usize + slot]));
            put(var, &column);
        }
        let order = by_template(&t.ids, &t.rows);
        let mut start = 0;
        for (id, parsed) in parsed.iter().enumerate() {
            let rows = &order[start..start + t.rows[id] as usize];
            start += rows.len();
            let vars = parsed.iter().filter_map(|token| match token {
                Token::Var(var) => Some(*var),
                Token::Text(_) => None,
            });
            let skipped = if aligned[id] { shared.len() } else { 0 };
            for (slot, var) in vars.enumerate().skip(skipped) {
                column.clear();
                column.extend(
                    rows.iter()
                        .map(|&row| self.splitter.values[t.values[row as usize] as usize + slot]),
                );
                put(var, &column);
            }
        }
        let mut ids = vec![];
        for plane in 0..place_bytes(t.ends.len()) {
            ids.extend(t.ids.iter().map(|id| (id >> (8 * plane)) as u8));
        }
        let sections = [
            (Section::Templates, directory),
            (Section::Ids, ids),
            (Section::Numbers, numbers),
            (Section::Strings, strings),
        ];
        for (section, raw) in sections {
            self.raw = raw;
            info.pieces[section as usize] = self.pack(level, out);
        }
    }
}

/// Rows sorted by template, each template's in order.
fn by_template(ids: &[u32], rows: &[u32]) -> Vec<u32> {
    let mut next: Vec<u32> = rows
        .iter()
        .scan(0, |at, n| {
            *at += n;
            Some(*at - n)
        })
        .collect();
    let mut order = vec![0; ids.len()];
    for (row, &id) in ids.iter().enumerate() {
        order[next[id as usize] as usize] = row as u32;
        next[id as usize] += 1;
    }
    order
}

/// The longest start, up to behind a variable, that templates of half the lines have in common: the date, host and
/// process that stand before each message. Their columns run over all these lines, so that neighbours stay neighbours.
fn common_prefix(t: &Templates, parsed: &[Vec<Token>]) -> (Vec<u8>, Vec<Var>) {
    let (mut prefix, mut shared) = (vec![], vec![]);
    if parsed.len() < 2 {
        return (prefix, shared);
    }
    let half = t.ids.len() as u64 / 2;
    let ends: Vec<Vec<(usize, Var)>> = parsed.iter().map(|p| var_ends(p)).collect();
    for slot in 0..SHARED_MAX {
        let mut weights: BTreeMap<(&[u8], Var), u64> = BTreeMap::new();
        for (id, ends) in ends.iter().enumerate() {
            let template = t.get(id);
            if let Some(&(end, var)) = ends.get(slot)
                && template.starts_with(&prefix)
            {
                *weights.entry((&template[..end], var)).or_default() += u64::from(t.rows[id]);
            }
        }
        // The first of the greatest, so that the same lines give the same bytes.
        let best = weights.into_iter().rev().max_by_key(|(_, weight)| *weight);
        let Some(((start, var), _)) = best.filter(|(_, weight)| *weight > half) else {
            break;
        };
        prefix = start.to_vec();
        shared.push(var);
    }
    (prefix, shared)
}

/// Where each variable of a template ends in its text.
fn var_ends(parsed: &[Token]) -> Vec<(usize, Var)> {
    let mut at = 0;
    let mut ends = vec![];
    for token in parsed {
        match token {
            Token::Text(range) => at = range.end,
            Token::Var(var) => {
                at += if var.is_string() { 1 } else { 2 };
                ends.push((at, *var));
            }
        }
    }
    ends
}

fn frame(tag: u8, body: &[u8], raw: usize, out: &mut Vec<u8>) -> Piece {
    if raw == 0 {
        return Piece::default();
    }
    let start = out.len();
    out.push(tag);
    out.extend_from_slice(body);
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    Piece {
        stored: (out.len() - start) as u32,
        raw: raw as u32,
    }
}

/// Verifies and unpacks a section.
pub fn unframe(stored: &Bytes, piece: Piece) -> Result<Bytes, Bad> {
    let (body, crc) = stored.split_last_chunk::<CRC_BYTES>().ok_or("ends too early")?;
    let fits = crc32c::crc32c(body) == u32::from_le_bytes(*crc) || planted(Bug::CrcNotChecked);
    if !sum_fits(fits) {
        return Err("the checksum does not fit");
    }
    let raw = piece.raw as usize;
    match body.split_first() {
        Some((&PLAIN, body)) if body.len() == raw => Ok(stored.slice_ref(body)),
        Some((&ZSTD, body)) if raw <= SECTION_BYTES_MAX => {
            let mut unpacked = vec![];
            Unpacker::new().unpack(body, raw, &mut unpacked)?;
            Ok(unpacked.into())
        }
        _ => Err("an unknown packing"),
    }
}

// ---- reading ----

/// Where a block's sections come from.
pub trait Source: Send + Sync {
    /// A section as stored.
    fn read(&self, section: Section) -> Result<Bytes, ReadError>;
    /// The word filter, if it is kept: it was verified then.
    fn kept_words(&self) -> Option<Bytes> {
        None
    }
    /// May keep the word filter for the next search.
    fn keep_words(&self, _words: &Bytes) {}
    fn damage(&self, section: Section, why: Bad) -> ReadError;
}

/// A block that lies in memory.
struct InMemory {
    info: BlockInfo,
    bytes: Bytes,
}

impl Source for InMemory {
    fn read(&self, section: Section) -> Result<Bytes, ReadError> {
        let start = self.info.offset(section) as usize;
        let end = start + self.info.piece(section).stored as usize;
        if end > self.bytes.len() {
            return Err(self.damage(section, "ends too early"));
        }
        Ok(self.bytes.slice(start..end))
    }

    fn damage(&self, section: Section, why: Bad) -> ReadError {
        let from = self.info.offset(section);
        Damage {
            file: "a block".to_owned(),
            from,
            to: from + u64::from(self.info.piece(section).stored),
            why: why.to_owned(),
        }
        .into()
    }
}

/// A block that lies packed in memory.
pub struct PackedBlock {
    info: BlockInfo,
    sections: Bytes,
}

impl PackedBlock {
    /// As `BlockEncoder::encode`.
    pub fn encode<'a>(encoder: &mut BlockEncoder, lines: impl Iterator<Item = RawLine<'a>>, level: i32) -> Self {
        let mut sections = std::mem::take(&mut encoder.sections);
        sections.clear();
        let info = encoder.encode(lines, level, &mut sections);
        let packed = Self {
            info,
            sections: Bytes::copy_from_slice(&sections),
        };
        encoder.sections = sections;
        packed
    }

    pub const fn info(&self) -> &BlockInfo {
        &self.info
    }

    /// Sections, one behind the other.
    pub fn sections(&self) -> &[u8] {
        &self.sections
    }

    /// Room that it takes, about.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.sections.len()
    }

    pub fn block(&self) -> Block {
        Block::in_memory(self.info.clone(), self.sections.clone())
    }
}

/// The next lines, as many as go into a block of so much text: one line more may exceed it.
pub fn fitting<'a, 'i>(
    lines: &'i mut impl Iterator<Item = RawLine<'a>>,
    block_bytes: usize,
) -> impl Iterator<Item = RawLine<'a>> + 'i {
    let (mut room, mut rows) = (block_bytes, 0);
    std::iter::from_fn(move || {
        if room == 0 || rows == BLOCK_ROWS_MAX {
            return None;
        }
        let line = lines.next()?;
        room = room.saturating_sub(line.bytes() + 1);
        rows += 1;
        Some(line)
    })
}

/// Sections that lie one behind the other.
pub fn in_memory_source(info: BlockInfo, bytes: Bytes) -> Arc<dyn Source> {
    Arc::new(InMemory { info, bytes })
}

/// One template as a search sees it.
pub struct Template {
    /// Where its text lies in the directory's.
    text: Range<usize>,
    pub tokens: Vec<Token>,
    pub rows: u32,
    vars: usize,
    /// Its first variables have shared columns.
    aligned: bool,
    first_column: usize,
}

#[derive(Clone, Copy)]
pub struct ColumnAt {
    pub string: bool,
    pub held: u8,
    start: usize,
    len: usize,
    rows: usize,
}

/// Templates and columns of a split block.
pub struct Directory {
    pub text: Vec<u8>,
    pub templates: Vec<Template>,
    pub columns: Vec<ColumnAt>,
    pub shared: usize,
}

impl Directory {
    fn parse(bytes: &[u8], rows: usize, numbers: usize, strings: usize) -> Result<Self, Bad> {
        let c = &mut Cursor(bytes);
        let n = c.count()?;
        let prefix = c.bytes()?;
        let mut sizes = Vec::with_capacity(n);
        let (mut text_len, mut all_rows) = (0usize, 0u64);
        for _ in 0..n {
            let (len, rows): (usize, u32) = (c.count()?, c.number()?);
            text_len += len;
            all_rows += u64::from(rows);
            sizes.push((len, rows));
        }
        if all_rows != rows as u64 {
            return Err("the templates have another number of rows");
        }
        let text = c.take(text_len)?.to_vec();
        let shared = vars(&tokens(prefix)?).collect::<Vec<_>>();
        let (mut start, mut aligned_rows) = (0, 0);
        let mut parsed = Vec::with_capacity(n);
        for (len, rows) in sizes {
            let template = &text[start..start + len];
            let aligned = !prefix.is_empty() && template.starts_with(prefix);
            let mut tokens = tokens(template)?;
            for token in &mut tokens {
                if let Token::Text(range) = token {
                    *range = range.start + start..range.end + start;
                }
            }
            if aligned {
                aligned_rows += rows as usize;
                if !vars(&tokens).take(shared.len()).eq(shared.iter().copied()) {
                    return Err("a template does not go on as it starts");
                }
            }
            parsed.push((start..start + len, tokens, rows, aligned));
            start += len;
        }
        let mut columns = vec![];
        let mut places = (0usize, 0usize);
        for &var in &shared {
            columns.push(column_at(c, var, aligned_rows, &mut places)?);
        }
        let mut templates = Vec::with_capacity(n);
        for (text, tokens, rows, aligned) in parsed {
            let first_column = columns.len();
            for var in vars(&tokens).skip(if aligned { shared.len() } else { 0 }) {
                columns.push(column_at(c, var, rows as usize, &mut places)?);
            }
            templates.push(Template {
                vars: vars(&tokens).count(),
                text,
                tokens,
                rows,
                aligned,
                first_column,
            });
        }
        if places != (numbers, strings) {
            return Err("the columns have another length");
        }
        c.end()?;
        Ok(Self {
            text,
            templates,
            columns,
            shared: shared.len(),
        })
    }

    /// Appends what tells of all lines of a template without their values: its text, and what its strings may hold.
    pub fn put_shape(&self, template: &Template, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.text[template.text.clone()]);
        let held = (0..template.vars).map(|slot| self.columns[self.column(template, slot)].held);
        out.extend(held);
    }

    /// The column of a template's variable.
    pub fn column(&self, template: &Template, slot: usize) -> usize {
        match (template.aligned, slot < self.shared) {
            (true, true) => slot,
            (true, false) => template.first_column + slot - self.shared,
            (false, _) => template.first_column + slot,
        }
    }
}

fn vars(tokens: &[Token]) -> impl Iterator<Item = Var> + '_ {
    tokens.iter().filter_map(|token| match token {
        Token::Var(var) => Some(*var),
        Token::Text(_) => None,
    })
}

fn column_at(c: &mut Cursor<'_>, var: Var, rows: usize, places: &mut (usize, usize)) -> Result<ColumnAt, Bad> {
    let string = var.is_string();
    let held = if string { c.byte()? } else { 0 };
    let place = if string { &mut places.1 } else { &mut places.0 };
    let (start, len) = (*place, c.number::<usize>()?);
    *place = start
        .checked_add(len)
        .filter(|&end| end <= SECTION_BYTES_MAX)
        .ok_or("a column is too long")?;
    Ok(ColumnAt {
        string,
        held,
        start,
        len,
        rows,
    })
}

/// The template of each row, as it lies in the section.
pub struct Ids {
    planes: Bytes,
    rows: usize,
    width: usize,
}

/// A row, and where its values stand in the columns.
#[derive(Clone, Copy)]
pub struct Place {
    pub row: u32,
    /// Of its template.
    pub id: u32,
    /// Place among the rows of the same template.
    pub rank: u32,
    /// Place among the rows that share columns.
    pub shared: u32,
}

impl Ids {
    fn parse(planes: Bytes, rows: usize, directory: &Directory) -> Result<Self, Bad> {
        let width = place_bytes(directory.templates.len());
        if planes.len() != rows * width {
            return Err("the templates of lines have another length");
        }
        Ok(Self { planes, rows, width })
    }

    fn get(&self, row: usize) -> u32 {
        let byte = |plane: usize| u32::from(self.planes[plane * self.rows + row]) << (8 * plane);
        match self.width {
            0 => 0,
            1 => byte(0),
            2 => byte(0) | byte(1),
            _ => byte(0) | byte(1) | byte(2),
        }
    }

    /// Walks over all rows, and sees that each template has as many as the directory says.
    pub fn walk(&self, directory: &Directory, mut each: impl FnMut(Place)) -> Result<(), Bad> {
        let mut left: Vec<u32> = directory.templates.iter().map(|t| t.rows).collect();
        let mut shared = 0;
        for row in 0..self.rows {
            let id = self.get(row);
            let template = directory.templates.get(id as usize).ok_or("an unknown template")?;
            let left = &mut left[id as usize];
            let rank = template.rows - *left;
            *left = left.checked_sub(1).ok_or("a template has another number of rows")?;
            each(Place {
                row: row as u32,
                id,
                rank,
                shared,
            });
            shared += u32::from(template.aligned);
        }
        // No template has too many, and together they have all rows.
        Ok(())
    }
}

/// Where the values of every row stand: for whoever looks at many.
pub struct Layout {
    /// By row.
    pub places: Vec<Place>,
    /// Rows by template, each template's in order.
    pub order: Vec<u32>,
    /// Where each template's rows start in `order`.
    pub starts: Vec<u32>,
}

impl Layout {
    fn new(ids: &Ids, directory: &Directory) -> Result<Self, Bad> {
        let starts: Vec<u32> = directory
            .templates
            .iter()
            .scan(0, |at, t| {
                *at += t.rows;
                Some(*at - t.rows)
            })
            .collect();
        let (mut places, mut order) = (Vec::with_capacity(ids.rows), vec![0; ids.rows]);
        ids.walk(directory, |place| {
            order[(starts[place.id as usize] + place.rank) as usize] = place.row;
            places.push(place);
        })?;
        Ok(Self { places, order, starts })
    }
}

pub enum Column {
    Numbers(Vec<u64>),
    Strings(Strings),
}

/// Text of a plain block: lines one after the other, each with a newline behind it.
pub struct PlainText {
    bytes: Bytes,
    /// Where each line starts, and where one more would.
    pub starts: Vec<u32>,
}

impl PlainText {
    fn parse(bytes: Bytes, rows: usize) -> Result<Self, Bad> {
        let c = &mut Cursor(&bytes);
        let mut starts = Vec::with_capacity(rows + 1);
        let mut at = 0u32;
        for _ in 0..rows {
            starts.push(at);
            let next = c.number::<u32>()?.checked_add(1).and_then(|len| at.checked_add(len));
            at = next.ok_or("a line is too long")?;
        }
        starts.push(at);
        if c.0.len() != at as usize {
            return Err("the text has another length");
        }
        let text = bytes.slice_ref(c.0);
        Ok(Self { bytes: text, starts })
    }

    pub fn line(&self, row: usize) -> &[u8] {
        &self.bytes[self.starts[row] as usize..self.starts[row + 1] as usize - 1]
    }

    /// All lines of some rows, with newlines between them.
    pub fn lines(&self, rows: Range<usize>) -> &[u8] {
        &self.bytes[self.starts[rows.start] as usize..self.starts[rows.end] as usize]
    }
}

/// Lines, unpacked.
#[derive(Clone, Debug, Default)]
pub struct LineBuf {
    times: Vec<i64>,
    text: Vec<u8>,
    ends: Vec<u32>,
    metadata: Vec<u8>,
    metadata_ends: Vec<u32>,
}

impl LineBuf {
    pub const fn len(&self) -> usize {
        self.times.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    pub fn get(&self, i: usize) -> RawLine<'_> {
        let start = |ends: &[u32]| if i == 0 { 0 } else { ends[i - 1] as usize };
        RawLine {
            at: self.times[i],
            line: &self.text[start(&self.ends)..self.ends[i] as usize],
            metadata: if self.metadata_ends.is_empty() {
                &[]
            } else {
                &self.metadata[start(&self.metadata_ends)..self.metadata_ends[i] as usize]
            },
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = RawLine<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }
}

/// One block, read section by section when something asks for them.
pub struct Block {
    info: BlockInfo,
    source: Arc<dyn Source>,
    times: OnceLock<Times>,
    directory: OnceLock<Directory>,
    ids: OnceLock<Ids>,
    layout: OnceLock<Layout>,
    numbers: OnceLock<Bytes>,
    strings: OnceLock<Bytes>,
    columns: OnceLock<Vec<OnceLock<Column>>>,
    metadata: OnceLock<Option<Metadata>>,
    plain: OnceLock<PlainText>,
}

fn made<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T, ReadError>) -> Result<&T, ReadError> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = make()?;
    Ok(cell.get_or_init(|| value))
}

impl Block {
    /// A block out of bytes: the info as `BlockInfo::put` writes it from time 0, then the sections.
    pub fn parse(bytes: Bytes) -> Result<Self, ReadError> {
        let c = &mut Cursor(&bytes);
        let info = BlockInfo::get(c, 0).map_err(|why| Damage {
            file: "a block".to_owned(),
            from: 0,
            to: bytes.len() as u64,
            why: why.to_owned(),
        })?;
        let sections = bytes.slice_ref(c.0);
        Ok(Self::in_memory(info, sections))
    }

    pub fn in_memory(info: BlockInfo, sections: Bytes) -> Self {
        Self::new(info.clone(), in_memory_source(info, sections))
    }

    pub(super) fn new(info: BlockInfo, source: Arc<dyn Source>) -> Self {
        Self {
            info,
            source,
            times: OnceLock::new(),
            directory: OnceLock::new(),
            ids: OnceLock::new(),
            layout: OnceLock::new(),
            numbers: OnceLock::new(),
            strings: OnceLock::new(),
            columns: OnceLock::new(),
            metadata: OnceLock::new(),
            plain: OnceLock::new(),
        }
    }

    pub const fn info(&self) -> &BlockInfo {
        &self.info
    }

    pub const fn rows(&self) -> usize {
        self.info.rows as usize
    }

    /// Nothing for a section that is not there.
    pub(super) fn section(&self, section: Section) -> Result<Bytes, ReadError> {
        let piece = self.info.piece(section);
        if piece.stored == 0 {
            return Ok(Bytes::new());
        }
        let stored = self.source.read(section)?;
        unframe(&stored, piece).map_err(|why| self.source.damage(section, why))
    }

    /// The word filter; empty if there is none.
    pub(super) fn words(&self) -> Result<Bytes, ReadError> {
        if let Some(kept) = self.source.kept_words() {
            return Ok(kept);
        }
        let words = self.section(Section::Words)?;
        self.source.keep_words(&words);
        Ok(words)
    }

    pub(crate) fn bad_metadata(&self, why: Bad) -> ReadError {
        self.damage(Section::Metadata, why)
    }

    pub(super) fn damage(&self, section: Section, why: Bad) -> ReadError {
        self.source.damage(section, why)
    }

    fn parsed<'a, T>(
        &self,
        cell: &'a OnceLock<T>,
        section: Section,
        parse: impl FnOnce(Bytes) -> Result<T, Bad>,
    ) -> Result<&'a T, ReadError> {
        made(cell, || {
            let bytes = self.section(section)?;
            parse(bytes).map_err(|why| self.source.damage(section, why))
        })
    }

    pub fn times(&self) -> Result<&Times, ReadError> {
        let info = &self.info;
        self.parsed(&self.times, Section::Times, |bytes| {
            let times = Times::parse(&bytes, self.rows())?;
            if (times.get(0), times.get(self.rows() - 1)) != (info.first, info.last) {
                return Err("the times are not those of the table");
            }
            Ok(times)
        })
    }

    /// Templates of a split block.
    pub(super) fn directory(&self) -> Result<&Directory, ReadError> {
        let size = |s: Section| self.info.piece(s).raw as usize;
        self.parsed(&self.directory, Section::Templates, |bytes| {
            Directory::parse(&bytes, self.rows(), size(Section::Numbers), size(Section::Strings))
        })
    }

    pub(super) fn ids(&self) -> Result<&Ids, ReadError> {
        let directory = self.directory()?;
        self.parsed(&self.ids, Section::Ids, |bytes| {
            Ids::parse(bytes, self.rows(), directory)
        })
    }

    pub(super) fn layout(&self) -> Result<&Layout, ReadError> {
        let (directory, ids) = (self.directory()?, self.ids()?);
        made(&self.layout, || {
            Layout::new(ids, directory).map_err(|why| self.source.damage(Section::Ids, why))
        })
    }

    pub(super) fn plain(&self) -> Result<&PlainText, ReadError> {
        self.parsed(&self.plain, Section::Strings, |bytes| {
            PlainText::parse(bytes, self.rows())
        })
    }

    pub(super) fn column(&self, number: usize) -> Result<&Column, ReadError> {
        let directory = self.directory()?;
        let columns = self
            .columns
            .get_or_init(|| directory.columns.iter().map(|_| OnceLock::new()).collect());
        made(&columns[number], || {
            let at = directory.columns[number];
            let (section, bytes) = self.column_bytes(at)?;
            let column = if at.string {
                get_strings(bytes, at.rows).map(Column::Strings)
            } else {
                get_numbers(bytes, at.rows).map(Column::Numbers)
            };
            column.map_err(|why| self.source.damage(section, why))
        })
    }

    fn column_bytes(&self, at: ColumnAt) -> Result<(Section, &[u8]), ReadError> {
        let (section, cell) = if at.string {
            (Section::Strings, &self.strings)
        } else {
            (Section::Numbers, &self.numbers)
        };
        let bytes = made(cell, || self.section(section))?;
        Ok((section, &bytes[at.start..at.start + at.len]))
    }

    /// The value at one row of a column of numbers.
    fn number(&self, at: ColumnAt, row: usize) -> Result<u64, ReadError> {
        let (section, bytes) = self.column_bytes(at)?;
        number_at(bytes, at.rows, row).map_err(|why| self.source.damage(section, why))
    }

    fn metadata(&self) -> Result<Option<&Metadata>, ReadError> {
        let metadata = self.parsed(&self.metadata, Section::Metadata, |bytes| {
            if bytes.is_empty() {
                return Ok(None);
            }
            Metadata::parse(&bytes, self.rows()).map(Some)
        })?;
        Ok(metadata.as_ref())
    }

    /// What builds lines again.
    pub(super) fn builder(&self) -> Result<Builder<'_>, ReadError> {
        if self.info.is_plain() {
            return Ok(Builder::Plain(self.plain()?));
        }
        let (directory, layout) = (self.directory()?, self.layout()?);
        let parts = directory.templates.iter().map(|_| None).collect();
        Ok(Builder::Split {
            block: self,
            directory,
            layout,
            parts,
        })
    }

    /// Lines of some rows.
    pub fn lines(&self, rows: Range<usize>) -> Result<LineBuf, ReadError> {
        let rows = rows.start.min(self.rows())..rows.end.min(self.rows());
        let mut lines = LineBuf::default();
        self.times()?.range(rows.clone(), &mut lines.times);
        self.fill(rows, lines)
    }

    /// Lines of these rows, in this order.
    pub fn rows_of(&self, rows: &[u32]) -> Result<LineBuf, ReadError> {
        let mut lines = LineBuf::default();
        // Most blocks of a search hold nothing: of those not even the times are read.
        if rows.is_empty() {
            return Ok(lines);
        }
        let times = self.times()?;
        times.pick(rows, &mut lines.times);
        if self.info.is_plain() || rows.len() > self.rows() / FEW {
            return self.fill(rows.iter().map(|&row| row as usize), lines);
        }
        self.fill_few(rows, lines)
    }

    /// Lines of so few rows that nothing is unpacked or laid out for the others.
    fn fill_few(&self, rows: &[u32], mut lines: LineBuf) -> Result<LineBuf, ReadError> {
        let (directory, metadata) = (self.directory()?, self.metadata()?);
        let wanted: BTreeSet<u32> = rows.iter().copied().collect();
        let mut places = BTreeMap::new();
        let (mut next, mut left) = (wanted.first().copied(), wanted.iter().skip(1));
        let walked = self.ids()?.walk(directory, |place| {
            if next == Some(place.row) {
                places.insert(place.row, place);
                next = left.next().copied();
            }
        });
        walked.map_err(|why| self.source.damage(Section::Ids, why))?;
        for &row in rows {
            let start = lines.text.len();
            let place = places[&row];
            let template = &directory.templates[place.id as usize];
            let mut slot = 0;
            for token in &template.tokens {
                let var = match token {
                    Token::Text(range) => {
                        lines.text.extend_from_slice(&directory.text[range.clone()]);
                        continue;
                    }
                    Token::Var(var) => *var,
                };
                let number = directory.column(template, slot);
                slot += 1;
                let at = if number < directory.shared {
                    place.shared
                } else {
                    place.rank
                } as usize;
                if !var.is_string() {
                    let value = self.number(directory.columns[number], at)?;
                    put_value(&mut lines.text, var, value);
                } else if let Column::Strings(values) = self.column(number)? {
                    lines.text.extend_from_slice(values.get(at));
                }
            }
            self.end_line(start, row as usize, metadata, &mut lines)?;
        }
        Ok(lines)
    }

    fn end_line(
        &self,
        start: usize,
        row: usize,
        metadata: Option<&Metadata>,
        lines: &mut LineBuf,
    ) -> Result<(), ReadError> {
        // A dictionary could tell of more text than there was.
        if (lines.text.len() - start) as u64 > self.info.raw_bytes || lines.text.len() > SECTION_BYTES_MAX {
            return Err(self.source.damage(Section::Strings, "a line is longer than the block"));
        }
        lines.ends.push(lines.text.len() as u32);
        if let Some(metadata) = metadata {
            metadata.put(row, &mut lines.metadata);
            lines.metadata_ends.push(lines.metadata.len() as u32);
        }
        Ok(())
    }

    pub fn line(&self, row: usize) -> Result<LineBuf, ReadError> {
        self.lines(row..row + 1)
    }

    fn fill(&self, rows: impl Iterator<Item = usize>, mut lines: LineBuf) -> Result<LineBuf, ReadError> {
        let metadata = self.metadata()?;
        let mut builder = self.builder()?;
        for row in rows {
            let start = lines.text.len();
            builder.put(row, &mut lines.text)?;
            self.end_line(start, row, metadata, &mut lines)?;
        }
        Ok(lines)
    }
}

/// A piece of a template with where its values come from.
pub enum Part<'a> {
    Text(&'a [u8]),
    Numbers(Var, &'a [u64], bool),
    Strings(&'a Strings, bool),
}

/// Builds lines of a block; finds the columns of a template once.
pub enum Builder<'a> {
    Plain(&'a PlainText),
    Split {
        block: &'a Block,
        directory: &'a Directory,
        layout: &'a Layout,
        parts: Vec<Option<Vec<Part<'a>>>>,
    },
}

impl Builder<'_> {
    /// Appends the text of a line.
    pub fn put(&mut self, row: usize, out: &mut Vec<u8>) -> Result<(), ReadError> {
        match self {
            Self::Plain(plain) => out.extend_from_slice(plain.line(row)),
            Self::Split {
                block,
                directory,
                layout,
                parts,
            } => {
                let place = layout.places[row];
                let id = place.id as usize;
                let found = match &mut parts[id] {
                    Some(found) => found,
                    none => none.insert(template_parts(block, directory, id)?),
                };
                let at = |shared: bool| if shared { place.shared } else { place.rank } as usize;
                for part in found {
                    match part {
                        Part::Text(text) => out.extend_from_slice(text),
                        Part::Numbers(var, values, shared) => put_value(out, *var, values[at(*shared)]),
                        Part::Strings(values, shared) => out.extend_from_slice(values.get(at(*shared))),
                    }
                }
            }
        }
        Ok(())
    }
}

fn template_parts<'a>(block: &'a Block, directory: &'a Directory, id: usize) -> Result<Vec<Part<'a>>, ReadError> {
    let template = &directory.templates[id];
    let mut slot = 0;
    let mut parts = Vec::with_capacity(template.tokens.len());
    for token in &template.tokens {
        parts.push(match token {
            Token::Text(range) => Part::Text(&directory.text[range.clone()]),
            Token::Var(var) => {
                let number = directory.column(template, slot);
                slot += 1;
                let shared = number < directory.shared;
                match block.column(number)? {
                    Column::Numbers(values) => Part::Numbers(*var, values, shared),
                    Column::Strings(values) => Part::Strings(values, shared),
                }
            }
        });
    }
    Ok(parts)
}
