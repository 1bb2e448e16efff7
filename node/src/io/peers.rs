//! The peer transport: one multiplexed HTTP/2 connection per node pair, for Raft messages, calls and snapshots.
//!
//! Raft messages may be dropped at any time: Raft repairs it. Calls are answered or fail; what a call means is known
//! to whoever registered its kind.

use super::snapshots::Courier;
use super::tls::{Dial, Let, Stream, Tcp, Tls};
use bytes::Bytes;
use futures::future::BoxFuture;
use hindcast_env::io::SystemClock;
use hindcast_env::{Clock, Disk};
use hindcast_model::{GroupId, NodeId, codec};
use hindcast_proto::v1;
use hindcast_proto::v1::peer_client::PeerClient;
use hindcast_proto::v1::peer_server::{Peer, PeerServer};
use hindcast_raft::{RaftHost, Transport, WireMessage};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

/// Lists of Raft messages that wait for one peer, and their bytes; further ones are dropped.
const QUEUED_LISTS_MAX: usize = 4096;
pub const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Batches that were handed to the stream and not yet written.
const STREAM_BATCHES_MAX: usize = 4;
/// One message on the stream carries about so many bytes of entries (by bytes, never by count: many small ones are cheap, few large ones stall the stream).
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Larger than any batch of appends, entries of `ENTRY_BYTES_MAX` included.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;
const CALL_HAVE: &str = "snapshot_have";
/// Before a snapshot that was refused as damaged is sent again.
const DAMAGED_PAUSE: Duration = Duration::from_secs(2);
const HAVE_TIMEOUT: Duration = Duration::from_secs(2);
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Handshakes of peers at once; further connections wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 64;
/// Connections of peers that shook hands and wait for the server to take them.
const ACCEPTED_MAX: usize = 16;

/// Tells whether a snapshot that was refused as damaged is so here, too, and why.
pub type SnapshotCheck = Box<dyn Fn(GroupId, &str) -> Result<(), String> + Send + Sync>;

/// Answers calls of one kind.
pub type CallHandler = Arc<dyn Fn(NodeId, Bytes) -> BoxFuture<'static, Result<Bytes, Status>> + Send + Sync>;

