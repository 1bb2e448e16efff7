//! Syslog by UDP, TCP and TLS: sockets in, confirmed batches out.
//!
//! Each listener has one fold, which makes a batch of what waits and writes it until it is confirmed. TCP knows no answer, so a
//! connection is read no further than what was stored: when the store is slow, senders wait in their sockets, and nothing is
//! dropped. UDP senders cannot wait: a bounded queue holds what comes meanwhile, and what does not fit is counted.
//!
//! Batches bear numbers, so that one which may be stored is harmlessly written again: no message is stored twice on our
//! side.
//!
//! Bounds, of a node: [`CONNECTIONS_MAX`], [`BUFFERED_BYTES_MAX`] for what connections have read and is not stored,
//! [`UDP_QUEUED_BYTES_MAX`]; of a batch: [`BATCH_LINES_MAX`], [`BATCH_BYTES_MAX`] and [`BATCH_SPAN_MAX`]; of a frame:
//! `FRAME_BYTES_MAX`, and [`FRAME_SPAN_MAX`] until its rest comes, or [`ROOM_SPAN_MAX`] where there is no room for it.
//!
//! When the node stops, what was read is stored within [`STOP_SPAN_MAX`], or counted as lost.

pub(super) mod stats;
mod strangers;
#[cfg(test)]
mod tests;

pub use stats::SyslogStats;
pub use strangers::SAID_MAX;

use super::{IngestError, IngestState};
use crate::io::tls::{Let, Tls};
use crate::write::WriteError;
use bytes::BufMut;
use futures::FutureExt;
use hindcast_ingest::syslog::frame::{FRAME_BYTES_MAX, Frame, Framer, datagram};
use hindcast_ingest::syslog::listen::{Listen, Transport};
use hindcast_ingest::syslog::{self, Message, Names, Settings};
use hindcast_ingest::{Adapted, Intake, LimitsContext, Naming, Protocol};
use hindcast_model::{Batch, BatchId, Class, Classify, WriterId};
use parking_lot::Mutex;
use stats::Lost;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use strangers::Strangers;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// Connections of all listeners.
pub const CONNECTIONS_MAX: usize = 1024;
/// What connections have read and is not stored. Each has room for one read; the rest is for messages that are longer.
pub const BUFFERED_BYTES_MAX: usize = 128 * 1024 * 1024;
/// One read of a connection.
const READ_BYTES: usize = 64 * 1024;
/// Less is no use to read.
const READ_BYTES_MIN: usize = 4 * 1024;
const _: () = assert!(BUFFERED_BYTES_MAX >= CONNECTIONS_MAX * READ_BYTES + FRAME_BYTES_MAX);
/// Datagrams that wait, in bytes; and in number, for each listener.
pub const UDP_QUEUED_BYTES_MAX: usize = 32 * 1024 * 1024;
pub const UDP_QUEUED_MAX: usize = 65_536;
/// What a small datagram costs beside its text.
const UDP_OVERHEAD_BYTES: usize = 128;
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// What the kernel is asked to hold for a listener, so that a burst waits there; it gives what `net.core.rmem_max` allows.
const UDP_KERNEL_BYTES: usize = 8 * 1024 * 1024;
/// A batch ends at one of these. What one connection read stays together.
pub const BATCH_LINES_MAX: usize = 10_000;
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// How long a message waits for others.
pub const BATCH_SPAN_MAX: Duration = Duration::from_millis(50);
/// A message whose end does not come within this time is stored as it is, however often some of it comes.
pub const FRAME_SPAN_MAX: Duration = Duration::from_secs(10);
/// A long message that finds no room in this time, because others wait for their rest, is stored as it is.
pub const ROOM_SPAN_MAX: Duration = Duration::from_secs(2);
/// A connection on which nothing comes for so long is closed.
pub const IDLE_SPAN_MAX: Duration = Duration::from_secs(3600);
/// Peers that are gone are found by the kernel's own questions.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// When the node stops, for what was read.
pub const STOP_SPAN_MAX: Duration = Duration::from_secs(5);
/// Between two attempts to store a batch.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The same trouble is said again after this time.
const SAID_PAUSE: Duration = Duration::from_secs(60);
/// Attempts for a batch that a shard finds too old: each time its lines' times are looked at anew.
const TOO_OLD_MAX: u32 = 3;

