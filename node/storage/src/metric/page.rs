//! One page: up to 8192 values of one series, as a head of a few bytes and a body of packed bits.
//!
//! Exact for every f64 bit pattern. A page knows neither its times nor its length: both are told by who stores it.
//! Decoders take any bytes: what cannot have been written is an error, and nothing is allocated beyond the page's values.
//!
//! `Encoder::encode` is for the head and for fresh segments, `encode_best` for compaction (it also tries pco).

use crate::cursor::{Bad, Cursor, put_signed, put_varint};
use crate::metric::pfor::{self, CHUNK, Patches, WIDTH_MAX};
use crate::metric::transform::{self, POWERS, Recipe, Shape, Sums};
use fearless_simd::Level;
use pco::ChunkConfig;

/// Values of one page.
pub const PAGE_ROWS_MAX: usize = 8192;

const CONST: u8 = 0;
const LINEAR: u8 = 1;
const INT: u8 = 2;
const RAW: u8 = 3;
const CLASS: u8 = 0b11;
const ORDER_SHIFT: u8 = 2;
const GCD: u8 = 1 << 4;
/// Of a constant: its 8 bytes follow, instead of scale and integer.
const EXCEPTIONS: u8 = 1 << 5;
const PCO: u8 = 1 << 6;
const BASE: u8 = 1 << 7;
/// In the byte of the width.
const ZIGZAG: u8 = 1 << 7;

const PCO_LEVEL: usize = 8;
/// Shorter pages do not make up for pco's own tables.
const PCO_ROWS_MIN: usize = 64;
/// What pco is compared with: the page as the group's zstd would about leave it.
const ZSTD_LEVEL: i32 = 3;

/// Where a page's packed bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Packed,
    /// Dense already: kept out of zstd's way.
    Pco,
}

/// Encodes pages; keeps its working memory.
pub struct Encoder {
    level: Level,
    ints: Vec<i64>,
    exceptions: Vec<u32>,
    words: Vec<u64>,
    highs: Vec<u8>,
    body: Vec<u8>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            level: Level::new(),
            ints: vec![],
            exceptions: vec![],
            words: vec![],
            highs: vec![],
            body: vec![],
            zstd: None,
        }
    }
}

impl Encoder {
    /// Appends one page, head and body.
    pub fn encode(&mut self, values: &[f64], out: &mut Vec<u8>) {
        self.whole(values, out, false);
    }

    /// As `encode`, but takes pco where that is smaller by a twentieth and more.
    pub fn encode_best(&mut self, values: &[f64], out: &mut Vec<u8>) {
        self.whole(values, out, true);
    }

    fn whole(&mut self, values: &[f64], out: &mut Vec<u8>, best: bool) {
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        self.parts(values, best, out, &mut body);
        out.extend_from_slice(&body);
        self.body = body;
    }

    /// Appends head and body apart.
    pub fn parts(&mut self, values: &[f64], best: bool, head: &mut Vec<u8>, body: &mut Vec<u8>) -> Body {
        assert!(
            (1..=PAGE_ROWS_MAX).contains(&values.len()),
            "a page has 1 to {PAGE_ROWS_MAX} values"
        );
        let bits = values[0].to_bits();
        if values.iter().all(|v| v.to_bits() == bits) {
            put_const(head, values[0]);
            return Body::Packed;
        }
        let Some(e) = transform::to_ints(self.level, values, &mut self.ints, &mut self.exceptions) else {
            return self.raw(values, best, head, body);
        };
        let shape = transform::shape(self.level, e, &mut self.ints, &mut self.words);
        if let Shape::Packed(_, plan) = &shape
            && plan.cost > 64 * values.len() as u64
        {
            return self.raw(values, best, head, body);
        }
        self.put_shape(values, shape, best, head, body)
    }

