//! Traps and informs by UDP: datagrams in, confirmed lines out, informs answered once they are stored.
//!
//! Whom a datagram is of, and whether it may be believed, decides `hindcast_snmp::trap`. All listeners of a node share one receiver and one
//! fold, which makes batches of what waits and writes each until it is confirmed, under one number: no trap is stored twice on our
//! side. Of each tenant one batch is under way: one that must wait, because its tenant sends too fast or its shards are away, holds up no
//! other tenant's. A device that sends an inform again, because the answer came too late for it, is there twice; an inform that is
//! not stored is not answered.
//!
//! Bounds: [`QUEUED_BYTES_MAX`] that wait, half of it of one tenant alone ([`super::queue`]); of a batch [`BATCH_LINES_MAX`] and
//! [`BATCH_SPAN_MAX`]. What does not fit is counted. When the node stops, what waits is stored within [`STOP_SPAN_MAX`], or counted as lost.

use super::names::{self, LookUp, NAME_SPAN_MAX, Places, Whose};
use super::queue::Queued;
use crate::io::servers::syslog::stats::kernel_dropped;
use crate::io::servers::{IngestError, IngestSample, IngestState};
use crate::write::{WriteError, Written};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hindcast_env::io::os_rng;
use hindcast_env::{Clock, Rng};
use hindcast_ingest::traps::{Trap, adapt, fits};
use hindcast_ingest::{Intake, Naming, Protocol, Rejections};
use hindcast_model::{Batch, BatchId, Class, Classify, LogLine, TenantId, WriterId};
use hindcast_snmp::config::{Senders, name_of};
use hindcast_snmp::line::{Names, TrapLine, line};
use hindcast_snmp::pdu::MESSAGE_BYTES_MAX;
use hindcast_snmp::trap::{Heard, Notice, Receiver, Refused};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// Of traps that wait to be stored.
pub const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Traps between the sockets and those that wait by tenant.
const HANDED_MAX: usize = 65_536;
pub const BATCH_LINES_MAX: usize = 1_000;
/// How long a trap waits for others.
pub const BATCH_SPAN_MAX: Duration = Duration::from_millis(50);
/// When the node stops, for what waits.
pub const STOP_SPAN_MAX: Duration = Duration::from_secs(5);
/// Senders whose refusal the log tells.
pub const SAID_MAX: usize = 16;
/// What the kernel is asked to hold, so that a burst waits there.
const KERNEL_BYTES: usize = 8 * 1024 * 1024;
/// What a trap costs beside its datagram.
const OVERHEAD_BYTES: usize = 1024;
/// Between two attempts to store a batch.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often the host names of devices are looked up, and how soon again where one was not found.
const NAMES_PAUSE: Duration = Duration::from_secs(300);
const NAMES_AGAIN: Duration = Duration::from_secs(60);
/// Between two words in the log of the same trouble.
const SAID_PAUSE: Duration = Duration::from_secs(60);
/// From which time on starts of an engine are counted, in seconds: 31 bits reach to 2088 so.
const BOOTS_FROM_SECS: i64 = 1_577_836_800;

/// Why traps are lost that were believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    QueueFull,
    Refused,
    Shutdown,
    /// It came from an address of which nobody knows whose it is.
    OwnerUnknown,
}

const LOST: [(Lost, &str); 4] = [
    (Lost::QueueFull, "queue_full"),
    (Lost::Refused, "refused"),
    (Lost::Shutdown, "shutdown"),
    (Lost::OwnerUnknown, "owner_unknown"),
];

/// Counts since the node started.
#[derive(Debug, Default)]
pub struct TrapStats {
    traps: AtomicU64,
    informs: AtomicU64,
    questions: AtomicU64,
    name_failures: AtomicU64,
    refused: [AtomicU64; Refused::ALL.len()],
    lost: [AtomicU64; LOST.len()],
    waits: AtomicU64,
    ports: Mutex<Vec<u16>>,
}

