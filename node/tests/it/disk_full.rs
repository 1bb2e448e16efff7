//! A disk that fills: writes are refused with the reason, reads go on, and once there is room all goes on by itself.

use hindcast_env::io::SystemClock;
use hindcast_env::{SeededRng, SimClock, SimDisk};
use hindcast_model::{
    Batch, Class, Classify, GroupId, Labels, NodeId, Owner, Sample, SeriesBlock, ShardMap, SpanNs, TenantId,
    TimestampNs,
};
use hindcast_node::disk_guard::{DiskState, REOPEN_SPAN};
use hindcast_node::entry::Control;
use hindcast_node::io::disk_watch::DiskWatch;
use hindcast_node::io::memory_watch::MemoryWatch;
use hindcast_node::io::peers::Peers;
use hindcast_node::io::under_way::UnderWay;
use hindcast_node::io::whereabouts::Whereabouts;
use hindcast_node::io::writer::{Groups, Room, Writer};
use hindcast_node::shard_machine::{ShardHandle, ShardMachine};
use hindcast_node::write::{BatchSink, WriteError};
use hindcast_raft::{GroupSpec, LogConfig, RaftConfig, RaftHost};
use hindcast_storage::read::SelectSeries;
use hindcast_storage::{Floor, ShardConfig};
use std::sync::Arc;
use std::time::Duration;

const CAPACITY: u64 = 12 << 20;
const RESERVE: u64 = 5 << 20;
const SERIES: i64 = 16;
const SAMPLES: i64 = 256;

/// One node with one shard on a simulated disk.
struct Node {
    raft: RaftHost,
    writer: Writer,
    shard: ShardHandle,
    group: GroupId,
    watch: DiskWatch,
    clock: SimClock,
}

async fn start(disk: &SimDisk) -> Node {
    let shared: Arc<dyn hindcast_env::Disk> = Arc::new(disk.clone());
    let map = ShardMap::even(1).unwrap();
    let group = GroupId::from(map.shards()[0]);
    let clock = SimClock::at(TimestampNs::from_secs(0));
    let watch = DiskWatch::new(shared.clone(), Arc::new(clock.clone()), Some(RESERVE)).unwrap();
    let system = Arc::new(SystemClock::new());
    let config = ShardConfig {
        group,
        flush_bytes_max: 1 << 20,
        reserve_bytes: RESERVE,
        ..ShardConfig::default()
    };
    let machine = ShardMachine::open(shared.clone(), "shard", config, system.clone()).unwrap();
    let shard = machine.handle();
    let peers = Peers::new(NodeId(1), shared.clone(), None);
    let raft_config = RaftConfig {
        tick: Duration::from_millis(10),
        maintain_every: Duration::from_millis(10),
        log: LogConfig {
            segment_bytes_max: 1 << 20,
            prewrite_bytes: 256 << 10,
            free_segments_max: 0,
            segments_max: 3,
            cache_bytes_max: 1 << 20,
        },
        tail_bytes: 256 << 10,
        ..RaftConfig::default()
    };
    let specs = vec![GroupSpec {
        group,
        voters: vec![NodeId(1)],
        machine: Box::new(machine),
    }];
    let rng = SeededRng::new(7);
    let raft = RaftHost::start(shared, "raft", raft_config, specs, peers.clone(), system.clone(), rng).unwrap();
    peers.attach(raft.clone());
    raft.wait_leader(group, Duration::from_secs(10)).await.unwrap();
    let readers = map.shards().into_iter().map(|s| (s, shard.reader.clone())).collect();
    let memory = MemoryWatch::new(system.clone(), Some(u64::MAX));
    let under_way = UnderWay::new(system.clone());
    let writer = Writer::new(
        NodeId(1),
        map,
        readers,
        Groups {
            raft: raft.clone(),
            whereabouts: Whereabouts::start(NodeId(1), raft.clone(), peers.clone()),
        },
        peers,
        system,
        Room {
            disk: watch.clone(),
            memory,
            under_way,
        },
    );
    Node {
        raft,
        writer,
        shard,
        group,
        watch,
        clock,
    }
}

/// Values that do not compress.
fn value(i: i64) -> f64 {
    let mut x = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    f64::from_bits((x ^ (x >> 31)) >> 2)
}

/// The `n`th batch: as many samples of each series, at times of its own.
fn batch(n: i64) -> Batch {
    let block = |s: i64| SeriesBlock {
        labels: Labels::from_pairs([("__name__", "m"), ("series", &s.to_string())]),
        owner: Owner::None,
        samples: (0..SAMPLES)
            .map(|i| Sample {
                at: TimestampNs::from_secs(n * SAMPLES + i),
                value: value((n * SAMPLES + i) * SERIES + s),
            })
            .collect(),
    };
    Batch {
        tenant: TenantId::default(),
        id: None,
        series: (0..SERIES).map(block).collect(),
        streams: vec![],
        resources: vec![],
        edges: vec![],
    }
}

