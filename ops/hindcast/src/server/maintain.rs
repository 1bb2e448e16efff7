//! Flush, merge and scrub of a live node, told step by step.
//!
//! Flushes and merges are the business of each shard's owner: they are asked for here and watched. A scrub never meets
//! the owner: it reads over a reader's handles on a thread that may block, paced, while everything else goes on.
//!
//! Beside what people ask for, a node reads its files twice a day, so slowly that nobody notices, and at once a file in
//! which a read met damage. The Raft log is not among them: flushes end each of its segments within hours. What a whole look finds here, and not in the cold store, makes the copy one to be repaired from
//! another node (`hindcast_node::membership`).
//!
//! Invariants
//! - One scrub at a time that somebody asked for; a second one is refused, so that the bound on its reads is the node's.
//! - A scrub ends when nobody listens to it any more.
//! - What a read alone met is no finding: memory may have failed, and a copy is not rebuilt for that.
//! - Every byte of a file that is here is read again within a day; the cold store is read when somebody asks.

use hindcast_model::{Class, Classify, GroupId, SpanNs};
use hindcast_node::io::node::Node;
use hindcast_node::pace::{Owed, Pace};
use hindcast_node::shard_machine::ShardHandle;
use hindcast_proto::v1::maintain_progress::Event;
use hindcast_proto::v1::maintain_request::Work;
use hindcast_proto::v1::shard_progress::State;
use hindcast_proto::{edge, v1};
use hindcast_storage::{Damage, FileCheck, ImmutableFile};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

/// What a scrub reads per second when nobody said: a tenth of what a plain disk gives.
const SCRUB_BYTES_PER_SECOND_DEFAULT: u64 = 32 << 20;
/// What it may read at once before it waits.
const SCRUB_BURST_BYTES: u64 = 4 << 20;
/// A round of the background scrub begins so long after the one before: half of the day within which every byte is to be
/// read again, because a file may be the first of one round and the last of the next.
const ROUND: Duration = Duration::from_secs(12 * 3600);
/// And is paced to be through after so long.
const ROUND_WORK_SECONDS: u64 = 10 * 3600;
/// A small store is not read byte by byte.
const BACKGROUND_BYTES_PER_SECOND_MIN: u64 = 256 << 10;
/// Between two rounds, whatever the first one took. With small files, for tests, a round begins after as much.
const ROUND_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Messages that wait for a slow reader; the work waits with them.
const PROGRESS_QUEUE_MAX: usize = 16;
/// Between looks at files in which reads met damage.
const SUSPECTS_PAUSE: Duration = Duration::from_secs(1);
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Looks at a flush that is to replace a damaged manifest, before the scrub goes on.
const SIDES_LOOKS_MAX: u32 = 600;
/// The stats are renewed after the work, by the next round of the owner.
const STATS_PAUSE: Duration = Duration::from_millis(100);
/// A line of progress is told at least this often, so that who waits sees that it lives.
const TOLD_EVERY: Duration = Duration::from_secs(1);

pub type Progress = tokio_stream::wrappers::ReceiverStream<Result<v1::MaintainProgress, Status>>;

/// What keeps one scrub from meeting another. Clones share it.
#[derive(Clone)]
pub struct Maintenance {
    scrubs: Arc<Semaphore>,
    background: Arc<BackgroundScrub>,
}

/// What the background scrub has done since the node started.
#[derive(Default)]
pub struct BackgroundScrub {
    pub rounds: AtomicU64,
    pub bytes: AtomicU64,
    pub findings: AtomicU64,
}

impl Default for Maintenance {
    fn default() -> Self {
        Self {
            scrubs: Arc::new(Semaphore::new(1)),
            background: Arc::default(),
        }
    }
}

/// Why nothing was begun.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("name the work: flush, compact or scrub")]
    NoWork,
    #[error("this node has no shard {group}; it has {known}")]
    NoShard { group: u64, known: String },
    #[error("a scrub of this node runs already; wait until it ends, or end it where it was started")]
    Scrubbing,
}

impl Classify for Refused {
    fn class(&self) -> Class {
        match self {
            Self::NoWork | Self::NoShard { .. } => Class::FixRequest,
            Self::Scrubbing => Class::Conflict,
        }
    }
}

