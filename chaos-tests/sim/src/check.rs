//! What must hold in every run, whatever happens: the invariants of replication and of what was acknowledged.
//!
//! A violation is kept, the first one only; the world asks for it after every event.

use bytes::Bytes;
use hindcast_model::{GroupId, NodeId};
use hindcast_node::entry::{self, Command, Control, ShardEntry};
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::xxh3_128;

/// Voters, learners, and voters of the membership that a change is leaving.
pub type Members = [BTreeSet<NodeId>; 3];

#[derive(Default)]
pub struct Ledger {
    entries: BTreeMap<(GroupId, u64), (u64, u128, u64)>,
    leaders: BTreeMap<(GroupId, u64), u64>,
    votes: BTreeMap<(u64, GroupId, u64), u64>,
    digests: BTreeMap<(GroupId, u64), ([u8; 32], u64)>,
    members: BTreeMap<(GroupId, u64), (Members, u64)>,
    /// The highest index per group that someone was told of.
    told: BTreeMap<GroupId, u64>,
    /// Of the shards: floors, pins and cuts in the order of the log, and how far they were taken up.
    controls: BTreeMap<(GroupId, u64), Control>,
    seen: BTreeMap<GroupId, u64>,
    violation: Option<String>,
    pub counts: Counts,
}

/// What happened in a run: a run that reaches nothing proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub events: u64,
    pub messages: u64,
    pub crashes: u64,
    pub pauses: u64,
    pub partitions: u64,
    pub disk_ends: u64,
    pub snapshots: u64,
    pub transfers: u64,
    pub changes: u64,
    pub batches_acked: u64,
    pub batches_unknown: u64,
    pub reads: u64,
    pub leaders: u64,
    pub meta_commands: u64,
    pub deliveries: u64,
    pub repeats: u64,
    pub tickets: u64,
    pub edits: u64,
    pub history_lines: u64,
    /// Nodes whose disk was lost, and those lost for whatever reason and replaced.
    pub wiped: u64,
    pub replaced: u64,
    /// Nodes that joined without replacing one.
    pub grown: u64,
    /// Flipped bits at rest, and wrong bits given to readers.
    pub rotten: u64,
    pub bad_reads: u64,
    /// Reads and nodes that ended with a name of what is damaged.
    pub refused_reads: u64,
    pub refusals: u64,
    pub refused_snapshots: u64,
    /// Damaged logs: those that lost something, and copies of groups that took no more part.
    pub log_rots: u64,
    pub quarantines: u64,
    /// Nodes of the version before that became ones of this version.
    pub upgrades: u64,
    pub cuts: u64,
    pub pins: u64,
    /// Rows below their floor at the end: let go, and held by a pin.
    pub let_go: u64,
    pub held: u64,
    /// Rows that were compared as of cuts.
    pub cut_rows: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        let Self {
            events,
            messages,
            crashes,
            pauses,
            partitions,
            disk_ends,
            snapshots,
            transfers,
            changes,
            batches_acked,
            batches_unknown,
            reads,
            leaders,
            meta_commands,
            deliveries,
            repeats,
            tickets,
            edits,
            history_lines,
            wiped,
            replaced,
            grown,
            rotten,
            bad_reads,
            refused_reads,
            refusals,
            refused_snapshots,
            log_rots,
            quarantines,
            upgrades,
            cuts,
            pins,
            let_go,
            held,
            cut_rows,
        } = other;
        self.events += events;
        self.messages += messages;
        self.crashes += crashes;
        self.pauses += pauses;
        self.partitions += partitions;
        self.disk_ends += disk_ends;
        self.snapshots += snapshots;
        self.transfers += transfers;
        self.changes += changes;
        self.batches_acked += batches_acked;
        self.batches_unknown += batches_unknown;
        self.reads += reads;
        self.leaders += leaders;
        self.meta_commands += meta_commands;
        self.deliveries += deliveries;
        self.repeats += repeats;
        self.tickets += tickets;
        self.edits += edits;
        self.history_lines += history_lines;
        self.wiped += wiped;
        self.replaced += replaced;
        self.grown += grown;
        self.rotten += rotten;
        self.bad_reads += bad_reads;
        self.refused_reads += refused_reads;
        self.refusals += refusals;
        self.refused_snapshots += refused_snapshots;
        self.log_rots += log_rots;
        self.quarantines += quarantines;
        self.upgrades += upgrades;
        self.cuts += cuts;
        self.pins += pins;
        self.let_go += let_go;
        self.held += held;
        self.cut_rows += cut_rows;
    }
}