impl TrapStats {
    fn lost(&self, why: Lost, count: usize) {
        self.lost[why as usize].fetch_add(count as u64, Relaxed);
    }

    /// Every counter, in a fixed order; none where nothing is listened to.
    pub fn list(&self) -> Vec<IngestSample> {
        let ports = self.ports.lock().clone();
        if ports.is_empty() {
            return vec![];
        }
        let mut list = vec![];
        let mut add = |name, labels: &[(&'static str, &'static str)], value| {
            let labels = labels.to_vec();
            list.push(IngestSample { name, labels, value });
        };
        for (kind, count) in [("trap", &self.traps), ("inform", &self.informs)] {
            add("hindcast_snmp_traps_total", &[("kind", kind)], count.load(Relaxed));
        }
        for ((_, reason), count) in Refused::ALL.iter().zip(&self.refused) {
            let labels = [("reason", *reason)];
            add("hindcast_snmp_traps_refused_total", &labels, count.load(Relaxed));
        }
        for ((_, reason), count) in LOST.iter().zip(&self.lost) {
            let labels = [("reason", *reason)];
            add("hindcast_snmp_traps_dropped_total", &labels, count.load(Relaxed));
        }
        let kernel = [("reason", "kernel")];
        add("hindcast_snmp_traps_dropped_total", &kernel, kernel_dropped(&ports));
        for (name, count) in [
            ("hindcast_snmp_trap_name_failures_total", &self.name_failures),
            ("hindcast_snmp_trap_questions_total", &self.questions),
            ("hindcast_snmp_trap_write_waits_total", &self.waits),
        ] {
            add(name, &[], count.load(Relaxed));
        }
        list
    }
}

/// A listener whose port is taken.
pub struct BoundTraps {
    socket: UdpSocket,
    address: SocketAddr,
}

impl BoundTraps {
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(address).await?;
        // The kernel gives less where it may not give all; a socket without is one that works.
        let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(KERNEL_BYTES);
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A trap that waits to be stored.
struct Parcel {
    tenant: TenantId,
    trap: Trap,
    bytes: usize,
    answer: Option<(Arc<UdpSocket>, SocketAddr, Vec<u8>)>,
}

/// What waits of one tenant.
#[derive(Default)]
struct Lane {
    parcels: VecDeque<Parcel>,
    is_under_way: bool,
}

struct Hearing {
    receiver: Receiver,
    places: Places,
    names: Names,
    said: BTreeSet<IpAddr>,
}

/// Says when something may be said again.
#[derive(Debug, Default)]
struct Said(Mutex<Option<Instant>>);

impl Said {
    fn is_due(&self) -> bool {
        let (mut at, now) = (self.0.lock(), Instant::now());
        let is_due = at.is_none_or(|at| now > at + SAID_PAUSE);
        if is_due {
            *at = Some(now);
        }
        is_due
    }
}

struct Inner {
    ingest: IngestState,
    stats: TrapStats,
    /// Names this start of this node: its batches are numbered under it.
    writer: String,
    seq: AtomicU64,
    hearing: Mutex<Hearing>,
    queued: Mutex<Queued>,
    look_up: LookUp,
    /// There is a list that was not looked at.
    is_listed: Notify,
    said_full: Said,
    said_refused: Said,
    said_unknown: Said,
    said_waits: Said,
}

/// The traps of one node. Clones share them.
#[derive(Clone)]
pub struct Traps(Arc<Inner>);

impl Traps {
    /// `engine` names this node for good: senders of informs know it by that.
    pub fn new(ingest: IngestState, engine: &str, writer: String) -> io::Result<Self> {
        let hash = xxh3_64(engine.as_bytes()).to_be_bytes();
        // RFC 3411: octets that an administrator chose.
        let id = [&[0x80, 0, 0, 0, 5], &hash[..]].concat();
        let secs = ingest.clock.now().as_ms() / 1000 - BOOTS_FROM_SECS;
        let boots = u32::try_from(secs.clamp(1, i64::from(i32::MAX) - 1)).unwrap_or(1);
        let receiver = Receiver::new(id, boots, ingest.clock.monotonic(), os_rng()?.next_u64());
        Ok(Self(Arc::new(Inner {
            ingest,
            stats: TrapStats::default(),
            writer,
            seq: AtomicU64::new(0),
            hearing: Mutex::new(Hearing {
                receiver,
                places: Places::default(),
                names: Names::default(),
                said: BTreeSet::new(),
            }),
            queued: Mutex::new(Queued::new(QUEUED_BYTES_MAX)),
            look_up: names::by_the_machine(),
            is_listed: Notify::new(),
            said_full: Said::default(),
            said_refused: Said::default(),
            said_unknown: Said::default(),
            said_waits: Said::default(),
        })))
    }

