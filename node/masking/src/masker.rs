//! What is in force, and what it does to a line.

use crate::address::{Hit, Names};
use crate::found::{Found, Kind};
use crate::hide::Veil;
use crate::numbers::Wanted;
use crate::own;
use crate::settings::{EXEMPT_MAX, Finder, Settings, SettingsError, Type};
use crate::text::{char_at, digit_bits};
use crate::{email, escapes, hide, numbers};
use hindcast_model::{LogLine, Resource, TenantId};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

/// How often a line is looked at again, because what stayed of one match could be part of another. Properties show that
/// the second look finds the last one.
const LOOKS_MAX: usize = 8;
/// Names of types that are counted apart, over all reloads; further ones are counted as `other`.
const COUNTED_MAX: usize = 256;
/// Digits that the shortest of all numbers has.
const DIGITS_MIN: u32 = 7;

static NAMES: LazyLock<Names> = LazyLock::new(Names::new);

/// How much was hidden since the node started. Outlives reloads.
#[derive(Debug, Default)]
pub struct Counts {
    by_type: Mutex<BTreeMap<String, Arc<Count>>>,
    bytes: Arc<AtomicU64>,
}

/// Of one type.
#[derive(Debug, Default)]
struct Count {
    matches: AtomicU64,
    unsearched: AtomicU64,
}

impl Counts {
    fn of(&self, name: &str) -> Arc<Count> {
        let mut by_type = self.by_type.lock();
        let name = if by_type.contains_key(name) || by_type.len() < COUNTED_MAX {
            name
        } else {
            "other"
        };
        by_type.entry(name.to_owned()).or_default().clone()
    }

    /// Matches by type, in the order of the names.
    pub fn by_type(&self) -> Vec<(String, u64)> {
        self.all(|count| &count.matches)
    }

    /// Texts whose rest was hidden whole by type, since no more could be searched within its bound.
    pub fn unsearched(&self) -> Vec<(String, u64)> {
        self.all(|count| &count.unsearched)
    }

    fn all(&self, of: impl Fn(&Count) -> &AtomicU64) -> Vec<(String, u64)> {
        let by_type = self.by_type.lock();
        by_type.iter().map(|(n, c)| (n.clone(), of(c).load(Relaxed))).collect()
    }

    /// Bytes that were looked at.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

/// All that is in force. Immutable: a reload makes another one.
#[derive(Debug)]
pub struct Masking {
    settings: Settings,
    all: Masker,
    exempt: BTreeMap<TenantId, Option<Masker>>,
}

/// A type as it is in force, for those who ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeInForce {
    pub name: String,
    pub shipped: Option<Kind>,
    pub on: bool,
    pub pattern: Option<String>,
    pub character: char,
    pub keep_first: Option<usize>,
    pub keep_last: Option<usize>,
}

impl Masking {
    /// Checks the settings.
    pub fn new(settings: Settings, counts: &Counts) -> Result<Self, SettingsError> {
        let types = settings.checked()?;
        if settings.exempt.len() > EXEMPT_MAX {
            return Err(SettingsError::TooManyExempt {
                given: settings.exempt.len(),
            });
        }
        let mut exempt = BTreeMap::new();
        for e in &settings.exempt {
            let bad = |why: String| SettingsError::Exempt {
                tenant: e.tenant.clone(),
                why,
            };
            let tenant = TenantId::new(&e.tenant).map_err(|why| bad(why.to_string()))?;
            if let Some(unknown) = e.types.iter().find(|n| types.iter().all(|t| t.name != **n)) {
                return Err(bad(format!(
                    "there is no type {unknown:?}; leave types out for all of them"
                )));
            }
            let left: Vec<Type> = types
                .iter()
                .map(|t| Type {
                    on: t.on && !e.types.is_empty() && !e.types.contains(&t.name),
                    ..t.clone()
                })
                .collect();
            let masker = Masker::new(left, counts);
            if exempt.insert(tenant, Some(masker).filter(Masker::is_on)).is_some() {
                return Err(bad("it is given twice; name all types in one".to_owned()));
            }
        }
        Ok(Self {
            all: Masker::new(types, counts),
            settings,
            exempt,
        })
    }

    /// What counts for a tenant; `None` when its lines stay as they are.
    pub fn of(&self, tenant: &TenantId) -> Option<&Masker> {
        if !self.settings.on {
            return None;
        }
        match self.exempt.get(tenant) {
            Some(masker) => masker.as_ref(),
            None => Some(&self.all).filter(|m| m.is_on()),
        }
    }

