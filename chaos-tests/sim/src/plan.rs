//! What one run is made of, drawn from its seed: which faults exist in it and how strong they are.
//!
//! Each seed first decides which faults there are at all. Runs with everything at once rarely get anywhere; runs with
//! one or two faults reach deep states (swarm testing).

use hindcast_env::buggify::{Bends, Point};
use hindcast_env::{Rng, SeededRng};
use hindcast_model::GroupId;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;

/// Per cent of seeds that have a fault.
const OFTEN: u64 = 50;
const SOMETIMES: u64 = 25;

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Founders of the cluster.
    pub nodes: u64,
    /// A node more, that is no member at first; and the mean time between changes of members (ns); 0: none.
    pub spare: bool,
    pub change_every: u64,
    pub shards: u64,
    /// Nodes that have a copy of each shard; 0: all.
    pub copies: u64,
    /// Mean time between nodes that join (ns); 0: none.
    pub grow_every: u64,
    /// Faults happen until then (ns); afterwards everything is healed.
    pub faulty_until: u64,
    pub writers: u64,
    pub readers: u64,
    /// How long a client tries to bring a batch home.
    pub patience: u64,

    // ---- network ----
    /// Per cent of messages that are lost, sent twice, or late by up to `late`.
    pub loss: u64,
    pub duplicates: u64,
    pub late: u64,
    pub late_by: u64,
    /// Mean time between partitions (ns); 0: none.
    pub partition_every: u64,
    /// Links are cut one way only.
    pub one_way: bool,

    // ---- nodes ----
    pub crash_every: u64,
    /// A crash that takes all nodes at once.
    pub all_crash: bool,
    pub down_for: u64,
    pub pause_every: u64,
    pub pause_for: u64,
    pub transfer_every: u64,
    /// A node's disk is lost for good; a new node takes its place.
    pub wipe_every: u64,
    /// The largest offset of a node's wall clock, and whether it steps on the way.
    pub clock_off: u64,
    pub clock_steps: bool,

    // ---- disks ----
    /// A sync takes up to this.
    pub sync_for: u64,
    pub sync_errors_every: u64,
    pub full_every: u64,
    /// Bits flip in files that never change, on a minority of the nodes.
    pub rot_every: u64,
    /// The Raft log of a node that is down loses bits, ranges or a segment, on a minority of the nodes.
    pub log_rot_every: u64,
    /// For a while one of so many reads of such files gives a wrong bit, on a minority of the nodes; 0: never.
    pub bad_reads: u64,
    /// Applying a batch of entries takes up to this.
    pub apply_for: u64,
    /// Flushes and merges take up to this.
    pub beside_for: u64,

    // ---- sizes: small ones reach rare states ----
    pub tail_bytes: u64,
    pub segment_bytes_max: u64,
    pub flush_bytes_max: usize,
    pub snapshot_every_commands: u64,
    pub message_bytes_max: u64,
    pub fold_for: u64,
    /// The rows of the meta group are lost in a crash and built again from snapshot and log.
    pub rows_are_lost: bool,

    /// What is older is let go, unless it is pinned (ns); 0: all is kept.
    pub keep: u64,

    // ---- the world outside ----
    /// Per cent of messages to people that go wrong.
    pub receiver_errors: u64,

    /// Per cent of the founders that are of the version before, until they start anew as ones of this version.
    pub older: u64,

    /// Rare things that the cores do often, of their own accord.
    pub bends: Bends,
}

impl Plan {
    /// All nodes that there are at first, founders before the spare one.
    pub fn node_ids(&self) -> std::ops::RangeInclusive<u64> {
        1..=self.nodes + u64::from(self.spare)
    }

    /// The cluster itself changes who has what.
    pub fn arranges(&self) -> bool {
        self.replaces() || self.copies > 0
    }

    /// How many nodes of so many have a copy of a group.
    pub fn copies_of(&self, group: GroupId, nodes: usize) -> usize {
        match self.copies {
            _ if group == GroupId::META => nodes,
            0 => nodes,
            copies => nodes.min(copies as usize),
        }
    }

    /// Nodes are lost and replaced.
    pub fn replaces(&self) -> bool {
        self.wipe_every > 0 || self.rot_every > 0 || self.bad_reads > 0 || self.log_rot_every > 0
    }
}

fn chance(rng: &mut dyn Rng, per_cent: u64) -> bool {
    rng.below(100) < per_cent
}

fn pick<T: Copy>(rng: &mut dyn Rng, from: &[T]) -> T {
    from[rng.below(from.len() as u64) as usize]
}

fn bends(rng: &mut dyn Rng) -> Bends {
    if !chance(rng, OFTEN) {
        return vec![];
    }
    let drawn = Point::ALL.map(|point| (point, pick(rng, &[3, 30, 300]), chance(rng, SOMETIMES)));
    drawn
        .into_iter()
        .filter(|d| d.2)
        .map(|(point, one_in, _)| (point, one_in))
        .collect()
}

