//! Every series and stream of a shard: found by name when writing, by matchers when reading.
//!
//! Invariants
//! - A series is named by tenant, kind (samples or lines), labels and owner; the same four never occur twice.
//! - Ids are dense, given in the order of definition, and never given again: a reader that still holds one never
//!   meets another series under it.
//! - A label set is in memory once; answers share it.

use super::postings::{Posting, bitmap_bytes, push, push_run};
use super::values::{Term, Values};
use crate::cursor::Bad;
use crate::retention::Policy;
use hashbrown::HashTable;
use hindcast_model::histogram::MARK;
use hindcast_model::{Labels, MatchOp, Matcher, Owner, Slot, TenantId};
use roaring::RoaringBitmap;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Ids per piece of the table of series; a piece of which all are forgotten gives its memory back.
const PIECE: usize = 1024;
type Piece = Vec<Option<Row>>;
/// Sets of matchers that are put together without much work.
const FEW_SETS: usize = 8;
/// Postings take their smallest form whenever that many ids were given: the span of one bitmap container.
const COMPACT_IDS: u32 = 1 << 16;

#[derive(Clone)]
struct Row {
    labels: Labels,
    fingerprint: u64,
    space: u32,
    policy: Policy,
    owner: Owner,
}

/// What is known of a series or stream.
#[derive(Clone, Copy)]
pub struct Series<'a> {
    pub id: u32,
    pub streams: bool,
    pub policy: Policy,
    pub owner: Owner,
    pub slot: Slot,
    pub fingerprint: u64,
    pub(crate) labels: &'a Labels,
    pub(crate) tenant: &'a TenantId,
}

impl<'a> Series<'a> {
    pub const fn tenant(&self) -> &'a TenantId {
        self.tenant
    }

    pub const fn labels(&self) -> &'a Labels {
        self.labels
    }

    /// The order of answers. The owner comes last: streams of one label set may have several.
    pub const fn order(&self) -> (Slot, u64, &'a Labels, Owner) {
        (self.slot, self.fingerprint, self.labels, self.owner)
    }
}

struct Label {
    name: Box<str>,
    values: Values,
}

/// The label index of one tenant's series, or of its streams.
pub(super) struct Space {
    pub(super) streams: bool,
    all: RoaringBitmap,
    labels: Vec<Label>,
    by_name: BTreeMap<Box<str>, u32>,
}

impl Space {
    fn values(&self, name: &str) -> Option<&Values> {
        let at = *self.by_name.get(name)?;
        Some(&self.labels[at as usize].values)
    }

    pub(super) fn label(&mut self, name: &str) -> u32 {
        if let Some(&known) = self.by_name.get(name) {
            return known;
        }
        let at = u32::try_from(self.labels.len()).expect("there are fewer than 2^32 label names");
        let values = Values::default();
        self.by_name.insert(name.into(), at);
        self.labels.push(Label {
            name: name.into(),
            values,
        });
        at
    }

    pub(super) fn values_mut(&mut self, label: u32) -> &mut Values {
        &mut self.labels[label as usize].values
    }

    pub(super) fn name(&self, label: u32) -> &str {
        &self.labels[label as usize].name
    }

    /// Label and value as texts.
    pub(super) fn pair(&self, (label, value): (u32, u32)) -> (&str, &str) {
        let label = &self.labels[label as usize];
        (&label.name, label.values.text(value))
    }

    /// An id and the labels and values that its series has.
    fn post(&mut self, id: u32, pairs: &[(u32, u32)]) {
        push(&mut self.all, id);
        for (label, value) in pairs {
            self.labels[*label as usize].values.add(*value, id);
        }
    }

    /// Ids of series whose labels are posted run by run.
    pub(super) fn post_run(&mut self, ids: Range<u32>) {
        push_run(&mut self.all, ids);
    }

    fn remove(&mut self, id: u32, labels: &Labels) {
        self.all.remove(id);
        for (name, value) in labels.iter() {
            if let Some(at) = self.by_name.get(name) {
                self.labels[*at as usize].values.remove(value, id);
            }
        }
    }

