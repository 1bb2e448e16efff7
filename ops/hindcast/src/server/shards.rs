//! The seam `Shards` over this node's own replicas.
//!
//! Every node holds every shard (as many replicas as nodes, so far), so no sample crosses the wire for a read: the
//! replica waits until it has applied what the leader had committed (ReadIndex), or what a cut names, then answers. A query
//! that says so does not wait: it gets what is applied here, and how old that may be.

use futures::future::join_all;
use hindcast_model::{GroupId, Labels, Positions, Sample, SpanNs, TenantId, TimestampNs};
use hindcast_node::io::node::Node;
use hindcast_node::shard_machine::ShardHandle;
use hindcast_node::sources::{AWAITED_MAX, Sources};
use hindcast_query::replica;
use hindcast_query::shards::{
    Columns, ColumnsRequest, Completeness, Consistency, CountsRequest, Freshness, LabelsRequest, LinesRequest,
    NativeSeries, SeriesRequest, Shards, ShardsError,
};
use hindcast_storage::ReadError;
use hindcast_storage::cardinality::{ACTIVE_SPAN, Cardinality, cardinality};
use hindcast_storage::read::{Direction, LabelTexts, SearchLabels, SeriesData, StreamCounts, StreamData};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long a read waits for the shard's leader, or for a replica that is behind a cut.
const FRESH_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports on series that are made at a time; another one waits so long, and is refused then.
pub const REPORTS_MAX: usize = 1;
const REPORT_WAIT_MAX: Duration = Duration::from_secs(5);
const BEHIND_PAUSE: Duration = Duration::from_millis(5);

/// How often leaders are asked how far they are, for answers that do not wait for it.
const CONFIRM_PAUSE: SpanNs = SpanNs::from_ms(200);
/// How long the first such answer waits for that, so that its age is known.
const FIRST_CONFIRM: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub struct LocalShards {
    node: Node,
    consistency: Consistency,
    /// Shared by all consistencies.
    confirmed: Arc<BTreeMap<GroupId, Mutex<Confirmed>>>,
    reports: Arc<Semaphore>,
}

/// Until when a replica is known to be whole, in monotonic time.
#[derive(Clone, Copy, Debug, Default)]
struct Confirmed {
    asked: Option<SpanNs>,
    whole_at: Option<SpanNs>,
}

impl LocalShards {
    pub fn new(node: Node) -> Self {
        let confirmed = node.shards.keys().map(|g| (*g, Mutex::default()));
        Self {
            confirmed: Arc::new(confirmed.collect()),
            consistency: Consistency::Linearizable,
            reports: Arc::new(Semaphore::new(REPORTS_MAX)),
            node,
        }
    }

    /// Asks the leader how far it had committed, and waits until that is applied here.
    async fn confirm(&self, group: GroupId, timeout: Duration) -> Result<u64, hindcast_raft::io::ReadError> {
        let began = self.node.clock.monotonic();
        let index = self.node.raft.read_index(group, timeout).await?;
        if let Some(confirmed) = self.confirmed.get(&group) {
            let mut confirmed = confirmed.lock();
            confirmed.whole_at = confirmed.whole_at.max(Some(began));
        }
        Ok(index)
    }

    /// What is applied here, and how old that may be. The leader is asked beside it, a few times a second for all queries
    /// together: the next answers know by it how old they are.
    async fn at_once(&self, group: GroupId) -> (u64, Freshness) {
        if let Some(confirmed) = self.confirmed.get(&group) {
            let now = self.node.clock.monotonic();
            let (ask, known) = {
                let mut c = confirmed.lock();
                let due = c.asked.is_none_or(|at| now.0.saturating_sub(at.0) >= CONFIRM_PAUSE.0);
                if due {
                    c.asked = Some(now);
                }
                (due, c.whole_at.is_some())
            };
            if ask {
                let this = self.clone();
                let asking = tokio::spawn(async move { this.confirm(group, FRESH_TIMEOUT).await });
                if !known {
                    let _ = tokio::time::timeout(FIRST_CONFIRM, asking).await;
                }
            }
        }
        // Before the rows are read: what is applied meanwhile only makes the answer newer.
        let applied = self.node.shards.get(&group).map_or(0, |s| s.reader.applied());
        let now = self.node.clock.monotonic();
        let whole_at = self.confirmed.get(&group).and_then(|c| c.lock().whole_at);
        let age = whole_at.map(|at| SpanNs(now.0.saturating_sub(at.0)));
        (applied, Freshness::Stale { age })
    }

