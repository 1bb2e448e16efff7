//! What a shard is asked, and what it answers, as bytes: for shards of which the node that is asked has no copy.
//!
//! A question is one value. An answer comes in pieces, each of about [`PIECE_BYTES`], so that neither side ever holds all of it
//! encoded; the last says how far the shard had applied. Values cross as bits.

use crate::column::Steps;
use crate::eval::{rolled, window};
use crate::fold::{Fold, Folded, FoldedGroup, Leaf, is_foldable};
use crate::plan::When;
use crate::reduce::{How, Reduction};
use crate::replica;
use crate::shards::{
    Budget, Columns, ColumnsRequest, CountsRequest, Freshness, LabelsRequest, LinesRequest, NativeSeries, OldForms,
    SeriesColumn, SeriesRequest,
};
use bytes::Bytes;
use hindcast_model::codec::{self, DecodeError};
use hindcast_model::{
    Histogram, Labels, LogLine, MatchOp, Matcher, Owner, ResourceId, Sample, Slot, SpanNs, TenantId, TimestampNs,
};
use hindcast_promql::{AggregateOp, Grouping, Span};
use hindcast_storage::logs::{Filter, FilterText};
use hindcast_storage::read::{Direction, LabelTexts, SearchLabels, SeriesData, StreamCounts, StreamData};
use hindcast_storage::{ReadError, ShardReader};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A piece of an answer is sent when it holds about so many bytes.
pub const PIECE_BYTES: usize = 1 << 20;

/// What one shard is asked. Positions of a cut are given beside it.
#[derive(Clone, Debug)]
pub enum Question {
    Series(SeriesRequest),
    Columns(ColumnsRequest),
    Natives(SeriesRequest),
    LineCounts(CountsRequest),
    Lines(LinesRequest),
    LabelSets(LabelsRequest),
    LabelTexts(LabelsRequest, LabelTexts),
}

/// What one shard answered.
#[derive(Clone, Debug)]
pub enum Answer {
    Series(Vec<SeriesData>),
    Columns(Columns),
    Natives(Vec<NativeSeries>),
    LineCounts(Vec<StreamCounts>),
    Lines(Vec<StreamData>),
    LabelSets(Vec<Labels>),
    LabelTexts(Vec<String>),
}

/// The question came from a node of another version, or was damaged on its way.
#[derive(Debug, thiserror::Error)]
pub enum BadQuestion {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("it names {0}, which this version does not know")]
    Unknown(String),
}

#[derive(Serialize, Deserialize)]
struct AskedText {
    tenant: TenantId,
    any_of: Vec<Vec<(String, MatchOp, String)>>,
    from: TimestampNs,
    to: TimestampNs,
    owners: Option<BTreeSet<ResourceId>>,
    samples_left: u64,
    computed_left: u64,
    series_max: u64,
    what: WhatText,
}

#[derive(Serialize, Deserialize)]
enum WhatText {
    Series {
        only: Option<BTreeSet<Labels>>,
    },
    Columns {
        only: Option<BTreeSet<Labels>>,
        how: HowText,
        start: i64,
        step: i64,
        count: u64,
        fixed: Option<i64>,
        offset_ms: i64,
        /// A node that does not know it gives the columns.
        #[serde(default)]
        fold: Option<FoldText>,
    },
    Natives {
        only: Option<BTreeSet<Labels>>,
    },
    LineCounts {
        bounds: Vec<TimestampNs>,
        filter: FilterText,
    },
    Lines {
        filter: FilterText,
        limit: Option<u64>,
        forward: bool,
    },
    LabelSets {
        streams: bool,
    },
    LabelTexts {
        streams: bool,
        /// `None`: names.
        values_of: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
struct FoldText {
    op: String,
    /// `without`, and the labels that it names; else `by`.
    grouping: Option<(bool, Vec<String>)>,
    drops_name: bool,
}

impl FoldText {
    fn of(fold: &Fold) -> Self {
        Self {
            op: fold.op.name().to_owned(),
            grouping: fold.grouping.as_ref().map(|g| (g.without, g.labels.clone())),
            drops_name: fold.drops_name,
        }
    }

    fn read(self) -> Result<Fold, BadQuestion> {
        let op = AggregateOp::parse(&self.op).filter(|op| is_foldable(*op));
        Ok(Fold {
            op: op.ok_or_else(|| BadQuestion::Unknown(format!("the aggregation {:?}", self.op)))?,
            grouping: self.grouping.map(|(without, labels)| Grouping { without, labels }),
            drops_name: self.drops_name,
        })
    }
}

#[derive(Serialize, Deserialize)]
enum HowText {
    Newest {
        lookback_ms: i64,
        times: bool,
    },
    Window {
        name: String,
        range_ms: i64,
        params: [Vec<u64>; 2],
    },
}

/// What comes after the last piece.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// The position that the answer is of.
    pub applied: u64,
    /// `None`: linearizable; else how old it may be, if that is known.
    pub stale: Option<Option<u64>>,
    /// Read there to make values of them; those that came themselves are not among them.
    pub samples: u64,
    /// The budget did not suffice, and the answer is a part of one.
    #[serde(default)]
    pub exceeded: bool,
}

impl Closing {
    pub fn freshness(&self) -> Freshness {
        match self.stale {
            None => Freshness::Linearizable,
            Some(age) => Freshness::Stale { age: age.map(SpanNs) },
        }
    }

