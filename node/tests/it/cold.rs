//! Cold files: in a folder, in an S3-shaped server of this test that fails when told, and in a real S3-compatible one.

#![allow(clippy::disallowed_methods, reason = "a test on real sockets and folders")]

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use hindcast_env::cold::{ColdEntry, ColdError, ColdRef, ColdStore};
use hindcast_env::disk::{DiskResult, write_new_file};
use hindcast_env::{ColdCache, ColdTier, Disk, ReadAt, SimDisk};
use hindcast_model::{Labels, LogLine, Owner, Sample, SeriesBlock, SpanNs, StreamBlock, TenantId, TimestampNs};
use hindcast_node::io::cold::{CA_FILE_VARIABLE, ObjectCold, PART_BYTES};
use hindcast_storage::{Cold, ColdRule, Floor, Shard, ShardConfig};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that repeat nowhere.
fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"cold");
    hasher.finalize_xof().fill(&mut out);
    out
}

struct Memory(Vec<u8>);

impl ReadAt for Memory {
    fn read_at(&self, offset: u64, len: usize) -> DiskResult<Bytes> {
        Ok(Bytes::copy_from_slice(&self.0[offset as usize..offset as usize + len]))
    }
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

/// What every store must do, whatever it is made of.
fn behaves(cold: &ObjectCold) {
    assert_eq!(cold.list("").unwrap(), []);
    let small = Memory(b"0123456789".to_vec());
    let large = Memory(noise(PART_BYTES as usize * 2 + 12_345));
    let empty = Memory(vec![]);
    let names = ["c/node-1/shard-1/a", "c/node-1/shard-1/b", "c/node-2/day=1/c"];
    let put: Vec<ColdRef> = [&small, &large, &empty]
        .iter()
        .zip(names)
        .map(|(file, name)| cold.put(name, *file).unwrap())
        .collect();
    for (put, file) in put.iter().zip([&small, &large, &empty]) {
        assert_eq!((put.bytes, put.blake3), (file.len(), *blake3::hash(&file.0).as_bytes()));
    }
    let listed: Vec<ColdEntry> = put
        .iter()
        .map(|p| ColdEntry {
            name: p.name.clone(),
            bytes: p.bytes,
        })
        .collect();
    assert_eq!(cold.list("").unwrap(), listed);
    assert_eq!(cold.list("c/node-1").unwrap(), listed[..2]);
    assert_eq!(cold.list("c/node").unwrap(), [], "a folder, not a beginning");

    let reader = cold.open(&put[1]).unwrap();
    assert_eq!(reader.len(), large.len());
    for (at, len) in [(0, 1), (PART_BYTES - 3, 7), (large.len() - 1, 1), (5, 300_000), (0, 0)] {
        assert_eq!(
            reader.read_at(at, len).unwrap(),
            large.0[at as usize..at as usize + len],
            "{at} {len}"
        );
    }
    let past = reader.read_at(large.len() - 1, 2).unwrap_err();
    assert_eq!(past.source.kind(), std::io::ErrorKind::UnexpectedEof);
    // Through the cache, as a shard reads it.
    let cache = ColdCache::new(16 << 20);
    let cached = cache.open(reader, put[1].bytes, &put[1].name);
    for _ in 0..3 {
        assert_eq!(cached.read_at(1_000_000, 1000).unwrap(), large.0[1_000_000..1_001_000]);
    }
    assert_eq!((cache.stats().hits, cache.stats().misses), (2, 1));

    // Another length, another name, nothing there.
    let longer = ColdRef {
        bytes: 11,
        ..put[0].clone()
    };
    assert!(matches!(cold.open(&longer), Err(ColdError::Damaged { .. })));
    assert!(matches!(cold.put("../escape", &small), Err(ColdError::BadName(..))));
    for name in names {
        cold.delete(name).unwrap();
        cold.delete(name).unwrap();
    }
    assert_eq!(cold.list("").unwrap(), []);
    assert!(matches!(cold.open(&put[0]), Err(ColdError::Missing { .. })));
}

fn work(shard: &mut Shard) {
    while let Some(job) = shard.begin_cold(TimestampNs::from_secs(100_000)) {
        let report = shard.finish_cold(job.run()).unwrap();
        assert_eq!(report.failed, None);
    }
}

/// A shard whose old files go to this store answers as before, opens without it, and deletes what it lets go.
fn serves_a_shard(cold: &ObjectCold) {
    let (disk, tenant) = (SimDisk::new(), TenantId::default());
    let rule = ColdRule {
        tenant: None,
        domain: None,
        after: Some(SpanNs::from_secs(3600)),
    };
    let config = |cache_bytes| ShardConfig {
        cold: Some(Cold::new(
            ColdTier::new(Arc::new(cold.clone()), cache_bytes),
            "cluster/node-1/shard-1".to_owned(),
            vec![rule.clone()],
        )),
        ..ShardConfig::default()
    };
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config(1 << 20)).unwrap();
    let noise = noise(160_000);
    for index in 1..=4u64 {
        let series = (0..20).map(|s: usize| SeriesBlock {
            labels: Labels::from_pairs([("__name__", "noise"), ("instance", &format!("h{s}"))]),
            owner: Owner::None,
            samples: (0..200)
                .map(|i: usize| Sample {
                    at: TimestampNs::from_secs(index as i64 * 1000 + i as i64),
                    value: f64::from_bits(u64::from_le_bytes(noise[(s * 200 + i) * 8..][..8].try_into().unwrap())),
                })
                .collect(),
        });
        let lines = (0..500).map(|i: i64| LogLine {
            at: TimestampNs::from_secs(index as i64 * 1000 + i),
            line: format!("worker-{} took {} ms, {:x?}", i % 7, i * i, &noise[i as usize..][..4]).into(),
            metadata: vec![],
        });
        let stream = StreamBlock {
            labels: Labels::from_pairs([("job", "shop")]),
            owner: Owner::None,
            lines: lines.collect(),
        };
        shard.write(index, &tenant, &series.collect::<Vec<_>>(), &[stream]);
        shard.advance(index);
        shard.flush(b"").unwrap();
    }
    while shard.compact_fully().unwrap().is_some() {}
    let before = shard.reader().digest().unwrap();
    work(&mut shard);
    shard.compact().unwrap();
    let stats = shard.stats();
    assert_eq!((stats.cold_segments, stats.cold_bytes), (2, stats.segment_bytes));
    assert_eq!(cold.list("cluster/node-1/shard-1").unwrap().len(), 2);
    assert!(!disk.list("s").unwrap().iter().any(|n| n.starts_with("segment-")));
    assert_eq!(shard.reader().digest().unwrap(), before);
    drop(shard);
    // With a cache that holds next to nothing.
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config(1)).unwrap();
    assert_eq!(shard.reader().digest().unwrap(), before);
    shard.retain(vec![Floor::at(None, None, TimestampNs::from_secs(50_000))]);
    shard.advance(5);
    shard.compact().unwrap();
    work(&mut shard);
    assert_eq!(cold.list("").unwrap(), []);
}