    /// Appends integers, head and body: the times of a dictionary. `decode_ints` is the way back.
    pub fn encode_ints(&mut self, ints: &[i64], best: bool, out: &mut Vec<u8>) {
        assert!(
            (1..=PAGE_ROWS_MAX).contains(&ints.len()),
            "a page has 1 to {PAGE_ROWS_MAX} values"
        );
        self.ints.clear();
        self.ints.extend_from_slice(ints);
        self.exceptions.clear();
        let shape = transform::shape(self.level, 0, &mut self.ints, &mut self.words);
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        self.put_shape(&[], shape, best, out, &mut body);
        out.extend_from_slice(&body);
        self.body = body;
    }

    fn put_shape(&mut self, values: &[f64], shape: Shape, best: bool, head: &mut Vec<u8>, body: &mut Vec<u8>) -> Body {
        let except = if self.exceptions.is_empty() { 0 } else { EXCEPTIONS };
        match shape {
            Shape::Linear(recipe) => {
                head.extend_from_slice(&[LINEAR | except, recipe.e]);
                put_signed(head, recipe.first);
                put_signed(head, recipe.step);
                self.put_exceptions(values, head);
                Body::Packed
            }
            Shape::Packed(recipe, plan) => {
                let (head_start, body_start) = (head.len(), body.len());
                self.put_packed(values, recipe, plan, head, body);
                if !best || !self.pco_pays(&head[head_start..], &body[body_start..]) {
                    return Body::Packed;
                }
                head.truncate(head_start);
                body.truncate(body_start);
                let gcd = if recipe.gcd > 1 { GCD } else { 0 };
                head.extend_from_slice(&[INT | PCO | gcd | except, recipe.e]);
                put_signed(head, recipe.first);
                if recipe.gcd > 1 {
                    put_varint(head, recipe.gcd);
                }
                put_varint(head, self.highs.len() as u64);
                self.put_exceptions(values, head);
                body.extend_from_slice(&self.highs);
                Body::Pco
            }
        }
    }

    fn put_packed(&mut self, values: &[f64], r: Recipe, plan: pfor::Plan, head: &mut Vec<u8>, body: &mut Vec<u8>) {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let flags = flag(r.gcd > 1, GCD) | flag(!self.exceptions.is_empty(), EXCEPTIONS) | flag(r.base != 0, BASE);
        head.extend_from_slice(&[INT | r.order << ORDER_SHIFT | flags, r.e]);
        put_signed(head, r.first);
        if r.gcd > 1 {
            put_varint(head, r.gcd);
        }
        if r.order == 2 {
            put_signed(head, r.step);
        }
        if r.base != 0 {
            put_signed(head, r.base);
        }
        head.push(plan.width as u8 | flag(r.zigzag, ZIGZAG));
        put_varint(head, u64::from(plan.exceptions));
        pfor::pack(&self.words, plan.width, body);
        if plan.exceptions > 0 {
            let start = body.len();
            pfor::put_exceptions(&self.words, plan.width, body, &mut self.highs);
            put_varint(head, (body.len() - start) as u64);
        }
        self.put_exceptions(values, head);
    }

    fn put_exceptions(&self, values: &[f64], head: &mut Vec<u8>) {
        if self.exceptions.is_empty() {
            return;
        }
        put_varint(head, self.exceptions.len() as u64);
        let mut next = 0;
        for &at in &self.exceptions {
            put_varint(head, u64::from(at - next));
            next = at + 1;
        }
        for &at in &self.exceptions {
            head.extend_from_slice(&values[at as usize].to_bits().to_le_bytes());
        }
    }

    /// Whether pco of the integers is worth its slower decoding; they are then in `highs`.
    fn pco_pays(&mut self, head: &[u8], body: &[u8]) -> bool {
        let n = self.ints.len();
        if n < PCO_ROWS_MIN || 2 * body.len() <= n {
            return false;
        }
        self.highs.clear();
        if pco::standalone::simple_compress_into(&self.ints, &pco_config(), &mut self.highs).is_err() {
            return false;
        }
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        let packed = self.zstd.as_mut().and_then(|z| z.compress(body).ok());
        let packed = packed.map_or(body.len(), |p| p.len().min(body.len()));
        20 * self.highs.len() < 19 * (head.len() + packed)
    }