/// The bounds that a test makes smaller.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub connections: usize,
    pub buffered_bytes: usize,
    pub udp_queued_bytes: usize,
    pub frame_span: Duration,
    pub room_span: Duration,
    pub stop_span: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_MAX,
            buffered_bytes: BUFFERED_BYTES_MAX,
            udp_queued_bytes: UDP_QUEUED_BYTES_MAX,
            frame_span: FRAME_SPAN_MAX,
            room_span: ROOM_SPAN_MAX,
            stop_span: STOP_SPAN_MAX,
        }
    }
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpListener),
}

/// A listener whose port is taken.
pub struct Bound {
    listen: Listen,
    socket: Socket,
    address: SocketAddr,
}

impl Bound {
    pub async fn bind(listen: Listen) -> io::Result<Self> {
        let (socket, address) = match listen.transport {
            Transport::Udp => {
                let socket = UdpSocket::bind(listen.address).await?;
                // The kernel gives less where it may not give all; a socket without is one that works.
                let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(UDP_KERNEL_BYTES);
                let address = socket.local_addr()?;
                (Socket::Udp(socket), address)
            }
            Transport::Tcp | Transport::Tls => {
                let socket = TcpListener::bind(listen.address).await?;
                let address = socket.local_addr()?;
                (Socket::Tcp(socket), address)
            }
        };
        Ok(Self {
            listen,
            socket,
            address,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn listen(&self) -> &Listen {
        &self.listen
    }
}

/// What all listeners of a node share.
#[derive(Clone)]
pub struct Syslog {
    pub ingest: IngestState,
    pub stats: Arc<SyslogStats>,
    /// Of the client port; TLS listeners speak by its certificates.
    pub tls: Option<Tls>,
    /// Names this start of this node: its batches are numbered under it.
    pub writer: String,
    pub bounds: Bounds,
}

/// What one connection read at once, or one datagram.
struct Parcel {
    messages: Vec<Message>,
    bytes: usize,
    /// More is there already, so that it is no use to wait for it.
    is_full: bool,
    /// Told once it is stored; dropped when it is lost.
    done: Option<oneshot::Sender<()>>,
}

impl Syslog {
    /// Serves until `stop` turns true, and then until all that was read is stored, or given up.
    pub async fn serve(self, bound: Vec<Bound>, stop: watch::Receiver<bool>) {
        let (give_up, given_up) = watch::channel(false);
        *self.stats.listened.lock() = bound.iter().map(|b| (b.listen.transport, b.address)).collect();
        let room = Room {
            connections: Arc::new(Semaphore::new(self.bounds.connections)),
            bytes: Arc::new(Semaphore::new(
                self.bounds
                    .buffered_bytes
                    .saturating_sub(self.bounds.connections * READ_BYTES),
            )),
            stores: Arc::default(),
        };
        let mut folds = JoinSet::new();
        for (number, Bound { listen, socket, .. }) in bound.into_iter().enumerate() {
            let (parcels, waiting) = mpsc::channel(UDP_QUEUED_MAX);
            let fold = Fold {
                of: self.clone(),
                transport: listen.transport,
                settings: listen.settings.clone(),
                names: Names::default(),
                writer: WriterId::named(&listen.settings.tenant, &format!("{}/{number}", self.writer)),
                seq: 0,
                given_up: given_up.clone(),
                said: None,
            };
            folds.spawn(fold.run(waiting));
            let listener = Listener {
                of: self.clone(),
                listen,
                room: room.clone(),
                strangers: Arc::default(),
                parcels,
                stop: stop.clone(),
            };
            match socket {
                Socket::Udp(socket) => tokio::spawn(listener.datagrams(socket)),
                Socket::Tcp(socket) => tokio::spawn(listener.connections(socket)),
            };
        }
        let mut stop = stop;
        let _ = stop.wait_for(|s| *s).await;
        let all = async { while folds.join_next().await.is_some() {} };
        if tokio::time::timeout(self.bounds.stop_span, all).await.is_err() {
            let _ = give_up.send(true);
            while folds.join_next().await.is_some() {}
        }
    }
}

/// Places of connections and their bytes, of all listeners.
#[derive(Clone)]
struct Room {
    connections: Arc<Semaphore>,
    /// For messages that are longer than one read. Each connection has room for a read of its own.
    bytes: Arc<Semaphore>,
    stores: Arc<Stores>,
}

/// What connections handed on, to tell a store that stands still from messages that do.
#[derive(Default)]
struct Stores {
    waiting: AtomicUsize,
    done: AtomicU64,
}

/// Room for a read.
enum Hold {
    Bytes(usize),
    /// Other messages that wait for their rest have it all.
    NoRoom,
    /// The node stops.
    Stop,
}

#[derive(Clone)]
struct Listener {
    of: Syslog,
    listen: Listen,
    room: Room,
    parcels: mpsc::Sender<Parcel>,
    strangers: Arc<Mutex<Strangers>>,
    stop: watch::Receiver<bool>,
}

impl Listener {
    /// Says of the first senders that are refused who they are; all of them are counted.
    fn refuse(&self, peer: IpAddr) {
        let peer = peer.to_canonical();
        if let Some(what) = self.strangers.lock().meet(peer) {
            tracing::warn!(listen = %self.listen, %peer, "{what}");
        }
    }

    async fn datagrams(mut self, socket: UdpSocket) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let came = tokio::select! {
                came = socket.recv_from(&mut buffer) => came,
                _ = self.stop.wait_for(|s| *s) => break,
            };
            match came {
                Ok((len, from)) => self.datagram(&buffer[..len], from),
                // An ICMP answer to something that was never sent: nothing that ends a listener.
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        // What the kernel holds already came before the end.
        for _ in 0..UDP_QUEUED_MAX {
            let Ok((len, from)) = socket.try_recv_from(&mut buffer) else {
                break;
            };
            self.datagram(&buffer[..len], from);
        }
    }

    fn datagram(&self, bytes: &[u8], from: SocketAddr) {
        let stats = &self.of.stats;
        stats.came(Transport::Udp, 1, bytes.len());
        if !self.listen.sources.has(from.ip()) {
            self.refuse(from.ip());
            return stats.dropped(Transport::Udp, Lost::Source, 1);
        }
        let Some(frame) = datagram(bytes) else { return };
        let cost = bytes.len() + UDP_OVERHEAD_BYTES;
        if stats.udp_bytes.fetch_add(cost, Relaxed) + cost > self.of.bounds.udp_queued_bytes {
            stats.udp_bytes.fetch_sub(cost, Relaxed);
            return stats.dropped(Transport::Udp, Lost::QueueFull, 1);
        }
        let message = Message {
            frame,
            peer: from.ip(),
            received: self.of.ingest.clock.now(),
        };
        let parcel = Parcel {
            messages: vec![message],
            bytes: cost,
            is_full: false,
            done: None,
        };
        if self.parcels.try_send(parcel).is_err() {
            stats.udp_bytes.fetch_sub(cost, Relaxed);
            stats.dropped(Transport::Udp, Lost::QueueFull, 1);
        }
    }

    async fn connections(mut self, socket: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = self.stop.wait_for(|s| *s) => return,
            };
            let Ok((stream, from)) = accepted else {
                // Too many files are open, for example: others may end meanwhile.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let transport = self.listen.transport;
            let refused = if !self.listen.sources.has(from.ip()) {
                self.refuse(from.ip());
                Some(Lost::Source)
            } else {
                None
            };
            let place = self.room.connections.clone().try_acquire_owned();
            match (refused, place) {
                (None, Ok(place)) => {
                    tokio::spawn(self.clone().connection(stream, from, place));
                }
                (refused, _) => self.of.stats.refused(transport, refused.unwrap_or(Lost::Connections)),
            }
        }
    }

    async fn connection(mut self, stream: TcpStream, from: SocketAddr, _place: OwnedSemaphorePermit) {
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let _open = self.of.stats.connected(self.listen.transport);
        match (self.listen.transport, self.of.tls.clone()) {
            (Transport::Tls, Some(tls)) => {
                let shaken = tokio::select! {
                    shaken = tls.accept(stream, from) => shaken,
                    _ = self.stop.wait_for(|s| *s) => return,
                };
                // What is refused is counted and said there.
                if let Let::In(stream, _) = shaken {
                    self.read(stream, from.ip()).await;
                }
            }
            (Transport::Tls, None) => {}
            _ => self.read(stream, from.ip()).await,
        }
    }

    /// Reads a connection to its end, one read after the other was stored.
    async fn read(mut self, mut stream: impl AsyncRead + Unpin, peer: IpAddr) {
        let mut framer = Framer::default();
        let mut held: Option<OwnedSemaphorePermit> = None;
        // For the rest of the message that waits. What we wait for ourselves is not of it.
        let mut left = self.of.bounds.frame_span;
        loop {
            let bytes_max = match self.hold(&mut held, framer.pending()).await {
                Hold::Bytes(bytes_max) => bytes_max,
                Hold::Stop => break,
                Hold::NoRoom => {
                    let cut = framer.give_up().map(|f| Frame { is_cut: true, ..f });
                    if !self.store(cut.into_iter().collect(), 0, false, peer).await {
                        return;
                    }
                    continue;
                }
            };
            framer.buffer().reserve(bytes_max);
            let waits = framer.waits();
            let patience = if waits { left } else { IDLE_SPAN_MAX };
            let began = tokio::time::Instant::now();
            let read = tokio::select! {
                read = tokio::time::timeout(patience, read_some(&mut stream, &mut framer, bytes_max)) => read,
                _ = self.stop.wait_for(|s| *s) => break,
            };
            let mut read = match read {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(read)) => read,
                Err(_) if !waits => break,
                Err(_) => {
                    let rest = framer.give_up();
                    if !self.store(rest.into_iter().collect(), 0, false, peer).await {
                        return;
                    }
                    continue;
                }
            };
            // TLS gives a record at a time: what has come already is taken along.
            let mut has_ended = false;
            while read < bytes_max && !has_ended {
                match read_some(&mut stream, &mut framer, bytes_max - read).now_or_never() {
                    None => break,
                    Some(Ok(0) | Err(_)) => has_ended = true,
                    Some(Ok(more)) => read += more,
                }
            }
            let frames: Vec<_> = std::iter::from_fn(|| framer.next_frame()).collect();
            left = match waits && frames.is_empty() {
                true => left.saturating_sub(began.elapsed()),
                false => self.of.bounds.frame_span,
            };
            if !self.store(frames, read, read == bytes_max, peer).await {
                return;
            }
            if has_ended {
                break;
            }
        }
        let rest = framer.end();
        self.store(rest.into_iter().collect(), 0, false, peer).await;
    }

    /// Takes room for the next read beside what is pending, or gives back what is too much. A connection has room for one read;
    /// what is held here is for messages that are longer.
    async fn hold(&mut self, held: &mut Option<OwnedSemaphorePermit>, pending: usize) -> Hold {
        let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if has >= pending {
            if let Some(held) = held {
                drop(held.split(has - pending));
            }
            return Hold::Bytes(READ_BYTES);
        }
        let more = u32::try_from(pending - has).unwrap_or(u32::MAX);
        let more = match self.room.bytes.clone().try_acquire_many_owned(more) {
            Ok(more) => more,
            // A part of a read will do.
            Err(_) if READ_BYTES + has >= pending + READ_BYTES_MIN => return Hold::Bytes(READ_BYTES + has - pending),
            Err(_) => match self.wait_for_room(more).await {
                Ok(more) => more,
                Err(hold) => return hold,
            },
        };
        match held.as_mut() {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Hold::Bytes(READ_BYTES)
    }

    /// Connections that wait here hold what they have, and it may be each other that they wait for. So none waits long, unless
    /// it is the store that all wait for: it gives back room when it goes on.
    async fn wait_for_room(&mut self, more: u32) -> Result<OwnedSemaphorePermit, Hold> {
        let room = self.room.bytes.clone().acquire_many_owned(more);
        tokio::pin!(room);
        loop {
            let stored = self.room.stores.done.load(Relaxed);
            tokio::select! {
                biased;
                room = &mut room => return room.map_err(|_| Hold::Stop),
                _ = self.stop.wait_for(|s| *s) => return Err(Hold::Stop),
                () = tokio::time::sleep(self.of.bounds.room_span) => {}
            }
            let stores = &self.room.stores;
            let store_stands = stores.waiting.load(Relaxed) > 0 && stores.done.load(Relaxed) == stored;
            if !store_stands {
                return Err(Hold::NoRoom);
            }
        }
    }

    /// Hands on what was read and waits until it is stored. `false`: it is lost, because the node stops.
    async fn store(&self, frames: Vec<Frame>, bytes: usize, is_full: bool, peer: IpAddr) -> bool {
        self.of.stats.came(self.listen.transport, frames.len(), bytes);
        if frames.is_empty() {
            return true;
        }
        let received = self.of.ingest.clock.now();
        let message = |frame| Message { frame, peer, received };
        let (done, stored) = oneshot::channel();
        let parcel = Parcel {
            messages: frames.into_iter().map(message).collect(),
            bytes,
            is_full,
            done: Some(done),
        };
        let stores = &self.room.stores;
        stores.waiting.fetch_add(1, Relaxed);
        let is_stored = self.parcels.send(parcel).await.is_ok() && stored.await.is_ok();
        stores.waiting.fetch_sub(1, Relaxed);
        stores.done.fetch_add(1, Relaxed);
        is_stored
    }
}

async fn read_some(stream: &mut (impl AsyncRead + Unpin), framer: &mut Framer, bytes_max: usize) -> io::Result<usize> {
    stream.read_buf(&mut framer.buffer().limit(bytes_max)).await
}

/// Makes batches of what waits, and stores them one after the other.
struct Fold {
    of: Syslog,
    transport: Transport,
    settings: Settings,
    names: Names,
    writer: WriterId,
    seq: u64,
    given_up: watch::Receiver<bool>,
    said: Option<tokio::time::Instant>,
}

/// What became of a batch.
enum Outcome {
    Stored,
    TooLarge,
    Refused(String),
    GivenUp,
}

impl Fold {
    async fn run(mut self, mut parcels: mpsc::Receiver<Parcel>) {
        while let Some(first) = parcels.recv().await {
            let (mut messages, mut bytes, mut is_full) = (first.messages, first.bytes, first.is_full);
            let mut waiting: Vec<_> = first.done.into_iter().collect();
            let end = tokio::time::Instant::now() + BATCH_SPAN_MAX;
            while !is_full && messages.len() < BATCH_LINES_MAX && bytes < BATCH_BYTES_MAX {
                let Ok(Some(next)) = tokio::time::timeout_at(end, parcels.recv()).await else {
                    break;
                };
                messages.extend(next.messages);
                bytes += next.bytes;
                is_full = next.is_full;
                waiting.extend(next.done);
            }
            let all_stored = self.store(messages).await;
            if self.transport == Transport::Udp {
                self.of.stats.udp_bytes.fetch_sub(bytes, Relaxed);
            }
            if all_stored {
                waiting.into_iter().for_each(|done| {
                    let _ = done.send(());
                });
            }
        }
    }

    /// Stores messages, in parts where they are too many for one entry. `false`: given up.
    async fn store(&mut self, messages: Vec<Message>) -> bool {
        let mut parts = vec![messages];
        while let Some(part) = parts.pop() {
            match self.store_part(&part).await {
                Outcome::Stored => {}
                Outcome::TooLarge if part.len() > 1 => {
                    let half = part.len() / 2;
                    parts.push(part[half..].to_vec());
                    parts.push(part[..half].to_vec());
                }
                Outcome::TooLarge => self.refuse(1, "a message is larger than an entry may be"),
                Outcome::Refused(why) => self.refuse(part.len(), &why),
                Outcome::GivenUp => {
                    let lost = part.len() + parts.iter().map(Vec::len).sum::<usize>();
                    self.of.stats.dropped(self.transport, Lost::Shutdown, lost as u64);
                    let transport = self.transport.as_str();
                    tracing::error!(
                        transport,
                        messages = lost,
                        "syslog messages are lost: the node stops, and they could not be stored in time"
                    );
                    return false;
                }
            }
        }
        true
    }

    fn refuse(&mut self, messages: usize, why: &str) {
        self.of.stats.dropped(self.transport, Lost::Refused, messages as u64);
        tracing::error!(
            transport = self.transport.as_str(),
            messages,
            why,
            "syslog messages are lost"
        );
    }

    fn adapt(&mut self, messages: &[Message], limits: &LimitsContext) -> (Adapted, syslog::Tally) {
        let (mut adapted, tally) = syslog::adapt(&self.settings, messages, limits, &mut self.names);
        // Nobody would hear of a refusal: longer lines are cut for every tenant.
        let bounds = hindcast_ingest::Bounds {
            cuts_lines: true,
            ..limits.bounds
        };
        self.of.ingest.mask(&mut adapted.batch, &bounds, Some("syslog_cut"));
        (adapted, tally)
    }

    async fn store_part(&mut self, messages: &[Message]) -> Outcome {
        let limits = self.of.ingest.limits(&self.settings.tenant);
        let (Adapted { mut batch, rejected }, tally) = self.adapt(messages, &limits);
        self.of.stats.marked(&tally);
        self.of
            .ingest
            .refused(Protocol::Syslog, &self.settings.tenant, &rejected);
        self.seq += 1;
        let id = BatchId::Sequenced {
            writer: self.writer,
            seq: self.seq,
        };
        let (mut pause, mut too_old, mut is_charged) = (PAUSE_FIRST, 0, false);
        let bytes = messages.iter().map(|m| m.frame.bytes.len()).sum();
        while !batch.streams.is_empty() {
            batch.id = Some(id);
            let mut given_up = self.given_up.clone();
            let written = tokio::select! {
                written = write(&self.of.ingest, &batch, bytes, &mut is_charged) => written,
                _ = given_up.wait_for(|g| *g) => return Outcome::GivenUp,
            };
            let why = match written {
                Ok(written) => {
                    self.of.ingest.counters.taken(Protocol::Syslog, &written);
                    return Outcome::Stored;
                }
                Err(why) => why,
            };
            match (&why, why.class()) {
                (_, Class::TooLarge) => return Outcome::TooLarge,
                // One batch is under way at a time, so the number that was forgotten is this one's own: it was stored, by an attempt
                // that was not confirmed. Other shards have confirmed their parts, or this would not be the answer.
                (IngestError::Write(WriteError::SequenceTooOld { .. }), _) => return Outcome::Stored,
                // What is kept became shorter meanwhile.
                (IngestError::Write(WriteError::TooOld { .. }), _) if too_old < TOO_OLD_MAX => {
                    too_old += 1;
                    let limits = self.of.ingest.limits(&self.settings.tenant);
                    batch = self.adapt(messages, &limits).0.batch;
                }
                (_, Class::FixRequest) => {
                    self.of.ingest.counters.failed(Protocol::Syslog, why.code());
                    return Outcome::Refused(why.to_string());
                }
                _ => {}
            }
            self.of.stats.waited();
            self.say(&why);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = given_up.wait_for(|g| *g) => return Outcome::GivenUp,
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Outcome::Stored
    }

    fn say(&mut self, why: &IngestError) {
        let now = tokio::time::Instant::now();
        if self.said.is_none_or(|at| now > at + SAID_PAUSE) {
            self.said = Some(now);
            tracing::warn!(transport = self.transport.as_str(), %why, "syslog waits until its lines can be stored");
        }
    }
}

/// `is_charged`: the tenant's buckets gave what it takes, in this attempt or in one before.
async fn write(
    ingest: &IngestState,
    batch: &Batch,
    bytes: usize,
    is_charged: &mut bool,
) -> Result<crate::write::Written, IngestError> {
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