    pub fn with_freshness(self, freshness: Freshness) -> Self {
        let stale = match freshness {
            Freshness::Linearizable => None,
            Freshness::Stale { age } => Some(age.map(|a| a.0)),
        };
        Self { stale, ..self }
    }
}

#[derive(Serialize, Deserialize)]
enum PieceText {
    Series(Vec<SeriesText>),
    Columns(Vec<ColumnText>),
    Natives(Vec<NativeText>),
    LineCounts(Vec<(Labels, Owner, Slot, Vec<u64>)>),
    Lines(Vec<StreamText>),
    LabelSets(Vec<Labels>),
    LabelTexts(Vec<String>),
    /// Of one shard, the fingerprints of the series that it folded, and in which form they were.
    FoldedSeries {
        series: Bytes,
        windows: bool,
        lasts: bool,
        least: bool,
    },
    /// A slot of a group, with the values of its series or (`true`) with the words of its cells; those of a group follow each other.
    FoldedSlots(Vec<(Labels, u16, bool, Bytes)>),
    Closing(Closing),
}

#[derive(Serialize, Deserialize)]
struct SeriesText {
    labels: Labels,
    owner: Owner,
    slot: Slot,
    has_lasts: bool,
    times: Bytes,
    values: Bytes,
}

#[derive(Serialize, Deserialize)]
struct ColumnText {
    labels: Labels,
    owner: Owner,
    slot: Slot,
    values: Bytes,
    windows: bool,
    lasts: bool,
    least: bool,
}

#[derive(Serialize, Deserialize)]
struct NativeText {
    labels: Labels,
    owner: Owner,
    slot: Slot,
    /// As they are stored; `None`: the series ended there.
    samples: Vec<(TimestampNs, Option<String>)>,
    unreadable: u64,
}

#[derive(Serialize, Deserialize)]
struct StreamText {
    labels: Labels,
    owner: Owner,
    slot: Slot,
    lines: Vec<LineText>,
}

type LineText = (TimestampNs, Bytes, Vec<(String, String)>);

fn words(values: impl Iterator<Item = u64>) -> Bytes {
    values.flat_map(u64::to_le_bytes).collect::<Vec<u8>>().into()
}

fn of_words(bytes: &Bytes) -> impl Iterator<Item = u64> + '_ {
    let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("chunks are whole"));
    bytes.chunks_exact(8).map(word)
}

fn line_text(line: LogLine) -> LineText {
    (line.at, line.line, line.metadata)
}

fn of_line_text((at, line, metadata): LineText) -> LogLine {
    LogLine { at, line, metadata }
}

fn matchers_text(matchers: &[Matcher]) -> Vec<(String, MatchOp, String)> {
    let text = |m: &Matcher| (m.name.clone(), m.op, m.value.clone());
    matchers.iter().map(text).collect()
}

fn of_matchers_text(text: &[(String, MatchOp, String)]) -> Result<Vec<Matcher>, BadQuestion> {
    let matcher = |(name, op, value): &(String, MatchOp, String)| Matcher::new(name, *op, value);
    let all: Result<Vec<Matcher>, _> = text.iter().map(matcher).collect();
    all.map_err(|e| BadQuestion::Unknown(e.to_string()))
}

impl Question {
    /// What the query may still read.
    pub fn budget(&self) -> Option<&Arc<Budget>> {
        match self {
            Self::Series(r) => Some(&r.budget),
            Self::Columns(r) => Some(&r.series.budget),
            Self::Natives(r) => Some(&r.budget),
            Self::LineCounts(r) => Some(&r.budget),
            Self::Lines(_) | Self::LabelSets(_) | Self::LabelTexts(..) => None,
        }
    }