    /// The copy was set aside and has nothing yet: what it says would not be old but wrong.
    fn is_empty_handed(&self, group: GroupId) -> bool {
        let status = self.node.raft.status(group);
        let is_out = status.quarantined.is_some() || status.is_rebuilding;
        is_out && self.node.shards.get(&group).is_some_and(|s| s.reader.applied() == 0)
    }

    /// Waits until the replica may answer; the applied index and how new that is, or why it may not.
    async fn fresh(&self, group: GroupId, as_of: Option<u64>) -> Result<(u64, Freshness), String> {
        match as_of {
            None if self.consistency == Consistency::StaleOk && self.is_empty_handed(group) => Err(format!(
                "shard {group} of this node is damaged and being rebuilt; ask another node"
            )),
            None if self.consistency == Consistency::StaleOk => Ok(self.at_once(group).await),
            None => {
                let read = self.confirm(group, FRESH_TIMEOUT).await;
                let index = read.map_err(|e| format!("shard {group} gave no linearizable read: {e}"))?;
                Ok((index, Freshness::Linearizable))
            }
            Some(index) => {
                let caught_up = async {
                    while self.node.shards.get(&group).is_some_and(|s| s.reader.applied() < index) {
                        tokio::time::sleep(BEHIND_PAUSE).await;
                    }
                };
                let waited = tokio::time::timeout(FRESH_TIMEOUT, caught_up).await;
                waited.map_err(|_| format!("shard {group} of this node is behind the cut's position {index}"))?;
                Ok((index, Freshness::Linearizable))
            }
        }
    }

    /// The least of what the shards' sources say.
    fn spoken_to(&self, of: impl Fn(&Sources, TimestampNs) -> TimestampNs) -> TimestampNs {
        let now = self.node.meta.cluster_now();
        let each = self.node.shards.values().map(|s| of(&s.sources.read(), now));
        each.min().unwrap_or(TimestampNs::MAX)
    }

    /// Runs `read` on every shard, each on a thread that may block; answers in the order of shards.
    async fn scatter<T: Send + 'static>(
        &self,
        as_of: Option<&Positions>,
        read: impl Fn(ShardHandle, Option<u64>) -> Result<T, ReadError> + Clone + Send + 'static,
    ) -> Result<(Vec<T>, Completeness), ShardsError> {
        let asked = self.node.shards.iter().map(|(group, handle)| {
            let (group, handle, read) = (*group, handle.clone(), read.clone());
            let position = as_of.map(|p| p.get(&group).copied());
            async move {
                // A shard that the cut does not name held nothing then.
                let position = match position {
                    Some(None) => return Ok(None),
                    Some(Some(index)) => Some(index),
                    None => None,
                };
                let (applied, freshness) = self.fresh(group, position).await?;
                let answer = tokio::task::spawn_blocking(move || read(handle, position)).await;
                match answer {
                    Ok(Ok(answer)) => Ok(Some((group, applied, freshness, answer))),
                    Ok(Err(e)) => Err(format!("shard {group}: {e}")),
                    Err(e) => Err(format!("shard {group}: the read ended early: {e}")),
                }
            }
        });
        let (mut answers, mut completeness) = (vec![], Completeness::default());
        let mut asked_any = false;
        for answer in join_all(asked).await {
            match answer {
                Ok(Some((group, applied, freshness, answer))) => {
                    asked_any = true;
                    completeness.positions.insert(group, applied);
                    completeness.freshness = completeness.freshness.merge(freshness);
                    answers.push(answer);
                }
                Ok(None) => asked_any = true,
                Err(why) => completeness.missing.push(why),
            }
        }
        if asked_any {
            Ok((answers, completeness))
        } else {
            Err(ShardsError::Unavailable(completeness.missing.join("; ")))
        }
    }
}

/// Joins neighbours of one label set and slot (a window that spans a move of slots); the first wins a tie in time.
fn merge_series(mut all: Vec<SeriesData>) -> Vec<SeriesData> {
    all.sort_by_cached_key(|s| (s.slot, s.labels.fingerprint(), s.labels.clone()));
    let mut merged: Vec<SeriesData> = Vec::with_capacity(all.len());
    for series in all {
        match merged.last_mut() {
            Some(last) if last.slot == series.slot && last.labels == series.labels => {
                let mut samples: Vec<Sample> = std::mem::take(&mut last.samples);
                samples.extend(series.samples);
                samples.sort_by_key(|s| s.at);
                samples.dedup_by_key(|s| s.at);
                last.samples = samples;
            }
            _ => merged.push(series),
        }
    }
    merged
}