impl Maintenance {
    /// Begins the work; its progress.
    pub fn start(&self, node: &Node, request: &v1::MaintainRequest) -> Result<Progress, Status> {
        let shards = chosen(node, &request.groups).map_err(|e| edge::status(&e))?;
        let (tell, told) = mpsc::channel(PROGRESS_QUEUE_MAX);
        match request.work() {
            Work::Unspecified => return Err(edge::status(&Refused::NoWork)),
            Work::Flush => drop(tokio::spawn(flush(shards, false, tell))),
            Work::Compact => drop(tokio::spawn(flush(shards, true, tell))),
            Work::Scrub => {
                let only = self.scrubs.clone().try_acquire_owned();
                let only = only.map_err(|_| edge::status(&Refused::Scrubbing))?;
                let bytes_per_second = match request.bytes_per_second_max {
                    0 => SCRUB_BYTES_PER_SECOND_DEFAULT,
                    given => given,
                };
                drop(tokio::spawn(
                    Scrub::new(node, bytes_per_second, tell, Some(only)).run(shards),
                ));
            }
        }
        Ok(Progress::new(told))
    }

    pub fn background(&self) -> &BackgroundScrub {
        &self.background
    }

    /// Reads all files of the node again and again, for as long as it runs. What it finds is logged and counted.
    pub async fn scrub_in_background(self, node: Node, small_files: bool) {
        let round = if small_files { ROUND_PAUSE_MIN } else { ROUND };
        loop {
            let began = node.clock.monotonic();
            let shards: Vec<ShardHandle> = node.shards.values().cloned().collect();
            let rate = background_rate(held(&shards).segment_bytes);
            let (tell, mut told) = mpsc::channel(PROGRESS_QUEUE_MAX);
            drop(tokio::spawn(Scrub::new(&node, rate, tell, None).run(shards)));
            while let Some(message) = told.recv().await {
                match message.ok().and_then(|m| m.event) {
                    Some(Event::Finding(_)) => drop(self.background.findings.fetch_add(1, Relaxed)),
                    Some(Event::Summary(s)) => {
                        self.background.bytes.fetch_add(s.bytes_checked, Relaxed);
                        self.background.rounds.fetch_add(1, Relaxed);
                    }
                    _ => {}
                }
            }
            if check_meta(&node).await {
                self.background.findings.fetch_add(1, Relaxed);
            }
            let took = Duration::from_nanos(node.clock.monotonic().0.saturating_sub(began.0));
            tokio::time::sleep(round.saturating_sub(took).max(ROUND_PAUSE_MIN)).await;
        }
    }

    /// Reads files whole in which a read met damage, for as long as the node runs.
    pub async fn look_at_suspects(self, node: Node) {
        loop {
            tokio::time::sleep(SUSPECTS_PAUSE).await;
            for shard in node.shards.values() {
                for file in shard.reader.suspects() {
                    if look_at(&node, shard, file).await {
                        self.background.findings.fetch_add(1, Relaxed);
                    }
                }
            }
        }
    }
}

/// True: it is damaged, and nobody knew.
async fn look_at(node: &Node, shard: &ShardHandle, file: ImmutableFile) -> bool {
    let path = file.path().to_owned();
    // Nobody listens to the progress of one file.
    let (tell, _told) = mpsc::channel(1);
    let mut scrub = Scrub::new(node, SCRUB_BYTES_PER_SECOND_DEFAULT, tell, None);
    let mut check = file.check();
    while check.next_bytes() > 0 {
        let bytes = check.next_bytes();
        let Some(next) = scrub.piece(check, bytes).await else {
            return false;
        };
        check = next;
    }
    let damages = check.finish();
    match damages.first() {
        Some(damage) => tracing::error!(shard = %shard.group, %damage, "a read met damage, and it is on the disk"),
        None => tracing::error!(
            shard = %shard.group,
            file = path,
            "a read met damage that is not on the disk: memory or a cable may fail; see the runbook of scrub findings"
        ),
    }
    shard.reader.looked_at(&path, damages.into_iter().next())
}