/// Answers questions of one kind, piece by piece. When nobody listens any more the channel is closed.
pub type AskHandler =
    Arc<dyn Fn(NodeId, Bytes, mpsc::Sender<Result<Bytes, Status>>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Pieces of an answer that are on their way.
const PIECES_MAX: usize = 4;

/// Calls that are answered before this node belongs to a cluster.
pub const CALL_HELLO: &str = "hello";
pub const CALL_FOUND: &str = "found";
/// Asked by a node that belongs to no cluster yet.
pub const CALL_JOIN: &str = "join";

/// Connects lazily and again and again; windows wide enough for batches of `BATCH_BYTES_MAX`. With TLS, what answers there
/// must be a node of this cluster, and the one that is expected.
pub fn channel_to(
    address: &str,
    tls: Option<&Tls>,
    expected: Option<NodeId>,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .initial_stream_window_size(16 * 1024 * 1024)
        .initial_connection_window_size(32 * 1024 * 1024);
    let dial = tls.map_or(Dial::Plain, |tls| tls.dial(expected));
    Ok(endpoint.connect_with_connector_lazy(dial))
}

fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// One call to an address, for nodes that are not yet of one cluster.
pub async fn call_address(
    address: &str,
    tls: Option<&Tls>,
    from: NodeId,
    kind: &str,
    body: Bytes,
) -> Result<Bytes, Status> {
    let channel = channel_to(address, tls, None).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let mut request = Request::new(v1::CallRequest {
        from: from.0,
        cluster: String::new(),
        kind: kind.to_owned(),
        body,
    });
    request.set_timeout(Duration::from_secs(2));
    Ok(client(channel).call(request).await?.into_inner().body)
}

struct PeerLink {
    address: String,
    channel: Channel,
    /// For answers in pieces, which would stand before Raft's messages.
    bulk: Channel,
    queue: mpsc::Sender<Vec<WireMessage>>,
    queued: Arc<Queued>,
}

#[derive(Default)]
struct Queued {
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

/// What waits for one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerQueue {
    pub bytes: usize,
    pub bytes_max: usize,
    /// Lists since the start.
    pub dropped: u64,
}

/// The sending side, and the register of calls.
pub struct Peers {
    me: NodeId,
    cluster: OnceLock<String>,
    links: RwLock<BTreeMap<NodeId, PeerLink>>,
    /// Nodes that were removed: nobody listens to them.
    gone: RwLock<BTreeSet<NodeId>>,
    /// Whether a peer said that this node itself was removed.
    removed: watch::Sender<bool>,
    handlers: RwLock<BTreeMap<String, CallHandler>>,
    ask_handlers: RwLock<BTreeMap<String, AskHandler>>,
    raft: OnceLock<RaftHost>,
    snapshot_check: Arc<OnceLock<SnapshotCheck>>,
    disk: Arc<dyn Disk>,
    /// Counts incoming snapshots, for folder names.
    incoming: Mutex<u64>,
    pub courier: Arc<Courier>,
    clock: Arc<dyn Clock>,
    runtime: tokio::runtime::Handle,
    tls: Option<Tls>,
}

impl Peers {
    pub fn new(me: NodeId, disk: Arc<dyn Disk>, tls: Option<Tls>) -> Arc<Self> {
        Arc::new(Self {
            tls,
            me,
            cluster: OnceLock::new(),
            links: RwLock::default(),
            gone: RwLock::default(),
            removed: watch::Sender::new(false),
            handlers: RwLock::default(),
            ask_handlers: RwLock::default(),
            raft: OnceLock::new(),
            snapshot_check: Arc::default(),
            disk,
            incoming: Mutex::new(0),
            courier: Arc::default(),
            clock: Arc::new(SystemClock::new()),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    pub fn register(&self, kind: &str, handler: CallHandler) {
        self.handlers.write().insert(kind.to_owned(), handler);
    }

    pub fn register_ask(&self, kind: &str, handler: AskHandler) {
        self.ask_handlers.write().insert(kind.to_owned(), handler);
    }

    /// From now on calls and messages of this cluster, and no other, are taken.
    pub fn join(&self, cluster: &str, nodes: &BTreeMap<NodeId, String>) -> Result<(), tonic::transport::Error> {
        let _ = self.cluster.set(cluster.to_owned());
        for (id, address) in nodes {
            self.learn(*id, address)?;
        }
        Ok(())
    }

    /// A node of this cluster, and where it is.
    pub fn learn(&self, id: NodeId, address: &str) -> Result<(), tonic::transport::Error> {
        let known = self.links.read().get(&id).is_some_and(|l| l.address == address);
        let (Some(cluster), false) = (self.cluster.get(), known || id == self.me) else {
            return Ok(());
        };
        let channel = channel_to(address, self.tls.as_ref(), Some(id))?;
        let bulk = channel_to(address, self.tls.as_ref(), Some(id))?;
        let (queue, waiting) = mpsc::channel(QUEUED_LISTS_MAX);
        let (queued, removed) = (Arc::<Queued>::default(), self.removed.clone());
        let sending = send_raft(
            self.me,
            cluster.clone(),
            channel.clone(),
            waiting,
            queued.clone(),
            removed,
        );
        tokio::spawn(sending);
        let link = PeerLink {
            address: address.to_owned(),
            channel,
            bulk,
            queue,
            queued,
        };
        self.links.write().insert(id, link);
        Ok(())
    }

    /// A node that was removed: nothing goes to it, and nothing of it is taken.
    pub fn forget(&self, id: NodeId) {
        if self.gone.write().insert(id) {
            self.links.write().remove(&id);
        }
    }

    /// Turns true when a peer says that this node was removed from the cluster.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.removed.subscribe()
    }

    fn check_sender(&self, from: u64) -> Result<(), Status> {
        match self.gone.read().contains(&NodeId(from)) {
            true => Err(Status::failed_precondition(removed_words(NodeId(from)))),
            false => Ok(()),
        }
    }

    pub fn attach(&self, raft: RaftHost) {
        let _ = self.raft.set(raft);
    }

    /// Snapshots that a receiver refuses as damaged are looked at by it here. The first one stays.
    pub fn check_snapshots(&self, check: SnapshotCheck) {
        let _ = self.snapshot_check.set(check);
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.links.read().keys().copied().collect()
    }

    pub fn queues(&self) -> Vec<(NodeId, PeerQueue)> {
        let of = |q: &Queued| PeerQueue {
            bytes: q.bytes.load(Relaxed),
            bytes_max: QUEUED_BYTES_MAX,
            dropped: q.dropped.load(Relaxed),
        };
        self.links.read().iter().map(|(id, l)| (*id, of(&l.queued))).collect()
    }

    /// Asks another node; `timeout` covers everything.
    pub async fn call(&self, to: NodeId, kind: &str, body: Bytes, timeout: Duration) -> Result<Bytes, Status> {
        let channel = self.links.read().get(&to).map(|l| l.channel.clone());
        let channel = channel.ok_or_else(|| Status::unavailable(format!("node {to} is not known here")))?;
        let cluster = self.cluster.get().cloned().unwrap_or_default();
        let mut request = Request::new(v1::CallRequest {
            from: self.me.0,
            cluster,
            kind: kind.to_owned(),
            body,
        });
        request.set_timeout(timeout);
        match tokio::time::timeout(timeout, client(channel).call(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().body),
            Ok(Err(status)) => {
                note_removal(&status, self.me, &self.removed);
                Err(status)
            }
            Err(_) => Err(Status::deadline_exceeded(format!(
                "node {to} did not answer in {timeout:?}"
            ))),
        }
    }

    /// Asks another node for an answer in pieces; the first comes within `patience`. Dropped, it ends there, too.
    pub async fn ask(
        &self,
        to: NodeId,
        kind: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Streaming<v1::CallResponse>, Status> {
        let channel = self.links.read().get(&to).map(|l| l.bulk.clone());
        let channel = channel.ok_or_else(|| Status::unavailable(format!("node {to} is not known here")))?;
        let request = v1::CallRequest {
            from: self.me.0,
            cluster: self.cluster.get().cloned().unwrap_or_default(),
            kind: kind.to_owned(),
            body,
        };
        let mut peer = client(channel);
        match tokio::time::timeout(patience, peer.ask(request)).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "node {to} did not answer in {patience:?}"
            ))),
        }
    }

    fn check_cluster(&self, cluster: &str) -> Result<(), Status> {
        match self.cluster.get() {
            Some(own) if own == cluster => Ok(()),
            Some(_) => Err(Status::permission_denied("this node belongs to another cluster")),
            None => Err(Status::unavailable("this node belongs to no cluster yet")),
        }
    }

    /// Takes the files of a snapshot into a folder of their own, verified.
    async fn take_snapshot(
        &self,
        mut chunks: Streaming<v1::SnapshotChunk>,
        speaks_for: impl Fn(u64) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let first = chunks.message().await?.and_then(|c| c.header);
        let header = first.ok_or_else(|| Status::invalid_argument("a snapshot begins with its header"))?;
        self.check_cluster(&header.cluster)?;
        speaks_for(header.from)?;
        self.check_sender(header.from)?;
        let raft = self
            .raft
            .get()
            .ok_or_else(|| Status::unavailable("not ready for snapshots yet"))?
            .clone();
        let dir = {
            let mut n = self.incoming.lock();
            *n += 1;
            format!("incoming/{}-{}", header.group, *n)
        };
        let io = |e: hindcast_env::DiskError| Status::internal(e.to_string());
        self.disk.remove_dir_all(&dir).map_err(io)?;
        self.disk.create_dir_all(&dir).map_err(io)?;
        let group = GroupId(header.group);
        let mut whole = self
            .courier
            .reuse(&*self.disk, group, &header.files, &dir)
            .map_err(io)?;
        let taken = self.take_files(chunks, &header, &dir, &mut whole).await;
        if taken.is_err() {
            self.courier.keep(&*self.disk, group, &header.files, dir, &whole);
            return taken;
        }
        let taken = tokio::task::spawn_blocking(move || raft.receive_snapshot(group, header.message, dir));
        let taken = taken.await.map_err(|e| Status::internal(e.to_string()))?;
        taken.map_err(|e| Status::data_loss(e.to_string()))
    }

    /// `whole`: names of the files that are there and verified, also when the stream breaks.
    async fn take_files(
        &self,
        mut chunks: Streaming<v1::SnapshotChunk>,
        header: &v1::SnapshotHeader,
        dir: &str,
        whole: &mut BTreeSet<String>,
    ) -> Result<(), Status> {
        let disk = &self.disk;
        let io = |e: hindcast_env::DiskError| Status::internal(e.to_string());
        let mut open: Option<(String, Box<dyn hindcast_env::DiskFile>, u64, blake3::Hasher)> = None;
        let mut finish = |done: (String, Box<dyn hindcast_env::DiskFile>, u64, blake3::Hasher)| -> Result<(), Status> {
            let (name, mut file, len, hash) = done;
            let expected = header.files.iter().find(|f| f.name == name);
            let is_whole = expected.is_some_and(|f| f.bytes == len && f.hash == hash.finalize().as_bytes()[..]);
            if !is_whole {
                return Err(Status::data_loss(format!("snapshot file {name} did not arrive whole")));
            }
            file.sync().map_err(io)?;
            whole.insert(name);
            Ok(())
        };
        while let Some(chunk) = chunks.message().await? {
            if open.as_ref().is_none_or(|(name, ..)| *name != chunk.file) {
                if let Some(done) = open.take() {
                    finish(done)?;
                }
                if chunk.file.is_empty() || chunk.file.contains('/') || chunk.file.starts_with('.') {
                    return Err(Status::invalid_argument("a snapshot file has a plain name"));
                }
                let file = disk.create(&format!("{dir}/{}", chunk.file)).map_err(io)?;
                open = Some((chunk.file.clone(), file, 0, blake3::Hasher::new()));
            }
            if let Some((_, file, len, hash)) = &mut open {
                file.write_at(*len, &chunk.data).map_err(io)?;
                *len += chunk.data.len() as u64;
                hash.update(&chunk.data);
            }
        }
        if let Some(done) = open.take() {
            finish(done)?;
        }
        let missing = header.files.iter().filter(|f| !whole.contains(&f.name)).count();
        if missing > 0 {
            return Err(Status::data_loss(format!(
                "{missing} of {} snapshot files did not arrive",
                header.files.len()
            )));
        }
        disk.sync_dir(dir).map_err(io)
    }
}