fn merge_streams(mut all: Vec<StreamData>) -> Vec<StreamData> {
    all.sort_by_cached_key(|s| (s.slot, s.labels.fingerprint(), s.labels.clone()));
    let mut merged: Vec<StreamData> = Vec::with_capacity(all.len());
    for stream in all {
        match merged.last_mut() {
            Some(last) if last.slot == stream.slot && last.labels == stream.labels => {
                last.lines.extend(stream.lines);
                last.lines.sort_by_key(|l| l.at);
            }
            _ => merged.push(stream),
        }
    }
    merged
}

/// Keeps the `limit` lines at the end that `direction` names, over all streams.
fn keep_limit(streams: &mut Vec<StreamData>, limit: usize, direction: Direction) {
    let mut times: Vec<TimestampNs> = streams.iter().flat_map(|s| s.lines.iter().map(|l| l.at)).collect();
    if times.len() <= limit {
        return;
    }
    times.sort_unstable();
    if direction == Direction::Backward {
        times.reverse();
    }
    let Some(bound) = limit.checked_sub(1).map(|i| times[i]) else {
        streams.clear();
        return;
    };
    // Of the lines at the bound only so many fit; streams in order take theirs first.
    let inside = |at: TimestampNs| {
        if direction == Direction::Backward {
            at > bound
        } else {
            at < bound
        }
    };
    let mut room = limit - times.iter().filter(|at| inside(**at)).count();
    for stream in streams.iter_mut() {
        stream.lines.retain(|l| {
            inside(l.at) || {
                let fits = l.at == bound && room > 0;
                room -= usize::from(fits);
                fits
            }
        });
    }
    streams.retain(|s| !s.lines.is_empty());
}

fn search(r: LabelsRequest) -> Arc<SearchLabels> {
    Arc::new(SearchLabels {
        tenant: r.tenant,
        streams: r.streams,
        any_of: r.any_of,
        from: r.from,
        to: r.to,
    })
}

// A source is behind when no rule waits so long.
const _: () = assert!(AWAITED_MAX.0 == hindcast_alerting::io::evaluator::WAIT_MAX.0);

#[async_trait::async_trait]
impl Shards for LocalShards {
    fn read_with(&self, consistency: Consistency) -> Option<Arc<dyn Shards>> {
        (consistency != self.consistency).then(|| {
            Arc::new(Self {
                consistency,
                ..self.clone()
            }) as Arc<dyn Shards>
        })
    }

    async fn series(&self, r: SeriesRequest) -> Result<(Vec<SeriesData>, Completeness), ShardsError> {
        let r = Arc::new(r);
        let asked = r.clone();
        let read = move |shard: ShardHandle, as_of| replica::series(&shard.reader, &asked, as_of);
        let (answers, completeness) = self.scatter(r.as_of.as_ref(), read).await?;
        Ok((merge_series(answers.into_iter().flatten().collect()), completeness))
    }

    async fn columns(&self, r: ColumnsRequest) -> Result<(Columns, Completeness), ShardsError> {
        let r = Arc::new(r);
        let asked = r.clone();
        let read = move |shard: ShardHandle, as_of| replica::columns(&shard.reader, &asked, as_of);
        let (answers, completeness) = self.scatter(r.series.as_of.as_ref(), read).await?;
        let mut all = Columns::default();
        for found in answers {
            all.columns.extend(found.columns);
            all.natives.extend(found.natives);
        }
        Ok((all, completeness))
    }

    async fn natives(&self, r: SeriesRequest) -> Result<(Vec<NativeSeries>, Completeness), ShardsError> {
        let r = Arc::new(r);
        let asked = r.clone();
        let read = move |shard: ShardHandle, as_of| replica::natives(&shard.reader, &asked, as_of);
        let (answers, completeness) = self.scatter(r.as_of.as_ref(), read).await?;
        Ok((answers.into_iter().flatten().collect(), completeness))
    }

    async fn line_counts(&self, r: CountsRequest) -> Result<(Vec<StreamCounts>, Completeness), ShardsError> {
        let r = Arc::new(r);
        let asked = r.clone();
        let read = move |shard: ShardHandle, as_of| replica::line_counts(&shard.reader, &asked, as_of);
        let (answers, completeness) = self.scatter(r.as_of.as_ref(), read).await?;
        Ok((answers.into_iter().flatten().collect(), completeness))
    }