    fn raw(&mut self, values: &[f64], best: bool, head: &mut Vec<u8>, body: &mut Vec<u8>) -> Body {
        let start = body.len();
        if best && pco::standalone::simple_compress_into(values, &pco_config(), &mut *body).is_ok() {
            let len = body.len() - start;
            if len < 8 * values.len() {
                head.push(RAW | PCO);
                put_varint(head, len as u64);
                return Body::Pco;
            }
        }
        body.truncate(start);
        head.push(RAW);
        body.extend(values.iter().flat_map(|v| v.to_bits().to_le_bytes()));
        Body::Packed
    }
}

fn pco_config() -> ChunkConfig {
    ChunkConfig::default().with_compression_level(PCO_LEVEL)
}

fn put_const(head: &mut Vec<u8>, v: f64) {
    let (mut ints, mut exceptions) = (vec![], vec![]);
    match transform::to_ints(Level::baseline(), &[v], &mut ints, &mut exceptions) {
        Some(e) if exceptions.is_empty() && ints[0].unsigned_abs() < 1 << 41 => {
            head.extend_from_slice(&[CONST, e]);
            put_signed(head, ints[0]);
        }
        _ => {
            head.push(CONST | EXCEPTIONS);
            head.extend_from_slice(&v.to_bits().to_le_bytes());
        }
    }
}

/// Values that came back whole, next to their places.
#[derive(Clone, Debug)]
struct Exceptions<'a> {
    places: Cursor<'a>,
    bits: &'a [u8],
    next: usize,
}

impl<'a> Exceptions<'a> {
    const fn none() -> Self {
        Self {
            places: Cursor(&[]),
            bits: &[],
            next: usize::MAX,
        }
    }

    fn parse(c: &mut Cursor<'a>, n: usize) -> Result<Self, Bad> {
        let count: usize = c.number()?;
        if count == 0 || count > n {
            return Err("an impossible number of exceptions");
        }
        let places = c.clone();
        for _ in 0..count {
            c.varint()?;
        }
        let mut all = Self {
            places,
            bits: c.take(8 * count)?,
            next: 0,
        };
        all.advance(0)?;
        Ok(all)
    }

    fn advance(&mut self, from: usize) -> Result<(), Bad> {
        self.next = usize::MAX;
        if !self.bits.is_empty() {
            let step: u32 = self.places.number()?;
            self.next = from + step as usize;
        }
        Ok(())
    }

    fn apply(&mut self, start: usize, values: &mut [f64]) -> Result<(), Bad> {
        while self.next < start + values.len() {
            let (bits, rest) = self.bits.split_first_chunk().ok_or("ends too early")?;
            let value = self.next.checked_sub(start).and_then(|at| values.get_mut(at));
            *value.ok_or("an exception lies outside of its page")? = f64::from_le_bytes(*bits);
            self.bits = rest;
            self.advance(self.next + 1)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Const(u64),
    Linear(Recipe),
    Packed { recipe: Recipe, width: u32, patches: usize },
    PcoInts(Recipe),
    PcoFloats,
    Raw,
}

/// What a page holds, where that is told without decoding it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Closed {
    Const(f64),
    /// Value `i` is `(first + i * step) / 10^e`.
    Linear {
        first: i64,
        step: i64,
        e: u8,
    },
    Varying,
}

/// A page, taken apart but not decoded.
#[derive(Clone, Debug)]
pub struct Page<'a> {
    n: usize,
    form: Form,
    exceptions: Exceptions<'a>,
    body: &'a [u8],
}

/// Working memory of decoders.
pub struct Scratch {
    level: Level,
    words: Vec<u64>,
    values: Vec<f64>,
    ints: Vec<i64>,
    floats: Vec<f64>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::with_level(Level::new())
    }
}