/// Looks at the snapshot of the meta group, and has it written anew when it is damaged: true.
async fn check_meta(node: &Node) -> bool {
    let file = node.meta_file.clone();
    match tokio::task::spawn_blocking(move || file.check()).await {
        Ok(Err(error)) => {
            tracing::error!(%error, "a scrub found damage; the file is written anew");
            node.meta_file.renew();
            true
        }
        _ => false,
    }
}

/// Bytes per second that read `bytes` well within a round.
fn background_rate(bytes: u64) -> u64 {
    bytes.div_ceil(ROUND_WORK_SECONDS).max(BACKGROUND_BYTES_PER_SECOND_MIN)
}

fn chosen(node: &Node, groups: &[u64]) -> Result<Vec<ShardHandle>, Refused> {
    let known = || {
        node.shards
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if groups.is_empty() {
        return Ok(node.shards.values().cloned().collect());
    }
    let find = |group: &u64| {
        let shard = node.shards.get(&GroupId(*group)).cloned();
        shard.ok_or_else(|| Refused::NoShard {
            group: *group,
            known: known(),
        })
    };
    let mut groups = groups.to_vec();
    groups.sort_unstable();
    groups.dedup();
    groups.iter().map(find).collect()
}

type Tell = mpsc::Sender<Result<v1::MaintainProgress, Status>>;

/// False when nobody listens any more.
async fn told(tell: &Tell, event: Event) -> bool {
    let message = v1::MaintainProgress { event: Some(event) };
    tell.send(Ok(message)).await.is_ok()
}

fn shard_progress(shard: &ShardHandle, state: State) -> v1::ShardProgress {
    let stats = shard.stats();
    v1::ShardProgress {
        group: shard.group.0,
        state: state.into(),
        segments: stats.segments as u64,
        segment_bytes: stats.segment_bytes,
        cold_segments: stats.cold_segments as u64,
        cold_bytes: stats.cold_bytes,
        ..v1::ShardProgress::default()
    }
}

fn held(shards: &[ShardHandle]) -> v1::MaintainSummary {
    let mut summary = v1::MaintainSummary {
        shards: shards.len() as u64,
        ..v1::MaintainSummary::default()
    };
    for s in shards {
        let stats = s.stats();
        summary.segments += stats.segments as u64;
        summary.segment_bytes += stats.segment_bytes;
        summary.cold_segments += stats.cold_segments as u64;
        summary.cold_bytes += stats.cold_bytes;
    }
    summary
}

/// Asks the owners for a flush, then perhaps for merges, and tells how it goes until all is done.
async fn flush(shards: Vec<ShardHandle>, compact: bool, tell: Tell) {
    let mut watched: Vec<Watched> = shards.iter().map(|s| Watched::new(s.clone(), compact)).collect();
    while watched.iter().any(|w| w.state != State::Done) {
        for w in &mut watched {
            if let Some(progress) = w.look()
                && !told(&tell, Event::Shard(progress)).await
            {
                return;
            }
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    tokio::time::sleep(STATS_PAUSE).await;
    for w in &watched {
        if !told(&tell, Event::Shard(shard_progress(&w.shard, State::Done))).await {
            return;
        }
    }
    told(&tell, Event::Summary(held(&shards))).await;
}

/// One shard whose owner was asked for something.
struct Watched {
    shard: ShardHandle,
    compact: bool,
    ticket: u64,
    state: State,
    said: v1::ShardProgress,
    /// Looks since something was said.
    silent: u32,
}

impl Watched {
    fn new(shard: ShardHandle, compact: bool) -> Self {
        Self {
            ticket: shard.ask_flush(),
            compact,
            state: State::Flushing,
            said: v1::ShardProgress::default(),
            silent: 0,
            shard,
        }
    }

    /// What is new, if it is time to say something. The end is told by the caller, with the final figures.
    fn look(&mut self) -> Option<v1::ShardProgress> {
        match self.state {
            State::Flushing if self.shard.flushed(self.ticket) && self.compact => {
                self.ticket = self.shard.ask_compact();
                self.state = State::Merging;
            }
            State::Flushing if self.shard.flushed(self.ticket) => self.state = State::Done,
            State::Merging if self.shard.compacted(self.ticket) => self.state = State::Done,
            _ => {}
        }
        let now = shard_progress(&self.shard, self.state);
        self.silent += 1;
        let is_due = LOOK_PAUSE * self.silent >= TOLD_EVERY;
        if self.state == State::Done || (now == self.said && !is_due) {
            return None;
        }
        self.silent = 0;
        self.said = now;
        Some(now)
    }
}

struct Scrub {
    node: Node,
    pace: Pace,
    owed: Owed,
    tell: Tell,
    summary: v1::MaintainSummary,
    /// `None`: the one in the background, which leaves the cold store alone.
    only: Option<OwnedSemaphorePermit>,
}

impl Scrub {
    fn new(node: &Node, bytes_per_second: u64, tell: Tell, only: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            node: node.clone(),
            pace: Pace {
                bytes_per_second,
                burst_bytes: SCRUB_BURST_BYTES.min(bytes_per_second),
            },
            owed: Owed::default(),
            tell,
            summary: v1::MaintainSummary::default(),
            only,
        }
    }

    async fn run(mut self, shards: Vec<ShardHandle>) {
        self.summary = held(&shards);
        for shard in &shards {
            if !self.shard(shard).await {
                return;
            }
        }
        let summary = Event::Summary(self.summary);
        told(&self.tell, summary).await;
    }

    /// False when nobody listens any more.
    async fn shard(&mut self, shard: &ShardHandle) -> bool {
        let mut files = shard.reader.files();
        if self.only.is_none() {
            files.retain(|f| !f.is_cold());
        }
        let mut progress = v1::ShardProgress {
            files: files.len() as u64,
            bytes: files.iter().map(|f| f.bytes()).sum(),
            ..shard_progress(shard, State::Checking)
        };
        let mut said = self.node.clock.monotonic();
        if !told(&self.tell, Event::Shard(progress)).await {
            return false;
        }
        for file in files {
            let mut check = file.check();
            while check.next_bytes() > 0 {
                let bytes = check.next_bytes();
                let Some(next) = self.piece(check, bytes).await else {
                    return false;
                };
                check = next;
                if check.unchecked().is_none() {
                    progress.bytes_checked += bytes;
                }
                let now = self.node.clock.monotonic();
                if now.0.saturating_sub(said.0) >= TOLD_EVERY.as_nanos() as u64 {
                    said = now;
                    if !told(&self.tell, Event::Shard(progress)).await {
                        return false;
                    }
                }
            }
            match check.unchecked() {
                None => progress.files_checked += 1,
                Some(why) => {
                    progress.files_unchecked += 1;
                    tracing::warn!(shard = %shard.group, why, "a scrub could not check a file in the cold store");
                    let unchecked = v1::Unchecked {
                        group: shard.group.0,
                        file: check.file().path().to_owned(),
                        why: why.to_owned(),
                    };
                    if !told(&self.tell, Event::Unchecked(unchecked)).await {
                        return false;
                    }
                }
            }
            let (is_cold, path) = (check.file().is_cold(), check.file().path().to_owned());
            let is_checked = check.unchecked().is_none();
            let damages = check.finish();
            if is_checked && !is_cold {
                shard.reader.looked_at(&path, damages.first().cloned());
            }
            for damage in damages {
                if !self.found(shard, damage, is_cold).await {
                    return false;
                }
            }
        }
        if let Some(damage) = check_sides(shard).await {
            let is_told = self.found(shard, damage, false).await;
            // They are small, and a flush writes most of them anew.
            let ticket = shard.ask_flush();
            let mut looks = SIDES_LOOKS_MAX;
            while !shard.flushed(ticket) && looks > 0 {
                tokio::time::sleep(LOOK_PAUSE).await;
                looks -= 1;
            }
            if let Some(damage) = check_sides(shard).await {
                tracing::error!(shard = %shard.group, %damage, "a flush did not replace what is damaged");
            }
            if !is_told {
                return false;
            }
        }
        self.summary.files_checked += progress.files_checked;
        self.summary.bytes_checked += progress.bytes_checked;
        self.summary.files_unchecked += progress.files_unchecked;
        let stats = shard_progress(shard, State::Done);
        let done = v1::ShardProgress {
            state: stats.state,
            segments: stats.segments,
            segment_bytes: stats.segment_bytes,
            cold_segments: stats.cold_segments,
            cold_bytes: stats.cold_bytes,
            ..progress
        };
        told(&self.tell, Event::Shard(done)).await
    }

    /// False when nobody listens any more.
    async fn found(&mut self, shard: &ShardHandle, damage: Damage, is_cold: bool) -> bool {
        self.summary.findings += 1;
        tracing::error!(shard = %shard.group, %damage, "a scrub found damage");
        let finding = finding(&self.node, shard.group, damage, is_cold);
        told(&self.tell, Event::Finding(finding)).await
    }

    /// Waits for the pace, then reads one piece on a thread that may block. `None`: nobody listens any more.
    async fn piece(&mut self, mut check: FileCheck, bytes: u64) -> Option<FileCheck> {
        let (owed, wait) = self.pace.take(self.owed, bytes, self.node.clock.monotonic());
        self.owed = owed;
        if wait > SpanNs::ZERO {
            tokio::select! {
                () = tokio::time::sleep(wait.as_duration()) => {}
                () = self.tell.closed() => return None,
            }
        }
        let read = tokio::task::spawn_blocking(move || {
            check.step();
            check
        });
        // A panic of the check is told like an end: the summary is missing, and the caller sees the call end early.
        read.await.ok().filter(|_| !self.tell.is_closed())
    }
}

/// Looks at what a shard has beside its segments; the damage, if there is one.
async fn check_sides(shard: &ShardHandle) -> Option<Damage> {
    let looked_at = shard.clone();
    let looked = tokio::task::spawn_blocking(move || looked_at.check_sides());
    match looked.await.ok()? {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(shard = %shard.group, %error, "a scrub could not read the manifest of a shard");
            None
        }
    }
}

fn finding(node: &Node, group: GroupId, damage: Damage, is_cold: bool) -> v1::Finding {
    v1::Finding {
        group: group.0,
        file: damage.file,
        from: damage.from,
        to: damage.to,
        why: damage.why,
        next: next_step(node.identity.nodes.len(), is_cold),
    }
}

/// What somebody who reads a finding should do; `ops/runbooks/scrub-findings.md` has the rest.
fn next_step(nodes: usize, is_cold: bool) -> String {
    if nodes > 2 && !is_cold {
        return "this copy is rebuilt from another node by itself (see `hindcast cluster status`); if it stays, or comes again, see ops/runbooks/scrub-findings.md".to_owned();
    }
    let others = if nodes > 1 {
        "scrub the other nodes, ask them for this data, and save it from one that is clean with `hindcast export`"
    } else {
        "save what can be read with `hindcast export`"
    };
    if is_cold {
        return format!(
            "restore the object from an older version of the cold store if there is one; {others}; see ops/runbooks/scrub-findings.md"
        );
    }
    format!(
        "scrub again to tell a failing cable from a failing disk; {others}; do not compact; see ops/runbooks/scrub-findings.md"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_others_is_not_sent_to_them() {
        for is_cold in [false, true] {
            assert!(!next_step(0, is_cold).contains("other nodes"));
            assert!(next_step(2, is_cold).contains("other nodes"));
            assert_eq!(next_step(3, is_cold).contains("restore the object"), is_cold);
        }
        assert!(next_step(3, false).contains("by itself"), "three can repair one");
    }

    #[test]
    fn a_round_of_any_size_ends_before_the_next_begins() {
        for bytes in [0, 1, 10 << 30, 4 << 40, 1 << 60] {
            let seconds = bytes / background_rate(bytes);
            assert!(seconds < ROUND.as_secs(), "{bytes} bytes take {seconds} s");
        }
        assert_eq!(background_rate(1 << 20), BACKGROUND_BYTES_PER_SECOND_MIN);
    }

    #[test]
    fn what_is_refused_says_whose_move_it_is() {
        assert_eq!(edge::status(&Refused::NoWork).code(), tonic::Code::InvalidArgument);
        assert_eq!(edge::status(&Refused::Scrubbing).code(), tonic::Code::Aborted);
    }
}