#[test]
fn a_shards_old_files_live_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/old files/", dir.path().display());
    serves_a_shard(&ObjectCold::open(&url, []).unwrap());
}

#[test]
fn a_shards_old_files_live_in_an_s3_store() {
    let (_shared, variables) = serve();
    serves_a_shard(&ObjectCold::open("s3://bucket/some/prefix", variables).unwrap());
}

/// A mount that is not there: the node starts, and what needs the folder says so.
#[test]
fn a_folder_that_cannot_be_made_is_a_store_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "not a folder").unwrap();
    let url = format!("file://{}/file/cold", dir.path().display());
    let cold = ObjectCold::open(&url, []).unwrap();
    let said = cold.put("a", &Memory(vec![7; 10])).unwrap_err().to_string();
    assert!(said.contains(&url), "{said}");
    std::fs::remove_file(dir.path().join("file")).unwrap();
    cold.put("a", &Memory(vec![7; 10])).unwrap();
}

#[test]
fn a_folder_is_a_cold_store() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/cold", dir.path().display());
    behaves(&ObjectCold::open(&url, []).unwrap());
    // What one process put, another finds.
    let put = ObjectCold::open(&url, [])
        .unwrap()
        .put("a", &Memory(vec![7; 10]))
        .unwrap();
    let again = ObjectCold::open(&url, []).unwrap();
    assert_eq!(again.open(&put).unwrap().read_at(0, 10).unwrap(), [7; 10][..]);
    std::fs::write(dir.path().join("cold/a"), [7; 9]).unwrap();
    assert!(matches!(again.open(&put), Err(ColdError::Damaged { .. })));
}

