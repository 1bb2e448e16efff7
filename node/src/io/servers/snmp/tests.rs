//! Polls against a small agent, and traps from sockets into a sink that keeps what it is given. Real programs are in
//! `chaos-tests/tests/process_snmp.rs`.

#![allow(
    clippy::disallowed_methods,
    reason = "a test lays out files as an operator does, and waits for sockets"
)]

use super::*;
use crate::io::servers::IngestState;
use crate::io::servers::scrape::{BODIES_BYTES_MAX, Loaded, Scraper};
use crate::io::servers::tests::Recorder;
use crate::write::WriteError;
use hindcast_env::Clock;
use hindcast_env::io::SystemClock;
use hindcast_model::{Kind, METRIC_NAME, NodeId, Owner, STALE_NAN_BITS, ShardId, SpanNs, TenantId};
use hindcast_snmp::pdu::{Community, Kind as PduKind};
use hindcast_snmp::session::{Access, Session};
use hindcast_snmp::usm::{AuthProtocol, Stretched, User};
use hindcast_snmp::{Oid, Pdu, Value};
use parking_lot::Mutex;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, watch};

const IN_OCTETS: [u32; 11] = [1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 6];

/// A device with one interface, which leaves the first `deaf` questions unanswered.
async fn agent(deaf: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = asked.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let message = Community::decode(&buffer[..len]).unwrap();
            if counter.fetch_add(1, Ordering::SeqCst) < deaf || message.community != b"public" {
                continue;
            }
            let answer = |(oid, _): &(Oid, Value)| match message.pdu.kind {
                PduKind::Get if oid.ids()[..9] == [1, 3, 6, 1, 2, 1, 1, 3, 0] => (oid.clone(), Value::TimeTicks(4200)),
                // A location that is an IP address of three bytes.
                PduKind::Get if oid.ids()[..9] == [1, 3, 6, 1, 2, 1, 1, 6, 0] => {
                    (oid.clone(), Value::Unread(vec![0x40, 3, 1, 2, 3]))
                }
                PduKind::GetBulk if oid.ids() == IN_OCTETS => {
                    let row = Oid::from([&IN_OCTETS[..], &[7]].concat());
                    (row, Value::Counter64(99))
                }
                _ => (oid.clone(), Value::EndOfMibView),
            };
            let pdu = Pdu {
                varbinds: message.pdu.varbinds.iter().map(answer).collect(),
                ..message.pdu.answer()
            };
            // Noise first: what is no answer is passed over.
            socket.send_to(b"noise", from).await.unwrap();
            socket
                .send_to(&Community { pdu, ..message }.encode(), from)
                .await
                .unwrap();
        }
    });
    (address, asked)
}

fn devices(text: &str) -> Devices {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("devices.yml");
    std::fs::write(&file, text).unwrap();
    load(&file).unwrap()
}

async fn polled(text: &str, stats: &PollStats) -> Result<Vec<String>, String> {
    let devices = devices(text);
    let target = devices.targets().next().unwrap();
    let room = Arc::new(Semaphore::new(BODIES_BYTES_MAX));
    let polling = poll(devices.get(target.key).unwrap(), &SystemClock::new(), &room, stats).await?;
    let (samples, held) = polling.into_samples();
    assert!(
        held.is_some_and(|h| h.num_permits() > 0),
        "what is not stored yet takes room"
    );
    assert_eq!(room.available_permits(), BODIES_BYTES_MAX, "and gives it back");
    let name = |pairs: &[(String, String)]| pairs.iter().find(|(n, _)| n == METRIC_NAME).unwrap().1.clone();
    Ok(samples
        .iter()
        .map(|s| format!("{} {}", name(&s.pairs), s.value))
        .collect())
}