impl Plan {
    /// One node, no faults, and sizes at which every kind of file comes to be.
    pub fn quiet(seed: u64) -> Self {
        Self {
            nodes: 1,
            spare: false,
            change_every: 0,
            shards: 2,
            copies: 0,
            grow_every: 0,
            faulty_until: 20 * SECOND,
            writers: 2,
            patience: 30 * SECOND,
            loss: 0,
            duplicates: 0,
            late: 0,
            partition_every: 0,
            crash_every: 0,
            pause_every: 0,
            transfer_every: 0,
            wipe_every: 0,
            clock_off: 0,
            clock_steps: false,
            sync_for: MS,
            sync_errors_every: 0,
            full_every: 0,
            rot_every: 0,
            log_rot_every: 0,
            bad_reads: 0,
            apply_for: MS,
            beside_for: 5 * MS,
            tail_bytes: 2_000,
            segment_bytes_max: 64 << 10,
            flush_bytes_max: 8_000,
            snapshot_every_commands: 40,
            message_bytes_max: 1 << 20,
            keep: 0,
            receiver_errors: 0,
            older: 0,
            bends: vec![],
            ..Self::draw(seed)
        }
    }

    pub fn draw(seed: u64) -> Self {
        Self::draw_for_all(seed).with_copies()
    }

    /// Copies of each shard on some of the nodes. Drawn by itself: what else a seed is made of stays what it was.
    fn with_copies(self) -> Self {
        let rng: &mut dyn Rng = &mut SeededRng::new(self.seed ^ 0xC0_71E5);
        // Otherwise members are changed by hand, against what the cluster itself wants.
        if self.nodes < 3 || self.change_every > 0 || !chance(rng, SOMETIMES) {
            return self;
        }
        Self {
            nodes: pick(rng, &[4, 5]),
            copies: 3,
            shards: pick(rng, &[2, 4]),
            grow_every: if chance(rng, OFTEN) { 5 * SECOND } else { 0 },
            ..self
        }
    }

    fn draw_for_all(seed: u64) -> Self {
        let rng: &mut dyn Rng = &mut SeededRng::new(seed);
        let some = |rng: &mut dyn Rng, per_cent: u64, from: &[u64]| {
            let value = pick(rng, from);
            if chance(rng, per_cent) { value } else { 0 }
        };
        let nodes = pick(rng, &[3, 3, 3, 5, 1]);
        let several = |value: u64| if nodes >= 3 { value } else { 0 };
        let change_every = several(some(rng, OFTEN, &[800, 3_000]) * MS);
        let wipe_every = several(some(rng, SOMETIMES, &[3_000, 8_000]) * MS);
        let rot_every = several(some(rng, SOMETIMES, &[1_000, 4_000]) * MS);
        let bad_reads = several(some(rng, SOMETIMES, &[4, 50]));
        let log_rot_every = several(some(rng, SOMETIMES, &[2_000, 6_000]) * MS);
        let replaces = wipe_every + rot_every + bad_reads + log_rot_every > 0;
        Self {
            seed,
            nodes,
            // Where nodes are lost, only what replaces them changes members: a group that was made smaller at the wrong
            // moment would have no majority left.
            spare: change_every > 0 && !replaces,
            change_every: if replaces { 0 } else { change_every },
            wipe_every,
            rot_every,
            log_rot_every,
            bad_reads,
            shards: pick(rng, &[1, 2]),
            copies: 0,
            grow_every: 0,
            faulty_until: pick(rng, &[8, 15, 25]) * SECOND,
            writers: pick(rng, &[1, 2, 4]),
            readers: pick(rng, &[1, 2]),
            patience: pick(rng, &[2, 30]) * SECOND,
            loss: some(rng, OFTEN, &[1, 5, 15, 30]),
            duplicates: some(rng, OFTEN, &[1, 10, 50]),
            late: some(rng, OFTEN, &[1, 10, 40]),
            late_by: pick(rng, &[20, 200, 2_000]) * MS,
            partition_every: some(rng, OFTEN, &[1_500, 4_000]) * MS,
            one_way: chance(rng, SOMETIMES),
            crash_every: some(rng, OFTEN, &[700, 2_000, 5_000]) * MS,
            all_crash: chance(rng, SOMETIMES),
            down_for: pick(rng, &[50, 1_000, 6_000]) * MS,
            pause_every: some(rng, SOMETIMES, &[1_500, 4_000]) * MS,
            pause_for: pick(rng, &[700, 3_000, 9_000]) * MS,
            transfer_every: some(rng, SOMETIMES, &[500, 3_000]) * MS,
            clock_off: some(rng, OFTEN, &[100, 2_000, 7_200_000]) * MS,
            clock_steps: chance(rng, SOMETIMES),
            sync_for: pick(rng, &[1, 5, 40]) * MS,
            sync_errors_every: some(rng, SOMETIMES, &[3_000, 6_000]) * MS,
            full_every: some(rng, SOMETIMES, &[4_000, 8_000]) * MS,
            apply_for: pick(rng, &[1, 1, 10, 150]) * MS,
            beside_for: pick(rng, &[5, 100, 2_000]) * MS,
            tail_bytes: pick(rng, &[0, 2_000, 30_000]),
            segment_bytes_max: pick(rng, &[24 << 10, 64 << 10, 256 << 10]),
            flush_bytes_max: pick(rng, &[1_000, 8_000, 1 << 20]),
            snapshot_every_commands: pick(rng, &[5, 40, 1_000]),
            message_bytes_max: pick(rng, &[300, 4_000, 1 << 20]),
            fold_for: pick(rng, &[0, 3, 20]) * MS,
            rows_are_lost: chance(rng, OFTEN),
            // One node's clock alone may leap, and floors with it.
            keep: several(some(rng, OFTEN, &[2, 4, 8]) * SECOND),
            receiver_errors: some(rng, OFTEN, &[10, 40]),
            older: some(rng, SOMETIMES, &[40, 100]),
            bends: bends(rng),
        }
    }
}