/// Keeps one stream to a peer open and feeds it; what waits while it is down is dropped.
async fn send_raft(
    me: NodeId,
    cluster: String,
    channel: Channel,
    mut waiting: mpsc::Receiver<Vec<WireMessage>>,
    queued: Arc<Queued>,
    removed: watch::Sender<bool>,
) {
    let taken = |messages: &[WireMessage]| {
        let bytes: usize = messages.iter().map(wire_bytes).sum();
        queued.bytes.fetch_sub(bytes, Relaxed);
        bytes
    };
    loop {
        let (feed, stream) = mpsc::channel::<v1::RaftBatch>(STREAM_BATCHES_MAX);
        let mut peer = client(channel.clone());
        let mut call =
            tokio::spawn(async move { peer.raft(tokio_stream::wrappers::ReceiverStream::new(stream)).await });
        loop {
            let first = tokio::select! {
                first = waiting.recv() => match first {
                    Some(first) => first,
                    None => return,
                },
                ended = &mut call => {
                    if let Ok(Err(status)) = ended {
                        note_removal(&status, me, &removed);
                    }
                    break;
                }
            };
            let mut messages: Vec<WireMessage> = first;
            let mut bytes = taken(&messages);
            while bytes < BATCH_BYTES_MAX {
                let Ok(more) = waiting.try_recv() else { break };
                bytes += taken(&more);
                messages.extend(more);
            }
            let wire = |m: WireMessage| v1::RaftMessage {
                group: m.group.0,
                head: m.head,
                data: m.data,
            };
            let batch = v1::RaftBatch {
                from: me.0,
                cluster: cluster.clone(),
                messages: messages.into_iter().map(wire).collect(),
            };
            if feed.send(batch).await.is_err() {
                break;
            }
        }
        call.abort();
        tokio::time::sleep(RECONNECT_PAUSE).await;
        // Old news: Raft sends what still matters again.
        while let Ok(old) = waiting.try_recv() {
            taken(&old);
        }
    }
}

