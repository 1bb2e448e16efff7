//! Lays out a request whose series and streams carry label lists: the known ones by id, the rest with definitions.
//!
//! The known way touches nothing but bytes: one comparison of the encoded labels, and rows that are written the
//! way the sender's libraries write them. Whatever is unusual there (a new series, labels between samples, a time
//! that is refused, fields that we do not know) takes the general way, which decides alone what is an error and
//! what is refused; it gives the same rows.
//!
//! What a request teaches goes into the cache only once the request was confirmed: until then its definitions and
//! resources travel again.

use crate::described::{Described, Due, Metric};
use crate::exemplars::Exemplars;
use crate::histogram::Budget;
use crate::intake::{Ids, Intake, Naming, Numbers, Piece, Rows, put_metadata, split_lines, split_samples};
use crate::known::{Learned, Lookup, SeriesCache};
use crate::new_series::{self, NewSeries};
use crate::owners::{Named, Scope, Seen};
use crate::remote_write::{self, native::Native as Histogram};
use crate::wire::{LabelRun, Reader, WireError, label_run};
use crate::{LimitsContext, Refusal, Rejections};
use bytes::Bytes;
use hindcast_masking::{Masker, Session};
use hindcast_model::histogram::line_samples;
use hindcast_model::resource::Edge;
use hindcast_model::{Labels, LogLine, Owner, Sample, SeriesBlock, ShardId, StreamBlock, TenantId, TimestampNs};
use hindcast_proto::trace::{NATIVE, TRACE_LABEL};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What adapters ask for names and places.
#[derive(Clone, Copy)]
pub struct Books<'a> {
    pub ids: &'a dyn Ids,
    pub cache: &'a SeriesCache,
    /// What was written of metrics.
    pub described: &'a Described,
    pub naming: Naming,
    /// Hides personal data in lines; `None`: they stay as they are.
    pub masker: Option<&'a Masker>,
    /// Says which new series may begin; `None`: all.
    pub new_series: Option<&'a dyn NewSeries>,
}

/// A request, laid out for its shards.
pub struct Laid {
    pub intake: Intake,
    /// What may not be stored, and why.
    pub rejected: Rejections,
    pub lessons: Lessons,
    pub native: Native,
    /// What the request says of its metrics and nobody has written yet.
    pub due: Due,
    /// Exemplars that came with samples and are among the lines.
    pub exemplars: u64,
    pub exemplars_left_out: u64,
    /// Lines that were cut to the length that one may have.
    pub lines_cut: u64,
}

/// Native histograms that are among the lines, and what they take there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Native {
    pub histograms: u64,
    /// What they count as where samples are counted.
    pub samples: u64,
    pub bytes: usize,
}

/// What a request teaches the cache, once it was confirmed.
#[derive(Default)]
pub struct Lessons(Vec<Lesson>);

struct Lesson {
    scope: Arc<Scope>,
    raw: Box<[u8]>,
    streams: bool,
    labels: Labels,
    owner: Owner,
    shard: ShardId,
    epoch: u64,
    id: Option<u32>,
}

impl Lessons {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Remembers the request's series, with the ids that its definitions were given meanwhile.
    pub fn learn(mut self, tenant: &TenantId, books: &Books<'_>) {
        let kinds: BTreeSet<_> = self.0.iter().map(|l| (l.shard, l.streams)).collect();
        for (shard, streams) in kinds {
            let of_kind = |l: &&mut Lesson| l.shard == shard && l.streams == streams && l.id.is_none();
            let mut open: Vec<&mut Lesson> = self.0.iter_mut().filter(of_kind).collect();
            let wanted: Vec<_> = open.iter().map(|l| (&l.labels, &l.owner)).collect();
            let (epoch, ids) = books.ids.ids(shard, tenant, streams, &wanted);
            for (lesson, id) in open.iter_mut().zip(ids) {
                (lesson.epoch, lesson.id) = (epoch, id);
            }
        }
        for of_scope in self.0.chunk_by(|a, b| Arc::ptr_eq(&a.scope, &b.scope)) {
            let learned = of_scope.iter().map(|l| Learned {
                raw: &l.raw,
                slot: l.owner.slot(&l.labels),
                shard: l.shard,
                epoch: l.epoch,
                id: l.id,
            });
            books.cache.learn(&of_scope[0].scope, learned);
        }
    }
}

