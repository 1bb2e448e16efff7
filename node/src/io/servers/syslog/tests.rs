//! Real sockets over a sink that records: what senders send, and what becomes of it when the store is slow or gone.

use super::*;
use crate::io::servers::tests::{NOW_SECS, Recorder};
use crate::io::servers::{FloorOf, IngestState};
use crate::io::tls::tests::Authority;
use crate::io::tls::{Dial, Port, TlsFiles};
use expect_test::expect;
use hindcast_env::SimClock;
use hindcast_env::io::SystemClock;
use hindcast_model::{ShardId, TimestampNs};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use tokio::io::AsyncWriteExt;
use tower::Service;

struct Served {
    recorder: Arc<Recorder>,
    stats: Arc<SyslogStats>,
    ports: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
}

async fn serve(listens: &[&str], bounds: Bounds, tls: Option<Tls>) -> Served {
    let recorder = Arc::new(Recorder::default());
    let clock = SimClock::at(TimestampNs::from_secs(NOW_SECS));
    let floor: FloorOf = Arc::new(|_| None);
    let syslog = Syslog {
        ingest: IngestState::new(recorder.clone(), Arc::new(clock), floor),
        stats: Arc::default(),
        tls,
        writer: "syslog/test".to_owned(),
        bounds,
    };
    let stats = syslog.stats.clone();
    let mut bound = vec![];
    for listen in listens {
        let listen = Listen::parse(listen, &jiff::tz::TimeZone::UTC).unwrap();
        bound.push(Bound::bind(listen).await.unwrap());
    }
    let ports = bound.iter().map(Bound::address).collect();
    let (stop, stopped) = watch::channel(false);
    let served = tokio::spawn(syslog.serve(bound, stopped));
    Served {
        recorder,
        stats,
        ports,
        stop,
        served,
    }
}

impl Served {
    fn lines(&self) -> Vec<String> {
        let batches = self.recorder.batches.lock();
        let streams = batches.iter().flat_map(|b| &b.streams);
        let lines = streams.flat_map(|s| s.lines.iter().map(|l| String::from_utf8_lossy(&l.line).into_owned()));
        lines.collect()
    }