    pub fn encode(&self) -> Bytes {
        let ((samples_left, computed_left), series_max) =
            self.budget().map_or(((0, 0), 0), |b| (b.left(), b.series_max));
        let asked = |tenant: &TenantId, any_of, (from, to), owners: &Option<BTreeSet<ResourceId>>, what| AskedText {
            tenant: tenant.clone(),
            any_of,
            from,
            to,
            owners: owners.clone(),
            samples_left: samples_left as u64,
            computed_left: computed_left as u64,
            series_max: series_max as u64,
            what,
        };
        let of_labels = |r: &LabelsRequest, what| {
            let any_of = r.any_of.iter().map(|m| matchers_text(m)).collect();
            asked(&r.tenant, any_of, (r.from, r.to), &None, what)
        };
        let of_series = |r: &SeriesRequest, what| {
            let any_of = vec![matchers_text(&r.matchers)];
            asked(&r.tenant, any_of, (r.from, r.to), &r.owners, what)
        };
        let only = |r: &SeriesRequest| r.only.as_deref().cloned();
        let text = match self {
            Self::Series(r) => of_series(r, WhatText::Series { only: only(r) }),
            Self::Natives(r) => of_series(r, WhatText::Natives { only: only(r) }),
            Self::Columns(ColumnsRequest {
                series,
                reduction,
                fold,
            }) => {
                let Reduction { how, steps, when } = &**reduction;
                let how = match how {
                    How::Newest { lookback_ms, times } => HowText::Newest {
                        lookback_ms: *lookback_ms,
                        times: *times,
                    },
                    How::Window {
                        name, range_ms, params, ..
                    } => HowText::Window {
                        name: (*name).to_owned(),
                        range_ms: *range_ms,
                        params: [0, 1].map(|p| params[p].iter().map(|v: &f64| v.to_bits()).collect()),
                    },
                };
                let what = WhatText::Columns {
                    only: only(series),
                    how,
                    start: steps.start,
                    step: steps.step,
                    count: steps.count as u64,
                    fixed: when.fixed,
                    offset_ms: when.offset_ms,
                    fold: fold.as_deref().map(FoldText::of),
                };
                of_series(series, what)
            }
            Self::LineCounts(r) => {
                let what = WhatText::LineCounts {
                    bounds: r.bounds.clone(),
                    filter: FilterText::from(&r.filter),
                };
                let to = r.bounds.last().copied().unwrap_or(r.from);
                asked(
                    &r.tenant,
                    vec![matchers_text(&r.matchers)],
                    (r.from, to),
                    &r.owners,
                    what,
                )
            }
            Self::Lines(r) => {
                let what = WhatText::Lines {
                    filter: FilterText::from(&r.filter),
                    limit: r.limit.map(|l| l as u64),
                    forward: r.direction == Direction::Forward,
                };
                asked(
                    &r.tenant,
                    vec![matchers_text(&r.matchers)],
                    (r.from, r.to),
                    &r.owners,
                    what,
                )
            }
            Self::LabelSets(r) => of_labels(r, WhatText::LabelSets { streams: r.streams }),
            Self::LabelTexts(r, of) => {
                let values_of = match of {
                    LabelTexts::Names => None,
                    LabelTexts::Values(name) => Some(name.clone()),
                };
                let streams = r.streams;
                of_labels(r, WhatText::LabelTexts { streams, values_of })
            }
        };
        codec::to_bytes(&text).into()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, BadQuestion> {
        let AskedText {
            tenant,
            any_of,
            from,
            to,
            owners,
            samples_left,
            computed_left,
            series_max,
            what,
        } = codec::from_bytes(bytes)?;
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let left = (count(samples_left), count(computed_left));
        let budget = Arc::new(Budget::of_left(left, count(series_max)));
        let any_of: Vec<Vec<Matcher>> = any_of.iter().map(|m| of_matchers_text(m)).collect::<Result<_, _>>()?;
        let filter = |text: &FilterText| Filter::try_from(text).map_err(|e| BadQuestion::Unknown(e.to_string()));
        let labels = |streams, any_of| LabelsRequest {
            tenant: tenant.clone(),
            streams,
            any_of,
            from,
            to,
        };
        // The others have one list of matchers.
        let matchers = || any_of.first().cloned().unwrap_or_default();
        let series = |only: Option<BTreeSet<Labels>>| SeriesRequest {
            tenant: tenant.clone(),
            matchers: matchers(),
            from,
            to,
            as_of: None,
            owners: owners.clone(),
            only: only.map(Arc::new),
            budget: budget.clone(),
        };
        Ok(match what {
            WhatText::Series { only } => Self::Series(series(only)),
            WhatText::Natives { only } => Self::Natives(series(only)),
            WhatText::Columns {
                only,
                how,
                start,
                step,
                count: steps,
                fixed,
                offset_ms,
                fold,
            } => {
                let reduction = Reduction {
                    how: how.read()?,
                    steps: Steps {
                        start,
                        step,
                        count: count(steps),
                    },
                    when: When { fixed, offset_ms },
                };
                Self::Columns(ColumnsRequest {
                    series: series(only),
                    reduction: Arc::new(reduction),
                    fold: fold.map(FoldText::read).transpose()?.map(Arc::new),
                })
            }
            WhatText::LineCounts { bounds, filter: text } => Self::LineCounts(CountsRequest {
                tenant: tenant.clone(),
                matchers: matchers(),
                from,
                bounds,
                as_of: None,
                owners: owners.clone(),
                filter: filter(&text)?,
                budget: budget.clone(),
            }),
            WhatText::Lines {
                filter: text,
                limit,
                forward,
            } => Self::Lines(LinesRequest {
                tenant: tenant.clone(),
                matchers: matchers(),
                from,
                to,
                as_of: None,
                owners: owners.clone(),
                filter: filter(&text)?,
                limit: limit.map(count),
                direction: if forward {
                    Direction::Forward
                } else {
                    Direction::Backward
                },
            }),
            WhatText::LabelSets { streams } => Self::LabelSets(labels(streams, any_of)),
            WhatText::LabelTexts { streams, values_of } => {
                let of = values_of.map_or(LabelTexts::Names, LabelTexts::Values);
                Self::LabelTexts(labels(streams, any_of), of)
            }
        })
    }

    /// As `ask`, if that takes less than giving it to another thread. `None`: it may take longer.
    pub fn ask_at_once(&self, reader: &ShardReader, as_of: Option<u64>) -> Option<Result<Answer, ReadError>> {
        let is_quick = match self {
            Self::Series(r) | Self::Natives(r) => replica::is_quick(reader, r),
            Self::Columns(r) => replica::is_quick(reader, &r.series),
            // Mostly asked for native histograms, which few tenants have.
            Self::LabelSets(r) => {
                r.streams && !r.any_of.is_empty() && !r.any_of.iter().any(|m| reader.knows(&r.tenant, true, m))
            }
            Self::LabelTexts(r, of) => {
                let texts = reader.label_texts_at_once(&search(r), of);
                return texts.map(|t| t.map(Answer::LabelTexts)).transpose();
            }
            Self::LineCounts(_) | Self::Lines(_) => false,
        };
        is_quick.then(|| self.ask(reader, as_of))
    }

    /// Whether `ask` may wait for the cold store.
    pub fn may_wait(&self, reader: &ShardReader) -> bool {
        match self {
            Self::Series(r) | Self::Natives(r) => reader.has_cold(&r.tenant, r.from, r.to),
            Self::Columns(r) => reader.has_cold(&r.series.tenant, r.series.from, r.series.to),
            Self::LineCounts(r) => reader.has_cold(&r.tenant, r.from, r.bounds.last().copied().unwrap_or(r.from)),
            Self::Lines(r) => reader.has_cold(&r.tenant, r.from, r.to),
            Self::LabelSets(r) | Self::LabelTexts(r, _) => reader.has_cold(&r.tenant, r.from, r.to),
        }
    }

    /// Reads one replica. Blocks; `as_of` is the shard's own position.
    pub fn ask(&self, reader: &ShardReader, as_of: Option<u64>) -> Result<Answer, ReadError> {
        Ok(match self {
            Self::Series(r) => Answer::Series(replica::series(reader, r, as_of)?),
            Self::Columns(r) => Answer::Columns(replica::columns(reader, r, as_of)?),
            Self::Natives(r) => Answer::Natives(replica::natives(reader, r, as_of)?),
            Self::LineCounts(r) => Answer::LineCounts(replica::line_counts(reader, r, as_of)?),
            Self::Lines(r) => Answer::Lines(replica::lines(reader, r, as_of)?),
            Self::LabelSets(r) => Answer::LabelSets(reader.label_sets(&search(r))?),
            Self::LabelTexts(r, of) => Answer::LabelTexts(reader.label_texts(&search(r), of)?),
        })
    }

    /// An answer to this without anything in it.
    pub fn nothing(&self) -> Answer {
        match self {
            Self::Series(_) => Answer::Series(vec![]),
            Self::Columns(_) => Answer::Columns(Columns::default()),
            Self::Natives(_) => Answer::Natives(vec![]),
            Self::LineCounts(_) => Answer::LineCounts(vec![]),
            Self::Lines(_) => Answer::Lines(vec![]),
            Self::LabelSets(_) => Answer::LabelSets(vec![]),
            Self::LabelTexts(..) => Answer::LabelTexts(vec![]),
        }
    }
}

fn search(r: &LabelsRequest) -> SearchLabels {
    SearchLabels {
        tenant: r.tenant.clone(),
        streams: r.streams,
        any_of: r.any_of.clone(),
        from: r.from,
        to: r.to,
    }
}

impl HowText {
    fn read(self) -> Result<How, BadQuestion> {
        Ok(match self {
            Self::Newest { lookback_ms, times } => How::Newest { lookback_ms, times },
            Self::Window { name, range_ms, params } => {
                let known = window::named(&name);
                let (name, kernel) = known.ok_or_else(|| BadQuestion::Unknown(format!("the function {name:?}")))?;
                How::Window {
                    name,
                    // What is said about the query is said by who asks.
                    span: Span::default(),
                    kernel,
                    of_windows: rolled::kernel(name),
                    stretch: window::stretch(name),
                    range_ms,
                    params: params.map(|p| p.into_iter().map(f64::from_bits).collect()),
                }
            }
        })
    }
}

/// Samples of one series in one piece. Who asked puts the parts together again, as those of several shards.
const PIECE_SAMPLES: usize = PIECE_BYTES / 16;

fn split_series(mut series: SeriesData) -> Vec<SeriesData> {
    let mut parts = vec![];
    while series.samples.len() > PIECE_SAMPLES {
        let rest = series.samples.split_off(PIECE_SAMPLES);
        let part = SeriesData {
            samples: std::mem::replace(&mut series.samples, rest),
            labels: series.labels.clone(),
            ..series
        };
        parts.push(part);
    }
    parts.push(series);
    parts
}

fn split_stream(stream: StreamData) -> Vec<StreamData> {
    let StreamData {
        labels,
        owner,
        slot,
        lines,
    } = stream;
    let mut parts = vec![];
    let (mut held, mut bytes) = (vec![], 0);
    let part = |lines| StreamData {
        labels: labels.clone(),
        owner,
        slot,
        lines,
    };
    for line in lines {
        bytes += line_bytes(&line);
        held.push(line);
        if bytes >= PIECE_BYTES {
            parts.push(part(std::mem::take(&mut held)));
            bytes = 0;
        }
    }
    if !held.is_empty() || parts.is_empty() {
        parts.push(part(held));
    }
    parts
}

/// One that was read from a line can be written as one.
fn native_text((at, histogram): (TimestampNs, Option<Arc<Histogram>>)) -> (TimestampNs, Option<String>) {
    (at, histogram.and_then(|h| h.to_line()))
}

/// About what its line takes.
fn native_bytes((_, histogram): &(TimestampNs, Option<Arc<Histogram>>)) -> usize {
    16 + histogram.as_ref().map_or(0, |h| 8 * h.weight())
}

/// Gathers items until a piece is full.
fn pieces<T, U>(
    items: Vec<T>,
    bytes_of: impl Fn(&T) -> usize,
    text: impl Fn(T) -> U,
    piece: impl Fn(Vec<U>) -> PieceText,
    send: &mut dyn FnMut(Bytes) -> bool,
) -> bool {
    let (mut held, mut bytes) = (vec![], 0);
    for item in items {
        bytes += bytes_of(&item);
        held.push(text(item));
        if bytes >= PIECE_BYTES {
            if !send(codec::to_bytes(&piece(std::mem::take(&mut held))).into()) {
                return false;
            }
            bytes = 0;
        }
    }
    held.is_empty() || send(codec::to_bytes(&piece(held)).into())
}

/// Of one line: with its time and the lengths of what it has.
fn line_bytes(line: &LogLine) -> usize {
    let metadata: usize = line.metadata.iter().map(|(n, v)| n.len() + v.len() + 8).sum();
    line.line.len() + metadata + 16
}

fn send_folded(folded: Folded, send: &mut dyn FnMut(Bytes) -> bool) -> bool {
    let OldForms { windows, lasts, least } = folded.old;
    let series = folded.series.chunks(PIECE_BYTES / 8).all(|series| {
        let piece = PieceText::FoldedSeries {
            series: words(series.iter().copied()),
            windows,
            lasts,
            least,
        };
        send(codec::to_bytes(&piece).into())
    });
    let slots = folded.groups.into_iter().flat_map(|g| {
        let labels = g.labels;
        g.slots
            .into_iter()
            .map(move |(slot, leaf)| (labels.clone(), slot, leaf))
    });
    series
        && pieces(
            slots.collect(),
            |(labels, _, leaf)| {
                let words = match leaf {
                    Leaf::Series(values) => values.len(),
                    Leaf::Cells(words) => words.len(),
                };
                labels_bytes(labels) + 8 * words
            },
            |(labels, slot, leaf)| match leaf {
                Leaf::Series(values) => (labels, slot, false, words(values.into_iter().map(f64::to_bits))),
                Leaf::Cells(cells) => (labels, slot, true, words(cells.into_iter())),
            },
            PieceText::FoldedSlots,
            send,
        )
}

/// An answer is of one shard.
fn of_one_shard(folded: &mut Vec<Folded>) -> &mut Folded {
    if folded.is_empty() {
        folded.push(Folded::default());
    }
    &mut folded[0]
}

/// About what they take.
fn labels_bytes(labels: &Labels) -> usize {
    labels.iter().map(|(n, v)| n.len() + v.len() + 4).sum::<usize>() + 32
}

impl Answer {
    /// Hands on all pieces, encoded; false as soon as `send` takes no more.
    pub fn send(self, send: &mut dyn FnMut(Bytes) -> bool) -> bool {
        match self {
            Self::Series(all) => pieces(
                all.into_iter().flat_map(split_series).collect(),
                |s| labels_bytes(&s.labels) + 16 * s.samples.len(),
                |s| SeriesText {
                    times: words(s.samples.iter().map(|s| s.at.0.cast_unsigned())),
                    values: words(s.samples.iter().map(|s| s.value.to_bits())),
                    labels: s.labels,
                    owner: s.owner,
                    slot: s.slot,
                    has_lasts: s.has_lasts,
                },
                PieceText::Series,
                send,
            ),
            Self::Columns(all) => {
                let columns = pieces(
                    all.columns,
                    |c| labels_bytes(&c.labels) + 8 * c.values.len(),
                    |c| ColumnText {
                        labels: c.labels,
                        owner: c.owner,
                        slot: c.slot,
                        values: words(c.values.iter().map(|v| v.to_bits())),
                        windows: c.old.windows,
                        lasts: c.old.lasts,
                        least: c.old.least,
                    },
                    PieceText::Columns,
                    send,
                );
                columns && Self::Natives(all.natives).send(send) && all.folded.into_iter().all(|f| send_folded(f, send))
            }
            Self::Natives(all) => pieces(
                all,
                |s| labels_bytes(&s.labels) + s.samples.iter().map(native_bytes).sum::<usize>(),
                |s| NativeText {
                    labels: s.labels,
                    owner: s.owner,
                    slot: s.slot,
                    samples: s.samples.into_iter().map(native_text).collect(),
                    unreadable: s.unreadable as u64,
                },
                PieceText::Natives,
                send,
            ),
            Self::LineCounts(all) => pieces(
                all,
                |c| labels_bytes(&c.labels) + 9 * c.counts.len(),
                |c| (c.labels, c.owner, c.slot, c.counts),
                PieceText::LineCounts,
                send,
            ),
            Self::Lines(all) => pieces(
                all.into_iter().flat_map(split_stream).collect(),
                |s| labels_bytes(&s.labels) + s.lines.iter().map(line_bytes).sum::<usize>(),
                |s| StreamText {
                    labels: s.labels,
                    owner: s.owner,
                    slot: s.slot,
                    lines: s.lines.into_iter().map(line_text).collect(),
                },
                PieceText::Lines,
                send,
            ),
            Self::LabelSets(all) => pieces(all, labels_bytes, |l| l, PieceText::LabelSets, send),
            Self::LabelTexts(all) => pieces(all, |t| t.len() + 5, |t| t, PieceText::LabelTexts, send),
        }
    }