    fn term(&self, m: &Matcher) -> Term<'_> {
        match self.values(&m.name) {
            Some(values) => values.term(m),
            None if m.matches_empty() => Term::Any,
            None => Term::Keep(Cow::Owned(RoaringBitmap::new())),
        }
    }

    fn optimize(&mut self) {
        self.all.optimize();
        self.labels.iter_mut().for_each(|l| l.values.optimize());
    }

    fn heap_bytes(&self) -> usize {
        // A name is there twice; a node of the map holds its keys, values and about as much again.
        let label = |l: &Label| 2 * l.name.len() + 2 * size_of::<(Box<str>, u32)>() + l.values.heap_bytes();
        self.labels.capacity() * size_of::<Label>()
            + self.labels.iter().map(label).sum::<usize>()
            + bitmap_bytes(&self.all)
    }
}

/// The series by id, apart from the index that finds them. A clone is a view of one moment, for work that goes on
/// while series are added: it shares all but the pieces that change meanwhile.
#[derive(Clone, Default)]
pub struct Catalog {
    /// By id / `PIECE`; empty where all are forgotten.
    pieces: Vec<Arc<Piece>>,
    /// By space: whose series, and whether they are streams.
    spaces: Arc<Vec<(TenantId, bool)>>,
}

impl Catalog {
    fn row(&self, id: u32) -> Option<&Row> {
        self.pieces.get(id as usize / PIECE)?.get(id as usize % PIECE)?.as_ref()
    }

    pub fn get(&self, id: u32) -> Option<Series<'_>> {
        let row = self.row(id)?;
        let (tenant, streams) = &self.spaces[row.space as usize];
        Some(Series {
            id,
            streams: *streams,
            policy: row.policy,
            owner: row.owner,
            slot: row.slot(),
            fingerprint: row.fingerprint,
            labels: &row.labels,
            tenant,
        })
    }

    fn key_of_id(&self, id: u32) -> u64 {
        self.row(id).map_or(0, |r| key_of(r.fingerprint, r.space, &r.owner))
    }

    fn put(&mut self, id: u32, row: Option<Row>) {
        let at = id as usize / PIECE;
        if self.pieces.len() <= at {
            self.pieces.push(Arc::new(Vec::with_capacity(PIECE)));
        }
        let piece = Arc::make_mut(&mut self.pieces[at]);
        piece.push(row);
        drop_if_dead(piece);
    }

    fn take(&mut self, id: u32) -> Option<Row> {
        let piece = self.pieces.get_mut(id as usize / PIECE)?;
        piece.get(id as usize % PIECE)?.as_ref()?;
        let piece = Arc::make_mut(piece);
        let row = piece[id as usize % PIECE].take();
        drop_if_dead(piece);
        row
    }
}

#[derive(Default)]
pub struct Directory {
    catalog: Catalog,
    next_id: u32,
    live: usize,
    by_key: HashTable<u32>,
    pub(super) spaces: Vec<Space>,
    /// Of series, of streams.
    by_tenant: BTreeMap<TenantId, [Option<u32>; 2]>,
    /// Memory of the label sets.
    label_bytes: usize,
    /// Labels and values of the series that is being added.
    scratch: Vec<(u32, u32)>,
}

/// The fingerprint is a good hash already; the rest is mixed in.
fn key_of(fingerprint: u64, space: u32, owner: &Owner) -> u64 {
    /// 2^64 / golden ratio: spreads small numbers over all bits.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let owner = owner.id().map_or(0, |id| {
        let (half, _) = id.0.split_first_chunk().expect("16 bytes");
        u64::from_le_bytes(*half)
    });
    fingerprint ^ owner ^ u64::from(space).wrapping_mul(SPREAD)
}

impl Directory {
    /// Live series and streams.
    pub fn len(&self) -> usize {
        self.live
    }

    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Ids given so far; the next one.
    pub fn next_id(&self) -> u32 {
        self.next_id
    }