/// How a protocol writes samples: field 2 of a series message.
pub(crate) trait SampleForm {
    /// Native histograms are field 4, exemplars 3; both of metrics only.
    const HISTOGRAMS: bool;
    /// Reads fields 2 as the usual senders write them, all of `rest`; false when anything is unusual.
    fn usual(rest: &[u8], out: &mut Vec<(i64, u64)>) -> bool;
    fn general(message: &[u8]) -> Result<Sample, WireError>;
}

/// A line, borrowed from the request.
#[derive(Default)]
pub(crate) struct LineView<'m> {
    pub at_ns: i64,
    pub text: &'m str,
    /// Sorted by name.
    pub metadata: Vec<(&'m str, &'m str)>,
}

/// Labels as the sender wrote them, or why they are none.
type Given = Result<Result<Vec<(String, String)>, Refusal>, WireError>;

/// How a protocol writes lines: field 2 of a stream message.
pub(crate) trait LineForm {
    fn line<'m>(message: &'m [u8], into: &mut LineView<'m>) -> Result<(), WireError>;
    fn labels(message: &[u8]) -> Given;
    /// What the sender wrote, for messages.
    fn shown(message: &[u8]) -> String;
}

/// What names the sets of one request: tenant, resource, role.
pub(crate) struct Names<'a> {
    pub attrs: &'a [(String, String)],
    pub scope: Arc<Scope>,
}

/// A request while it is laid out.
pub(crate) struct Layout<'a> {
    pub tenant: &'a TenantId,
    pub limits: &'a LimitsContext,
    pub books: Books<'a>,
    pub intake: Intake,
    pub rejected: Rejections,
    seen: Seen,
    lessons: Vec<Lesson>,
    /// Whether anything took the general way.
    pub is_news: bool,
    /// Whether the shard map holds for all of time.
    timeless: bool,
    /// About how much text the request has: room for it is made at once.
    pub text_bytes: usize,
    /// Known series and streams that took it: what comes later of them stays behind it.
    late: BTreeSet<(ShardId, bool, u32)>,
    masks: Option<Session<'a>>,
    budget: Budget,
    /// Native histograms, by their series.
    of_native: BTreeMap<(Labels, Owner), Vec<LogLine>>,
    native: Native,
    pub due: Due,
    pub exemplars: Exemplars,
    /// Lines that were cut to the length that one may have.
    pub lines_cut: u64,
}

/// A set that is named, with the bytes by which it is remembered.
struct General<'m, B> {
    raw: Option<&'m [u8]>,
    block: B,
}

/// The bytes of the labels with which a message begins.
fn first_labels(message: &[u8]) -> Option<usize> {
    let mut reader = Reader::new(message);
    let mut at = 0;
    while message.get(at) == Some(&0x0a) {
        reader.next().ok()?;
        at = message.len() - reader.left();
    }
    (at > 0).then_some(at)
}

fn find(lookup: &mut Lookup<'_>, message: &[u8]) -> Option<crate::known::Hit> {
    let hit = match lookup.guess(message) {
        // The guess may be the beginning of a longer label list.
        Some(hit) if message.get(hit.len) != Some(&0x0a) => return Some(hit),
        _ => lookup.find(&message[..first_labels(message)?])?,
    };
    Some(hit)
}

impl<'a> Layout<'a> {
    pub fn new(tenant: &'a TenantId, limits: &'a LimitsContext, books: Books<'a>) -> Self {
        Self {
            tenant,
            limits,
            books,
            intake: Intake::new(tenant.clone(), None),
            rejected: Rejections::default(),
            seen: Seen::default(),
            lessons: vec![],
            is_news: false,
            timeless: books.ids.is_timeless(),
            text_bytes: 0,
            late: BTreeSet::new(),
            masks: books.masker.map(Masker::session),
            budget: Budget::default(),
            of_native: BTreeMap::new(),
            native: Native::default(),
            due: Due::default(),
            exemplars: Exemplars::default(),
            lines_cut: 0,
        }
    }