    /// All types, whether masking is on or not, and for nobody in particular.
    pub const fn all(&self) -> &Masker {
        &self.all
    }

    pub const fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// What is in force now. Readers take an `Arc` of it per request.
#[derive(Debug)]
pub struct InForce {
    now: RwLock<Arc<Masking>>,
    counts: Counts,
}

impl Default for InForce {
    /// All shipped types.
    fn default() -> Self {
        let counts = Counts::default();
        let masking = Masking::new(Settings::default(), &counts).expect("the default settings are good");
        Self {
            now: RwLock::new(Arc::new(masking)),
            counts,
        }
    }
}

impl InForce {
    pub fn current(&self) -> Arc<Masking> {
        self.now.read().clone()
    }

    /// Puts other settings in force; bad ones change nothing.
    pub fn replace(&self, settings: Settings) -> Result<(), SettingsError> {
        let masking = Arc::new(Masking::new(settings, &self.counts)?);
        *self.now.write() = masking;
        Ok(())
    }

    pub const fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// The types that count for somebody.
#[derive(Debug)]
pub struct Masker {
    types: Vec<Type>,
    counts: Vec<Arc<Count>>,
    bytes: Arc<AtomicU64>,
    wanted: Wanted,
    has_patterns: bool,
}

/// A line, masked, and what was found in it as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked {
    pub text: Vec<u8>,
    /// In the order of their beginnings; none lies within another.
    pub found: Vec<Found>,
}

impl Masker {
    fn new(types: Vec<Type>, counts: &Counts) -> Self {
        let on = |kind: Kind| types[kind as usize].on;
        Self {
            counts: types.iter().map(|t| counts.of(&t.name)).collect(),
            bytes: counts.bytes.clone(),
            wanted: Wanted {
                rrn: on(Kind::Rrn),
                phone: on(Kind::Phone),
                card: on(Kind::Card),
                passport: on(Kind::Passport),
            },
            has_patterns: types.iter().any(|t| t.on && matches!(t.finder, Finder::Pattern(_))),
            types,
        }
    }

    fn is_on(&self) -> bool {
        self.types.iter().any(|t| t.on)
    }

    /// Its types, shipped ones first.
    pub fn types(&self) -> impl Iterator<Item = TypeInForce> {
        self.types.iter().map(|t| TypeInForce {
            name: t.name.clone(),
            shipped: match t.finder {
                Finder::Shipped(kind) => Some(kind),
                Finder::Pattern(_) => None,
            },
            on: t.on,
            pattern: match &t.finder {
                Finder::Shipped(_) => None,
                Finder::Pattern(regex) => Some(regex.as_str().to_owned()),
            },
            character: char::from(t.character),
            keep_first: t.keep_first,
            keep_last: t.keep_last,
        })
    }

    /// The name of the type of a match.
    pub fn name(&self, found: &Found) -> &str {
        self.types.get(usize::from(found.of)).map_or("", |t| &t.name)
    }

    /// Room to mask many lines, counted.
    pub fn session(&self) -> Session<'_> {
        Session {
            masker: self,
            scratch: Scratch::default(),
            looked: 0,
        }
    }

    /// Masks one text, uncounted.
    pub fn preview(&self, text: &[u8]) -> Masked {
        let mut scratch = Scratch::default();
        self.find(text, true, &mut scratch);
        scratch.lay_veils(self);
        let found = scratch.outermost().to_vec();
        if found.is_empty() {
            return Masked {
                text: text.to_vec(),
                found,
            };
        }
        self.hide(text, &mut scratch);
        Masked {
            text: scratch.out,
            found,
        }
    }

    /// Finds everything; what is found in the text without its escapes is told by its place in the text with them.
    fn find(&self, text: &[u8], patterns: bool, scratch: &mut Scratch) {
        let Scratch {
            bits,
            hits,
            found,
            plain,
            places,
            ..
        } = scratch;
        found.clear();
        let mut marks = memchr::memchr3_iter(b'@', b'%', b'\\', text);
        let (mut at_sign, mut escape) = (false, false);
        for at in &mut marks {
            match text[at] {
                b'@' => at_sign = true,
                _ => escape = true,
            }
            if at_sign && escape {
                break;
            }
        }
        let patterns = patterns && self.has_patterns;
        self.find_in(text, at_sign, patterns, bits, hits, found);
        if escape && escapes::has_any(text) {
            escapes::resolve(text, plain, places);
            let raw = found.len();
            let at_sign = memchr::memchr(b'@', plain).is_some();
            self.find_in(plain, at_sign, patterns, bits, hits, found);
            for f in &mut found[raw..] {
                [f.start, f.end, f.from, f.to] = [f.start, f.end, f.from, f.to].map(|at| places[at]);
            }
        }
    }

