//! Traps and informs by UDP: datagrams in, confirmed lines out, informs answered once they are stored.
//!
//! Whom a datagram is of, and whether it may be believed, decides `hindcast_snmp::trap`. All listeners of a node share one receiver and one
//! fold, which makes batches of what waits and writes each until it is confirmed, under one number: no trap is stored twice on our
//! side. A device that sends an inform again, because the answer came too late for it, is there twice.
//!
//! Bounds: [`QUEUED_MAX`] traps and [`QUEUED_BYTES_MAX`] that wait; of a batch [`BATCH_LINES_MAX`] and [`BATCH_SPAN_MAX`]. What does not
//! fit is counted. When the node stops, what waits is stored within [`STOP_SPAN_MAX`], or counted as lost.

use crate::io::servers::syslog::stats::kernel_dropped;
use crate::io::servers::{IngestError, IngestSample, IngestState};
use crate::write::{WriteError, Written};
use hindcast_env::io::os_rng;
use hindcast_env::{Clock, Rng};
use hindcast_ingest::traps::{Trap, adapt};
use hindcast_ingest::{Adapted, Intake, Naming, Protocol};
use hindcast_model::{Batch, BatchId, Class, Classify, LogLine, TenantId, WriterId};
use hindcast_snmp::config::{Sender, Senders, name_of};
use hindcast_snmp::line::{Names, TrapLine, line};
use hindcast_snmp::pdu::MESSAGE_BYTES_MAX;
use hindcast_snmp::trap::{Heard, Notice, Receiver, Refused};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use xxhash_rust::xxh3::xxh3_64;

/// Traps that wait to be stored.
pub const QUEUED_MAX: usize = 65_536;
pub const QUEUED_BYTES_MAX: usize = 32 * 1024 * 1024;
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
/// How often the host names of devices are looked up, and how long one may take.
const NAMES_PAUSE: Duration = Duration::from_secs(300);
const NAME_SPAN_MAX: Duration = Duration::from_secs(5);
/// From which time on starts of an engine are counted, in seconds: 31 bits reach to 2088 so.
const BOOTS_FROM_SECS: i64 = 1_577_836_800;

/// Why traps are lost that were believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    QueueFull,
    Refused,
    Shutdown,
}

const LOST: [(Lost, &str); 3] = [
    (Lost::QueueFull, "queue_full"),
    (Lost::Refused, "refused"),
    (Lost::Shutdown, "shutdown"),
];