    /// Notes what the request says of a metric.
    pub fn describe(&mut self, metric: &Metric<'_>) {
        self.books
            .described
            .look(self.tenant, metric, self.limits, &mut self.due);
    }

    /// Series messages: labels are field 1, samples field 2.
    pub fn series<'m, F: SampleForm>(
        &mut self,
        messages: impl Iterator<Item = Result<&'m [u8], WireError>>,
        names: &Names<'_>,
    ) -> Result<(), WireError> {
        let mut general = vec![];
        let mut old = vec![];
        if self.books.naming == Naming::Known {
            let mut lookup = self.books.cache.lookup(&names.scope);
            let mut samples = vec![];
            for message in messages {
                let message = message?;
                if !self.known_series::<F>(message, &mut lookup, &mut samples, &mut old) {
                    general.push(message);
                }
            }
        } else {
            for message in messages {
                general.push(message?);
            }
        }
        if !old.is_empty() {
            self.books.cache.learn(&names.scope, old.into_iter());
        }
        if general.is_empty() {
            return Ok(());
        }
        let mut blocks = Vec::with_capacity(general.len());
        for message in general {
            if let Some(block) = self.general_series::<F>(message, names)? {
                blocks.push(block);
            }
        }
        self.place_series(blocks, &names.scope);
        Ok(())
    }

    #[inline]
    fn known_series<'m, F: SampleForm>(
        &mut self,
        message: &'m [u8],
        lookup: &mut Lookup<'_>,
        samples: &mut Vec<(i64, u64)>,
        old: &mut Vec<Learned<'m>>,
    ) -> bool {
        let Some(hit) = find(lookup, message) else { return false };
        let ids = self.books.ids;
        let share = self.intake.share(hit.shard, ids);
        let Some(id) = hit.id(share.epoch) else { return false };
        samples.clear();
        let fits = |&(ms, _): &(i64, u64)| {
            let at = TimestampNs::from_ms(ms);
            self.limits.time(at).is_ok() && (self.timeless || ids.shard_of(hit.slot, at) == hit.shard)
        };
        let is_late = || !self.late.is_empty() && self.late.contains(&(hit.shard, false, id));
        if !F::usual(&message[hit.len..], samples) || !samples.iter().all(fits) || is_late() {
            self.late.insert((hit.shard, false, id));
            return false;
        }
        match samples[..] {
            [] => return true,
            [(ms, bits)] => share.one(Numbers::Ids, id, TimestampNs::from_ms(ms).as_ms(), bits),
            _ => {
                let times: Vec<i64> = samples.iter().map(|s| TimestampNs::from_ms(s.0).as_ms()).collect();
                share.many(Numbers::Ids, id, &times, samples.iter().map(|s| s.1));
            }
        }
        if hit.is_old() {
            old.push(Learned {
                raw: &message[..hit.len],
                slot: hit.slot,
                shard: hit.shard,
                epoch: share.epoch,
                id: Some(id),
            });
        }
        self.intake.samples += samples.len() as u64;
        true
    }

    fn general_series<'m, F: SampleForm>(
        &mut self,
        message: &'m [u8],
        names: &Names<'_>,
    ) -> Result<Option<General<'m, SeriesBlock>>, WireError> {
        let (raw, rest) = match label_run(message)? {
            Some(LabelRun { raw, rest }) => (Some(raw), rest),
            // Labels between the samples: no sender that we know does it, but it is allowed.
            None => (None, Reader::new(message)),
        };
        let pairs = crate::wire::labels(message)?;
        let samples = read_samples(rest, F::general)?;
        let histograms = F::HISTOGRAMS.then_some(rest);
        self.named_series(message, raw, pairs, (samples, histograms), names)
    }

    /// Checks and names one series; what is refused is counted. Native histograms are among the fields of `histograms`.
    fn named_series<'m>(
        &mut self,
        message: &[u8],
        raw: Option<&'m [u8]>,
        pairs: Vec<(String, String)>,
        (samples, histograms): (Vec<Sample>, Option<Reader<'_>>),
        names: &Names<'_>,
    ) -> Result<Option<General<'m, SeriesBlock>>, WireError> {
        self.is_news = true;
        let named = crate::owners::name_labels(self.tenant, pairs, names.attrs, true, self.limits);
        let histograms = match histograms {
            Some(fields) => self.natives(fields, named.as_ref().ok())?,
            None => 0,
        };
        let items = samples.len() + histograms;
        let Some(named) = keep_named(named, items, &mut self.rejected, || shown_labels(message)) else {
            return Ok(None);
        };
        self.seen.note(&named.resource);
        let block = keep_samples(named, samples, self.limits, &mut self.rejected);
        Ok(block.map(|block| General { raw, block }))
    }

    /// Adds native histograms (fields number 4) and exemplars (3). How many histograms there are; what belongs
    /// to a set without a name is only read.
    ///
    /// One is read after the other: all of them at once would take many times what the sender sent.
    fn natives(&mut self, mut fields: Reader<'_>, named: Option<&Named>) -> Result<usize, WireError> {
        let mut histograms = 0;
        while let Some((number, field)) = fields.next()? {
            match number {
                3 => {
                    let exemplar = remote_write::exemplar(field.bytes("an exemplar")?)?;
                    match named {
                        Some(named) => self.exemplars.add(&named.labels, named.owner, exemplar, self.limits),
                        None => self.exemplars.left_out += 1,
                    }
                }
                4 => {
                    histograms += 1;
                    let histogram = remote_write::native::read(field.bytes("a histogram")?)?;
                    if let Some(named) = named
                        && let Err(why) = self.native(named, &histogram)
                    {
                        self.rejected.add(1, &why, || named.labels.to_string());
                    }
                }
                _ => {}
            }
        }
        Ok(histograms)
    }

    /// Adds a native histogram: a line of a stream that is marked as one of histograms and has the labels of the series.
    fn native(&mut self, named: &Named, histogram: &Histogram) -> Result<(), Refusal> {
        self.limits.time(histogram.at)?;
        let line = histogram.line()?;
        self.budget.take_line(&named.labels, &line)?;
        let stream = named.labels.with(TRACE_LABEL, NATIVE);
        let lines = match self.of_native.entry((stream, named.owner)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                if let Some(gate) = self.books.new_series {
                    let (labels, owner) = new.key();
                    let sets = [(labels, owner)];
                    let kind = (self.books.naming, true);
                    let refused = new_series::refused(self.books.ids, gate, kind, self.tenant, &sets);
                    if let Some(why) = refused.into_iter().flatten().next() {
                        return Err(why);
                    }
                }
                new.insert(vec![])
            }
        };
        self.native.histograms += 1;
        self.native.samples += line_samples(line.as_bytes());
        self.native.bytes += line.len();
        lines.push(LogLine {
            at: histogram.at,
            line: line.into(),
            metadata: vec![],
        });
        Ok(())
    }

    /// Samples of one series by its encoded labels, the general way.
    pub fn one_series<'m>(
        &mut self,
        raw: &'m [u8],
        samples: Vec<Sample>,
        names: &Names<'_>,
    ) -> Result<Option<(&'m [u8], SeriesBlock)>, WireError> {
        let pairs = crate::wire::labels(raw)?;
        let named = self.named_series(raw, Some(raw), pairs, (samples, None), names)?;
        Ok(named.map(|g| (raw, g.block)))
    }

    pub fn place_blocks(&mut self, blocks: Vec<(&[u8], SeriesBlock)>, scope: &Arc<Scope>) {
        let general = blocks.into_iter().map(|(raw, block)| General { raw: Some(raw), block });
        self.place_series(general.collect(), scope);
    }

    fn place_series(&mut self, mut blocks: Vec<General<'_, SeriesBlock>>, scope: &Arc<Scope>) {
        let ids = self.books.ids;
        if let Some(gate) = self.books.new_series {
            let sets: Vec<_> = blocks.iter().map(|g| (&g.block.labels, &g.block.owner)).collect();
            let refused = new_series::refused(ids, gate, (self.books.naming, false), self.tenant, &sets);
            let mut refused = refused.into_iter();
            blocks.retain(|g| match refused.next().flatten() {
                None => true,
                Some(why) => {
                    let labels = &g.block.labels;
                    self.rejected
                        .add(g.block.samples.len() as u64, &why, || labels.to_string());
                    false
                }
            });
        }
        let (mut pieces, mut of_block) = (vec![], vec![]);
        for (i, g) in blocks.iter().enumerate() {
            split_samples(ids, &g.block.labels, g.block.owner, &g.block.samples, &mut pieces);
            of_block.resize(pieces.len(), i);
        }
        let known = self.intake.place(ids, self.books.naming, &pieces);
        let raws: Vec<_> = of_block.iter().map(|&i| blocks[i].raw).collect();
        self.lessons_of(&pieces, &raws, known, scope);
    }

    fn lessons_of(
        &mut self,
        pieces: &[Piece<'_>],
        raws: &[Option<&[u8]>],
        known: Vec<Option<u32>>,
        scope: &Arc<Scope>,
    ) {
        let ids = self.books.ids;
        for ((piece, raw), id) in pieces.iter().zip(raws).zip(known) {
            let Some(raw) = raw else { continue };
            // Only the shard of today is remembered.
            if !ids.is_timeless() && ids.shard_of(piece.owner.slot(piece.labels), TimestampNs::MAX) != piece.shard {
                continue;
            }
            self.lessons.push(Lesson {
                scope: scope.clone(),
                raw: (*raw).into(),
                streams: matches!(piece.rows, Rows::Lines(_)),
                labels: piece.labels.clone(),
                owner: piece.owner,
                shard: piece.shard,
                epoch: self.intake.share(piece.shard, ids).epoch,
                id,
            });
        }
    }

    /// Stream messages: labels are field 1, lines field 2.
    pub fn streams<'m, F: LineForm>(
        &mut self,
        messages: impl Iterator<Item = Result<&'m [u8], WireError>>,
        names: &Names<'_>,
    ) -> Result<(), WireError> {
        let mut general = vec![];
        let mut old = vec![];
        if self.books.naming == Naming::Known {
            let mut lookup = self.books.cache.lookup(&names.scope);
            let mut view = LineView::default();
            for message in messages {
                let message = message?;
                if !self.known_stream::<F>(message, &mut lookup, &mut view, &mut old) {
                    general.push(message);
                }
            }
        } else {
            for message in messages {
                general.push(message?);
            }
        }
        if !old.is_empty() {
            self.books.cache.learn(&names.scope, old.into_iter());
        }
        let mut blocks = Vec::with_capacity(general.len());
        for message in general {
            if let Some(block) = self.general_stream::<F>(message, names)? {
                blocks.push(block);
            }
        }
        let ids = self.books.ids;
        let (mut pieces, mut of_block) = (vec![], vec![]);
        for (i, g) in blocks.iter().enumerate() {
            split_lines(ids, &g.block.labels, g.block.owner, &g.block.lines, &mut pieces);
            of_block.resize(pieces.len(), i);
        }
        let known = self.intake.place(ids, self.books.naming, &pieces);
        let raws: Vec<_> = of_block.iter().map(|&i| blocks[i].raw).collect();
        self.lessons_of(&pieces, &raws, known, &names.scope);
        Ok(())
    }

    fn known_stream<'m, F: LineForm>(
        &mut self,
        message: &'m [u8],
        lookup: &mut Lookup<'_>,
        view: &mut LineView<'m>,
        old: &mut Vec<Learned<'m>>,
    ) -> bool {
        let ids = self.books.ids;
        let Some(hit) = find(lookup, message).filter(|_| self.timeless) else {
            return false;
        };
        let share = self.intake.share(hit.shard, ids);
        let Some(id) = hit.id(share.epoch) else { return false };
        if self.late.contains(&(hit.shard, true, id)) {
            return false;
        }
        let before = (share.streams.len(), share.text.len());
        share.stream(Numbers::Ids, id);
        if share.text.capacity() == 0 {
            share.text.reserve_exact(self.text_bytes.max(message.len()));
        }
        let Some(lines) = known_lines::<F>(&message[hit.len..], view, self.limits, &mut self.masks, share) else {
            share.streams.truncate(before.0);
            share.text.truncate(before.1);
            self.late.insert((hit.shard, true, id));
            return false;
        };
        if lines.taken == 0 {
            share.streams.truncate(before.0);
        }
        if hit.is_old() {
            old.push(Learned {
                raw: &message[..hit.len],
                slot: hit.slot,
                shard: hit.shard,
                epoch: share.epoch,
                id: Some(id),
            });
        }
        self.intake.lines += lines.taken;
        self.lines_cut += lines.cut;
        true
    }

    fn general_stream<'m, F: LineForm>(
        &mut self,
        message: &'m [u8],
        names: &Names<'_>,
    ) -> Result<Option<General<'m, StreamBlock>>, WireError> {
        self.is_news = true;
        let (raw, rest) = match label_run(message)? {
            Some(LabelRun { raw, rest }) => (Some(raw), rest),
            None => (None, Reader::new(message)),
        };
        let lines = read_lines::<F>(rest)?;
        let named = F::labels(message)?;
        let limits = self.limits;
        let named = named.and_then(|pairs| crate::owners::name_labels(self.tenant, pairs, names.attrs, false, limits));
        let Some(named) = keep_named(named, lines.len(), &mut self.rejected, || F::shown(message)) else {
            return Ok(None);
        };
        self.seen.note(&named.resource);
        let mut block = keep_lines(named, lines, self.limits, &mut self.rejected);
        if let (Some(masks), Some(block)) = (&mut self.masks, &mut block) {
            masks.lines(&mut block.lines);
        }
        if let Some(block) = &mut block {
            self.lines_cut += self.limits.bounds.cut_lines(&mut block.lines, None);
        }
        Ok(block.map(|block| General { raw, block }))
    }

    /// Notes what else a request says of the world.
    pub fn note_ends(&mut self, ends: Vec<hindcast_model::Resource>) {
        ends.into_iter().for_each(|r| self.seen.note(&Some(r.into())));
    }

    pub fn finish(mut self, edges: &[Edge]) -> Laid {
        let ids = self.books.ids;
        let mut resources = self.seen.into_list();
        if let Some(masks) = &mut self.masks {
            masks.resources(&mut resources);
        }
        let (exemplars, exemplars_left_out) = (self.exemplars.kept, self.exemplars.left_out);
        let mut blocks: Vec<StreamBlock> = self.exemplars.into_blocks().collect();
        if let Some(masks) = &mut self.masks {
            let values = blocks
                .iter_mut()
                .flat_map(|b| &mut b.lines)
                .flat_map(|l| &mut l.metadata);
            // Ids are nobody's data, and some of them look like the number of a card.
            for (_, value) in values.filter(|(name, _)| !["trace_id", "span_id"].contains(&name.as_str())) {
                if let Some(masked) = masks.mask_str(value) {
                    *value = masked.to_owned();
                }
            }
        }
        // Numbers are nobody's data: nothing of a histogram is masked.
        let of_native = std::mem::take(&mut self.of_native);
        blocks.extend(
            of_native
                .into_iter()
                .map(|((labels, owner), lines)| StreamBlock { labels, owner, lines }),
        );
        let mut pieces = vec![];
        for block in &blocks {
            split_lines(ids, &block.labels, block.owner, &block.lines, &mut pieces);
        }
        self.intake.place(ids, self.books.naming, &pieces);
        self.intake.facts(ids, resources.into_iter(), edges);
        self.intake.finish();
        Laid {
            intake: self.intake,
            rejected: self.rejected,
            lessons: Lessons(self.lessons),
            native: self.native,
            due: self.due,
            exemplars,
            exemplars_left_out,
            lines_cut: self.lines_cut,
        }
    }
}

