//! How fast text protocols are read: `cargo bench -p hindcast-ingest --bench decode`.
//!
//! Throughput is bytes as they come over the wire, of one core: framing, reading, and streams or series with their owners; nothing is
//! stored.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hindcast_ingest::syslog::{Devices, Message, Names, Settings, frame, parse};
use hindcast_ingest::{Bounds, LimitsContext, influx, syslog};
use hindcast_model::{TenantId, TimestampNs};
use jiff::tz::TimeZone;
use std::hint::black_box;

const MESSAGES: usize = 10_000;
const NOW: TimestampNs = TimestampNs(1_700_000_000_000_000_000);
const LIMITS: LimitsContext = LimitsContext {
    now: NOW,
    floor: None,
    bounds: Bounds::DEFAULT,
};
const APPS: [&str; 5] = ["sshd", "nginx", "postgres", "kernel", "CRON"];

/// Of 50 hosts, with texts of about 80 bytes.
fn messages(rfc5424: bool) -> Vec<u8> {
    let mut out = vec![];
    for i in 0..MESSAGES {
        let (host, app, pid) = (i % 50, APPS[i % APPS.len()], 1000 + i % 900);
        let text = format!(
            "request {i:08x} of user{} from 10.1.{}.{} took {} ms, 200 OK",
            i % 40,
            i % 9,
            i % 251,
            i % 3000
        );
        let message = match rfc5424 {
            true => format!(
                "<{}>1 2023-11-14T22:13:{:02}.{:06}Z web-{host} {app} {pid} ID{} [origin@32473 ip=\"10.0.0.{host}\"] {text}",
                8 + i % 8,
                i % 20,
                i % 1_000_000,
                i % 10
            ),
            false => format!(
                "<{}>Nov 14 22:13:{:02} web-{host} {app}[{pid}]: {text}",
                8 + i % 8,
                i % 20
            ),
        };
        if rfc5424 {
            out.extend_from_slice(format!("{} {message}", message.len()).as_bytes());
        } else {
            out.extend_from_slice(message.as_bytes());
            out.push(b'\n');
        }
    }
    out
}

fn received(bytes: &[u8]) -> Vec<Message> {
    let mut framer = frame::Framer::default();
    framer.buffer().extend_from_slice(bytes);
    let frames = std::iter::from_fn(|| framer.next_frame());
    let message = |frame| Message {
        frame,
        peer: [10, 0, 0, 7].into(),
        received: NOW,
    };
    frames.map(message).collect()
}

fn syslogs(c: &mut Criterion) {
    let mut group = c.benchmark_group("syslog");
    for (name, rfc5424) in [("rfc5424", true), ("rfc3164", false)] {
        let bytes = messages(rfc5424);
        let settings = Settings {
            tenant: TenantId::default(),
            zone: TimeZone::UTC,
            charset: None,
            devices: Devices::default(),
        };
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("{name}, parse"), |b| {
            let messages = received(&bytes);
            b.iter(|| {
                for m in &messages {
                    let text = std::str::from_utf8(&m.frame.bytes).unwrap_or_default();
                    black_box(parse::parse(text));
                }
            });
        });
        group.bench_function(format!("{name}, bytes to batch"), |b| {
            let mut names = Names::default();
            b.iter(|| {
                let (read, _) = syslog::adapt(&settings, &received(black_box(&bytes)), &LIMITS, &mut names);
                assert_eq!(read.batch.lines(), MESSAGES as u64);
            });
        });
    }
    group.finish();
}

fn influxes(c: &mut Criterion) {
    let mut body = String::new();
    for i in 0..MESSAGES {
        body += &format!(
            "cpu,cpu=cpu{},host=web-{} usage_idle={}.25,usage_user={}.5,usage_system=1.125,context_switches={i}i {}\n",
            i % 8,
            i / 8 % 50,
            i % 90,
            i % 10,
            NOW.0 - i as i64 * 1_000_000
        );
    }
    let mut group = c.benchmark_group("influx");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("lines to batch", |b| {
        b.iter(|| {
            let read = influx::adapt(
                &TenantId::default(),
                black_box(body.as_bytes()),
                influx::Precision::Nanoseconds,
                &LIMITS,
            );
            assert_eq!(read.map(|r| r.adapted.batch.samples()).ok(), Some(4 * MESSAGES as u64));
        });
    });
    group.finish();
}

criterion_group!(benches, syslogs, influxes);
criterion_main!(benches);