/// Counts since the node started.
#[derive(Debug, Default)]
pub struct TrapStats {
    traps: AtomicU64,
    informs: AtomicU64,
    refused: [AtomicU64; Refused::ALL.len()],
    lost: [AtomicU64; LOST.len()],
    waits: AtomicU64,
    queued_bytes: AtomicUsize,
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
        add("hindcast_snmp_trap_write_waits_total", &[], self.waits.load(Relaxed));
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

struct Hearing {
    receiver: Receiver,
    senders: Arc<Senders>,
    /// Of devices whose names were looked up.
    found: BTreeMap<IpAddr, Sender>,
    names: Names,
    said: BTreeSet<IpAddr>,
}

struct Inner {
    ingest: IngestState,
    stats: TrapStats,
    /// Names this start of this node: its batches are numbered under it.
    writer: String,
    hearing: Mutex<Hearing>,
    queued_bytes_max: usize,
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
            hearing: Mutex::new(Hearing {
                receiver,
                senders: Arc::default(),
                found: BTreeMap::new(),
                names: Names::default(),
                said: BTreeSet::new(),
            }),
            queued_bytes_max: QUEUED_BYTES_MAX,
        })))
    }

    #[cfg(test)]
    pub(super) fn with_queued_bytes_max(self, queued_bytes_max: usize) -> Self {
        let mut inner = Arc::into_inner(self.0).expect("nobody else has it yet");
        inner.queued_bytes_max = queued_bytes_max;
        Self(Arc::new(inner))
    }

    pub fn stats(&self) -> &TrapStats {
        &self.0.stats
    }

    /// Who may send from now on, and how devices are called.
    pub fn set_senders(&self, senders: Arc<Senders>) {
        let mut hearing = self.0.hearing.lock();
        hearing.receiver.set_senders(senders.clone());
        hearing.senders = senders;
    }

    /// Serves until `stop` turns true, and then until what waits is stored, or given up.
    pub async fn serve(self, bound: Vec<BoundTraps>, stop: watch::Receiver<bool>) {
        if bound.is_empty() {
            return;
        }
        *self.0.stats.ports.lock() = bound.iter().map(|b| b.address.port()).collect();
        let (parcels, waiting) = mpsc::channel(QUEUED_MAX);
        let (give_up, given_up) = watch::channel(false);
        for one in bound {
            let socket = Arc::new(one.socket);
            tokio::spawn(self.clone().datagrams(socket, parcels.clone(), stop.clone()));
        }
        drop(parcels);
        tokio::spawn(self.clone().look_up(stop.clone()));
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
        for _ in 0..QUEUED_MAX {
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
        let (tenant, made) = made;
        let cost = bytes.len() * 4 + OVERHEAD_BYTES;
        if stats.queued_bytes.fetch_add(cost, Relaxed) + cost > self.0.queued_bytes_max {
            stats.queued_bytes.fetch_sub(cost, Relaxed);
            return stats.lost(Lost::QueueFull, 1);
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
        if parcels.try_send(parcel).is_err() {
            stats.queued_bytes.fetch_sub(cost, Relaxed);
            stats.lost(Lost::QueueFull, 1);
        }
    }

    /// Finds the addresses of devices that the list has by host names.
    async fn look_up(self, mut stop: watch::Receiver<bool>) {
        loop {
            let senders = self.0.hearing.lock().senders.clone();
            let mut found = BTreeMap::new();
            for (host, sender) in &senders.named {
                let looking = tokio::net::lookup_host((host.as_str(), 0));
                let addresses = tokio::select! {
                    addresses = tokio::time::timeout(NAME_SPAN_MAX, looking) => addresses,
                    _ = stop.wait_for(|s| *s) => return,
                };
                for address in addresses.into_iter().flatten().flatten() {
                    found
                        .entry(address.ip().to_canonical())
                        .or_insert_with(|| sender.clone());
                }
            }
            self.0.hearing.lock().found = found;
            // A list that was put in force meanwhile is looked at soon.
            for _ in 0..NAMES_PAUSE.as_secs() {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    _ = stop.wait_for(|s| *s) => return,
                }
                if !Arc::ptr_eq(&senders, &self.0.hearing.lock().senders) {
                    break;
                }
            }
        }
    }

    /// Stores what waits, batch after batch.
    async fn fold(self, mut waiting: mpsc::Receiver<Parcel>, mut given_up: watch::Receiver<bool>) {
        let mut seq = 0;
        while let Some(first) = waiting.recv().await {
            let mut parcels = vec![first];
            let until = tokio::time::Instant::now() + BATCH_SPAN_MAX;
            while parcels.len() < BATCH_LINES_MAX {
                match tokio::time::timeout_at(until, waiting.recv()).await {
                    Ok(Some(parcel)) => parcels.push(parcel),
                    _ => break,
                }
            }
            let mut by_tenant: BTreeMap<TenantId, Vec<Parcel>> = BTreeMap::new();
            for parcel in parcels {
                by_tenant.entry(parcel.tenant.clone()).or_default().push(parcel);
            }
            for (tenant, parcels) in by_tenant {
                self.store(&tenant, parcels, &mut seq, &mut given_up).await;
            }
        }
    }

    async fn store(
        &self,
        tenant: &TenantId,
        parcels: Vec<Parcel>,
        seq: &mut u64,
        given_up: &mut watch::Receiver<bool>,
    ) {
        let stats = &self.0.stats;
        let mut parts = vec![parcels];
        while let Some(mut part) = parts.pop() {
            let traps: Vec<_> = part.iter().map(|p| p.trap.clone()).collect();
            match self.write(tenant, &traps, seq, given_up).await {
                Ok(()) => {
                    for (socket, to, answer) in part.iter_mut().filter_map(|p| p.answer.take()) {
                        let _ = socket.send_to(&answer, to).await;
                    }
                }
                Err(NotStored::TooLarge) if part.len() > 1 => {
                    parts.push(part.split_off(part.len() / 2));
                    parts.push(part);
                    continue;
                }
                Err(NotStored::TooLarge) => self.refuse(part.len(), "a trap is larger than an entry may be"),
                Err(NotStored::Refused(why)) => self.refuse(part.len(), &why),
                Err(NotStored::GivenUp) => {
                    stats.lost(Lost::Shutdown, part.len());
                    tracing::error!(
                        traps = part.len(),
                        "traps are lost: the node stops, and they could not be stored in time"
                    );
                }
            }
            let bytes: usize = part.iter().map(|p| p.bytes).sum();
            stats.queued_bytes.fetch_sub(bytes, Relaxed);
        }
    }

    fn refuse(&self, traps: usize, why: &str) {
        self.0.stats.lost(Lost::Refused, traps);
        tracing::error!(traps, why, "traps are lost");
    }

    async fn write(
        &self,
        tenant: &TenantId,
        traps: &[Trap],
        seq: &mut u64,
        given_up: &mut watch::Receiver<bool>,
    ) -> Result<(), NotStored> {
        let ingest = &self.0.ingest;
        let limits = ingest.limits(tenant);
        let Adapted { mut batch, rejected } = adapt(tenant, traps, &limits);
        ingest.refused(Protocol::Snmp, tenant, &rejected);
        if batch.streams.is_empty() {
            return Ok(());
        }
        ingest.mask(&mut batch, &limits.bounds, Some("snmp_cut"));
        *seq += 1;
        batch.id = Some(BatchId::Sequenced {
            writer: WriterId::named(tenant, &self.0.writer),
            seq: *seq,
        });
        let bytes = traps.iter().map(|t| t.line.line.len()).sum();
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
                // One batch is under way at a time: the number that was forgotten is this one's own.
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
            tracing::debug!(%why, "traps wait until they can be stored");
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
    /// The line of a trap, and whose it is.
    fn made(&mut self, notice: &Notice, peer: IpAddr) -> (TenantId, TrapLine) {
        let (senders, shown) = (self.senders.clone(), peer.to_string());
        let known = senders.devices.get(&peer).or_else(|| self.found.get(&peer));
        match known {
            Some(known) => {
                let made = line(notice, &known.name, &known.labels, &shown, &mut self.names);
                (known.tenant.clone(), made)
            }
            None => {
                let made = line(notice, &name_of(&shown), &BTreeMap::new(), &shown, &mut self.names);
                (senders.tenant.clone(), made)
            }
        }
    }

    /// Says of the first senders that are refused who they are; all of them are counted.
    fn say(&mut self, peer: IpAddr, why: Refused) {
        if is_to_be_named(&mut self.said, peer) {
            let reason = why.as_str();
            tracing::warn!(
                %peer,
                reason,
                "a trap is refused: traps.senders of --snmp-config says who may send; others are only counted \
                 (hindcast_snmp_traps_refused_total)"
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