/// How many lines were appended, and how many of them are cut.
#[derive(Default)]
struct KnownLines {
    taken: u64,
    cut: u64,
}

/// Appends lines that are all allowed; `None`, with some of them appended, when any is unusual or refused.
fn known_lines<'m, F: LineForm>(
    rest: &'m [u8],
    view: &mut LineView<'m>,
    limits: &LimitsContext,
    masks: &mut Option<Session<'_>>,
    share: &mut crate::intake::Share,
) -> Option<KnownLines> {
    let mut reader = Reader::new(rest);
    let mut metadata = vec![];
    let mut lines = KnownLines::default();
    while let Some((number, field)) = reader.next().ok()? {
        match number {
            1 => return None,
            2 => {
                F::line(field.bytes("a line").ok()?, view).ok()?;
                limits.time(TimestampNs(view.at_ns)).ok()?;
                limits.line(view.text.len(), &view.metadata).ok()?;
                metadata.clear();
                match masks {
                    None => {
                        put_metadata(&mut metadata, view.metadata.iter().copied());
                        let text = limits.bounds.cut(view.text);
                        lines.cut += u64::from(text.len() < view.text.len());
                        share.line(view.at_ns, text.as_bytes(), &metadata);
                    }
                    Some(masks) => {
                        for (name, value) in &view.metadata {
                            let value = masks.mask_str(value).unwrap_or(value);
                            put_metadata(&mut metadata, std::iter::once((*name, value)));
                        }
                        let masked = masks.mask_str(view.text).unwrap_or(view.text);
                        let text = limits.bounds.cut(masked);
                        lines.cut += u64::from(text.len() < masked.len());
                        share.line(view.at_ns, text.as_bytes(), &metadata);
                    }
                }
                lines.taken += 1;
            }
            _ => {}
        }
    }
    Some(lines)
}