    /// Takes a piece of the answer to the same question.
    pub fn take(&mut self, piece: &[u8]) -> Result<Taken, BadQuestion> {
        let mut taken = Taken::default();
        match (&mut *self, codec::from_bytes(piece)?) {
            (_, PieceText::Closing(closing)) => taken.closing = Some(closing),
            (Self::Series(all), PieceText::Series(more)) => {
                taken.samples = more.iter().map(|s| s.values.len() / 8).sum();
                all.extend(more.into_iter().map(SeriesText::read));
            }
            (Self::Columns(all), PieceText::Columns(more)) => {
                taken.values = more.iter().map(|c| c.values.len() / 8).sum();
                all.columns.extend(more.into_iter().map(ColumnText::read));
            }
            (
                Self::Columns(all),
                PieceText::FoldedSeries {
                    series,
                    windows,
                    lasts,
                    least,
                },
            ) => {
                let folded = of_one_shard(&mut all.folded);
                folded.series.extend(of_words(&series));
                folded.old.merge(OldForms { windows, lasts, least });
            }
            (Self::Columns(all), PieceText::FoldedSlots(more)) => {
                let groups = &mut of_one_shard(&mut all.folded).groups;
                for (labels, slot, is_cells, words) in more {
                    taken.values += words.len() / 8;
                    let leaf = match is_cells {
                        true => Leaf::Cells(of_words(&words).collect()),
                        false => Leaf::Series(of_words(&words).map(f64::from_bits).collect()),
                    };
                    if groups.last().is_none_or(|g| g.labels != labels) {
                        let slots = vec![];
                        groups.push(FoldedGroup { labels, slots });
                    }
                    let last = groups.len() - 1;
                    groups[last].slots.push((slot, leaf));
                }
            }
            // What they weigh is in the closing, with all that was read.
            (Self::Columns(all), PieceText::Natives(more)) => {
                for text in more {
                    all.natives.push(text.read()?);
                }
            }
            (Self::Natives(all), PieceText::Natives(more)) => {
                for text in more {
                    let series = text.read()?;
                    let weights = series.samples.iter().map(|(_, h)| h.as_ref().map_or(1, |h| h.weight()));
                    taken.samples += weights.sum::<usize>();
                    all.push(series);
                }
            }
            (Self::LineCounts(all), PieceText::LineCounts(more)) => {
                taken.values = more.iter().map(|(.., counts)| counts.len()).sum();
                let counts = |(labels, owner, slot, counts)| StreamCounts {
                    labels,
                    owner,
                    slot,
                    counts,
                };
                all.extend(more.into_iter().map(counts));
            }
            (Self::Lines(all), PieceText::Lines(more)) => all.extend(more.into_iter().map(|s| StreamData {
                labels: s.labels,
                owner: s.owner,
                slot: s.slot,
                lines: s.lines.into_iter().map(of_line_text).collect(),
            })),
            (Self::LabelSets(all), PieceText::LabelSets(more)) => all.extend(more),
            (Self::LabelTexts(all), PieceText::LabelTexts(more)) => all.extend(more),
            _ => return Err(BadQuestion::Unknown("an answer to another question".to_owned())),
        }
        Ok(taken)
    }
}

/// What a piece held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Samples that are held now.
    pub samples: usize,
    /// Values that were computed there and are held now.
    pub values: usize,
    /// It was the last one.
    pub closing: Option<Closing>,
}