/// Which files the receiver has from a try that broke. Who does not know gets everything.
async fn ask_have(
    channel: Channel,
    me: NodeId,
    cluster: &str,
    group: GroupId,
    files: &[v1::SnapshotFile],
) -> Vec<String> {
    let files: Vec<(String, u64, Bytes)> = files
        .iter()
        .map(|f| (f.name.clone(), f.bytes, f.hash.clone()))
        .collect();
    let mut request = Request::new(v1::CallRequest {
        from: me.0,
        cluster: cluster.to_owned(),
        kind: CALL_HAVE.to_owned(),
        body: codec::to_bytes(&(group, files)).into(),
    });
    request.set_timeout(HAVE_TIMEOUT);
    let answer = client(channel).call(request).await;
    answer
        .ok()
        .and_then(|a| codec::from_bytes(&a.into_inner().body).ok())
        .unwrap_or_default()
}

fn removed_words(node: NodeId) -> String {
    format!("node {node} was removed from this cluster")
}

fn note_removal(status: &Status, me: NodeId, removed: &watch::Sender<bool>) {
    if status.code() == tonic::Code::FailedPrecondition && status.message() == removed_words(me) {
        removed.send_replace(true);
    }
}

fn wire_bytes(m: &WireMessage) -> usize {
    m.head.len() + m.data.iter().map(Bytes::len).sum::<usize>()
}