#[tokio::test]
async fn a_device_is_asked_again_and_why_it_does_not_answer_is_said() {
    let (address, asked) = agent(1).await;
    let stats = PollStats::default();
    let device = |address: SocketAddr, community: &str| {
        format!("devices: [{{address: '{address}', name: sw-1, community: {community}, timeout: 200ms, retries: 1}}]")
    };
    let samples = polled(&device(address, "public"), &stats).await.unwrap();
    assert_eq!(samples, ["sysUpTime 4200", "snmp_device_info 1", "ifHCInOctets 99"]);
    let (questions, retries) = (
        stats.questions.load(Ordering::Relaxed),
        stats.retries.load(Ordering::Relaxed),
    );
    assert_eq!((retries, questions), (1, asked.load(Ordering::SeqCst) as u64));
    let said = polled(&device(address, "wrong"), &stats).await.unwrap_err();
    assert!(said.starts_with("no answer within 200ms, asked 2 times"), "{said}");
    let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let said = polled(&device(nobody, "public"), &stats).await.unwrap_err();
    assert!(said.starts_with("nobody listens at 127.0.0.1"), "{said}");
    let said = polled("devices: [{address: no-such-host.invalid, community: x}]", &stats)
        .await
        .unwrap_err();
    assert!(said.contains("no-such-host.invalid cannot be looked up"), "{said}");
}

/// One value was reason enough to say that the device is away.
#[tokio::test]
async fn a_device_with_a_value_that_cannot_be_read_has_all_its_others() {
    let (address, _) = agent(0).await;
    let list = format!("devices: [{{address: '{address}', name: a, community: public, timeout: 2s, retries: 0}}]");
    let stats = PollStats::default();
    let samples = polled(&list, &stats).await.unwrap();
    assert_eq!(samples, ["sysUpTime 4200", "snmp_device_info 1", "ifHCInOctets 99"]);
    assert_eq!(stats.unread.load(Ordering::Relaxed), 1);
}

/// It was said to be away.
#[tokio::test]
async fn a_device_whose_answers_cannot_be_read_is_not_said_to_be_away() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(b"noise", from).await.unwrap();
        }
    });
    let list = format!("devices: [{{address: '{address}', name: a, community: x, timeout: 200ms, retries: 0}}]");
    let said = polled(&list, &PollStats::default()).await.unwrap_err();
    let start = "no answer that can be read within 200ms, asked 1 times; of what came from there last: ";
    assert!(said.strip_prefix(start).is_some_and(|why| !why.is_empty()), "{said}");
}

/// Each held what it had and waited for what the others held; pages waited for all of them.
#[tokio::test]
async fn polls_that_find_no_more_room_break_off_and_do_not_wait_for_each_other() {
    let (address, _) = agent(0).await;
    let list = format!("devices: [{{address: '{address}', name: a, community: public, timeout: 2s, retries: 0}}]");
    let (lists, stats) = ([devices(&list), devices(&list)], PollStats::default());
    let clock = SystemClock::new();
    let polling = |n: usize, room: &Arc<Semaphore>| {
        let (list, room, stats, clock) = (lists[n].clone(), room.clone(), &stats, &clock);
        async move {
            let key = list.targets().next().unwrap().key;
            poll(list.get(key).unwrap(), clock, &room, stats).await
        }
    };
    let plenty = Arc::new(Semaphore::new(BODIES_BYTES_MAX));
    let (_, held) = polling(0, &plenty).await.unwrap().into_samples();
    let whole = held.unwrap().num_permits();
    assert!(whole < 4096, "what is kept, and not what came: {whole}");
    let room = Arc::new(Semaphore::new(whole - 1));
    let both = async { tokio::join!(polling(0, &room), polling(1, &room)) };
    let (a, b) = tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .expect("nobody waits");
    for said in [a.unwrap_err(), b.unwrap_err()] {
        assert!(said.starts_with("there is no room for more of its answers"), "{said}");
    }
    assert_eq!(room.available_permits(), whole - 1);
}