#[test]
fn a_file_of_a_simulated_disk_can_go_to_a_real_store() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), SimDisk::new());
    write_new_file(&disk, "segment", &noise(1000)).unwrap();
    let cold = ObjectCold::open(&format!("file://{}", dir.path().display()), []).unwrap();
    let put = cold
        .put("segment", disk.open_read("segment").unwrap().as_ref())
        .unwrap();
    assert_eq!(cold.open(&put).unwrap().read_at(0, 1000).unwrap(), noise(1000));
}

#[test]
fn an_address_that_is_none_says_what_one_looks_like() {
    for url in [
        "",
        "/somewhere",
        "file://relative",
        "file:///",
        "gs://bucket",
        "s3://",
        "s3://bucket/bad prefix",
    ] {
        let said = ObjectCold::open(url, [])
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(
            said.contains("s3://bucket/prefix") || said.contains("name"),
            "{url}: {said}"
        );
    }
}

// ---- an S3-shaped server ----

#[derive(Default)]
struct Fake {
    objects: BTreeMap<String, Bytes>,
    parts: BTreeMap<String, BTreeMap<u32, Bytes>>,
    /// Requests that get this answer before the next one works.
    failures: Vec<StatusCode>,
    /// Flips a bit of what is put.
    corrupts: bool,
    requests: u64,
}

type Shared = Arc<Mutex<Fake>>;