/// What a snapshot consists of: read from the files, so that the receiver can tell whether all arrived.
fn snapshot_files(disk: &dyn Disk, dir: &str) -> Result<Vec<v1::SnapshotFile>, Status> {
    let io = |e: hindcast_env::DiskError| Status::internal(e.to_string());
    let mut files = vec![];
    for name in disk.list(dir).map_err(io)? {
        let file = disk.open_read(&format!("{dir}/{name}")).map_err(io)?;
        let (mut hash, mut at) = (blake3::Hasher::new(), 0);
        while at < file.len() {
            let len = SNAPSHOT_CHUNK_BYTES.min((file.len() - at) as usize);
            hash.update(&file.read_at(at, len).map_err(io)?);
            at += len as u64;
        }
        files.push(v1::SnapshotFile {
            name,
            bytes: file.len(),
            hash: Bytes::copy_from_slice(hash.finalize().as_bytes()),
        });
    }
    Ok(files)
}

impl Transport for Peers {
    fn send(&self, to: NodeId, messages: Vec<WireMessage>) {
        if let Some(link) = self.links.read().get(&to) {
            // Full: dropped, as promised.
            let bytes: usize = messages.iter().map(wire_bytes).sum();
            let before = link.queued.bytes.fetch_add(bytes, Relaxed);
            let fits = before == 0 || before + bytes <= QUEUED_BYTES_MAX;
            if !fits || link.queue.try_send(messages).is_err() {
                link.queued.bytes.fetch_sub(bytes, Relaxed);
                link.queued.dropped.fetch_add(1, Relaxed);
            }
        }
    }