/// Waits until what was written looks so.
async fn until(recorder: &Recorder, what: impl Fn(&[hindcast_model::Batch]) -> bool) {
    for _ in 0..200 {
        if what(&recorder.batches.lock()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?}", recorder.batches.lock());
}

#[tokio::test]
async fn a_device_is_a_target_whose_series_are_its_own_and_end_when_it_is_away() {
    let (address, _) = agent(0).await;
    let recorder = Arc::new(Recorder::default());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let ingest = IngestState::new(recorder.clone(), clock.clone(), Arc::new(|_| None));
    let list = |community| {
        let text = format!(
            "devices: [{{address: '{address}', name: sw-1, community: {community}, interval: 1s, timeout: 100ms, retries: 0}}]"
        );
        Loaded::default().with_devices(devices(&text))
    };
    let scraper = Scraper::new(list("public"), ingest, None, NodeId(1), clock, "test".to_owned());
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(scraper.clone().run(stopped));
    let has = |batches: &[hindcast_model::Batch], name: &str, kind: Kind, is: &dyn Fn(f64) -> bool| {
        let mut all = batches.iter().flat_map(|b| &b.series);
        all.any(|s| {
            let is_owner = matches!(&s.owner, Owner::Resource { kind: k, .. } if *k == kind);
            s.labels.metric_name() == Some(name) && is_owner && s.samples.iter().any(|s| is(s.value))
        })
    };
    until(&recorder, |b| {
        has(b, "ifHCInOctets", Kind::Interface, &|v| v == 99.0)
            && has(b, "sysUpTime", Kind::Device, &|v| v == 4200.0)
            && has(b, "snmp_up", Kind::Device, &|v| v == 1.0)
    })
    .await;
    // The same target with another community: nothing of it is new but how it is asked.
    let (replaced, wrong) = (scraper.clone(), list("wrong"));
    tokio::task::spawn_blocking(move || replaced.replace(wrong))
        .await
        .unwrap();
    until(&recorder, |b| {
        has(b, "ifHCInOctets", Kind::Interface, &|v| v.to_bits() == STALE_NAN_BITS)
            && has(b, "snmp_up", Kind::Device, &|v| v == 0.0)
    })
    .await;
    let told = scraper.told().await;
    let why = told[0].last.as_ref().and_then(|l| l.error.clone());
    assert!(
        told.len() == 1 && why.is_some_and(|e| e.contains("no answer")),
        "{told:?}"
    );
    assert!(scraper.stats().polls.failed.load(Ordering::Relaxed) >= 1);
    let _ = stop.send(true);
    running.await.unwrap();
}

fn trap(community: &str, kind: PduKind, text: &str) -> Vec<u8> {
    let bind = |oid: &str, value| (oid.parse().unwrap(), value);
    let pdu = Pdu {
        kind,
        request_id: 7,
        error_status: 0,
        error_index: 0,
        varbinds: vec![
            bind(
                "1.3.6.1.6.3.1.1.4.1.0",
                Value::Oid("1.3.6.1.6.3.1.1.5.1".parse().unwrap()),
            ),
            bind("1.3.6.1.2.1.1.6.0", Value::Octets(text.as_bytes().to_vec())),
        ],
    };
    let community = community.as_bytes().to_vec();
    Community { community, pdu }.encode()
}

struct Listening {
    recorder: Arc<Recorder>,
    traps: Traps,
    to: SocketAddr,
    stop: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
}

const ONE: &str = "devices: [{address: 127.0.0.1, name: sw-1, community: x}]\ntraps: {senders: [{community: traps}]}";

impl Listening {
    async fn start(queued_bytes_max: Option<usize>) -> Self {
        let max = queued_bytes_max.unwrap_or(traps::QUEUED_BYTES_MAX);
        Self::with(ONE, "", max, names::by_the_machine()).await
    }

    async fn with(list: &str, limits: &str, queued_bytes_max: usize, look_up: names::LookUp) -> Self {
        let recorder = Arc::new(Recorder::default());
        let ingest = IngestState::new(recorder.clone(), Arc::new(SystemClock::new()), Arc::new(|_| None));
        ingest.limit(hindcast_ingest::tenant_limits::parse("limits.yml", limits).unwrap());
        let traps = Traps::new(ingest, "cluster/1", "test".to_owned()).unwrap();
        let traps = traps.with(queued_bytes_max, look_up);
        traps.set_senders(devices(list).senders().clone());
        let bound = BoundTraps::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (to, (stop, stopped)) = (bound.address(), watch::channel(false));
        let running = tokio::spawn(traps.clone().serve(vec![bound], stopped));
        Self {
            recorder,
            traps,
            to,
            stop,
            running,
        }
    }

    fn count(&self, name: &str, label: &str) -> u64 {
        let all = self.traps.stats().list();
        let found = all
            .iter()
            .find(|s| s.name == name && (label.is_empty() || s.labels.iter().any(|(_, v)| *v == label)));
        found.map_or(0, |s| s.value)
    }

    /// A socket at an address of this machine, as that of a device.
    async fn from(&self, address: &str) -> UdpSocket {
        let socket = UdpSocket::bind((address, 0)).await.unwrap();
        socket.connect(self.to).await.unwrap();
        socket
    }

    /// Tenants and what they have, in the order in which it was stored.
    fn lines(&self) -> Vec<String> {
        let batches = self.recorder.batches.lock();
        let of_tenant = |b: &hindcast_model::Batch| {
            let lines: Vec<_> = b.streams.iter().flat_map(|s| &s.lines).collect();
            let text = |l: &&hindcast_model::LogLine| {
                let line = std::str::from_utf8(&l.line).unwrap();
                format!("{} {}", b.tenant, line.rsplit('=').next().unwrap())
            };
            lines.iter().map(text).collect::<Vec<_>>()
        };
        batches.iter().flat_map(of_tenant).collect()
    }

    async fn counted(&self, name: &str, label: &str, wanted: u64) {
        for _ in 0..200 {
            if self.count(name, label) == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{name} {label}: {}", self.count(name, label));
    }
}

#[tokio::test]
async fn an_inform_is_answered_when_it_is_stored_and_not_before() {
    let l = Listening::start(None).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    l.recorder.is_full.store(true, Ordering::SeqCst);
    socket
        .send_to(&trap("traps", PduKind::Inform, "call 010-1234-5678"), l.to)
        .await
        .unwrap();
    let mut buffer = [0; 4096];
    let early = tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut buffer)).await;
    assert!(early.is_err(), "nothing is stored yet");
    l.recorder.is_full.store(false, Ordering::SeqCst);
    let len = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let answer = Community::decode(&buffer[..len]).unwrap();
    assert_eq!((answer.pdu.kind, answer.pdu.request_id), (PduKind::Response, 7));
    {
        let batches = l.recorder.batches.lock();
        let stream = &batches[0].streams[0];
        assert_eq!(stream.labels.get("instance"), Some("sw-1"));
        assert!(matches!(stream.owner, Owner::Resource { kind: Kind::Device, .. }));
        let line = std::str::from_utf8(&stream.lines[0].line).unwrap();
        assert_eq!(
            line,
            "trap 1.3.6.1.6.3.1.1.5.1 coldStart sysLocation=\"call 010-****-5678\""
        );
        assert_eq!(batches.len(), 1);
    }
    socket.send_to(&trap("public", PduKind::Trap, ""), l.to).await.unwrap();
    l.counted("hindcast_snmp_traps_refused_total", "community", 1).await;
    assert_eq!(l.count("hindcast_snmp_traps_total", "inform"), 1);
    let _ = l.stop.send(true);
    l.running.await.unwrap();
}