impl SeriesText {
    fn read(self) -> SeriesData {
        let sample = |(at, value): (u64, u64)| Sample {
            at: TimestampNs(at.cast_signed()),
            value: f64::from_bits(value),
        };
        SeriesData {
            samples: of_words(&self.times).zip(of_words(&self.values)).map(sample).collect(),
            labels: self.labels,
            owner: self.owner,
            slot: self.slot,
            has_lasts: self.has_lasts,
        }
    }
}

impl ColumnText {
    fn read(self) -> SeriesColumn {
        SeriesColumn {
            fingerprint: self.labels.fingerprint(),
            labels: self.labels,
            owner: self.owner,
            slot: self.slot,
            values: of_words(&self.values).map(f64::from_bits).collect(),
            old: OldForms {
                windows: self.windows,
                lasts: self.lasts,
                least: self.least,
            },
        }
    }
}

impl NativeText {
    fn read(self) -> Result<NativeSeries, BadQuestion> {
        let sample = |(at, line): (TimestampNs, Option<String>)| {
            let Some(line) = line else { return Ok((at, None)) };
            match Histogram::of_line(line.as_bytes()) {
                Ok(Some(histogram)) => Ok((at, Some(Arc::new(histogram)))),
                Ok(None) => Ok((at, None)),
                Err(why) => Err(BadQuestion::Unknown(format!("a histogram: {why}"))),
            }
        };
        Ok(NativeSeries {
            samples: self.samples.into_iter().map(sample).collect::<Result<_, _>>()?,
            labels: self.labels,
            owner: self.owner,
            slot: self.slot,
            unreadable: usize::try_from(self.unreadable).unwrap_or(usize::MAX),
        })
    }
}