    fn send_snapshot(
        &self,
        to: NodeId,
        group: GroupId,
        message: Bytes,
        dir: String,
        done: Box<dyn FnOnce(bool) + Send>,
    ) {
        let Some(channel) = self.links.read().get(&to).map(|l| l.channel.clone()) else {
            return done(false);
        };
        let (disk, cluster, me) = (
            self.disk.clone(),
            self.cluster.get().cloned().unwrap_or_default(),
            self.me,
        );
        let (courier, clock) = (self.courier.clone(), self.clock.clone());
        let have_asked = channel.clone();
        let check = self.snapshot_check.clone();
        self.runtime.spawn(async move {
            let sent_from = dir.clone();
            let (feed, stream) = mpsc::channel::<v1::SnapshotChunk>(16);
            let runtime = tokio::runtime::Handle::current();
            let travel = (group, to);
            let ended = courier.clone();
            let reader = tokio::task::spawn_blocking(move || -> Result<(), Status> {
                let io = |e: hindcast_env::DiskError| Status::internal(e.to_string());
                let gone = |_| Status::cancelled("the receiver went away");
                let files = snapshot_files(&*disk, &dir)?;
                courier.begin(travel, files.iter().map(|f| f.bytes).sum());
                let have = runtime.block_on(ask_have(have_asked, me, &cluster, group, &files));
                let header = v1::SnapshotHeader {
                    from: me.0,
                    cluster,
                    group: group.0,
                    message,
                    files: files.clone(),
                };
                let first = v1::SnapshotChunk {
                    header: Some(header),
                    file: String::new(),
                    data: Bytes::new(),
                };
                feed.blocking_send(first).map_err(gone)?;
                for f in files {
                    if have.contains(&f.name) {
                        courier.send(travel, 0, &*clock);
                        continue;
                    }
                    let file = disk.open_read(&format!("{dir}/{}", f.name)).map_err(io)?;
                    let mut at = 0;
                    // An empty file is sent as one empty chunk.
                    loop {
                        let len = SNAPSHOT_CHUNK_BYTES.min((f.bytes - at) as usize);
                        let data = file.read_at(at, len).map_err(io)?;
                        at += len as u64;
                        std::thread::sleep(courier.send(travel, len as u64, &*clock));
                        let chunk = v1::SnapshotChunk {
                            header: None,
                            file: f.name.clone(),
                            data,
                        };
                        feed.blocking_send(chunk).map_err(gone)?;
                        if at >= f.bytes {
                            break;
                        }
                    }
                }
                Ok(())
            });
            let sent = client(channel)
                .snapshot(tokio_stream::wrappers::ReceiverStream::new(stream))
                .await;
            let read = reader.await;
            ended.end(travel);
            let ok = sent.is_ok() && matches!(read, Ok(Ok(())));
            if let Err(status) = sent {
                tracing::warn!(%to, %group, %status, "a Raft snapshot was not taken");
                if status.code() == tonic::Code::DataLoss {
                    // What came there is what was read here: is it what was written here?
                    let look = move || check.get().map_or(Ok(()), |check| check(group, &sent_from));
                    if let Ok(Err(why)) = tokio::task::spawn_blocking(look).await {
                        tracing::error!(%group, why, "this node has damaged files");
                    }
                    tokio::time::sleep(DAMAGED_PAUSE).await;
                }
            }
            done(ok);
        });
    }
}

/// A connection of a peer, and which node its certificate names; without TLS nobody is named.
pub struct PeerStream(Stream, PeerSeen);

#[derive(Clone, Copy, Debug)]
pub struct PeerSeen(Option<NodeId>);

impl Connected for PeerStream {
    type ConnectInfo = PeerSeen;
    fn connect_info(&self) -> PeerSeen {
        self.1
    }
}