    async fn lines(&self, r: LinesRequest) -> Result<(Vec<StreamData>, Completeness), ShardsError> {
        let r = Arc::new(r);
        let asked = r.clone();
        let read = move |shard: ShardHandle, as_of| replica::lines(&shard.reader, &asked, as_of);
        let (answers, completeness) = self.scatter(r.as_of.as_ref(), read).await?;
        let mut streams = merge_streams(answers.into_iter().flatten().collect());
        if let Some(limit) = r.limit {
            keep_limit(&mut streams, limit, r.direction);
        }
        Ok((streams, completeness))
    }

    async fn label_sets(&self, r: LabelsRequest) -> Result<(Vec<Labels>, Completeness), ShardsError> {
        let search = search(r);
        let read = move |shard: ShardHandle, _| shard.reader.label_sets(&search);
        let (answers, completeness) = self.scatter(None, read).await?;
        let sets: BTreeSet<Labels> = answers.into_iter().flatten().collect();
        Ok((sets.into_iter().collect(), completeness))
    }

    async fn label_texts(&self, r: LabelsRequest, of: LabelTexts) -> Result<(Vec<String>, Completeness), ShardsError> {
        let search = search(r);
        let read = move |shard: ShardHandle, _| shard.reader.label_texts(&search, &of);
        let (answers, completeness) = self.scatter(None, read).await?;
        let texts: BTreeSet<String> = answers.into_iter().flatten().collect();
        Ok((texts.into_iter().collect(), completeness))
    }

    async fn cardinality(
        &self,
        tenant: &TenantId,
        now: TimestampNs,
        entries: usize,
    ) -> Result<(Cardinality, Completeness), ShardsError> {
        let reports = self.reports.clone();
        let Ok(Ok(place)) = tokio::time::timeout(REPORT_WAIT_MAX, reports.acquire_owned()).await else {
            let why = format!("{REPORTS_MAX} report on series is under way and takes long; ask again when it is done");
            return Err(ShardsError::Unavailable(why));
        };
        let (readers, completeness) = self.scatter(None, |shard, _| Ok(shard.reader)).await?;
        let tenant = tenant.clone();
        let counting = tokio::task::spawn_blocking(move || {
            // Held to the end: who asked may be gone by then, and the work goes on.
            let _place = place;
            cardinality(&readers, &tenant, (now - ACTIVE_SPAN).0, entries)
        });
        match counting.await {
            Ok(Ok(report)) => Ok((report, completeness)),
            Ok(Err(why)) => Err(ShardsError::Refused(why.to_string())),
            Err(why) => Err(ShardsError::Unavailable(format!("the report ended early: {why}"))),
        }
    }

    async fn complete_to(&self, tenant: &TenantId) -> Result<TimestampNs, ShardsError> {
        Ok(self.spoken_to(|sources, now| sources.complete_to(tenant, now)))
    }

    async fn awaited_to(&self, tenant: &TenantId) -> Result<TimestampNs, ShardsError> {
        Ok(self.spoken_to(|sources, now| sources.awaited_to(tenant, now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::{LogLine, Owner, Slot};

    fn stream(name: &str, times: &[i64]) -> StreamData {
        let line = |at: &i64| LogLine {
            at: TimestampNs(*at),
            line: "x".into(),
            metadata: vec![],
        };
        StreamData {
            labels: Labels::from_pairs([("s", name)]),
            owner: Owner::None,
            slot: Slot(1),
            lines: times.iter().map(line).collect(),
        }
    }

    fn kept(limit: usize, direction: Direction) -> Vec<(String, Vec<i64>)> {
        let mut streams = vec![stream("a", &[1, 3, 5]), stream("b", &[2, 3, 4])];
        keep_limit(&mut streams, limit, direction);
        streams
            .into_iter()
            .map(|s| (s.labels.value("s").to_owned(), s.lines.iter().map(|l| l.at.0).collect()))
            .collect()
    }

    #[test]
    fn a_limit_holds_over_all_streams_from_the_asked_end() {
        assert_eq!(
            kept(3, Direction::Backward),
            [("a".into(), vec![3, 5]), ("b".into(), vec![4])]
        );
        assert_eq!(
            kept(3, Direction::Forward),
            [("a".into(), vec![1, 3]), ("b".into(), vec![2])]
        );
        assert_eq!(kept(0, Direction::Forward), []);
        assert_eq!(kept(9, Direction::Forward).len(), 2);
    }

    #[test]
    fn lines_of_one_stream_from_two_shards_are_one_stream() {
        let merged = merge_streams(vec![stream("a", &[1, 5]), stream("a", &[3])]);
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[0].lines.iter().map(|l| l.at.0).collect::<Vec<_>>(), [1, 3, 5]);
    }
}