    fn find_in(
        &self,
        text: &[u8],
        at_sign: bool,
        patterns: bool,
        bits: &mut Vec<u64>,
        hits: &mut Vec<Hit>,
        found: &mut Vec<Found>,
    ) {
        let first = found.len();
        if self.wanted.any() {
            digit_bits(text, bits);
            if bits.iter().map(|b| b.count_ones()).sum::<u32>() >= DIGITS_MIN {
                numbers::find(text, bits, self.wanted, found);
            }
        }
        if at_sign && self.types[Kind::Email as usize].on {
            email::find(text, found);
        }
        let address = &self.types[Kind::Address as usize];
        if address.on && !text.is_ascii() {
            NAMES.find(text, address.keep_first.unwrap_or(usize::MAX), hits, found, first);
        }
        if patterns {
            self.find_patterns(text, found);
        }
        for f in &mut found[first..] {
            self.keep(text, f);
        }
    }

    fn find_patterns(&self, text: &[u8], found: &mut Vec<Found>) {
        for (of, t) in (0u16..).zip(&self.types).filter(|(_, t)| t.on) {
            let Finder::Pattern(own) = &t.finder else { continue };
            own.find(text, |hit| {
                let (all, hidden, unsearched) = match hit {
                    own::Hit::Match { all, hidden } => (all, hidden, false),
                    own::Hit::Unsearched { from } => (from..text.len(), from..text.len(), true),
                };
                found.push(Found {
                    of,
                    start: all.start,
                    end: all.end,
                    from: hidden.start,
                    to: hidden.end,
                    unsearched,
                });
            });
        }
    }

    /// Moves the bounds of what is hidden to where the settings want them.
    fn keep(&self, text: &[u8], found: &mut Found) {
        let t = &self.types[usize::from(found.of)];
        if found.unsearched || (t.keep_first.is_none() && t.keep_last.is_none()) {
            return;
        }
        match t.finder {
            Finder::Shipped(Kind::Address) => {}
            Finder::Shipped(Kind::Email) => {
                if let Some(most) = t.keep_first {
                    found.from = email::shown(text, found.start, found.to, most);
                }
                if t.keep_last == Some(0) {
                    found.to = found.end;
                }
            }
            Finder::Shipped(_) => {
                let (from, to) = keep_ends(text, (found.start, found.end), t.keep_first, t.keep_last);
                (found.from, found.to) = (from.unwrap_or(found.from), to.unwrap_or(found.to));
                if found.from >= found.to {
                    (found.from, found.to) = (found.start, found.end);
                }
            }
            Finder::Pattern(_) => {
                let hidden = (found.from, found.to);
                let (from, to) = keep_ends(text, hidden, t.keep_first, t.keep_last);
                let (from, to) = (from.unwrap_or(hidden.0), to.unwrap_or(hidden.1));
                // A match that is kept whole would be no match: then nothing of it is kept.
                (found.from, found.to) = if from < to { (from, to) } else { hidden };
            }
        }
    }

    fn veil(&self, found: &Found) -> Veil {
        let t = &self.types[usize::from(found.of)];
        Veil {
            from: found.from,
            to: found.to,
            character: t.character,
            whole: matches!(t.finder, Finder::Shipped(Kind::Email) | Finder::Pattern(_)),
        }
    }

    /// Hides what `find` found, and what may be found then: `scratch.out` has the text.
    fn hide(&self, text: &[u8], scratch: &mut Scratch) {
        let mut out = std::mem::take(&mut scratch.out);
        hide::write(text, &scratch.veils, &mut out);
        let mut again = std::mem::take(&mut scratch.again);
        for _ in 1..LOOKS_MAX {
            self.find(&out, false, scratch);
            if scratch.found.is_empty() {
                break;
            }
            // What stayed of one match is part of another: nothing of that stays.
            for f in &mut scratch.found {
                (f.from, f.to) = (f.start, f.end);
            }
            scratch.lay_veils(self);
            std::mem::swap(&mut out, &mut again);
            hide::write(&again, &scratch.veils, &mut out);
        }
        (scratch.out, scratch.again) = (out, again);
    }
}