async fn fake(State(shared): State<Shared>, Query(q): Query<BTreeMap<String, String>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
    let mut s = shared.lock();
    s.requests += 1;
    let answer = || {
        Response::builder()
            .header(header::ETAG, "\"1\"")
            .header(header::LAST_MODIFIED, "Sun, 22 Nov 2026 00:00:00 GMT")
    };
    let done = |status: StatusCode| answer().status(status).body(Body::empty()).unwrap();
    if let Some(status) = s.failures.pop() {
        return done(status);
    }
    let key = head
        .uri
        .path()
        .trim_start_matches("/bucket")
        .trim_start_matches('/')
        .replace("%3D", "=");
    let xml = |text: String| Response::builder().body(Body::from(text)).unwrap();
    match (head.method, q.get("partNumber")) {
        (Method::PUT, Some(number)) => {
            s.parts.entry(key).or_default().insert(number.parse().unwrap(), body);
            done(StatusCode::OK)
        }
        (Method::PUT, None) => {
            let mut bytes = body.to_vec();
            if s.corrupts && !bytes.is_empty() {
                bytes[0] ^= 1;
            }
            s.objects.insert(key, bytes.into());
            done(StatusCode::OK)
        }
        (Method::POST, _) if q.contains_key("uploads") => {
            s.parts.insert(key, BTreeMap::new());
            xml("<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key><UploadId>1</UploadId></InitiateMultipartUploadResult>".into())
        }
        (Method::POST, _) => {
            let parts = s.parts.remove(&key).unwrap_or_default();
            let whole: Vec<u8> = parts.into_values().flatten().collect();
            s.objects.insert(key, whole.into());
            xml("<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key><ETag>\"1\"</ETag></CompleteMultipartUploadResult>".into())
        }
        (Method::DELETE, _) => {
            s.objects.remove(&key);
            done(StatusCode::NO_CONTENT)
        }
        (Method::GET, _) if q.contains_key("list-type") => {
            let prefix = q.get("prefix").cloned().unwrap_or_default();
            let rows: String = s
                .objects
                .iter()
                .filter(|(k, _)| k.starts_with(&prefix))
                .map(|(k, v)| {
                    format!(
                        "<Contents><Key>{k}</Key><Size>{}</Size><LastModified>2026-11-22T00:00:00.000Z</LastModified><ETag>\"1\"</ETag></Contents>",
                        v.len()
                    )
                })
                .collect();
            xml(format!(
                "<ListBucketResult>{rows}<IsTruncated>false</IsTruncated></ListBucketResult>"
            ))
        }
        (method, _) => {
            let Some(object) = s.objects.get(&key).cloned() else {
                return done(StatusCode::NOT_FOUND);
            };
            let range = head.headers.get(header::RANGE).and_then(|r| r.to_str().ok());
            let asked = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-'));
            let answer = match asked {
                None => answer().header(header::CONTENT_LENGTH, object.len()),
                Some((from, to)) => answer()
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header(header::CONTENT_RANGE, format!("bytes {from}-{to}/{}", object.len())),
            };
            let bytes = asked.map_or(object.clone(), |(from, to)| {
                object.slice(from.parse().unwrap()..to.parse::<usize>().unwrap() + 1)
            });
            let body = if method == Method::HEAD {
                Body::empty()
            } else {
                Body::from(bytes)
            };
            answer.body(body).unwrap()
        }
    }
}

/// Serves until the test's process ends.
fn serve() -> (Shared, Vec<(String, String)>) {
    let shared = Shared::default();
    let app = axum::Router::new().fallback(fake).with_state(shared.clone());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, app.into_make_service()).await.unwrap();
        });
    });
    (shared, variables(address))
}

fn variables(address: SocketAddr) -> Vec<(String, String)> {
    [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ENDPOINT", &format!("http://{address}")),
    ]
    .map(|(n, v)| (n.to_owned(), v.to_owned()))
    .to_vec()
}

#[test]
fn an_s3_server_is_a_cold_store() {
    let (shared, variables) = serve();
    behaves(&ObjectCold::open("s3://bucket/some/prefix", variables.clone()).unwrap());
    // Nobody else's objects are seen.
    shared.lock().objects.insert("some/prefixed".into(), Bytes::new());
    let cold = ObjectCold::open("s3://bucket/some/prefix", variables).unwrap();
    assert_eq!(cold.list("").unwrap(), []);
    cold.put("a", &Memory(vec![1])).unwrap();
    assert!(shared.lock().objects.contains_key("some/prefix/a"));
}

#[test]
fn a_server_that_fails_for_a_while_is_asked_again_and_one_that_refuses_is_not() {
    let (shared, variables) = serve();
    let cold = ObjectCold::open("s3://bucket/p", variables).unwrap();
    shared.lock().failures = vec![StatusCode::SERVICE_UNAVAILABLE, StatusCode::INTERNAL_SERVER_ERROR];
    let put = cold.put("a", &Memory(noise(1000))).unwrap();
    shared.lock().failures = vec![StatusCode::SERVICE_UNAVAILABLE; 2];
    assert_eq!(cold.open(&put).unwrap().read_at(0, 1000).unwrap(), noise(1000));

    shared.lock().failures = vec![StatusCode::FORBIDDEN];
    let before = shared.lock().requests;
    let refused = cold.open(&put).err().unwrap();
    assert!(matches!(refused, ColdError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("check the credentials"), "{refused}");
    assert_eq!(shared.lock().requests, before + 1);

    // No longer than the tries last: 0.1 + 0.2 + … seconds of pauses at most.
    shared.lock().failures = vec![StatusCode::SERVICE_UNAVAILABLE; 100];
    let gone = cold.open(&put).err().unwrap();
    assert!(matches!(gone, ColdError::Unavailable { .. }), "{gone}");
}

#[test]
fn what_the_store_does_not_give_back_as_it_was_does_not_count_as_put() {
    let (shared, variables) = serve();
    let cold = ObjectCold::open("s3://bucket/p", variables).unwrap();
    shared.lock().corrupts = true;
    let said = cold.put("a", &Memory(noise(1000))).unwrap_err();
    assert!(matches!(said, ColdError::Damaged { .. }), "{said}");
    assert_eq!(cold.list("").unwrap(), [], "and it is not left there");
}

#[test]
fn an_endpoint_where_nobody_listens_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cold = ObjectCold::open("s3://bucket/p", variables(free)).unwrap();
    let said = cold.list("").unwrap_err().to_string();
    assert!(
        said.contains("s3://bucket/p") && said.contains("check network"),
        "{said}"
    );
}