#[tokio::test]
async fn traps_that_find_no_room_or_cannot_be_stored_are_counted() {
    let l = Listening::start(Some(0)).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&trap("traps", PduKind::Trap, "a"), l.to).await.unwrap();
    l.counted("hindcast_snmp_traps_dropped_total", "queue_full", 1).await;
    let l = Listening::start(None).await;
    l.recorder.fails.lock().push(WriteError::TooLarge {
        shard: ShardId(1),
        bytes: 2,
        entry_bytes_max: 1,
    });
    socket.send_to(&trap("traps", PduKind::Trap, "a"), l.to).await.unwrap();
    l.counted("hindcast_snmp_traps_dropped_total", "refused", 1).await;
    // What waits when the node stops, and the store takes nothing.
    l.recorder.is_full.store(true, Ordering::SeqCst);
    socket.send_to(&trap("traps", PduKind::Trap, "b"), l.to).await.unwrap();
    l.counted("hindcast_snmp_traps_total", "trap", 2).await;
    let _ = l.stop.send(true);
    let traps = l.traps.clone();
    l.running.await.unwrap();
    assert!(l.recorder.batches.lock().is_empty());
    let lost = traps
        .stats()
        .list()
        .into_iter()
        .find(|s| s.labels == [("reason", "shutdown")]);
    assert_eq!(lost.map(|s| s.value), Some(1));
}