impl Closing {
    pub fn encode(self) -> Bytes {
        codec::to_bytes(&PieceText::Closing(self)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::STALE_NAN_BITS;
    use proptest::prelude::*;

    fn labels() -> impl Strategy<Value = Labels> {
        let pair = ("[a-c]{1,3}", "[a-z가-힣]{1,6}");
        prop::collection::vec(pair, 0..4).prop_map(|mut pairs| {
            pairs.sort();
            pairs.dedup_by(|a, b| a.0 == b.0);
            Labels::new(pairs)
        })
    }

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>(),
            Just(f64::from_bits(STALE_NAN_BITS)),
            Just(f64::from_bits(0x7ff8_0000_0000_0002)),
            Just(-0.0)
        ]
    }

    fn line() -> impl Strategy<Value = LogLine> {
        let metadata = prop::collection::vec(("[a-c]", "[a-z]{0,3}"), 0..3);
        (any::<i64>(), "[ -~가-힣]{0,20}", metadata).prop_map(|(at, line, metadata)| LogLine {
            at: TimestampNs(at),
            line: line.into(),
            metadata,
        })
    }

    fn answers() -> impl Strategy<Value = Answer> {
        let owner = Owner::Resource {
            id: ResourceId([7; 16]),
            kind: hindcast_model::Kind::Host,
        };
        let slot = (0u16..1024).prop_map(Slot);
        let sample = (any::<i64>(), value()).prop_map(|(at, value)| Sample {
            at: TimestampNs(at),
            value,
        });
        let series = (
            labels(),
            slot.clone(),
            prop::collection::vec(sample, 0..9),
            any::<bool>(),
        );
        let series = series.prop_map(move |(labels, slot, samples, has_lasts)| SeriesData {
            labels,
            owner,
            slot,
            samples,
            has_lasts,
        });
        let histogram = (0u32..9, 0.0..1e6f64).prop_map(|(count, sum)| {
            let line = Histogram {
                count: f64::from(count),
                sum,
                zero_count: f64::from(count),
                ..Histogram::default()
            };
            Arc::new(line)
        });
        let native = (any::<i64>().prop_map(TimestampNs), prop::option::of(histogram));
        let native = (labels(), slot.clone(), prop::collection::vec(native, 0..4), 0usize..3);
        let native = native.prop_map(|(labels, slot, samples, unreadable)| NativeSeries {
            labels,
            owner: Owner::None,
            slot,
            samples,
            unreadable,
        });
        let natives = prop::collection::vec(native, 0..3).boxed();
        let column = (
            labels(),
            slot.clone(),
            prop::collection::vec(value(), 0..9),
            any::<[bool; 3]>(),
        );
        let column = column.prop_map(|(labels, slot, values, [windows, lasts, least])| SeriesColumn {
            fingerprint: labels.fingerprint(),
            labels,
            owner: Owner::None,
            slot,
            values,
            old: OldForms { windows, lasts, least },
        });
        let leaf = prop_oneof![
            prop::collection::vec(any::<u64>(), 0..9).prop_map(Leaf::Cells),
            prop::collection::vec(value(), 0..9).prop_map(Leaf::Series),
        ];
        let cells = prop::collection::vec((0u16..1024, leaf), 1..4);
        let groups = prop::collection::btree_map(labels(), cells, 0..4);
        let prints = prop::collection::vec(any::<u64>(), 1..9);
        let of_one = (groups, prints, any::<[bool; 3]>());
        let of_one = of_one.prop_map(|(groups, series, [windows, lasts, least])| Folded {
            groups: groups
                .into_iter()
                .map(|(labels, slots)| FoldedGroup { labels, slots })
                .collect(),
            series,
            old: OldForms { windows, lasts, least },
        });
        let folded = prop::option::of(of_one).prop_map(Vec::from_iter);
        let stream = (labels(), slot.clone(), prop::collection::vec(line(), 0..5));
        let stream = stream.prop_map(|(labels, slot, lines)| StreamData {
            labels,
            owner: Owner::None,
            slot,
            lines,
        });
        let counts = (labels(), slot, prop::collection::vec(any::<u64>(), 0..5));
        let counts = counts.prop_map(|(labels, slot, counts)| StreamCounts {
            labels,
            owner: Owner::None,
            slot,
            counts,
        });
        prop_oneof![
            prop::collection::vec(series, 0..6).prop_map(Answer::Series),
            (prop::collection::vec(column, 0..6), natives.clone(), folded).prop_map(|(columns, natives, folded)| {
                Answer::Columns(Columns {
                    columns,
                    natives,
                    folded,
                })
            }),
            natives.prop_map(Answer::Natives),
            prop::collection::vec(stream, 0..6).prop_map(Answer::Lines),
            prop::collection::vec(counts, 0..6).prop_map(Answer::LineCounts),
            prop::collection::vec(labels(), 0..6).prop_map(Answer::LabelSets),
            prop::collection::vec("[a-z]{0,5}", 0..6).prop_map(Answer::LabelTexts),
        ]
    }