/// Stops a process when the test ends, however it ends.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts moto with these arguments; it may take a while until it answers.
fn moto(address: SocketAddr, more: &[&str]) -> Stopped {
    let program = std::env::var("MOTO_SERVER").unwrap_or_else(|_| "moto_server".to_owned());
    let server = Command::new(&program)
        .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} cannot be started: {e}; pip install 'moto[server]'"));
    Stopped(server)
}

/// A bucket is made by a PUT of its name; asked until the server is there.
fn make_bucket(endpoint: &str) {
    let started = Instant::now();
    loop {
        let made = Command::new("curl")
            .args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-X", "PUT"])
            .arg(format!("{endpoint}/bucket"))
            .output()
            .expect("curl is installed");
        if made.stdout == b"200" {
            return;
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "moto does not answer: {made:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
#[ignore = "needs curl and moto (pip install 'moto[server]'); MOTO_SERVER names its program: `cargo xtask prove cold` runs it"]
fn a_real_s3_compatible_server_is_a_cold_store() {
    let address = free_address();
    let _server = moto(address, &[]);
    make_bucket(&format!("http://{address}"));
    let cold = ObjectCold::open("s3://bucket/some/prefix", variables(address)).unwrap();
    behaves(&cold);
    serves_a_shard(&cold);
    println!("moto: put, verify, list, read, cache, delete: as promised, one file in parts");
}

#[test]
#[ignore = "needs openssl, curl and moto: `cargo xtask prove cold` runs it"]
fn a_private_server_is_trusted_by_its_certificate_and_by_nothing_less() {
    let (address, dir) = (free_address(), tempfile::tempdir().unwrap());
    let (key, certificate) = (dir.path().join("key.pem"), dir.path().join("certificate.pem"));
    let (key, certificate) = (key.to_str().unwrap(), certificate.to_str().unwrap());
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args([
            "-days",
            "2",
            "-subj",
            "/CN=cold store of a test",
            "-keyout",
            key,
            "-out",
            certificate,
        ])
        .args([
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ])
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let _server = moto(address, &["-s", "-c", certificate, "-k", key]);
    make_bucket(&format!("https://{address}"));
    let mut variables = variables(address);
    variables.retain(|(name, _)| name != "AWS_ENDPOINT" && name != "AWS_ALLOW_HTTP");
    variables.push(("AWS_ENDPOINT".to_owned(), format!("https://{address}")));
    let stranger = ObjectCold::open("s3://bucket/p", variables.clone()).unwrap();
    let said = stranger.list("").unwrap_err().to_string();
    assert!(said.contains("certificate") || said.contains("UnknownIssuer"), "{said}");
    variables.push((CA_FILE_VARIABLE.to_owned(), certificate.to_owned()));
    behaves(&ObjectCold::open("s3://bucket/p", variables).unwrap());
    println!("moto over TLS: as promised, with its certificate; refused without: {said}");
}