#[tokio::test]
async fn what_waits_is_stored_in_batches_of_a_bounded_length() {
    let l = Listening::start(None).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    l.recorder.is_full.store(true, Ordering::SeqCst);
    let count = traps::BATCH_LINES_MAX + 50;
    for sent in 1..=count {
        let text = sent.to_string();
        socket
            .send_to(&trap("traps", PduKind::Trap, &text), l.to)
            .await
            .unwrap();
        if sent % 50 == 0 {
            // So that the kernel drops none.
            l.counted("hindcast_snmp_traps_total", "trap", sent as u64).await;
        }
    }
    l.recorder.is_full.store(false, Ordering::SeqCst);
    let lines = |b: &hindcast_model::Batch| b.streams.iter().map(|s| s.lines.len()).sum::<usize>();
    until(&l.recorder, |all| all.iter().map(lines).sum::<usize>() == count).await;
    let batches = l.recorder.batches.lock();
    assert!(batches.len() > 1 && batches.iter().all(|b| lines(b) <= traps::BATCH_LINES_MAX));
}

async fn is_answered_within(socket: &UdpSocket, span: Duration) -> bool {
    let mut buffer = [0; 4096];
    match tokio::time::timeout(span, socket.recv(&mut buffer)).await {
        Ok(len) => Community::decode(&buffer[..len.unwrap()]).unwrap().pdu.kind == PduKind::Response,
        Err(_) => false,
    }
}

async fn is_answered(socket: &UdpSocket) -> bool {
    is_answered_within(socket, Duration::from_secs(20)).await
}

async fn is_left_without(socket: &UdpSocket) -> bool {
    !is_answered_within(socket, Duration::from_millis(500)).await
}

/// The device was told that its inform is stored, and it was nowhere.
#[tokio::test]
async fn an_inform_that_is_refused_is_not_confirmed_and_those_beside_it_are() {
    let list = "devices:\n- {address: 127.0.0.1, name: sw-1, community: x}\n\
                - {address: 127.0.0.2, name: sw-2, community: x, labels: {site: a, floor: b}}\n\
                traps: {senders: [{community: traps}]}";
    let l = Listening::with(list, "default: {labels_max: 4}", 1 << 20, names::by_the_machine()).await;
    let (one, two) = (l.from("127.0.0.1").await, l.from("127.0.0.2").await);
    // Both wait together.
    two.send(&trap("traps", PduKind::Inform, "of-two")).await.unwrap();
    one.send(&trap("traps", PduKind::Inform, "of-one")).await.unwrap();
    assert!(is_answered(&one).await && is_left_without(&two).await);
    assert_eq!(l.lines(), ["default of-one"]);
    assert_eq!(l.count("hindcast_snmp_traps_dropped_total", "refused"), 1);
    l.recorder.fails.lock().push(WriteError::TooLarge {
        shard: ShardId(1),
        bytes: 2,
        entry_bytes_max: 1,
    });
    one.send(&trap("traps", PduKind::Inform, "large")).await.unwrap();
    assert!(is_left_without(&one).await);
    assert_eq!(l.count("hindcast_snmp_traps_dropped_total", "refused"), 2);
}

/// All tenants waited for the one, and nothing said so.
#[tokio::test]
async fn a_tenant_that_sends_too_fast_holds_up_no_other_tenants_traps() {
    let list = "devices:\n- {address: 127.0.0.1, name: sw-1, community: x, tenant: fast}\n\
                - {address: 127.0.0.2, name: sw-2, community: x, tenant: calm}\n\
                traps: {senders: [{community: traps}]}";
    let limits = "tenants: {fast: {log_bytes_per_second: 1, log_bytes_burst: 1}}";
    // Room for six traps or so, of which the fast one gets three.
    let l = Listening::with(list, limits, 9000, names::by_the_machine()).await;
    let (fast, calm) = (l.from("127.0.0.1").await, l.from("127.0.0.2").await);
    fast.send(&trap("traps", PduKind::Inform, "first")).await.unwrap();
    assert!(is_answered(&fast).await);
    for n in 0..20 {
        fast.send(&trap("traps", PduKind::Trap, &format!("more-{n}")))
            .await
            .unwrap();
    }
    l.counted("hindcast_snmp_traps_total", "trap", 20).await;
    let full = l.count("hindcast_snmp_traps_dropped_total", "queue_full");
    assert!((16..20).contains(&full), "{full}");
    for n in 0..5 {
        calm.send(&trap("traps", PduKind::Inform, &format!("calm-{n}")))
            .await
            .unwrap();
        assert!(is_answered(&calm).await, "{n}");
    }
    assert_eq!(l.count("hindcast_snmp_traps_dropped_total", "queue_full"), full);
    let wanted: Vec<_> = (0..5).map(|n| format!("calm calm-{n}")).collect();
    assert_eq!(l.lines()[..1], ["fast first"]);
    assert_eq!(l.lines()[1..], wanted);
    assert!(l.count("hindcast_snmp_trap_write_waits_total", "") > 0);
}