impl Ledger {
    pub fn violated(&mut self, why: String) {
        self.violation.get_or_insert(why);
    }

    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// I2: one entry per index, on all nodes and over all of their lives.
    pub fn applies(&mut self, node: u64, group: GroupId, index: u64, term: u64, data: &Bytes) {
        let sum = xxh3_128(data);
        let (known_term, known_sum, by) = *self.entries.entry((group, index)).or_insert((term, sum, node));
        if (known_term, known_sum) != (term, sum) {
            self.violated(format!(
                "I2: node {node} applies another entry at index {index} of group {group} (term {term}) than node {by} \
                 did (term {known_term})"
            ));
        }
    }

    /// A shard's entry that changes more than rows; each counts once, whoever applies it.
    pub fn takes_up(&mut self, group: GroupId, index: u64, data: &[u8]) {
        let seen = self.seen.entry(group).or_default();
        if index <= *seen || group == GroupId::META {
            return;
        }
        *seen = index;
        if let Ok(ShardEntry {
            command: Command::Control(control),
            ..
        }) = entry::decode(data)
        {
            self.controls.insert((group, index), control);
        }
    }

    pub fn controls(&self, group: GroupId) -> impl Iterator<Item = &Control> {
        self.controls.range((group, 0)..=(group, u64::MAX)).map(|(_, c)| c)
    }

    /// I2: one leader per term.
    pub fn leads(&mut self, node: u64, group: GroupId, term: u64) {
        let mut new = false;
        let leader = *self.leaders.entry((group, term)).or_insert_with(|| {
            new = true;
            node
        });
        self.counts.leaders += u64::from(new);
        if leader != node {
            self.violated(format!(
                "I2: nodes {leader} and {node} both lead group {group} in term {term}"
            ));
        }
    }

    /// I2: one vote per term, also over a crash.
    pub fn votes(&mut self, node: u64, group: GroupId, term: u64, candidate: u64) {
        let given = *self.votes.entry((node, group, term)).or_insert(candidate);
        if given != candidate {
            self.violated(format!(
                "I2: node {node} votes for node {candidate} in term {term} of group {group}, after it voted for node {given}"
            ));
        }
    }

    /// What a node voted went with its log; it counts for nothing until it is taken in anew.
    pub fn votes_lost(&mut self, node: u64) {
        self.votes.retain(|(by, ..), _| *by != node);
    }

    /// I3: one state per index.
    pub fn digest(&mut self, node: u64, group: GroupId, index: u64, digest: [u8; 32]) {
        let (known, by) = *self.digests.entry((group, index)).or_insert((digest, node));
        if known != digest {
            self.violated(format!(
                "I3: the state of group {group} at index {index} differs between node {node} and node {by}"
            ));
        }
    }

    /// I10: one membership per index.
    pub fn members(&mut self, node: u64, group: GroupId, index: u64, members: Members) {
        let (known, by) = self
            .members
            .entry((group, index))
            .or_insert_with(|| (members.clone(), node));
        if *known != members {
            let (known, by) = (known.clone(), *by);
            self.violated(format!(
                "I10: at index {index} of group {group} node {node} counts {members:?}, node {by} counted {known:?}"
            ));
        }
    }

    /// A client was told that its part stands at `index`.
    pub fn tell(&mut self, group: GroupId, index: u64) {
        let told = self.told.entry(group).or_default();
        *told = (*told).max(index);
    }

    pub fn told(&self, group: GroupId) -> u64 {
        self.told.get(&group).copied().unwrap_or(0)
    }

    /// I4: a read sees everything that someone was told of before it began.
    pub fn reads(&mut self, node: u64, group: GroupId, told_before: u64, index: u64, applied: u64) {
        self.counts.reads += 1;
        if index < told_before || applied < index {
            self.violated(format!(
                "I4: a read of group {group} on node {node} is served at index {index} (applied: {applied}), although a \
                 client was told of index {told_before} before it began"
            ));
        }
    }
}