    /// How many series were forgotten: while it stays, an id that was found is still there. Follows from the ids that
    /// are there, so that it is the same after a restart, and on a replica that got a snapshot.
    pub fn epoch(&self) -> u64 {
        u64::from(self.next_id) - self.live as u64
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn row(&self, id: u32) -> Option<&Row> {
        self.catalog.row(id)
    }

    /// Of an id that an index of ours holds.
    fn live_row(&self, id: u32) -> &Row {
        self.row(id).expect("a posted series is in the directory")
    }

    fn space_of(&self, tenant: &TenantId, streams: bool) -> Option<u32> {
        self.by_tenant.get(tenant)?[usize::from(streams)]
    }

    pub(super) fn space(&mut self, tenant: &TenantId, streams: bool) -> u32 {
        if let Some(known) = self.space_of(tenant, streams) {
            return known;
        }
        let at = u32::try_from(self.spaces.len()).expect("there are fewer than 2^31 tenants");
        Arc::make_mut(&mut self.catalog.spaces).push((tenant.clone(), streams));
        self.spaces.push(Space {
            streams,
            all: RoaringBitmap::new(),
            labels: vec![],
            by_name: BTreeMap::new(),
        });
        self.by_tenant.entry(tenant.clone()).or_default()[usize::from(streams)] = Some(at);
        at
    }

    fn find_row(&self, space: u32, fingerprint: u64, labels: &Labels, owner: &Owner) -> Option<u32> {
        let same = |id: &u32| {
            let row = self.live_row(*id);
            row.fingerprint == fingerprint && row.space == space && row.owner == *owner && row.labels == *labels
        };
        self.by_key.find(key_of(fingerprint, space, owner), same).copied()
    }

    pub fn find(&self, tenant: &TenantId, streams: bool, labels: &Labels, owner: &Owner) -> Option<u32> {
        let space = self.space_of(tenant, streams)?;
        self.find_row(space, labels.fingerprint(), labels, owner)
    }

    /// The id of the series of this name; the next one if it is new.
    pub fn find_or_add(&mut self, tenant: &TenantId, streams: bool, labels: &Labels, owner: &Owner) -> u32 {
        let space = self.space(tenant, streams);
        let fingerprint = labels.fingerprint();
        if let Some(known) = self.find_row(space, fingerprint, labels, owner) {
            return known;
        }
        let mut pairs = std::mem::take(&mut self.scratch);
        pairs.clear();
        let index = &mut self.spaces[space as usize];
        for (name, value) in labels.iter() {
            let label = index.label(name);
            pairs.push((label, index.values_mut(label).value(value)));
        }
        let id = self.push(space, labels.clone(), fingerprint, *owner);
        self.spaces[space as usize].post(id, &pairs);
        self.scratch = pairs;
        id
    }

    /// The next series, of labels and values that are in the index. The caller posts its id, and lets it be found by
    /// name with all others: `enter_from`.
    pub(super) fn add_pairs(&mut self, space: u32, pairs: &[(u32, u32)], owner: Owner) {
        let index = &self.spaces[space as usize];
        let labels = Labels::from_sorted(pairs.iter().map(|p| index.pair(*p)));
        let fingerprint = labels.fingerprint();
        self.put(space, labels, fingerprint, owner);
    }

    /// Lets the series from `first_id` on be found by name; an error if one is there already.
    ///
    /// They go into the table place after place: one after the other by id, each would wait for memory twice.
    pub(super) fn enter_from(&mut self, first_id: u32) -> Result<(), Bad> {
        let rows = (first_id..self.next_id).filter_map(|id| Some((id, self.row(id)?)));
        let mut keys: Vec<(u64, u32)> = rows
            .map(|(id, r)| (key_of(r.fingerprint, r.space, &r.owner), id))
            .collect();
        let catalog = &self.catalog;
        self.by_key.reserve(keys.len(), |id| catalog.key_of_id(*id));
        // A place is the lowest bits of the key. Were it another, this would be slower and no less true.
        let places = self.by_key.capacity().next_power_of_two() as u64;
        keys.sort_unstable_by_key(|(key, id)| (key & (places - 1), *id));
        for (key, id) in keys {
            // Rows are looked at for likely doubles only.
            if self
                .by_key
                .find(key, |other| self.live_row(*other).is_named_as(self.live_row(id)))
                .is_some()
            {
                return Err("a series is defined twice");
            }
            let catalog = &self.catalog;
            self.by_key.insert_unique(key, id, |id| catalog.key_of_id(*id));
        }
        Ok(())
    }

    fn push(&mut self, space: u32, labels: Labels, fingerprint: u64, owner: Owner) -> u32 {
        let id = self.put(space, labels, fingerprint, owner);
        let (catalog, key) = (&self.catalog, key_of(fingerprint, space, &owner));
        self.by_key.insert_unique(key, id, |id| catalog.key_of_id(*id));
        id
    }

    /// Not to be found by name yet.
    fn put(&mut self, space: u32, labels: Labels, fingerprint: u64, owner: Owner) -> u32 {
        let id = self.next_id;
        self.next_id = id.checked_add(1).expect("a shard defines fewer than 2^32 series");
        let policy = Policy::of(&labels, &owner, self.spaces[space as usize].streams);
        self.label_bytes += labels.shared_bytes();
        self.live += 1;
        let row = Row {
            labels,
            fingerprint,
            space,
            policy,
            owner,
        };
        self.catalog.put(id, Some(row));
        if self.next_id.is_multiple_of(COMPACT_IDS) {
            self.spaces.iter_mut().for_each(Space::optimize);
        }
        id
    }

    /// Ids whose series were forgotten before the definitions were written.
    pub(super) fn skip(&mut self, ids: u32) -> Result<(), Bad> {
        let end = self.next_id.checked_add(ids).ok_or("there are too many ids")?;
        while self.next_id < end {
            let piece_is_gone = (self.next_id as usize).is_multiple_of(PIECE) && (end - self.next_id) as usize >= PIECE;
            if piece_is_gone {
                self.catalog.pieces.push(Arc::default());
                self.next_id += PIECE as u32;
            } else {
                self.catalog.put(self.next_id, None);
                self.next_id += 1;
            }
        }
        Ok(())
    }

    pub(super) fn label_bytes(&self) -> usize {
        self.label_bytes
    }

    /// Gives back what growing left over.
    pub(super) fn shrink(&mut self) {
        for label in self.spaces.iter_mut().flat_map(|s| &mut s.labels) {
            label.values.shrink();
        }
    }

    pub fn get(&self, id: u32) -> Option<Series<'_>> {
        self.catalog.get(id)
    }