/// Lines of one tenant's device were another tenant's to read, from the first name server that did not answer.
#[tokio::test]
async fn a_device_whose_name_is_not_found_sends_nothing_to_another_tenant() {
    let found = Arc::new(Mutex::new(None::<IpAddr>));
    let answer = found.clone();
    let look_up: names::LookUp = Arc::new(move |_| {
        let found = *answer.lock();
        Box::pin(async move { found.map(|a| vec![a]).ok_or(std::io::ErrorKind::TimedOut.into()) })
    });
    let list = "devices: [{address: sw-1.example.org, name: sw-1, community: x, tenant: own}]\n\
                traps: {tenant: all, senders: [{community: traps}]}";
    let l = Listening::with(list, "", 1 << 20, look_up).await;
    let device = l.from("127.0.0.1").await;
    let say = async |text: &str| {
        device.send(&trap("traps", PduKind::Inform, text)).await.unwrap();
        is_answered(&device).await
    };
    device.send(&trap("traps", PduKind::Inform, "early")).await.unwrap();
    assert!(is_left_without(&device).await, "nobody knows whose it is");
    assert_eq!(l.count("hindcast_snmp_traps_dropped_total", "owner_unknown"), 1);
    *found.lock() = Some("127.0.0.1".parse().unwrap());
    assert!(l.traps.look_up_once().await.is_empty());
    assert!(say("found").await);
    *found.lock() = None;
    let failing = l.traps.look_up_once().await;
    assert_eq!(
        failing.into_iter().collect::<Vec<_>>(),
        [("sw-1.example.org".to_owned(), "timed out".to_owned())]
    );
    assert!(say("away").await);
    assert_eq!(l.lines(), ["own found", "own away"]);
    assert!(l.count("hindcast_snmp_trap_name_failures_total", "") >= 2);
    // As soon as it is of another tenant in the list, its traps are.
    l.traps
        .set_senders(devices(&list.replace("tenant: own", "tenant: new")).senders().clone());
    assert!(say("moved").await);
    assert_eq!(
        l.recorder.batches.lock().last().unwrap().tenant,
        TenantId::new("new").unwrap()
    );
}

#[tokio::test]
async fn who_asks_for_the_engine_is_answered_and_counted() {
    let l = Listening::start(None).await;
    let user = User {
        name: "ops".to_owned(),
        protocol: AuthProtocol::Sha256,
        auth: Stretched::new(AuthProtocol::Sha256, b"long enough"),
        privacy: None,
    };
    let inform = Community::decode(&trap("traps", PduKind::Inform, "a")).unwrap().pdu;
    let question = Session::new(Access::User(user), 1).ask(&inform, SpanNs::ZERO);
    let socket = l.from("127.0.0.1").await;
    socket.send(&question).await.unwrap();
    let mut buffer = [0; 4096];
    let answered = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await;
    assert!(answered.unwrap().unwrap() > 0);
    l.counted("hindcast_snmp_trap_questions_total", "", 1).await;
    assert_eq!(l.count("hindcast_snmp_traps_total", "inform"), 0);
}

#[test]
fn who_is_refused_is_named_once_and_not_without_end() {
    let mut said = std::collections::BTreeSet::new();
    let peer = |n: u8| std::net::IpAddr::from([192, 0, 2, n]);
    for _again in 0..3 {
        let named = (0..100).filter(|n| traps::is_to_be_named(&mut said, peer(*n))).count();
        assert!(named == traps::SAID_MAX || said.len() == traps::SAID_MAX && named == 0);
    }
}