/// Where what is hidden begins and ends when some letters and digits stay on either side.
fn keep_ends(
    text: &[u8],
    (start, end): (usize, usize),
    first: Option<usize>,
    last: Option<usize>,
) -> (Option<usize>, Option<usize>) {
    let mut places = vec![];
    let mut at = start;
    while at < end {
        let (c, len) = char_at(text, at).map_or((None, 1), |(c, len)| (Some(c), len));
        if c.is_none_or(char::is_alphanumeric) {
            places.push((at, at + len));
        }
        at += len;
    }
    let from = first.map(|n| match n {
        0 => start,
        _ => places.get(n).map_or(end, |p| p.0),
    });
    let to = last.map(|n| match n {
        0 => end,
        _ => places.len().checked_sub(n + 1).map_or(start, |i| places[i].1),
    });
    (from, to)
}

/// What is kept from line to line, so that masking allocates nothing for most.
#[derive(Debug, Default)]
struct Scratch {
    bits: Vec<u64>,
    hits: Vec<Hit>,
    found: Vec<Found>,
    veils: Vec<Veil>,
    plain: Vec<u8>,
    places: Vec<usize>,
    out: Vec<u8>,
    again: Vec<u8>,
}

impl Scratch {
    /// Brings what was found into order, and makes veils of all of it.
    fn lay_veils(&mut self, masker: &Masker) {
        self.veils.clear();
        self.veils.extend(self.found.iter().map(|f| masker.veil(f)));
        self.veils.sort_unstable();
        self.found
            .sort_unstable_by_key(|f| (f.start, std::cmp::Reverse(f.end), f.of));
    }

    /// Those that lie within no other; `found` holds nothing else afterwards.
    fn outermost(&mut self) -> &[Found] {
        let mut end = 0;
        self.found.retain(|f| {
            let is_out = f.end > end;
            end = end.max(f.end);
            is_out
        });
        &self.found
    }
}

/// Masks many lines with the same room, and counts.
#[derive(Debug)]
pub struct Session<'a> {
    masker: &'a Masker,
    scratch: Scratch,
    looked: u64,
}

impl Session<'_> {
    /// The text with everything hidden; `None` when there is nothing to hide.
    pub fn mask(&mut self, text: &[u8]) -> Option<&[u8]> {
        self.looked += text.len() as u64;
        self.masker.find(text, true, &mut self.scratch);
        if self.scratch.found.is_empty() {
            return None;
        }
        self.scratch.lay_veils(self.masker);
        // A rest that is hidden whole is counted once for a type, though both looks at the text may end with one.
        let mut told = 0u64;
        for f in self.scratch.found.iter().filter(|f| f.unsearched) {
            if told & 1 << f.of == 0 {
                told |= 1 << f.of;
                self.masker.counts[usize::from(f.of)].unsearched.fetch_add(1, Relaxed);
            }
        }
        for f in self.scratch.outermost().iter().filter(|f| !f.unsearched) {
            self.masker.counts[usize::from(f.of)].matches.fetch_add(1, Relaxed);
        }
        self.masker.hide(text, &mut self.scratch);
        Some(&self.scratch.out)
    }

    /// The same for text that is UTF-8, and stays it.
    pub fn mask_str(&mut self, text: &str) -> Option<&str> {
        let masked = self.mask(text.as_bytes())?;
        // Whole characters are replaced by ASCII; were it otherwise, nothing would be the safe thing to show.
        Some(std::str::from_utf8(masked).unwrap_or_default())
    }

    /// Masks lines and the values of their metadata in place.
    pub fn lines(&mut self, lines: &mut [LogLine]) {
        for l in lines {
            if let Some(masked) = self.mask(&l.line) {
                l.line = masked.to_vec().into();
            }
            self.values(l.metadata.iter_mut().map(|(_, value)| value));
        }
    }

    /// Masks what resources are described by. Their names and ids stay: they say whose data it is.
    pub fn resources(&mut self, resources: &mut [Resource]) {
        for r in resources {
            self.values(r.attributes.values_mut());
        }
    }

    fn values<'v>(&mut self, values: impl Iterator<Item = &'v mut String>) {
        for value in values {
            if let Some(masked) = self.mask_str(value) {
                *value = masked.to_owned();
            }
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.masker.bytes.fetch_add(self.looked, Relaxed);
    }
}