    pub(super) fn space_of_id(&self, id: u32) -> Option<u32> {
        self.row(id).map(|r| r.space)
    }

    /// Forgets series that nothing holds any more. Their ids stay taken.
    pub fn forget(&mut self, ids: &[u32]) {
        let mut touched = BTreeSet::new();
        for &id in ids {
            let Some(row) = self.catalog.take(id) else { continue };
            self.live -= 1;
            self.label_bytes -= row.labels.shared_bytes();
            let key = key_of(row.fingerprint, row.space, &row.owner);
            if let Ok(entry) = self.by_key.find_entry(key, |other| *other == id) {
                entry.remove();
            }
            self.spaces[row.space as usize].remove(id, &row.labels);
            touched.insert(row.space);
        }
        for space in touched {
            let labels = &mut self.spaces[space as usize].labels;
            labels.iter_mut().for_each(|l| l.values.tidy());
        }
    }

    // ---- counting ----

    /// Ids of the tenant's series, those of native histograms aside.
    pub fn ids_of(&self, tenant: &TenantId) -> Option<&RoaringBitmap> {
        let space = self.space_of(tenant, false)?;
        Some(&self.spaces[space as usize].all)
    }

    /// Ids of the streams that are the tenant's series of native histograms.
    pub fn native_ids_of(&self, tenant: &TenantId) -> Option<Cow<'_, RoaringBitmap>> {
        let space = self.space_of(tenant, true)?;
        let marks = self.spaces[space as usize].values(MARK.0)?;
        Some(marks.posting(MARK.1)?.as_bitmap())
    }

    /// Labels of the tenant's series, and how many values each has. A label of native histograms has no more values than they are.
    pub fn label_sizes(&self, tenant: &TenantId) -> Vec<(String, usize)> {
        let natives = self.native_ids_of(tenant).map_or(0, |ids| ids.len() as usize);
        let mut all = vec![];
        for (streams, values_max) in [(false, usize::MAX), (true, natives)] {
            let Some(space) = self.space_of(tenant, streams) else {
                continue;
            };
            let labels = self.spaces[space as usize].labels.iter();
            let sizes = labels.map(|l| (l.name.to_string(), l.values.live_len().min(values_max)));
            all.extend(sizes.filter(|(name, n)| *n > 0 && *name != MARK.0));
        }
        all
    }

    /// Hands on values of a label of the tenant's series or streams, by their numbers from `from` on, `at_once` of them; where to go on.
    pub fn visit_values(
        &self,
        (tenant, streams): (&TenantId, bool),
        name: &str,
        from: usize,
        at_once: usize,
        each: impl FnMut(&str, &Posting),
    ) -> Option<usize> {
        let space = self.space_of(tenant, streams)?;
        let values = self.spaces[space as usize].values(name)?;
        values.visit(from, at_once, each)
    }

    // ---- selecting ----

    /// Series for which all matchers of any of the sets hold, in the order of answers.
    pub fn select(&self, tenant: &TenantId, streams: bool, any_of: &[Vec<Matcher>]) -> Vec<u32> {
        let Some(space) = self.space_of(tenant, streams) else {
            return vec![];
        };
        self.in_order(&self.matching(&self.spaces[space as usize], any_of))
    }

    /// As `select`, unless there are more than so many, or a search is needed for them.
    pub fn select_few(&self, tenant: &TenantId, streams: bool, matchers: &[Matcher], max: u64) -> Option<Vec<u32>> {
        if matchers.iter().any(|m| m.op != MatchOp::Equal) {
            return None;
        }
        let Some(space) = self.space_of(tenant, streams) else {
            return Some(vec![]);
        };
        let found = self.matching_all(&self.spaces[space as usize], matchers);
        (found.len() <= max).then(|| self.in_order(&found))
    }

    fn matching<'a>(&self, space: &'a Space, any_of: &[Vec<Matcher>]) -> Cow<'a, RoaringBitmap> {
        let mut sets = any_of.iter().map(|matchers| self.matching_all(space, matchers));
        let first = sets.next().unwrap_or_default();
        sets.fold(first, |all, set| Cow::Owned(&*all | &*set))
    }

    fn matching_all<'a>(&self, space: &'a Space, matchers: &[Matcher]) -> Cow<'a, RoaringBitmap> {
        let (mut keep, mut drop, mut scans) = (vec![], vec![], vec![]);
        for m in matchers {
            match space.term(m) {
                Term::Any => {}
                Term::Keep(ids) => keep.push(ids),
                Term::Drop(ids) => drop.push(ids),
                Term::Scan(values) => scans.push((values, m)),
            }
        }
        // The smallest first: all others then only look where it has ids.
        keep.sort_by_key(|ids| ids.len());
        let mut keep = keep.into_iter();
        let mut found = keep.next().unwrap_or(Cow::Borrowed(&space.all));
        keep.for_each(|ids| narrow(&mut found, Term::Keep(ids)));
        drop.into_iter().for_each(|ids| narrow(&mut found, Term::Drop(ids)));
        scans.sort_by_key(|(values, _)| values.len());
        for (values, m) in scans {
            if values.prefers_sets(found.len()) {
                let matches = |id: &u32| m.matches(&self.live_row(*id).labels);
                found = Cow::Owned(found.iter().filter(matches).collect());
            } else {
                narrow(&mut found, values.scanned_term(m));
            }
        }
        found
    }

    fn in_order(&self, ids: &RoaringBitmap) -> Vec<u32> {
        let mut keys: Vec<(Slot, u64, u32)> = Vec::with_capacity(ids.len() as usize);
        keys.extend(ids.iter().map(|id| {
            let row = self.live_row(id);
            (row.slot(), row.fingerprint, id)
        }));
        let rest = |id: u32| {
            let row = self.live_row(id);
            (&row.labels, row.owner)
        };
        keys.sort_unstable_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then_with(|| rest(a.2).cmp(&rest(b.2))));
        keys.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Whether `visit_label_texts` finds its texts without a search, and goes through few of them and of no series in vain.
    pub fn has_few_texts(
        &self,
        tenant: &TenantId,
        streams: bool,
        values_of: Option<&str>,
        any_of: &[Vec<Matcher>],
        max: usize,
    ) -> bool {
        let Some(space) = self.space_of(tenant, streams) else {
            return true;
        };
        let space = &self.spaces[space as usize];
        if any_of.len() > FEW_SETS || any_of.iter().flatten().any(|m| m.op != MatchOp::Equal) {
            return false;
        }
        let found = self.matching(space, any_of);
        let texts = || match values_of {
            None => space.by_name.len(),
            Some(name) => space
                .values(name)
                .map_or(0, |values| values.live().take(max + 1).count()),
        };
        found.is_empty() || (found.len() == space.all.len() && texts() <= max)
    }

    /// Names of labels that series have, or values of the label `values_of`, sorted, each once. `visit` gets each with those of its
    /// series that match any of the sets, and takes as many as it needs: there may be none.
    pub fn visit_label_texts<'a, E>(
        &'a self,
        tenant: &TenantId,
        streams: bool,
        values_of: Option<&str>,
        any_of: &[Vec<Matcher>],
        mut visit: impl FnMut(&'a str, &mut dyn Iterator<Item = u32>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(space) = self.space_of(tenant, streams) else {
            return Ok(());
        };
        let space = &self.spaces[space as usize];
        let found = self.matching(space, any_of);
        if found.is_empty() {
            return Ok(());
        }
        let all = *found == space.all;
        let is_found = |id: &u32| all || found.contains(*id);
        let Some(name) = values_of else {
            for at in space.by_name.values() {
                let label = &space.labels[*at as usize];
                visit(&label.name, &mut label.values.present().iter().filter(is_found))?;
            }
            return Ok(());
        };
        let Some(values) = space.values(name) else {
            return Ok(());
        };
        if values.prefers_sets(found.len()) {
            let mut by_text: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
            for id in found.iter() {
                if let Some(text) = self.live_row(id).labels.get(name) {
                    by_text.entry(text).or_default().push(id);
                }
            }
            return by_text
                .into_iter()
                .try_for_each(|(text, ids)| visit(text, &mut ids.into_iter()));
        }
        let mut texts: Vec<(&str, &Posting)> = values.live().collect();
        texts.sort_unstable_by_key(|(text, _)| *text);
        let mut texts = texts.into_iter();
        texts.try_for_each(|(text, posting)| visit(text, &mut posting.iter().filter(is_found)))
    }

    /// Memory of everything here, label sets included although callers may hold them too. What the allocator adds
    /// for itself is not in it. Looks at every posting.
    pub fn memory_bytes(&self) -> usize {
        let pieces = &self.catalog.pieces;
        let rows: usize = pieces.iter().map(|p| p.capacity()).sum();
        pieces.capacity() * size_of::<Arc<Piece>>()
            + pieces.len() * size_of::<Piece>()
            + rows * size_of::<Option<Row>>()
            + self.label_bytes
            + self.by_key.allocation_size()
            + self.spaces.capacity() * size_of::<Space>()
            + self.spaces.iter().map(Space::heap_bytes).sum::<usize>()
    }
}

impl Row {
    fn is_named_as(&self, other: &Self) -> bool {
        (self.fingerprint, self.space, self.owner) == (other.fingerprint, other.space, other.owner)
            && self.labels == other.labels
    }

    fn slot(&self) -> Slot {
        match self.owner {
            Owner::Resource { id, .. } => id.slot(),
            // As `Owner::slot` has it, without hashing the labels again.
            Owner::None => Slot::of_hash(self.fingerprint),
        }
    }
}

fn narrow(found: &mut Cow<'_, RoaringBitmap>, term: Term<'_>) {
    *found = match term {
        Term::Keep(ids) => Cow::Owned(&**found & &*ids),
        Term::Drop(ids) => Cow::Owned(&**found - &*ids),
        Term::Any | Term::Scan(_) => return,
    };
}

/// Only a full piece may go: ids are still to be put into the last one.
fn drop_if_dead(piece: &mut Piece) {
    if piece.len() == PIECE && piece.iter().all(Option::is_none) {
        *piece = vec![];
    }
}