    #[cfg(test)]
    pub(super) fn with(self, queued_bytes_max: usize, look_up: LookUp) -> Self {
        let mut inner = Arc::into_inner(self.0).expect("nobody else has it yet");
        inner.queued = Mutex::new(Queued::new(queued_bytes_max));
        inner.look_up = look_up;
        Self(Arc::new(inner))
    }

    pub fn stats(&self) -> &TrapStats {
        &self.0.stats
    }

    /// Who may send from now on, and how devices are called.
    pub fn set_senders(&self, senders: Arc<Senders>) {
        let mut hearing = self.0.hearing.lock();
        hearing.receiver.set_senders(senders.clone());
        hearing.places.set_senders(senders);
        self.0.is_listed.notify_one();
    }

    /// Serves until `stop` turns true, and then until what waits is stored, or given up.
    pub async fn serve(self, bound: Vec<BoundTraps>, stop: watch::Receiver<bool>) {
        if bound.is_empty() {
            return;
        }
        *self.0.stats.ports.lock() = bound.iter().map(|b| b.address.port()).collect();
        let (parcels, waiting) = mpsc::channel(HANDED_MAX);
        let (give_up, given_up) = watch::channel(false);
        let (looking, looked) = oneshot::channel();
        tokio::spawn(self.clone().look_up(looking, stop.clone()));
        // What comes meanwhile waits in the kernel: it is of devices under their names.
        let _ = tokio::time::timeout(NAME_SPAN_MAX, looked).await;
        for one in bound {
            let socket = Arc::new(one.socket);
            tokio::spawn(self.clone().datagrams(socket, parcels.clone(), stop.clone()));
        }
        drop(parcels);
        let mut fold = tokio::spawn(self.fold(waiting, given_up));
        let mut stop = stop;
        let _ = stop.wait_for(|s| *s).await;
        if tokio::time::timeout(STOP_SPAN_MAX, &mut fold).await.is_err() {
            let _ = give_up.send(true);
            let _ = fold.await;
        }
    }