impl Node {
    /// Writes batches from `n` on until one is refused; which one that is, and how.
    async fn fill(&self, mut n: i64) -> (i64, WriteError) {
        loop {
            self.watch.look().unwrap();
            match self.writer.write(batch(n)).await {
                Ok(_) => n += 1,
                Err(e) => return (n, e),
            }
            assert!(n < 2000, "the disk fills");
        }
    }

    /// Every sample of the batches `from..to` is there, and none besides.
    fn check(&self, from: i64, to: i64) {
        let found = self.shard.reader.series(&SelectSeries {
            tenant: TenantId::default(),
            matchers: vec![],
            from: TimestampNs::MIN,
            to: TimestampNs::MAX,
            as_of: None,
            owners: None,
        });
        let found = found.unwrap();
        assert_eq!(found.len(), SERIES as usize);
        for data in found {
            let s: i64 = data.labels.get("series").unwrap().parse().unwrap();
            let times = from * SAMPLES..to * SAMPLES;
            let wanted = times.map(|t| (TimestampNs::from_secs(t), value(t * SERIES + s).to_bits()));
            let has = data.samples.iter().map(|x| (x.at, x.value.to_bits()));
            assert!(wanted.eq(has), "series {s} has batches {from}..{to}");
        }
    }

    /// Time passes for the guard until it lets writes through.
    async fn wait_open(&self) {
        for _ in 0..300 {
            self.clock.advance(SpanNs(REOPEN_SPAN.0 / 2));
            if self.watch.look().unwrap() == DiskState::Open {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("still refused: {:?}", self.watch.state());
    }

    async fn flushed(&self, ticket: u64, within: Duration) -> bool {
        let done = async {
            while !self.shard.flushed(ticket) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(within, done).await.is_ok()
    }

    /// Waits until no flush is under way that would move the log's end: a log that cannot write ends the node.
    async fn settle(&self) {
        loop {
            let before = self.raft.status(self.group);
            tokio::time::sleep(Duration::from_millis(400)).await;
            let now = self.raft.status(self.group);
            if (before.durable, before.first_index, before.log_bytes) == (now.durable, now.first_index, now.log_bytes) {
                return;
            }
        }
    }

    fn assert_alive(&self) {
        assert_eq!(*self.raft.fatal().borrow(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers_by_itself() {
    let disk = SimDisk::new();
    disk.set_capacity(CAPACITY);
    let node = start(&disk).await;

    let (full_at, error) = node.fill(0).await;
    assert!(full_at > 5, "some batches fit: {full_at}");
    let is_told = matches!(&error, WriteError::DiskFull { free, reserve: RESERVE, .. } if (1..RESERVE).contains(free));
    assert!(is_told, "{error:?}");
    assert_eq!(error.class(), Class::Unavailable);
    assert_eq!(node.watch.refused(), 1);
    node.check(0, full_at);

    node.settle().await;
    // Not a byte is left: a flush fails and is tried again; the node lives and answers.
    disk.set_full(true);
    let ticket = node.shard.ask_flush();
    assert!(!node.flushed(ticket, Duration::from_millis(300)).await);
    node.assert_alive();
    node.check(0, full_at);
    disk.set_full(false);
    assert!(node.flushed(ticket, Duration::from_secs(20)).await, "it is tried again");
    node.assert_alive();

    // Somebody frees space.
    disk.set_capacity(CAPACITY + (4 << 20));
    node.wait_open().await;
    node.writer.write(batch(full_at)).await.unwrap();
    node.check(0, full_at + 1);

    // Full again: retention makes room, and nobody has to do anything.
    let (again_at, error) = node.fill(full_at + 1).await;
    assert!(matches!(error, WriteError::DiskFull { .. }), "{error:?}");
    let ticket = node.shard.ask_flush();
    assert!(
        node.flushed(ticket, Duration::from_secs(20)).await,
        "the reserve is for that"
    );
    let floor = TimestampNs::from_secs(again_at * SAMPLES);
    let floors = vec![Floor::at(None, None, floor)];
    let control = node.writer.control_all(&Control::Retain { floors }).await;
    control.unwrap();
    node.wait_open().await;
    for n in again_at..again_at + 3 {
        node.writer.write(batch(n)).await.unwrap();
    }
    node.check(again_at, again_at + 3);
    node.assert_alive();

    // What was confirmed outlives the power.
    node.raft.shutdown();
    drop(node);
    disk.crash(&mut SeededRng::new(3));
    let node = start(&disk).await;
    let applied = node.raft.read_index(node.group, Duration::from_secs(10)).await.unwrap();
    while node.raft.status(node.group).applied < applied {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.check(again_at, again_at + 3);
}