impl Scratch {
    /// With another vector unit than the best one: so that tests can compare them.
    pub fn with_level(level: Level) -> Self {
        Self {
            level,
            words: vec![0; CHUNK],
            values: vec![0.0; CHUNK],
            ints: vec![],
            floats: vec![],
        }
    }
}

/// A head, and how long the body is that belongs to it.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    page: Page<'a>,
    pub body_len: usize,
    pub kind: Body,
}

impl<'a> Head<'a> {
    pub fn with_body(mut self, body: &'a [u8]) -> Result<Page<'a>, Bad> {
        if body.len() != self.body_len {
            return Err("a page's body has another length than its head says");
        }
        self.page.body = body;
        Ok(self.page)
    }
}

impl<'a> Page<'a> {
    /// A page as `encode` wrote it, of `n` values.
    pub fn parse(bytes: &'a [u8], n: usize) -> Result<Self, Bad> {
        let mut c = Cursor(bytes);
        Self::head(&mut c, n)?.with_body(c.0)
    }

    /// The head alone, from the front of `c`.
    pub fn head(c: &mut Cursor<'a>, n: usize) -> Result<Head<'a>, Bad> {
        if n == 0 || n > PAGE_ROWS_MAX {
            return Err("a page has an impossible number of values");
        }
        let tag = c.byte()?;
        let (form, body_len) = match tag & CLASS {
            CONST => (get_const(c, tag)?, 0),
            LINEAR => {
                let mut recipe = get_recipe(c)?;
                recipe.step = c.signed()?;
                (Form::Linear(recipe), 0)
            }
            INT => get_int(c, tag, n)?,
            _ if tag & PCO != 0 => (Form::PcoFloats, c.number()?),
            _ => (Form::Raw, 8 * n),
        };
        let exceptions = if tag & EXCEPTIONS != 0 && matches!(tag & CLASS, LINEAR | INT) {
            Exceptions::parse(c, n)?
        } else {
            Exceptions::none()
        };
        let kind = if matches!(form, Form::PcoInts(_) | Form::PcoFloats) {
            Body::Pco
        } else {
            Body::Packed
        };
        let page = Self {
            n,
            form,
            exceptions,
            body: &[],
        };
        Ok(Head { page, body_len, kind })
    }

    pub fn rows(&self) -> usize {
        self.n
    }

    pub fn closed(&self) -> Closed {
        match self.form {
            Form::Const(bits) => Closed::Const(f64::from_bits(bits)),
            Form::Linear(Recipe { first, step, e, .. }) if self.exceptions.next == usize::MAX => {
                Closed::Linear { first, step, e }
            }
            _ => Closed::Varying,
        }
    }

    /// Whether the page may hold NaNs, among them staleness markers: only exceptions and raw floats can be.
    pub fn may_hold_nan(&self) -> bool {
        match self.form {
            Form::Const(bits) => f64::from_bits(bits).is_nan(),
            Form::PcoFloats | Form::Raw => true,
            _ => self.exceptions.next != usize::MAX,
        }
    }

    /// Whether no value is lower than the one before it, as far as that is told without decoding.
    pub fn ascends(&self) -> bool {
        match self.form {
            Form::Const(bits) => !f64::from_bits(bits).is_nan(),
            Form::Linear(r) => self.exceptions.next == usize::MAX && no_wrap(r, self.n) && r.step >= 0,
            _ => false,
        }
    }

    /// Appends all values to `out`.
    pub fn decode_into(&self, out: &mut Vec<f64>, scratch: &mut Scratch) -> Result<(), Bad> {
        let start = out.len();
        out.resize(start + self.n, 0.0);
        let decoded = self.decode(&mut out[start..], scratch);
        if decoded.is_err() {
            out.truncate(start);
        }
        decoded
    }

    /// All values, into as many places.
    pub fn decode(&self, out: &mut [f64], scratch: &mut Scratch) -> Result<(), Bad> {
        if out.len() != self.n {
            return Err("asked for another number of values than the page has");
        }
        let mut walk = self.walk(scratch)?;
        let mut rest = out;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(rest.len().min(CHUNK));
            walk.next(scratch, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Hands the first `upto` values on in chunks that stay in the first-level cache: each `CHUNK` long, save the last.
    pub fn chunks(&self, upto: usize, scratch: &mut Scratch, mut each: impl FnMut(&[f64])) -> Result<(), Bad> {
        let mut walk = self.walk(scratch)?;
        let mut values = std::mem::take(&mut scratch.values);
        values.resize(CHUNK, 0.0);
        let mut left = self.n.min(upto);
        let mut walked = Ok(());
        while left > 0 && walked.is_ok() {
            let now = &mut values[..left.min(CHUNK)];
            left -= now.len();
            walked = walk.next(scratch, now);
            if walked.is_ok() {
                each(now);
            }
        }
        scratch.values = values;
        walked
    }

    /// The integers of a page that `encode_ints` wrote.
    pub fn decode_ints(&self, out: &mut [i64], scratch: &mut Scratch) -> Result<(), Bad> {
        if out.len() != self.n {
            return Err("asked for another number of values than the page has");
        }
        if let Form::Linear(Recipe { first, step, .. }) = self.form {
            for (v, i) in out.iter_mut().zip(0i64..) {
                *v = first.wrapping_add(step.wrapping_mul(i));
            }
            return Ok(());
        }
        let mut walk = self.walk(scratch)?;
        for part in out.chunks_mut(CHUNK) {
            walk.words(scratch, part.len())?;
            let sums = walk.sums.as_mut().ok_or("integers of an unknown form")?;
            sums.ints(&mut scratch.words[..part.len()], part);
            walk.at += part.len();
        }
        Ok(())
    }

    fn walk(&self, scratch: &mut Scratch) -> Result<Walk<'a>, Bad> {
        let sums = match self.form {
            Form::Packed { recipe, .. } | Form::PcoInts(recipe) => Some(Sums::new(recipe)),
            _ => None,
        };
        let patches = match self.form {
            Form::Packed { width, patches, .. } => {
                let packed = pfor::packed_len(self.n, width);
                let bytes = self.body.get(packed..).ok_or("ends too early")?;
                Some(Patches::parse(bytes, patches)?)
            }
            _ => None,
        };
        if let Form::PcoInts(_) = self.form {
            scratch.ints.resize(self.n, 0);
            unpack_pco(self.body, &mut scratch.ints)?;
        }
        if let Form::PcoFloats = self.form {
            scratch.floats.resize(self.n, 0.0);
            unpack_pco(self.body, &mut scratch.floats)?;
        }
        Ok(Walk {
            form: self.form,
            body: self.body,
            at: 0,
            sums,
            patches,
            exceptions: self.exceptions.clone(),
        })
    }
}

/// Whether a straight line stays within i64.
fn no_wrap(r: Recipe, n: usize) -> bool {
    let last = i128::from(r.first) + i128::from(r.step) * (n as i128 - 1);
    i64::try_from(last).is_ok()
}

fn unpack_pco<T: pco::data_types::Number>(body: &[u8], out: &mut [T]) -> Result<(), Bad> {
    match pco::standalone::simple_decompress_into(body, out) {
        Ok(progress) if progress.finished && progress.n_processed == out.len() => Ok(()),
        Ok(_) => Err("has another number of values than its page"),
        Err(_) => Err("does not decompress"),
    }
}

fn get_const(c: &mut Cursor<'_>, tag: u8) -> Result<Form, Bad> {
    if tag & EXCEPTIONS != 0 {
        return Ok(Form::Const(c.u64()?));
    }
    let recipe = get_recipe(c)?;
    Ok(Form::Const((recipe.first as f64 / POWERS[recipe.e as usize]).to_bits()))
}

/// Scale and first integer.
fn get_recipe(c: &mut Cursor<'_>) -> Result<Recipe, Bad> {
    let e = c.byte()?;
    if e as usize >= POWERS.len() {
        return Err("too many decimal places");
    }
    Ok(Recipe {
        e,
        first: c.signed()?,
        gcd: 1,
        order: 0,
        step: 0,
        base: 0,
        zigzag: false,
    })
}

fn get_int(c: &mut Cursor<'_>, tag: u8, n: usize) -> Result<(Form, usize), Bad> {
    let mut recipe = get_recipe(c)?;
    if tag & GCD != 0 {
        recipe.gcd = c.varint()?;
    }
    if tag & PCO != 0 {
        return Ok((Form::PcoInts(recipe), c.number()?));
    }
    recipe.order = tag >> ORDER_SHIFT & 0b11;
    if recipe.order > 2 {
        return Err("an unknown order of differences");
    }
    if recipe.order == 2 {
        recipe.step = c.signed()?;
    }
    if tag & BASE != 0 {
        recipe.base = c.signed()?;
    }
    let width = c.byte()?;
    recipe.zigzag = width & ZIGZAG != 0;
    let width = u32::from(width & !ZIGZAG);
    if width > WIDTH_MAX {
        return Err("an impossible width");
    }
    let patches: usize = c.number()?;
    if patches > n {
        return Err("an impossible number of patches");
    }
    let patch_bytes: usize = if patches > 0 { c.number()? } else { 0 };
    let body = pfor::packed_len(n, width).checked_add(patch_bytes);
    let form = Form::Packed { recipe, width, patches };
    Ok((form, body.ok_or("a number is too large")?))
}

/// Goes through a page from front to back.
struct Walk<'a> {
    form: Form,
    body: &'a [u8],
    at: usize,
    sums: Option<Sums>,
    patches: Option<Patches<'a>>,
    exceptions: Exceptions<'a>,
}

impl Walk<'_> {
    /// The next `n` residuals, into the scratch.
    fn words(&mut self, scratch: &mut Scratch, n: usize) -> Result<(), Bad> {
        let words = &mut scratch.words[..n];
        match self.form {
            Form::Packed { width, .. } => {
                let from = self
                    .body
                    .get(pfor::packed_len(self.at, width)..)
                    .ok_or("ends too early")?;
                pfor::unpack(scratch.level, from, width, words);
                if let Some(patches) = &mut self.patches {
                    patches.apply(self.at, words, width)?;
                }
            }
            _ => {
                for (w, i) in words.iter_mut().zip(&scratch.ints[self.at..]) {
                    *w = *i as u64;
                }
            }
        }
        Ok(())
    }