    async fn datagrams(self, socket: Arc<UdpSocket>, parcels: mpsc::Sender<Parcel>, mut stop: watch::Receiver<bool>) {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        loop {
            let came = tokio::select! {
                came = socket.recv_from(&mut buffer) => came,
                _ = stop.wait_for(|s| *s) => break,
            };
            match came {
                Ok((len, from)) => self.datagram(&buffer[..len], from, &socket, &parcels),
                // An ICMP answer to an answer of ours: nothing that ends a listener.
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        // What the kernel holds already came before the end.
        for _ in 0..HANDED_MAX {
            let Ok((len, from)) = socket.try_recv_from(&mut buffer) else {
                break;
            };
            self.datagram(&buffer[..len], from, &socket, &parcels);
        }
    }

    fn datagram(&self, bytes: &[u8], from: SocketAddr, socket: &Arc<UdpSocket>, parcels: &mpsc::Sender<Parcel>) {
        let (stats, peer) = (&self.0.stats, from.ip().to_canonical());
        let (notice, answer, made) = {
            let mut hearing = self.0.hearing.lock();
            match hearing.receiver.hear(bytes, self.0.ingest.clock.monotonic()) {
                Heard::Notice { notice, answer } => {
                    let made = hearing.made(&notice, peer);
                    (notice, answer, made)
                }
                Heard::Answer(answer) => {
                    stats.questions.fetch_add(1, Relaxed);
                    // Nobody waits for it but the sender, who asks again.
                    let _ = socket.try_send_to(&answer, from);
                    return;
                }
                Heard::Refused(why) => {
                    stats.refused[why as usize].fetch_add(1, Relaxed);
                    hearing.say(peer, why);
                    return;
                }
            }
        };
        let count = if notice.is_inform { &stats.informs } else { &stats.traps };
        count.fetch_add(1, Relaxed);
        let (tenant, made) = match made {
            Ok(made) => made,
            Err(host) => {
                stats.lost(Lost::OwnerUnknown, 1);
                if self.0.said_unknown.is_due() {
                    tracing::error!(
                        %peer,
                        host,
                        "a trap is lost: the device of this name is another tenant's and was never found, so nobody knows whose a trap from \
                         an address is that is not in the list; correct the name, or write the device's address into the list"
                    );
                }
                return;
            }
        };
        let cost = bytes.len() * 4 + OVERHEAD_BYTES;
        if !self.0.queued.lock().admit(&tenant, cost) {
            return self.full(&tenant);
        }
        let parcel = Parcel {
            tenant,
            trap: Trap {
                labels: made.labels,
                line: LogLine {
                    at: self.0.ingest.clock.now(),
                    line: made.line.into(),
                    metadata: made.metadata,
                },
            },
            bytes: cost,
            answer: answer.map(|answer| (socket.clone(), from, answer)),
        };
        if let Err(full) = parcels.try_send(parcel) {
            let tenant = full.into_inner().tenant;
            self.0.queued.lock().release(&tenant, cost);
            self.full(&tenant);
        }
    }

    fn full(&self, tenant: &TenantId) {
        self.0.stats.lost(Lost::QueueFull, 1);
        if self.0.said_full.is_due() {
            tracing::error!(%tenant, "traps are lost: more come of this tenant than are stored, and no more may wait");
        }
    }

    /// Finds the addresses of devices that the list has by host names. `first` is dropped when all were looked up once.
    async fn look_up(self, first: oneshot::Sender<()>, mut stop: watch::Receiver<bool>) {
        let (mut first, mut failing_before) = (Some(first), BTreeMap::new());
        loop {
            let failing = tokio::select! {
                failing = self.look_up_once() => failing,
                _ = stop.wait_for(|s| *s) => return,
            };
            drop(first.take());
            if let Some((host, why)) = failing.iter().next().filter(|_| failing != failing_before) {
                let names = failing.len();
                tracing::warn!(
                    names,
                    host,
                    why,
                    "names of devices cannot be looked up; where one was found before, it is taken to be still"
                );
            }
            let pause = if failing.is_empty() { NAMES_PAUSE } else { NAMES_AGAIN };
            failing_before = failing;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.0.is_listed.notified() => {}
                _ = stop.wait_for(|s| *s) => return,
            }
        }
    }

    /// Which names were not found, and why.
    pub(super) async fn look_up_once(&self) -> BTreeMap<String, String> {
        let hosts = self.0.hearing.lock().places.hosts();
        let mut failing = BTreeMap::new();
        names::look_up(hosts, &self.0.look_up, NAME_SPAN_MAX, |some| {
            for one in &some {
                if let Err(why) = &one.addresses {
                    failing.insert(one.host.clone(), why.clone());
                }
            }
            self.0.hearing.lock().places.take(some);
        })
        .await;
        self.0.stats.name_failures.fetch_add(failing.len() as u64, Relaxed);
        failing
    }

    /// Stores what waits: of each tenant batch after batch, and of all tenants at the same time.
    async fn fold(self, mut waiting: mpsc::Receiver<Parcel>, given_up: watch::Receiver<bool>) {
        let mut lanes: BTreeMap<TenantId, Lane> = BTreeMap::new();
        let (mut stores, mut due, mut is_open) = (FuturesUnordered::new(), None, true);
        let start = |tenant: &TenantId, lane: &mut Lane| {
            let count = lane.parcels.len().min(BATCH_LINES_MAX);
            let parcels: Vec<_> = lane.parcels.drain(..count).collect();
            let (this, tenant, given_up) = (&self, tenant.clone(), given_up.clone());
            lane.is_under_way = true;
            async move {
                this.store(&tenant, parcels, given_up).await;
                tenant
            }
        };
        while is_open || !lanes.is_empty() {
            // What waits and is not enough for a batch waits for others until `due`; when nothing comes any more, for none.
            let touched = tokio::select! {
                parcel = waiting.recv(), if is_open => match parcel {
                    Some(parcel) => {
                        let tenant = parcel.tenant.clone();
                        lanes.entry(tenant.clone()).or_default().parcels.push_back(parcel);
                        Some(tenant)
                    }
                    None => {
                        is_open = false;
                        None
                    }
                },
                Some(tenant) = stores.next(), if !stores.is_empty() => {
                    if let Some(lane) = lanes.get_mut(&tenant) {
                        lane.is_under_way = false;
                    }
                    Some(tenant)
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
            };
            let Some(tenant) = touched else {
                due = None;
                for (tenant, lane) in lanes.iter_mut().filter(|(_, l)| !l.is_under_way) {
                    stores.push(start(tenant, lane));
                }
                continue;
            };
            let Some(lane) = lanes.get_mut(&tenant).filter(|l| !l.is_under_way) else {
                continue;
            };
            if lane.parcels.is_empty() {
                lanes.remove(&tenant);
            } else if lane.parcels.len() >= BATCH_LINES_MAX || !is_open {
                stores.push(start(&tenant, lane));
            } else if due.is_none() {
                due = Some(Instant::now() + BATCH_SPAN_MAX);
            }
        }
    }

    async fn store(&self, tenant: &TenantId, parcels: Vec<Parcel>, mut given_up: watch::Receiver<bool>) {
        let ingest = &self.0.ingest;
        let (limits, mut rejected) = (ingest.limits(tenant), Rejections::default());
        let (fitting, others): (Vec<_>, Vec<_>) =
            parcels.into_iter().partition(|p| fits(&p.trap, &limits, &mut rejected));
        ingest.refused(Protocol::Snmp, tenant, &rejected);
        if let Some(first) = rejected.listed().first() {
            self.refuse(tenant, others, &first.why);
        }
        let mut parts = vec![fitting];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let mut batch = adapt(tenant, part.iter().map(|p| &p.trap));
            ingest.mask(&mut batch, &limits.bounds, Some("snmp_cut"));
            batch.id = Some(BatchId::Sequenced {
                writer: WriterId::named(tenant, &self.0.writer),
                seq: self.0.seq.fetch_add(1, Relaxed) + 1,
            });
            let bytes = part.iter().map(|p| p.trap.line.line.len()).sum();
            match self.write(batch, bytes, &mut given_up).await {
                Ok(()) => {
                    for (socket, to, answer) in part.iter_mut().filter_map(|p| p.answer.take()) {
                        let _ = socket.send_to(&answer, to).await;
                    }
                    self.release(tenant, &part);
                }
                Err(NotStored::TooLarge) if part.len() > 1 => {
                    parts.push(part.split_off(part.len() / 2));
                    parts.push(part);
                }
                Err(NotStored::TooLarge) => self.refuse(tenant, part, "a trap is larger than an entry may be"),
                Err(NotStored::Refused(why)) => self.refuse(tenant, part, &why),
                Err(NotStored::GivenUp) => {
                    self.0.stats.lost(Lost::Shutdown, part.len());
                    tracing::error!(
                        %tenant,
                        traps = part.len(),
                        "traps are lost: the node stops, and they could not be stored in time"
                    );
                    self.release(tenant, &part);
                }
            }
        }
    }

    fn release(&self, tenant: &TenantId, parcels: &[Parcel]) {
        let bytes = parcels.iter().map(|p| p.bytes).sum();
        self.0.queued.lock().release(tenant, bytes);
    }

    /// Traps that cannot be stored. Whoever sent one as an inform hears nothing.
    fn refuse(&self, tenant: &TenantId, parcels: Vec<Parcel>, why: &str) {
        self.0.stats.lost(Lost::Refused, parcels.len());
        if self.0.said_refused.is_due() {
            tracing::error!(%tenant, traps = parcels.len(), why, "traps are lost");
        }
        self.release(tenant, &parcels);
    }

    async fn write(&self, batch: Batch, bytes: usize, given_up: &mut watch::Receiver<bool>) -> Result<(), NotStored> {
        let ingest = &self.0.ingest;
        let (mut pause, mut is_charged) = (PAUSE_FIRST, false);
        loop {
            let written = tokio::select! {
                written = write(ingest, &batch, bytes, &mut is_charged) => written,
                _ = given_up.wait_for(|g| *g) => return Err(NotStored::GivenUp),
            };
            let why = match written {
                Ok(written) => {
                    ingest.counters.taken(Protocol::Snmp, &written);
                    return Ok(());
                }
                // One batch of a tenant is under way at a time: the number that was forgotten is this one's own.
                Err(IngestError::Write(WriteError::SequenceTooOld { .. })) => return Ok(()),
                Err(why) => why,
            };
            match why.class() {
                Class::TooLarge => return Err(NotStored::TooLarge),
                Class::FixRequest => {
                    ingest.counters.failed(Protocol::Snmp, why.code());
                    return Err(NotStored::Refused(why.to_string()));
                }
                _ => {}
            }
            self.0.stats.waits.fetch_add(1, Relaxed);
            if self.0.said_waits.is_due() {
                tracing::warn!(tenant = %batch.tenant, %why, "traps of a tenant wait until they can be stored");
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = given_up.wait_for(|g| *g) => return Err(NotStored::GivenUp),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

enum NotStored {
    TooLarge,
    Refused(String),
    GivenUp,
}

impl Hearing {
    /// The line of a trap, and whose it is. `Err`: it may be of the device of that name.
    fn made(&mut self, notice: &Notice, peer: IpAddr) -> Result<(TenantId, TrapLine), String> {
        let (shown, names) = (peer.to_string(), &mut self.names);
        match self.places.whose(peer) {
            Whose::Device(known) => {
                let made = line(notice, &known.name, &known.labels, &shown, names);
                Ok((known.tenant.clone(), made))
            }
            Whose::Stranger => {
                let made = line(notice, &name_of(&shown), &BTreeMap::new(), &shown, names);
                Ok((self.places.senders().tenant.clone(), made))
            }
            Whose::Unknown(host) => Err(host.to_owned()),
        }
    }

    /// Says of the first senders that are refused who they are; all of them are counted.
    fn say(&mut self, peer: IpAddr, why: Refused) {
        if is_to_be_named(&mut self.said, peer) {
            let (reason, advice) = (why.as_str(), why.advice());
            tracing::warn!(
                %peer,
                reason,
                "a trap is refused: {advice}; others are only counted (hindcast_snmp_traps_refused_total)"
            );
        }
    }
}

/// Once of each, and of the first ones only.
pub(super) fn is_to_be_named(said: &mut BTreeSet<IpAddr>, peer: IpAddr) -> bool {
    said.len() < SAID_MAX && said.insert(peer)
}

/// `is_charged`: the tenant's buckets gave what it takes, in this attempt or in one before.
async fn write(
    ingest: &IngestState,
    batch: &Batch,
    bytes: usize,
    is_charged: &mut bool,
) -> Result<Written, IngestError> {
    if !*is_charged {
        ingest.charge_batch(batch)?;
        *is_charged = true;
    }
    let _place = ingest.let_in(bytes).await?;
    let lay = |naming| Intake::of_batch(batch, ingest.sink.ids(), naming);
    let written = ingest
        .sink
        .write_intake(lay(Naming::Known), &|| lay(Naming::Defined))
        .await;
    written.map_err(Into::into)
}