    fn empty_like(answer: &Answer) -> Answer {
        match answer {
            Answer::Series(_) => Answer::Series(vec![]),
            Answer::Columns(_) => Answer::Columns(Columns::default()),
            Answer::Natives(_) => Answer::Natives(vec![]),
            Answer::LineCounts(_) => Answer::LineCounts(vec![]),
            Answer::Lines(_) => Answer::Lines(vec![]),
            Answer::LabelSets(_) => Answer::LabelSets(vec![]),
            Answer::LabelTexts(_) => Answer::LabelTexts(vec![]),
        }
    }

    /// By bits, since absent values are no numbers.
    fn shown(answer: &Answer) -> String {
        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        match answer {
            Answer::Columns(all) => {
                let column = |c: &SeriesColumn| {
                    let (labels, values) = (c.labels.to_string(), bits(&c.values));
                    format!("{labels} {:?} {} {values:?} {:?}", c.slot, c.fingerprint, c.old)
                };
                let columns = all.columns.iter().map(column).collect::<Vec<_>>().join("\n");
                format!("{columns}\n{:?}\n{:?}", all.natives, all.folded)
            }
            other => format!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn an_answer_arrives_as_it_was_sent_to_the_bit(answer in answers()) {
            let mut come = empty_like(&answer);
            let mut sent = vec![];
            let is_whole = answer.clone().send(&mut |piece| {
                sent.push(piece);
                true
            });
            prop_assert!(is_whole);
            for piece in &sent {
                prop_assert_eq!(come.take(piece).unwrap().closing, None);
            }
            prop_assert_eq!(shown(&come), shown(&answer));
            if let (Answer::Series(a), Answer::Series(b)) = (&come, &answer) {
                prop_assert_eq!(a, b);
            }
        }

        #[test]
        fn bytes_of_no_question_and_no_answer_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Question::decode(&bytes);
            let _ = Answer::Series(vec![]).take(&bytes);
        }
    }