    /// The next values; all but a page's last are `CHUNK` long.
    fn next(&mut self, scratch: &mut Scratch, out: &mut [f64]) -> Result<(), Bad> {
        let (level, at, n) = (scratch.level, self.at, out.len());
        match self.form {
            Form::Const(bits) => out.fill(f64::from_bits(bits)),
            Form::Linear(Recipe { first, step, e, .. }) => {
                for (v, i) in out.iter_mut().zip(at as i64..) {
                    *v = first.wrapping_add(step.wrapping_mul(i)) as f64 / POWERS[e as usize];
                }
            }
            Form::Packed { .. } | Form::PcoInts(_) => {
                self.words(scratch, n)?;
                if let Some(sums) = &mut self.sums {
                    sums.values(level, &mut scratch.words[..n], out);
                }
            }
            Form::PcoFloats => {
                out.copy_from_slice(&scratch.floats[at..at + n]);
            }
            Form::Raw => {
                let bytes = self.body.get(8 * at..8 * (at + n)).ok_or("ends too early")?;
                for (v, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *v = f64::from_le_bytes(*b);
                }
            }
        }
        self.exceptions.apply(at, out)?;
        self.at += n;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::STALE_NAN_BITS;
    use proptest::prelude::*;

    fn bits(values: &[f64]) -> Vec<u64> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    fn levels() -> Vec<Level> {
        let mut all = vec![Level::new(), Level::baseline()];
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        all.extend(Level::new().as_avx2().map(Level::Avx2));
        all
    }

    /// Encodes both ways, decodes both ways on every vector unit; the length of the plain page.
    fn round_trip(values: &[f64]) -> usize {
        let mut encoder = Encoder::default();
        let mut len = 0;
        for best in [true, false] {
            let mut bytes = vec![];
            encoder.whole(values, &mut bytes, best);
            let page = Page::parse(&bytes, values.len()).unwrap();
            for level in levels() {
                let mut scratch = Scratch::with_level(level);
                let mut out = vec![7.0];
                page.decode_into(&mut out, &mut scratch).unwrap();
                assert_eq!(bits(&out[1..]), bits(values));
                let mut chunks = vec![];
                page.chunks(values.len(), &mut scratch, |c| chunks.extend_from_slice(c))
                    .unwrap();
                assert_eq!(bits(&chunks), bits(values));
            }
            assert!(page.may_hold_nan() || values.iter().all(|v| !v.is_nan()));
            assert!(!page.ascends() || values.is_sorted());
            len = bytes.len();
        }
        len
    }

    pub fn any_value() -> impl Strategy<Value = f64> {
        prop_oneof![
            (-1000i32..1000).prop_map(f64::from),
            (-100_000i32..100_000).prop_map(|i| f64::from(i) / 100.0),
            any::<u64>().prop_map(f64::from_bits),
            any::<i64>().prop_map(|i| i as f64),
            Just(-0.0),
            Just(f64::INFINITY),
            Just(f64::from_bits(STALE_NAN_BITS)),
        ]
    }

    /// Like what is scraped: a scale, a factor, a walk of steps, a few odd values.
    fn series() -> impl Strategy<Value = Vec<f64>> {
        let steps = prop_oneof![
            prop::collection::vec(0i64..3, 1..1200),
            prop::collection::vec(-40i64..60, 1..1200),
            prop::collection::vec((0u32..60, any::<i64>()).prop_map(|(s, v)| v >> s), 1..300),
        ];
        let odd = prop::collection::vec((any::<prop::sample::Index>(), any_value()), 0..6);
        (
            steps,
            0i32..16,
            prop_oneof![Just(1i64), Just(4096), 1i64..1000],
            any::<bool>(),
            odd,
        )
            .prop_map(|(steps, e, factor, walk, odd)| {
                let mut sum = 0i64;
                let mut values: Vec<f64> = steps
                    .iter()
                    .map(|s| {
                        sum = if walk { sum.wrapping_add(*s) } else { *s };
                        sum.wrapping_mul(factor) as f64 / POWERS[e as usize]
                    })
                    .collect();
                for (at, v) in odd {
                    let at = at.index(values.len());
                    values[at] = v;
                }
                values
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_values_come_back_to_the_bit(values in prop::collection::vec(any_value(), 1..300)) {
            round_trip(&values);
        }

        #[test]
        fn series_come_back_to_the_bit(values in series()) {
            round_trip(&values);
        }

        #[test]
        fn integers_come_back(ints in prop_oneof![
            prop::collection::vec(any::<i64>(), 1..700), prop::collection::vec(0i64..500, 1..1200),
        ], best: bool) {
            let mut bytes = vec![];
            Encoder::default().encode_ints(&ints, best, &mut bytes);
            let mut out = vec![0; ints.len()];
            Page::parse(&bytes, ints.len()).unwrap().decode_ints(&mut out, &mut Scratch::default()).unwrap();
            prop_assert_eq!(out, ints);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200), n in 0usize..600, tag: u8, e in 0u8..20,
        ) {
            let mut framed = vec![tag, e];
            framed.extend_from_slice(&bytes);
            for bytes in [&bytes, &framed] {
                // A body of any length: the head is asked how long it should be.
                let mut c = Cursor(bytes);
                if let Ok(head) = Page::head(&mut c, n) && head.body_len < 10_000 {
                    let mut body = c.0.to_vec();
                    body.resize(head.body_len, 0xa5);
                    if let Ok(page) = head.with_body(&body) {
                        let _ = page.decode_into(&mut vec![], &mut Scratch::default());
                        let _ = page.decode_ints(&mut vec![0; n], &mut Scratch::default());
                    }
                }
            }
        }

        #[test]
        fn a_changed_byte_never_panics(values in series(), at: prop::sample::Index, bit in 0u8..8, best: bool) {
            let mut bytes = vec![];
            Encoder::default().whole(&values, &mut bytes, best);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(page) = Page::parse(&bytes, values.len()) {
                let _ = page.decode_into(&mut vec![], &mut Scratch::default());
            }
        }
    }

    #[test]
    fn special_values_come_back_alone_and_among_others() {
        let special = [
            f64::from_bits(STALE_NAN_BITS),
            -0.0,
            0.0,
            f64::INFINITY,
            f64::NEG_INFINITY,
            5e-324,
            -2.2e-308,
            f64::from_bits(0x7ff0_0000_0000_0001),
            f64::from_bits(0xfff8_0000_dead_beef),
            f64::MAX,
            9_007_199_254_740_993.0,
            -9_223_372_036_854_775_808.0,
            1e15,
            0.1 + 0.2,
        ];
        for v in special {
            round_trip(&[v]);
            for n in [2, 3, 9, 120, 513] {
                for at in [0, 1, n - 1] {
                    let mut values: Vec<f64> = (0..n).map(|i| (i * i % 7) as f64 / 4.0).collect();
                    values[at] = v;
                    round_trip(&values);
                    round_trip(&vec![v; n]);
                    let mut line: Vec<f64> = (0..n).map(|i| i as f64 * 3.0).collect();
                    line[at] = v;
                    round_trip(&line);
                }
            }
        }
        round_trip(&special);
    }

    #[test]
    fn the_longest_pages_come_back() {
        let noise = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / 100.0;
        let gauge: Vec<f64> = (0..PAGE_ROWS_MAX as u64).map(noise).collect();
        round_trip(&gauge);
        let roots: Vec<f64> = gauge.iter().map(|v| v.sqrt()).collect();
        assert_eq!(round_trip(&roots), 8 * PAGE_ROWS_MAX + 1);
    }

    #[test]
    fn common_shapes_take_the_room_they_should() {
        let len = |f: &dyn Fn(u64) -> f64| round_trip(&(0..480).map(f).collect::<Vec<f64>>());
        let noise = |i: u64| {
            let z = (i ^ 0x9e37_79b9).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
        };
        assert_eq!(len(&|_| 42.0), 3, "a constant");
        assert_eq!(len(&|_| 0.1 + 0.2), 9, "a constant that is no decimal");
        assert_eq!(len(&|i| 0.25 * i as f64), 4, "a straight line");
        let counter = len(&|i| (100 * i + noise(i) % 16) as f64);
        assert!(counter < 480 * 6 / 8, "a counter of steady rate: {counter}");
        let memory = len(&|i| (4096 * (noise(i) % 256)) as f64);
        assert!(memory <= 480 + 16, "multiples of a page: {memory}");
        let rare = len(&|i| (i / 100) as f64);
        assert!(rare < 30, "a rare step: {rare}");
    }

    #[test]
    fn closed_forms_are_told() {
        let closed = |values: &[f64]| {
            let mut bytes = vec![];
            Encoder::default().encode(values, &mut bytes);
            let page = Page::parse(&bytes, values.len()).unwrap();
            (page.closed(), page.ascends())
        };
        assert_eq!(closed(&[2.5; 4]), (Closed::Const(2.5), true));
        let line = Closed::Linear {
            first: 10,
            step: -5,
            e: 1,
        };
        assert_eq!(closed(&[1.0, 0.5, 0.0]), (line, false));
        assert_eq!(closed(&[1.0, 2.0, 4.0]), (Closed::Varying, false));
        assert_eq!(closed(&[1.0, 1.0, f64::NAN]), (Closed::Varying, false));
    }
}