/// Samples of a series message: its fields number 2, each read by `one`.
fn read_samples(mut rest: Reader<'_>, one: fn(&[u8]) -> Result<Sample, WireError>) -> Result<Vec<Sample>, WireError> {
    // A sample takes 18 to 20 bytes, unless its value or time is 0.
    let mut samples = Vec::with_capacity(rest.left() / 16 + 1);
    while let Some((number, field)) = rest.next()? {
        if number == 2 {
            samples.push(one(field.bytes("a sample")?)?);
        }
    }
    Ok(samples)
}

fn read_lines<F: LineForm>(mut rest: Reader<'_>) -> Result<Vec<LogLine>, WireError> {
    let mut lines = vec![];
    let mut view = LineView::default();
    while let Some((number, field)) = rest.next()? {
        if number == 2 {
            F::line(field.bytes("a line")?, &mut view)?;
            lines.push(LogLine {
                at: TimestampNs(view.at_ns),
                line: Bytes::copy_from_slice(view.text.as_bytes()),
                metadata: view
                    .metadata
                    .iter()
                    .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                    .collect(),
            });
        }
    }
    Ok(lines)
}

pub(crate) fn shown_labels(message: &[u8]) -> String {
    let pairs = crate::wire::labels(message).unwrap_or_default();
    Labels::new(pairs).to_string()
}