    async fn wait(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        while !is(self) {
            assert!(
                tokio::time::Instant::now() < end,
                "{what}: not in time\n{:?}\n{}",
                self.lines().len(),
                self.counted("")
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Counters that are not zero and whose names hold a text.
    fn counted(&self, of: &str) -> String {
        let list = self
            .stats
            .list()
            .into_iter()
            .filter(|c| c.value > 0 && c.name.contains(of));
        let shown = |c: crate::io::servers::IngestSample| {
            let labels: Vec<_> = c.labels.iter().map(|(n, v)| format!("{n}={v}")).collect();
            format!("{}{{{}}} {}\n", c.name, labels.join(","), c.value)
        };
        list.map(shown).collect()
    }

    async fn end(self) -> (Arc<Recorder>, Arc<SyslogStats>) {
        self.stop.send(true).unwrap();
        self.served.await.unwrap();
        (self.recorder, self.stats)
    }
}

fn full(served: &Served, is_full: bool) {
    served.recorder.is_full.store(is_full, Ordering::SeqCst);
}

#[tokio::test]
async fn personal_data_in_syslog_is_masked_as_in_all_lines() {
    let served = serve(&["udp://127.0.0.1:0"], Bounds::default(), None).await;
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let text = "<13>1 - web-1 app - - [a@1 who=\"010-1234-5678\"] 고객 961219-1234567";
    udp.send_to(text.as_bytes(), served.ports[0]).await.unwrap();
    served.wait("a line", |s| s.lines().len() == 1).await;
    assert_eq!(served.lines(), ["고객 961219-*******"]);
    let batches = served.recorder.batches.lock().clone();
    let metadata = &batches[0].streams[0].lines[0].metadata;
    assert!(
        metadata.iter().any(|(_, value)| value == "010-****-5678"),
        "{metadata:?}"
    );
    // Labels are not masked, so what only might be a program's name is none.
    for text in ["<13>010-1234-5678: call me", "<13>hong@example.com: hello"] {
        udp.send_to(text.as_bytes(), served.ports[0]).await.unwrap();
    }
    served.wait("more lines", |s| s.lines().len() == 3).await;
    let batches = served.recorder.batches.lock().clone();
    let shown = format!("{batches:?}");
    assert!(shown.contains("010-****-5678: call me"), "{shown}");
    assert!(!shown.contains("010-1234-5678") && !shown.contains("hong@"), "{shown}");
}

#[tokio::test]
async fn datagrams_and_both_framings_become_lines_within_a_second() {
    let served = serve(
        &["udp://127.0.0.1:0", "tcp://127.0.0.1:0?tenant=team-a"],
        Bounds::default(),
        None,
    )
    .await;
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut tcp = TcpStream::connect(served.ports[1]).await.unwrap();
    let began = tokio::time::Instant::now();
    udp.send_to(b"<13>Nov 14 22:13:19 web-1 app[1]: by udp", served.ports[0])
        .await
        .unwrap();
    udp.send_to(b"not syslog", served.ports[0]).await.unwrap();
    served.wait("datagrams", |s| s.lines().len() == 2).await;
    tcp.write_all(b"<14>1 - web-2 app - - - by line\n16 <15>app: counted<16>app: ha")
        .await
        .unwrap();
    served.wait("frames", |s| s.lines().len() == 4).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    tcp.write_all(b"lf\n").await.unwrap();
    served.wait("the second half", |s| s.lines().len() == 5).await;
    let mut shown: Vec<String> = vec![];
    for batch in served.recorder.batches.lock().iter() {
        assert!(matches!(batch.id, Some(BatchId::Sequenced { .. })));
        for s in &batch.streams {
            let line = |l: &hindcast_model::LogLine| format!("{} {} {:?}", batch.tenant.as_str(), s.labels, l.line);
            shown.extend(s.lines.iter().map(line));
        }
    }
    shown.sort();
    expect![[r#"
        default {app_name="app", facility="user", host_name="web-1", severity="notice", syslog_format="rfc3164"} b"by udp"
        default {host_name="127.0.0.1", syslog_format="unknown"} b"not syslog"
        team-a {app_name="app", facility="mail", host_name="127.0.0.1", severity="emerg", syslog_format="rfc3164"} b"half"
        team-a {app_name="app", facility="user", host_name="127.0.0.1", severity="debug", syslog_format="rfc3164"} b"counted"
        team-a {app_name="app", facility="user", host_name="web-2", severity="info", syslog_format="rfc5424"} b"by line""#]]
    .assert_eq(&shown.join("\n"));
    expect![[r#"
        hindcast_syslog_messages_total{transport=udp} 2
        hindcast_syslog_bytes_total{transport=udp} 50
        hindcast_syslog_messages_total{transport=tcp} 3
        hindcast_syslog_bytes_total{transport=tcp} 65
        hindcast_syslog_connections{transport=tcp} 1
        hindcast_syslog_connections_total{transport=tcp} 1
        hindcast_syslog_marked_total{mark=unknown_format} 1
    "#]]
    .assert_eq(&served.counted(""));
    drop(tcp);
    served
        .wait("the connection's end", |s| !s.counted("").contains("connections{"))
        .await;
}

/// Writes lines until the socket takes no more for a while; how many lines it took in whole, and what is left of one.
async fn fill(tcp: &mut TcpStream, pad: &str) -> (usize, Vec<u8>) {
    let mut lines = 0;
    loop {
        let line = format!("<13>app: {lines} {pad}\n").into_bytes();
        let mut sent = 0;
        while sent < line.len() {
            let wrote = tokio::time::timeout(Duration::from_millis(700), tcp.write(&line[sent..])).await;
            match wrote {
                Ok(n) => sent += n.unwrap(),
                Err(_) => return (lines, line[sent..].to_vec()),
            }
        }
        lines += 1;
    }
}

#[tokio::test]
async fn a_connection_waits_in_its_socket_while_nothing_can_be_stored() {
    let served = serve(&["tcp://127.0.0.1:0"], Bounds::default(), None).await;
    full(&served, true);
    let mut tcp = TcpStream::connect(served.ports[0]).await.unwrap();
    // More than kernels hold for a connection.
    let (lines, rest) = fill(&mut tcp, &"x".repeat(4000)).await;
    assert!(lines > 10, "{lines}");
    assert!(served.lines().is_empty());
    full(&served, false);
    tcp.write_all(&rest).await.unwrap();
    tcp.shutdown().await.unwrap();
    served.wait("all lines", |s| s.lines().len() == lines + 1).await;
    let numbers = served
        .lines()
        .iter()
        .map(|l| l.split(' ').next().unwrap().parse().unwrap())
        .collect::<Vec<usize>>();
    assert!(numbers.iter().copied().eq(0..=lines), "in order, once");
    assert!(
        served.counted("waits").contains("write_waits_total"),
        "{}",
        served.counted("")
    );
    assert_eq!(served.counted("dropped"), "");
}

#[tokio::test]
async fn a_batch_that_may_be_stored_is_written_again_under_its_number() {
    let served = serve(&["tcp://127.0.0.1:0"], Bounds::default(), None).await;
    let shard = ShardId(1);
    // The last one comes first.
    *served.recorder.fails.lock() = vec![
        WriteError::NoLeader { shard },
        WriteError::Unconfirmed { shard },
        WriteError::TooLarge {
            shard,
            bytes: 9,
            entry_bytes_max: 8,
        },
    ];
    let mut tcp = TcpStream::connect(served.ports[0]).await.unwrap();
    tcp.write_all(b"<13>a: 1\n<13>a: 2\n<13>a: 3\n").await.unwrap();
    served.wait("all", |s| s.lines().len() == 3).await;
    assert_eq!(
        served.lines(),
        ["1", "2", "3"],
        "in halves, because the whole was too large"
    );
    let ids: BTreeSet<_> = served.recorder.batches.lock().iter().map(|b| b.id).collect();
    assert_eq!(ids.len(), 2);
    // Number 2, and not one for each attempt.
    let seqs = ids.iter().map(|id| match id {
        Some(BatchId::Sequenced { seq, .. }) => *seq,
        other => panic!("{other:?}"),
    });
    assert_eq!(seqs.collect::<Vec<_>>(), [2, 3]);
    // Stored already, as the shard says; and what can never be stored is counted.
    *served.recorder.fails.lock() = vec![WriteError::SequenceTooOld { shard }];
    tcp.write_all(b"<13>a: 4\n").await.unwrap();
    served.wait("the fourth", |s| s.recorder.fails.lock().is_empty()).await;
    let floor = TimestampNs(5);
    *served.recorder.fails.lock() = vec![
        WriteError::TooOld {
            at: TimestampNs(0),
            floor
        };
        1 + TOO_OLD_MAX as usize
    ];
    tcp.write_all(b"<13>a: 5\n<13>a: 6\n").await.unwrap();
    served
        .wait("the refused", |s| s.counted("dropped").contains("reason=refused} 2"))
        .await;
    tcp.write_all(b"<13>a: 7\n").await.unwrap();
    served.wait("the last", |s| s.lines().len() == 4).await;
    assert_eq!(served.lines()[3], "7");
}

#[tokio::test]
async fn datagrams_that_find_no_room_are_counted() {
    let bounds = Bounds {
        udp_queued_bytes: 20 * (UDP_OVERHEAD_BYTES + 100),
        ..Bounds::default()
    };
    let served = serve(&["udp://127.0.0.1:0"], bounds, None).await;
    full(&served, true);
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for i in 0..50 {
        let text = format!("{:<100}", format!("<13>app: {i}"));
        udp.send_to(text.as_bytes(), served.ports[0]).await.unwrap();
    }
    served
        .wait("all came", |s| s.counted("messages").contains(" 50\n"))
        .await;
    assert_eq!(
        served.counted("dropped"),
        "hindcast_syslog_dropped_total{transport=udp,reason=queue_full} 30\n"
    );
    assert_eq!(served.stats.udp_queued_bytes(), bounds.udp_queued_bytes);
    full(&served, false);
    served.wait("what fitted", |s| s.lines().len() == 20).await;
    served
        .wait("the room is given back", |s| s.stats.udp_queued_bytes() == 0)
        .await;
    udp.send_to(b"<13>app: there is room again", served.ports[0])
        .await
        .unwrap();
    served.wait("one more", |s| s.lines().len() == 21).await;
}

/// What was logged: the fields of each event.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<String>>>);

struct Fields<'a>(&'a mut String);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        *self.0 += &format!("{field}={value:?} ");
    }
}

impl tracing::Subscriber for Logged {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut Fields(&mut text));
        self.0.lock().push(text);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn who_may_not_send_and_connections_beyond_the_bound_are_refused_and_counted() {
    let bounds = Bounds {
        connections: 2,
        ..Bounds::default()
    };
    let listens = [
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:0?from=10.0.0.0/8",
        "udp://127.0.0.1:0?from=10.0.0.0/8",
    ];
    let logged = Logged::default();
    let _logs = tracing::subscriber::set_default(logged.clone());
    let served = serve(&listens, bounds, None).await;
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..3 {
        udp.send_to(b"<13>a: b", served.ports[2]).await.unwrap();
    }
    let mut first = TcpStream::connect(served.ports[0]).await.unwrap();
    let _second = TcpStream::connect(served.ports[0]).await.unwrap();
    served
        .wait("two", |s| s.counted("").contains("connections{transport=tcp} 2"))
        .await;
    for (port, reason) in [(0, "connections"), (1, "source")] {
        let mut refused = TcpStream::connect(served.ports[port]).await.unwrap();
        assert!(!matches!(refused.read(&mut [0; 9]).await, Ok(1..)));
        let said = format!("connections_refused_total{{transport=tcp,reason={reason}}} 1");
        served.wait(reason, |s| s.counted("").contains(&said)).await;
    }
    served
        .wait("the datagram", |s| {
            s.counted("dropped").contains("{transport=udp,reason=source} 3")
        })
        .await;
    // Each listener says it once of each address.
    let mut refused = logged.0.lock().clone();
    refused.retain(|l| l.contains("is refused"));
    assert_eq!(refused.len(), 2, "{refused:?}");
    for listen in ["listen=tcp://127.0.0.1:0", "listen=udp://127.0.0.1:0"] {
        let is = |l: &String| l.contains(listen) && l.contains("peer=127.0.0.1");
        assert!(refused.iter().any(is), "{refused:?}");
    }
    first.write_all(b"<13>a: still served\n").await.unwrap();
    served.wait("the line", |s| s.lines().len() == 1).await;
}

#[tokio::test]
async fn a_message_without_its_end_is_stored_all_the_same() {
    let bounds = Bounds {
        frame_span: Duration::from_millis(200),
        ..Bounds::default()
    };
    let served = serve(&["tcp://127.0.0.1:0"], bounds, None).await;
    let mut tcp = TcpStream::connect(served.ports[0]).await.unwrap();
    tcp.write_all(b"<13>a: no newline").await.unwrap();
    served.wait("the first", |s| s.lines() == ["no newline"]).await;
    tcp.write_all(b"99 <13>a: half").await.unwrap();
    served.wait("the second", |s| s.lines().len() == 2).await;
    assert!(served.counted("marked").contains("mark=cut} 1"));
    // What was late is left out, and all behind it is read as before.
    let late = "x".repeat(99 - "<13>a: half".len());
    tcp.write_all(format!("{late}12 <13>a: whole<13>a: a line\n").as_bytes())
        .await
        .unwrap();
    served.wait("the others", |s| s.lines().len() == 4).await;
    assert_eq!(served.lines()[1..], ["half", "whole", "a line"]);
}

#[tokio::test]
async fn a_sender_that_drips_keeps_its_message_open_no_longer_than_one_that_stalls() {
    let bounds = Bounds {
        frame_span: Duration::from_millis(300),
        ..Bounds::default()
    };
    let served = serve(&["tcp://127.0.0.1:0"], bounds, None).await;
    let mut tcp = TcpStream::connect(served.ports[0]).await.unwrap();
    tcp.write_all(b"200 <13>a: ").await.unwrap();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        tcp.write_all(b"x").await.unwrap();
        if !served.lines().is_empty() {
            break;
        }
    }
    let lines = served.lines();
    assert_eq!(lines.len(), 1, "not in time");
    assert!(lines[0].len() < 100, "{lines:?}");
    assert!(served.counted("marked").contains("mark=cut} 1"));
}

/// Senders had each sent a half of a long message. All of them waited for room that the others held, and no listener read anything
/// any more.
#[tokio::test]
async fn many_senders_of_half_a_long_message_do_not_stop_all_listeners() {
    const SENDERS: usize = 16;
    // Few of the halves find room beside that of their connections.
    let bounds = Bounds {
        connections: SENDERS + 1,
        buffered_bytes: (SENDERS + 1) * READ_BYTES + 100 * 1024,
        frame_span: Duration::from_secs(120),
        room_span: Duration::from_millis(100),
        ..Bounds::default()
    };
    let served = serve(&["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"], bounds, None).await;
    let text = format!("<13>a: {}", "x".repeat(200 * 1024));
    let message = format!("{} {text}", text.len());
    let (half, rest) = message.split_at(150 * 1024);
    let mut senders = vec![];
    for _ in 0..SENDERS {
        let mut tcp = TcpStream::connect(served.ports[0]).await.unwrap();
        tcp.write_all(half.as_bytes()).await.unwrap();
        senders.push(tcp);
    }
    served.wait("cut messages", |s| s.lines().len() >= SENDERS - 1).await;
    let mut other = TcpStream::connect(served.ports[1]).await.unwrap();
    other.write_all(b"<13>a: still served\n").await.unwrap();
    served
        .wait("another one", |s| s.lines().iter().any(|l| l == "still served"))
        .await;
    for tcp in &mut senders {
        tcp.write_all(rest.as_bytes()).await.unwrap();
        tcp.write_all(b"11 <13>a: next").await.unwrap();
    }
    served.wait("all", |s| s.lines().len() == 2 * SENDERS + 1).await;
    let lines = served.lines();
    assert_eq!(lines.iter().filter(|l| *l == "next").count(), SENDERS);
    let long = lines.iter().filter(|l| l.starts_with('x'));
    let cut = long.filter(|l| l.len() < 200 * 1024).count();
    assert!((1..=SENDERS).contains(&cut), "{cut}");
    let counted = served.counted("marked");
    assert!(counted.contains(&format!("mark=cut}} {cut}\n")), "{counted}");
}

#[tokio::test]
async fn a_long_message_is_not_cut_while_the_store_stands_still() {
    let bounds = Bounds {
        connections: 2,
        // For one of the two.
        buffered_bytes: 2 * READ_BYTES + 150 * 1024,
        room_span: Duration::from_millis(50),
        ..Bounds::default()
    };
    let served = serve(&["tcp://127.0.0.1:0"], bounds, None).await;
    full(&served, true);
    let text = format!("<13>a: {}", "x".repeat(150 * 1024));
    let message = format!("{} {text}", text.len());
    let mut first = TcpStream::connect(served.ports[0]).await.unwrap();
    first.write_all(message.as_bytes()).await.unwrap();
    served
        .wait("the first", |s| s.counted("messages").contains("tcp} 1"))
        .await;
    let (half, rest) = message.split_at(140 * 1024);
    let mut second = TcpStream::connect(served.ports[0]).await.unwrap();
    second.write_all(half.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        served.counted("messages").contains("tcp} 1\n"),
        "{}",
        served.counted("")
    );
    full(&served, false);
    second.write_all(rest.as_bytes()).await.unwrap();
    served.wait("both", |s| s.lines().len() == 2).await;
    assert!(served.lines().iter().all(|l| l.len() == 150 * 1024));
    assert_eq!(served.counted("marked"), "");
}

#[tokio::test]
async fn connections_share_their_bytes_and_all_come_through() {
    // No room beside that of each connection.
    let bounds = Bounds {
        connections: 10,
        buffered_bytes: 10 * READ_BYTES,
        ..Bounds::default()
    };
    let served = serve(&["tcp://127.0.0.1:0"], bounds, None).await;
    let address = served.ports[0];
    let senders = (0..10).map(|i| async move {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        for n in 0..20 {
            tcp.write_all(format!("<13>app: {i}-{n}\n").as_bytes()).await.unwrap();
        }
        tcp.shutdown().await.unwrap();
    });
    futures::future::join_all(senders).await;
    served.wait("all", |s| s.lines().len() == 200).await;
    let distinct: BTreeSet<_> = served.lines().into_iter().collect();
    assert_eq!(distinct.len(), 200);
}

#[tokio::test]
async fn what_was_read_is_stored_when_the_node_stops_or_counted_as_lost() {
    let served = serve(&["tcp://127.0.0.1:0", "udp://127.0.0.1:0"], Bounds::default(), None).await;
    let mut tcp = TcpStream::connect(served.ports[0]).await.unwrap();
    full(&served, true);
    tcp.write_all(b"<13>a: 1\n").await.unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.send_to(b"<13>a: 2", served.ports[1]).await.unwrap();
    served
        .wait("both came", |s| s.counted("messages").lines().count() == 2)
        .await;
    full(&served, false);
    let (recorder, _) = served.end().await;
    assert_eq!(recorder.batches.lock().iter().map(Batch::lines).sum::<u64>(), 2);

    let bounds = Bounds {
        stop_span: Duration::from_millis(100),
        ..Bounds::default()
    };
    let served = serve(&["tcp://127.0.0.1:0", "udp://127.0.0.1:0"], bounds, None).await;
    full(&served, true);
    let mut tcp = TcpStream::connect(served.ports[0]).await.unwrap();
    tcp.write_all(b"<13>a: 1\n<13>a: 2\n<13>a: ha").await.unwrap();
    for _ in 0..3 {
        udp.send_to(b"<13>a: 3", served.ports[1]).await.unwrap();
    }
    served
        .wait("both came", |s| {
            s.counted("messages").contains("tcp} 2") && s.counted("messages").contains("udp} 3")
        })
        .await;
    let (recorder, stats) = served.end().await;
    assert!(recorder.batches.lock().is_empty());
    let lost = stats
        .list()
        .into_iter()
        .filter(|c| c.labels.contains(&("reason", "shutdown")));
    assert_eq!(lost.map(|c| c.value).collect::<Vec<_>>(), [3, 2]);
}

#[tokio::test]
async fn tls_lets_in_who_shows_a_certificate_and_takes_new_ones() {
    let ca = Authority::new();
    let files = ca.sign("node", "hindcast://c-1/node/1", 2100);
    let tls = Tls::open(files, Port::Clients, Arc::new(SystemClock::new())).unwrap();
    tls.belongs_to("c-1");
    let served = serve(&["tls://127.0.0.1:0"], Bounds::default(), Some(tls.clone())).await;
    let uri: hyper::Uri = format!("https://{}", served.ports[0]).parse().unwrap();
    let send = async |files: TlsFiles, text: &str| -> bool {
        let Ok(stream) = Dial::with_files(&files).unwrap().call(uri.clone()).await else {
            return false;
        };
        let mut stream = stream.into_inner();
        stream.write_all(text.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok()
    };
    let own = ca.sign("client", "hindcast://c-1/client/web-1", 2100);
    assert!(send(own.clone(), "<13>a: by tls\n").await);
    served.wait("the line", |s| s.lines() == ["by tls"]).await;
    send(
        ca.sign("other", "hindcast://c-2/client/web-1", 2100),
        "<13>a: of a stranger\n",
    )
    .await;
    let mut plain = TcpStream::connect(served.ports[0]).await.unwrap();
    plain.write_all(b"<13>a: plain\n").await.unwrap();
    served.wait("refusals", |_| tls.stats().refused.len() == 2).await;
    ca.sign("node", "hindcast://c-1/node/1", 2101);
    assert!(tls.look());
    assert!(send(own, "<13>a: after the change\n").await);
    served
        .wait("the line", |s| s.lines() == ["by tls", "after the change"])
        .await;
}
