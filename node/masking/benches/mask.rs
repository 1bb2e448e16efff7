//! How fast lines are looked at, with all shipped types on: bytes per second of one core.
//!
//! `HINDCAST_LOG_FILES` names files of real logs, parted by `:`; they are a case of their own.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hindcast_masking::{Counts, Masking, Settings, TypeSettings};
use std::fmt::Write;
use std::hint::black_box;

const LINES: usize = 4000;

/// A number that looks random and is the same in each run.
fn noise(n: usize) -> u64 {
    (n as u64 + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(31)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// Lines as services write them: times, addresses, identifiers, hashes; nothing of a person.
fn plain(n: usize) -> String {
    let (a, b) = (noise(n), noise(n * 7 + 3));
    let (h, m, s) = (a % 24, a / 31 % 60, a / 1999 % 60);
    let ip = format!("10.{}.{}.{}", b % 256, b / 256 % 256, b / 65536 % 256);
    match n % 6 {
        0 => format!(
            "2026-11-{:02} {h:02}:{m:02}:{s:02},{:03} INFO [worker-{}] Received connection request /{ip}:{}",
            n % 30 + 1,
            a % 1000,
            b % 64,
            b % 60000
        ),
        1 => format!(
            "{ip} - - [29/Nov/2026:{h:02}:{m:02}:{s:02} +0900] \"GET /v2/{a:016x}{b:016x}/servers/detail HTTP/1.1\" 200 {} 0.{:07}",
            b % 100_000,
            a % 10_000_000
        ),
        2 => format!(
            "Nov 29 {h:02}:{m:02}:{s:02} web-{} sshd[{}]: Failed password for invalid user admin from {ip} port {} ssh2",
            n % 9,
            a % 32768,
            b % 60000
        ),
        3 => format!(
            "{{\"ts\":{},\"level\":\"info\",\"trace_id\":\"{a:016x}{b:016x}\",\"msg\":\"order placed\",\"items\":{},\"ms\":{}.{:03}}}",
            1_795_341_500_000u64 + a % 1_000_000,
            b % 9,
            a % 500,
            b % 1000
        ),
        4 => format!(
            "{:06} {h:02}{m:02}{s:02} {} INFO dfs.DataNode: Received block blk_-{} of size 67108864 from /{ip}",
            251_129,
            a % 999,
            b
        ),
        _ => format!(
            "level=debug msg=\"cache miss\" key=user:{}:profile shard={} took={}us retry=false node=n-{:08x}",
            a % 1_000_000,
            b % 64,
            a % 5000,
            b as u32
        ),
    }
}

/// The same in Korean.
fn korean(n: usize) -> String {
    let a = noise(n);
    match n % 3 {
        0 => format!(
            "2026-11-29 09:{:02}:00 INFO 주문 {} 건을 처리했습니다. 다음 작업으로 이동합니다",
            a % 60,
            a % 100
        ),
        1 => format!(
            "level=warn msg=\"데이터베이스 응답이 느립니다\" 지연={}ms 재시도={}",
            a % 900,
            a % 5
        ),
        _ => format!(
            "결제 서버에서 요청을 다시 시도합니다: 상태 코드 {} 대기 시간 {}초",
            500 + a % 9,
            a % 30
        ),
    }
}

/// One line in ten has something of a person.
fn personal(n: usize) -> String {
    let mut line = plain(n);
    let a = noise(n);
    let _ = match n % 50 {
        0 => write!(line, " phone=010-{:04}-{:04}", a % 10_000, a / 10_000 % 10_000),
        10 => write!(line, " rrn=961219-1{:06}", a % 1_000_000),
        20 => write!(line, " user{}@example.co.kr", a % 1000),
        30 => write!(line, " card 4111-{:04}-{:04}-1111", a % 10_000, a / 10_000 % 10_000),
        40 => write!(line, " 서울시 성동구 성수이로 {}길 37", a % 90),
        _ => Ok(()),
    };
    line
}

fn bench(c: &mut Criterion) {
    let masking = |types| {
        let settings = Settings {
            types,
            ..Settings::default()
        };
        Masking::new(settings, &Counts::default()).expect("good settings")
    };
    let shipped = masking(vec![]);
    let own = TypeSettings {
        name: "employee".into(),
        pattern: Some(r"EMP-\d{6}".into()),
        ..TypeSettings::default()
    };
    let with_own = masking(vec![own]);
    let mut group = c.benchmark_group("mask");
    type Case<'a> = (&'a str, &'a Masking, fn(usize) -> String);
    let cases: [Case; 4] = [
        ("plain", &shipped, plain),
        ("korean", &shipped, korean),
        ("personal", &shipped, personal),
        ("plain with a pattern", &with_own, plain),
    ];
    let mut all: Vec<(&str, &Masking, Vec<String>)> = cases
        .into_iter()
        .map(|(name, masking, line)| (name, masking, (0..LINES).map(line).collect()))
        .collect();
    if let Ok(files) = std::env::var("HINDCAST_LOG_FILES") {
        #[allow(clippy::disallowed_methods, reason = "a measurement reads the files it is told")]
        let text = |file: &str| std::fs::read(file).unwrap_or_else(|e| panic!("{file} cannot be read: {e}"));
        let texts: Vec<_> = files
            .split(':')
            .map(|f| String::from_utf8_lossy(&text(f)).into_owned())
            .collect();
        let lines = texts.iter().flat_map(|t| t.lines().map(str::to_owned)).collect();
        all.push(("files", &shipped, lines));
    }
    for (name, masking, lines) in all {
        group.throughput(Throughput::Bytes(lines.iter().map(|l| l.len() as u64).sum()));
        group.bench_function(name, |b| {
            let mut session = masking.all().session();
            b.iter(|| {
                let hidden = lines.iter().filter(|l| session.mask(black_box(l.as_bytes())).is_some());
                black_box(hidden.count())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