fn keep_named(
    named: Result<Named, Refusal>,
    items: usize,
    rejected: &mut Rejections,
    shown: impl FnOnce() -> String,
) -> Option<Named> {
    named.inspect_err(|why| rejected.add(items as u64, why, shown)).ok()
}

/// The block of those samples whose times are allowed; `None` when there are none.
fn keep_samples(
    named: Named,
    mut samples: Vec<Sample>,
    limits: &LimitsContext,
    rejected: &mut Rejections,
) -> Option<SeriesBlock> {
    samples.retain(|s| match limits.time(s.at) {
        Ok(()) => true,
        Err(why) => {
            rejected.add(1, &why, || named.labels.to_string());
            false
        }
    });
    (!samples.is_empty()).then_some(SeriesBlock {
        labels: named.labels,
        owner: named.owner,
        samples,
    })
}

/// The block of those lines that are allowed; `None` when there are none.
pub(crate) fn keep_lines(
    named: Named,
    mut lines: Vec<LogLine>,
    limits: &LimitsContext,
    rejected: &mut Rejections,
) -> Option<StreamBlock> {
    lines.retain(|l| {
        let fits = limits.time(l.at).and_then(|()| limits.line(l.line.len(), &l.metadata));
        fits.inspect_err(|why| rejected.add(1, why, || named.labels.to_string()))
            .is_ok()
    });
    (!lines.is_empty()).then_some(StreamBlock {
        labels: named.labels,
        owner: named.owner,
        lines,
    })
}