    fn columns(how: How, fold: Option<Fold>) -> Question {
        let series = SeriesRequest {
            tenant: TenantId::default(),
            matchers: vec![
                Matcher::equal("a", "b"),
                Matcher::new("c", MatchOp::Regex, "x.*").unwrap(),
            ],
            from: TimestampNs(-5),
            to: TimestampNs(9),
            as_of: None,
            owners: Some(BTreeSet::from([ResourceId([1; 16])])),
            only: Some(Arc::new(BTreeSet::from([Labels::from_pairs([("a", "b")])]))),
            budget: Arc::new(Budget::new(100, 10)),
        };
        let reduction = Reduction {
            how,
            steps: Steps {
                start: -7,
                step: 3,
                count: 4,
            },
            when: When {
                fixed: Some(8),
                offset_ms: -2,
            },
        };
        Question::Columns(ColumnsRequest {
            series,
            reduction: Arc::new(reduction),
            fold: fold.map(Arc::new),
        })
    }

    /// What a question is, but for what is computed anew from names.
    fn told(question: &Question) -> String {
        String::from_utf8_lossy(&question.encode()).into_owned()
    }

    #[test]
    fn a_question_arrives_as_it_was_asked() {
        let filter = Filter::And(vec![
            Filter::contains("needle".as_bytes()),
            Filter::regex("(?i)err.r").unwrap().negated(),
            Filter::Or(vec![Filter::contains("가".as_bytes())]),
        ]);
        let window = |name: &'static str| How::Window {
            name,
            span: Span::default(),
            kernel: window::kernel(name).unwrap(),
            of_windows: rolled::kernel(name),
            stretch: window::stretch(name),
            range_ms: 5,
            params: [vec![0.5, f64::NAN], vec![]],
        };
        let lines = LinesRequest {
            tenant: TenantId::default(),
            matchers: vec![],
            from: TimestampNs(1),
            to: TimestampNs(2),
            as_of: None,
            owners: None,
            filter: filter.clone(),
            limit: Some(3),
            direction: Direction::Forward,
        };
        let counts = CountsRequest {
            tenant: TenantId::default(),
            matchers: vec![],
            from: TimestampNs(1),
            bounds: vec![TimestampNs(2), TimestampNs(3)],
            as_of: None,
            owners: None,
            filter,
            budget: Arc::new(Budget::new(7, 8)),
        };
        let labels = LabelsRequest {
            tenant: TenantId::default(),
            streams: true,
            any_of: vec![vec![Matcher::equal("a", "b")], vec![]],
            from: TimestampNs(1),
            to: TimestampNs(2),
        };
        let newest = How::Newest {
            lookback_ms: 5,
            times: true,
        };
        let fold = Fold {
            op: AggregateOp::Stddev,
            grouping: Some(Grouping {
                without: true,
                labels: vec!["a".into(), "가".into()],
            }),
            drops_name: true,
        };
        let questions = [
            columns(newest, None),
            columns(window("rate"), Some(fold)),
            columns(window("quantile_over_time"), None),
            Question::Lines(lines),
            Question::LineCounts(counts),
            Question::LabelSets(labels.clone()),
            Question::LabelTexts(labels.clone(), LabelTexts::Names),
            Question::LabelTexts(labels, LabelTexts::Values("job".into())),
        ];
        for question in questions {
            let come = Question::decode(&question.encode()).unwrap();
            assert_eq!(told(&come), told(&question), "{question:?}");
        }
    }

    #[test]
    fn a_large_answer_comes_in_pieces_and_ends_when_nobody_takes_them() {
        let series = |n: usize| SeriesData {
            labels: Labels::from_pairs([("n", n.to_string().as_str())]),
            owner: Owner::None,
            slot: Slot(1),
            samples: vec![
                Sample {
                    at: TimestampNs(1),
                    value: 2.0
                };
                10_000
            ],
            has_lasts: false,
        };
        let answer = Answer::Series((0..100).map(series).collect());
        let mut sizes = vec![];
        answer.clone().send(&mut |piece| {
            sizes.push(piece.len());
            true
        });
        assert!(
            sizes.len() > 10 && sizes.iter().all(|s| *s < 2 * PIECE_BYTES),
            "{sizes:?}"
        );
        let mut taken = 0;
        assert!(!answer.send(&mut |_| {
            taken += 1;
            taken < 2
        }));
        assert_eq!(taken, 2);
    }
}