impl tokio::io::AsyncRead for PeerStream {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for PeerStream {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }
    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

/// Takes connections of peers; with TLS, only those of nodes of this cluster come through. A handshake that hangs holds up
/// nobody else.
pub fn accept_peers(
    listener: TcpListener,
    tls: Option<Tls>,
) -> tokio_stream::wrappers::ReceiverStream<std::io::Result<PeerStream>> {
    let (ready, taken) = mpsc::channel(ACCEPTED_MAX);
    tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        while let Ok(permit) = room.clone().acquire_owned().await {
            let Ok((stream, from)) = listener.accept().await else {
                // Out of file descriptors, most likely: give the others time to end.
                tokio::time::sleep(RECONNECT_PAUSE).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let (tls, ready) = (tls.clone(), ready.clone());
            if ready.is_closed() {
                return;
            }
            tokio::spawn(async move {
                let _permit = permit;
                let let_in = match &tls {
                    None => Let::In(Stream::Plain(Tcp::new(stream)), None),
                    Some(tls) => tls.accept(stream, from).await,
                };
                if let Let::In(stream, node) = let_in {
                    let _ = ready.send(Ok(PeerStream(stream, PeerSeen(node)))).await;
                }
            });
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(taken)
}

/// A peer speaks for itself only: who it says it is must be who its certificate says it is.
fn check_speaker<T>(request: &Request<T>) -> impl Fn(u64) -> Result<(), Status> + use<T> {
    let seen = request.extensions().get::<PeerSeen>().and_then(|s| s.0);
    move |claimed| match seen {
        Some(node) if node.0 != claimed => Err(Status::permission_denied(format!(
            "node {claimed} is spoken for by the certificate of node {node}"
        ))),
        _ => Ok(()),
    }
}

/// The receiving side.
pub struct PeerService(Arc<Peers>);

pub fn peer_service(peers: Arc<Peers>) -> PeerServer<PeerService> {
    PeerServer::new(PeerService(peers))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn raft(&self, request: Request<Streaming<v1::RaftBatch>>) -> Result<Response<v1::RaftClosed>, Status> {
        let speaks_for = check_speaker(&request);
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            self.0.check_cluster(&batch.cluster)?;
            speaks_for(batch.from)?;
            self.0.check_sender(batch.from)?;
            let Some(raft) = self.0.raft.get() else { continue };
            let message = |m: v1::RaftMessage| WireMessage {
                group: GroupId(m.group),
                head: m.head,
                data: m.data,
            };
            raft.receive(NodeId(batch.from), batch.messages.into_iter().map(message).collect());
        }
        Ok(Response::new(v1::RaftClosed {}))
    }

    async fn call(&self, request: Request<v1::CallRequest>) -> Result<Response<v1::CallResponse>, Status> {
        let speaks_for = check_speaker(&request);
        let request = request.into_inner();
        // Who joins has no number yet, whatever its certificate says; it is checked once it has one.
        if request.kind != CALL_JOIN {
            speaks_for(request.from)?;
        }
        if ![CALL_HELLO, CALL_FOUND, CALL_JOIN].contains(&request.kind.as_str()) {
            self.0.check_cluster(&request.cluster)?;
            self.0.check_sender(request.from)?;
        }
        if request.kind == CALL_HAVE {
            let asked = codec::from_bytes::<(GroupId, Vec<(String, u64, Bytes)>)>(&request.body);
            let (group, files) = asked.map_err(|e| Status::invalid_argument(e.to_string()))?;
            let file = |(name, bytes, hash)| v1::SnapshotFile { name, bytes, hash };
            let files: Vec<_> = files.into_iter().map(file).collect();
            let body = codec::to_bytes(&self.0.courier.have(group, &files)).into();
            return Ok(Response::new(v1::CallResponse { body }));
        }
        let handler = self.0.handlers.read().get(&request.kind).cloned();
        let handler = handler
            .ok_or_else(|| Status::unimplemented(format!("calls of kind {:?} are not known here", request.kind)))?;
        let body = handler(NodeId(request.from), request.body).await?;
        Ok(Response::new(v1::CallResponse { body }))
    }

    type AskStream = tokio_stream::wrappers::ReceiverStream<Result<v1::CallResponse, Status>>;

    async fn ask(&self, request: Request<v1::CallRequest>) -> Result<Response<Self::AskStream>, Status> {
        let speaks_for = check_speaker(&request);
        let request = request.into_inner();
        speaks_for(request.from)?;
        self.0.check_cluster(&request.cluster)?;
        self.0.check_sender(request.from)?;
        let handler = self.0.ask_handlers.read().get(&request.kind).cloned();
        let handler = handler
            .ok_or_else(|| Status::unimplemented(format!("questions of kind {:?} are not known here", request.kind)))?;
        let (pieces, mut ready) = mpsc::channel(PIECES_MAX);
        let (send, stream) = mpsc::channel(1);
        tokio::spawn(handler(NodeId(request.from), request.body, pieces));
        // The head of the answer goes out when there is something to say: who asked gives up on a node that hangs.
        let first = ready.recv().await;
        tokio::spawn(async move {
            let mut next = first;
            while let Some(piece) = next {
                let piece = piece.map(|body| v1::CallResponse { body });
                if send.send(piece).await.is_err() {
                    return;
                }
                next = ready.recv().await;
            }
        });
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(stream)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::SnapshotTaken>, Status> {
        let speaks_for = check_speaker(&request);
        self.0.take_snapshot(request.into_inner(), speaks_for).await?;
        Ok(Response::new(v1::SnapshotTaken {}))
    }
}
