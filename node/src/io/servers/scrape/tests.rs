//! Scraping against a small HTTP server, into a sink that keeps what it is given.

#![allow(clippy::disallowed_methods, reason = "a test lays out files as an operator does")]

use super::*;
use crate::io::servers::FloorOf;
use crate::io::servers::tests::Recorder;
use crate::io::tls::tests::Authority;
use hindcast_env::io::SystemClock;
use hindcast_model::{METRIC_NAME, STALE_NAN_BITS};
use std::collections::VecDeque;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// An answer to one request: its head and its body, as they go over the wire.
fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    answer
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// Answers requests one after the other, the last answer again and again; and keeps what was asked.
#[derive(Clone)]
struct Site {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

impl Site {
    async fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let site = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            answers: Arc::new(Mutex::new(answers.into())),
        };
        let this = site.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let this = this.clone();
                tokio::spawn(async move {
                    let (mut request, mut buffer) = (vec![], [0; 4096]);
                    loop {
                        let read = stream.read(&mut buffer).await.unwrap_or(0);
                        if read == 0 {
                            return;
                        }
                        request.extend_from_slice(&buffer[..read]);
                        if request.ends_with(b"\r\n\r\n") {
                            let text = String::from_utf8_lossy(&std::mem::take(&mut request)).into_owned();
                            this.asked.lock().push(text);
                            let next = {
                                let mut answers = this.answers.lock();
                                match answers.len() {
                                    0 | 1 => answers.front().cloned(),
                                    _ => answers.pop_front(),
                                }
                            };
                            // No answer at all: the caller waits.
                            let Some(next) = next else { continue };
                            let _ = stream.write_all(&next).await;
                        }
                    }
                });
            }
        });
        site
    }
}

fn target(site: SocketAddr, job: &str) -> Target {
    let yaml = format!("scrape_configs: [{{job_name: j, static_configs: [{{targets: ['{site}']}}], {job}}}]");
    let mut config = hindcast_scrape::config::parse("f", &yaml).unwrap();
    let job = Arc::new(config.jobs.remove(0));
    let found = hindcast_scrape::target::find(&job, &job.groups, 1);
    (*found.active[0]).clone()
}

async fn fetched(site: &Site, job: &str) -> Result<String, String> {
    let target = target(site.address, job);
    let client = Client::new(&target.job.http.tls)?;
    let room = Arc::new(Semaphore::new(BODIES_BYTES_MAX));
    let page = fetch(&client, &target, &room).await?;
    Ok(String::from_utf8(page.body).unwrap())
}

#[tokio::test]
async fn a_target_is_asked_as_its_job_says() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("token");
    std::fs::write(&secret, "opensesame\n").unwrap();
    let zipped = gzip(b"up 1\n");
    let site = Site::start(vec![answer("Content-Encoding: gzip\r\n", &zipped)]).await;
    let job = format!(
        "metrics_path: /probe, params: {{module: [a b]}}, scrape_timeout: 2s, authorization: {{credentials_file: '{}'}}",
        secret.display()
    );
    assert_eq!(fetched(&site, &job).await.unwrap(), "up 1\n");
    let job = "basic_auth: {username: u, password: p}, enable_compression: false";
    assert_eq!(fetched(&site, job).await.unwrap(), "up 1\n");
    let asked = site.asked.lock().clone();
    for header in [
        "GET /probe?module=a%20b HTTP/1.1\r\n",
        "\r\naccept: application/openmetrics-text;version=1.0.0",
        "\r\naccept-encoding: gzip\r\n",
        "\r\nauthorization: Bearer opensesame\r\n",
        "\r\nx-prometheus-scrape-timeout-seconds: 2\r\n",
    ] {
        assert!(asked[0].contains(header), "{header:?} in {}", asked[0]);
    }
    assert!(asked[1].contains("\r\nauthorization: Basic dTpw\r\n"), "{}", asked[1]);
    assert!(!asked[1].contains("gzip"));
}

#[tokio::test]
async fn redirects_are_followed_without_secrets_to_others_and_not_for_ever() {
    let redirect = |to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").into_bytes();
    let other = Site::start(vec![answer("", b"other 1\n")]).await;
    let elsewhere = redirect(&format!("http://{}/m", other.address));
    let site = Site::start(vec![redirect("/here?x=1"), elsewhere, redirect("/again")]).await;
    let job = "bearer_token: opensesame";
    assert_eq!(fetched(&site, job).await.unwrap(), "other 1\n");
    assert!(site.asked.lock()[1].starts_with("GET /here?x=1 ") && site.asked.lock()[1].contains("opensesame"));
    assert!(!other.asked.lock()[0].contains("opensesame"));
    assert_eq!(fetched(&site, job).await.unwrap_err(), "more than 10 redirects");
    assert_eq!(
        fetched(&site, "follow_redirects: false").await.unwrap_err(),
        "the server answered 302 Found"
    );
}

#[tokio::test]
async fn answers_that_are_no_page_say_why() {
    let site = Site::start(vec![
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ])
    .await;
    assert_eq!(
        fetched(&site, "").await.unwrap_err(),
        "the server answered 503 Service Unavailable"
    );
    let site = Site::start(vec![answer("Content-Encoding: gzip\r\n", b"not gzip")]).await;
    assert!(fetched(&site, "").await.unwrap_err().contains("does not decompress"));
    let site = Site::start(vec![answer("Content-Encoding: br\r\n", b"x")]).await;
    assert!(fetched(&site, "").await.unwrap_err().contains("\"br\""));
    let nobody = Site {
        address: "127.0.0.1:1".parse().unwrap(),
        ..site
    };
    assert!(fetched(&nobody, "").await.unwrap_err().contains("refused"));
}

#[tokio::test]
async fn a_page_has_at_most_what_its_job_says_also_when_it_is_small_on_the_wire() {
    let large = vec![b'x'; 3000];
    for answer in [answer("", &large), answer("Content-Encoding: gzip\r\n", &gzip(&large))] {
        let site = Site::start(vec![answer]).await;
        assert_eq!(fetched(&site, "").await.unwrap().len(), 3000);
        let said = fetched(&site, "body_size_limit: 2KB").await.unwrap_err();
        assert_eq!(said, "the page has more than 2048 bytes; raise body_size_limit");
    }
}

#[test]
fn a_bound_that_cannot_be_raised_does_not_ask_for_it() {
    assert_eq!(
        fetch::too_large(hindcast_scrape::config::BODY_BYTES_MAX),
        "the page has more than 134217728 bytes, the most that is read of one answer"
    );
}

/// A page that is decompressed at one go holds up all else that its thread has to do.
#[tokio::test]
async fn a_thread_that_others_wait_for_does_not_decompress_pages() {
    let text = vec![b'x'; 4 * 1024 * 1024];
    let mut held = fetch::Held::new(&Arc::new(Semaphore::new(BODIES_BYTES_MAX)));
    let (mut waits, mut work) = (0, std::pin::pin!(fetch::gunzip(gzip(&text), text.len(), &mut held)));
    let unzipped = std::future::poll_fn(|cx| {
        let polled = work.as_mut().poll(cx);
        waits += u32::from(polled.is_pending());
        polled
    });
    assert_eq!(unzipped.await.unwrap(), text);
    assert!(waits > 0, "it was done without leaving the thread");
}

#[tokio::test]
async fn a_page_waits_for_room_and_gives_it_back() {
    let site = Site::start(vec![answer("", &[b'x'; 100])]).await;
    let target = target(site.address, "");
    let client = Client::new(&target.job.http.tls).unwrap();
    let room = Arc::new(Semaphore::new(150));
    let first = fetch(&client, &target, &room).await.unwrap();
    let second = tokio::time::timeout(Duration::from_millis(200), fetch(&client, &target, &room)).await;
    assert!(second.is_err(), "there is no room for it");
    drop(first);
    fetch(&client, &target, &room).await.unwrap();
    assert_eq!(room.available_permits(), 150);
}

/// TLS of a target: its authority is named, or not asked for; a name of its own is asked for.
#[tokio::test]
async fn targets_with_tls_show_a_certificate_that_is_looked_at() {
    let authority = Authority::new();
    let files = authority.sign("node-1", "", 2099);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = crate::io::tls::read_key(&files.cert, &files.key, &provider).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(&answer("Connection: close\r\n", b"up 1\n")).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    let site = Site {
        address,
        asked: Arc::default(),
        answers: Arc::default(),
    };
    let ca = files.ca.as_deref().unwrap_or(Path::new("")).display();
    let known = format!("scheme: https, tls_config: {{ca_file: '{ca}'}}");
    assert_eq!(
        fetched(&site, "scheme: https, tls_config: {insecure_skip_verify: true}")
            .await
            .unwrap(),
        "up 1\n"
    );
    assert!(
        fetched(&site, "scheme: https")
            .await
            .unwrap_err()
            .contains("certificate")
    );
    assert_eq!(fetched(&site, &known).await.unwrap(), "up 1\n");
    let other = format!("scheme: https, tls_config: {{ca_file: '{ca}', server_name: elsewhere.example}}");
    assert!(fetched(&site, &other).await.unwrap_err().contains("certificate"));
    assert!(
        fetched(&site, "tls_config: {ca_file: /nowhere}")
            .await
            .unwrap_err()
            .contains("/nowhere")
    );
}

/// A scraper on a file, and what it wrote.
struct Scene {
    dir: tempfile::TempDir,
    scraper: Scraper,
    recorder: Arc<Recorder>,
    stop: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
}

impl Scene {
    async fn start(files: &[(&str, String)]) -> Self {
        Self::start_with(files, Arc::new(|_| None)).await
    }

    /// `floor` is asked once for each batch that is laid out.
    async fn start_with(files: &[(&str, String)], floor: FloorOf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let recorder = Arc::new(Recorder::default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let ingest = IngestState::new(recorder.clone(), clock.clone(), floor);
        let loaded = load(&dir.path().join("prometheus.yml")).unwrap();
        let scraper = Scraper::new(loaded, ingest, None, NodeId(1), clock, "scrape/test".to_owned());
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(scraper.clone().run(stopped));
        Self {
            dir,
            scraper,
            recorder,
            stop,
            running,
        }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn reload(&self) -> Result<(), LoadError> {
        self.scraper.replace(load(&self.dir.path().join("prometheus.yml"))?);
        Ok(())
    }

    /// Values of a metric in the order in which they were written.
    fn values(&self, name: &str) -> Vec<f64> {
        let batches = self.recorder.batches.lock();
        let series = batches.iter().flat_map(|b| &b.series);
        let own = series.filter(|s| s.labels.get(METRIC_NAME) == Some(name));
        own.flat_map(|s| s.samples.iter().map(|s| s.value)).collect()
    }

    async fn wait(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let end = tokio::time::Instant::now() + Duration::from_secs(30);
        while !is(self) {
            assert!(
                tokio::time::Instant::now() < end,
                "{what}: not in time; up is {:?}",
                self.values("up")
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) {
        self.stop.send(true).unwrap();
        self.running.await.unwrap();
    }
}

fn is_stale(value: Option<&f64>) -> bool {
    value.is_some_and(|v| v.to_bits() == STALE_NAN_BITS)
}

fn config(site: &Site) -> String {
    format!(
        "global: {{scrape_interval: 200ms}}\nscrape_configs: [{{job_name: j, static_configs: [{{targets: ['{}']}}]}}]",
        site.address
    )
}

#[tokio::test]
async fn targets_are_scraped_again_and_again_and_their_series_end() {
    let pages = [&b"a 1\nb 1\n"[..], b"a 2\n"];
    let site = Site::start(pages.map(|p| answer("", p)).to_vec()).await;
    let scene = Scene::start(&[("prometheus.yml", config(&site))]).await;
    scene.wait("three scrapes", |s| s.values("up").len() >= 3).await;
    assert_eq!(scene.values("a")[..2], [1.0, 2.0]);
    let b = scene.values("b");
    assert!(b.len() == 2 && b[0] == 1.0 && is_stale(b.last()), "{b:?}");
    let told = scene.scraper.told().await;
    assert!(told.len() == 1 && told[0].last.as_ref().is_some_and(|l| l.error.is_none()));
    // A target that is gone ends, with what it says of itself.
    scene.write("prometheus.yml", "scrape_configs: []");
    scene.reload().unwrap();
    scene
        .wait("the end", |s| {
            is_stale(s.values("up").last()) && is_stale(s.values("a").last())
        })
        .await;
    let scrapes = scene.values("up").len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(scene.values("up").len(), scrapes);
    // All batches bear numbers of their own.
    let ids: Vec<_> = scene
        .recorder
        .batches
        .lock()
        .iter()
        .map(|b| format!("{:?}", b.id))
        .collect();
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
    scene.end().await;
}

#[tokio::test]
async fn exemplars_of_a_page_are_stored_once_and_masked_like_lines() {
    let page = |id: &str, seconds: f64| {
        // Ahead of every scrape: of a target's first page, what is older than an interval is not taken.
        let now = SystemClock::new().now().as_ms() as f64 / 1e3 + seconds;
        let text = format!("a_total 1 # {{trace_id=\"{id}\",user=\"gildong.hong@example.com\"}} 0.5 {now}\n# EOF\n");
        answer("Content-Type: application/openmetrics-text\r\n", text.as_bytes())
    };
    let site = Site::start(vec![page("a1", 30.0), page("a2", 40.0)]).await;
    let scene = Scene::start(&[("prometheus.yml", config(&site))]).await;
    scene.wait("five scrapes", |s| s.values("up").len() >= 5).await;
    let lines: Vec<_> = {
        let batches = scene.recorder.batches.lock();
        let streams = batches.iter().flat_map(|b| &b.streams);
        streams
            .flat_map(|s| s.lines.iter().map(|l| format!("{:?}", l.metadata)))
            .collect()
    };
    expect_test::expect![[r#"
        [("trace_id", "a1"), ("user", "gi**********@example.com")]
        [("trace_id", "a2"), ("user", "gi**********@example.com")]"#]]
    .assert_eq(&lines.join("\n"));
    let counted = scene.scraper.0.ingest.counters.list();
    let is = |c: &&crate::io::servers::IngestSample| c.name == "hindcast_ingest_exemplars_written_total";
    assert_eq!(counted.iter().find(is).unwrap().value, 2);
    scene.end().await;
}

#[tokio::test]
async fn a_target_that_does_not_answer_in_time_is_down_and_the_others_are_not_behind_it() {
    let (silent, site) = (Site::start(vec![]).await, Site::start(vec![answer("", b"a 1\n")]).await);
    let yaml = format!(
        "scrape_configs: [{{job_name: j, scrape_interval: 300ms, scrape_timeout: 100ms, static_configs: [{{targets: ['{}', '{}']}}]}}]",
        silent.address, site.address
    );
    let scene = Scene::start(&[("prometheus.yml", yaml)]).await;
    scene
        .wait("both", |s| {
            s.values("up").contains(&0.0) && s.values("up").contains(&1.0)
        })
        .await;
    let told = scene.scraper.told().await;
    let errors: Vec<_> = told.iter().filter_map(|t| t.last.as_ref()?.error.clone()).collect();
    assert_eq!(errors, ["no answer within the scrape timeout of 100ms"]);
    scene.end().await;
}

#[tokio::test]
async fn a_write_that_is_refused_is_tried_again_once_and_then_lost_and_counted() {
    let site = Site::start(vec![answer("", b"a 1\n")]).await;
    let scene = Scene::start(&[("prometheus.yml", config(&site))]).await;
    scene.recorder.is_full.store(true, Ordering::SeqCst);
    let stats = || scene.scraper.stats();
    scene.wait("a loss", |_| stats().lost_samples.load(Relaxed) >= 6).await;
    assert!(stats().retried.load(Relaxed) >= 1);
    scene.recorder.is_full.store(false, Ordering::SeqCst);
    let before = scene.values("up").len();
    scene.wait("more", |s| s.values("up").len() > before).await;
    scene.end().await;
}

#[tokio::test]
async fn files_of_targets_are_read_again_and_a_broken_one_keeps_its_targets() {
    let site = Site::start(vec![answer("", b"a 1\n")]).await;
    let yaml =
        "scrape_configs: [{job_name: j, scrape_interval: 200ms, file_sd_configs: [{files: ['t-*.yml', one.json]}]}]";
    let file = format!("- targets: ['{}']\n  labels: {{rack: '7'}}", site.address);
    let scene = Scene::start(&[("prometheus.yml", yaml.to_owned()), ("t-1.yml", file)]).await;
    scene.wait("a scrape", |s| !s.values("a").is_empty()).await;
    let labels = |s: &Scene| {
        let told = s.scraper.0.state.lock().pool.told();
        told.iter().map(|t| t.target.labels.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        labels(&scene),
        [format!("{{instance=\"{}\", job=\"j\", rack=\"7\"}}", site.address)]
    );
    scene.write("t-1.yml", "- targets: {broken");
    scene.write("one.json", r#"[{"targets": ["127.0.0.1:1"]}]"#);
    scene.scraper.look(false);
    assert_eq!((labels(&scene).len(), scene.scraper.gauges().file_failures), (2, 1));
    std::fs::remove_file(scene.dir.path().join("t-1.yml")).unwrap();
    scene.scraper.look(false);
    assert_eq!(labels(&scene), ["{instance=\"127.0.0.1:1\", job=\"j\"}"]);
    scene.wait("the end", |s| is_stale(s.values("a").last())).await;
    scene.end().await;
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_changes_nothing() {
    let site = Site::start(vec![answer("", b"a 1\n")]).await;
    let scene = Scene::start(&[("prometheus.yml", config(&site))]).await;
    scene.write(
        "prometheus.yml",
        "scrape_configs: [{job_name: j, scrape_intervall: 1s}]",
    );
    let said = scene.reload().unwrap_err().to_string();
    assert!(
        said.contains("prometheus.yml:1: scrape_configs[0]: scrape_intervall is not a setting"),
        "{said}"
    );
    scene.write(
        "prometheus.yml",
        "scrape_configs: [{job_name: j, tls_config: {ca_file: nowhere.pem}}]",
    );
    let said = scene.reload().unwrap_err().to_string();
    assert!(said.contains("job \"j\"") && said.contains("nowhere.pem"), "{said}");
    scene.wait("scrapes go on", |s| s.values("up").len() >= 2).await;
    scene.end().await;
}

/// A file that does not answer (on a server that is away, say), and a reload with other TLS settings that waits for it: nobody else waits,
/// and no target is scraped without its client meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_waits_for_a_slow_file_leaves_scrapes_and_metrics_as_they_were() {
    let site = Site::start(vec![answer("", b"a 1\n")]).await;
    let yaml = |tls: &str| {
        format!(
            "scrape_configs: [{{job_name: j, scrape_interval: 200ms, static_configs: [{{targets: ['{}']}}], file_sd_configs: [{{files: ['s*.yml']}}]{tls}}}]",
            site.address
        )
    };
    let scene = Scene::start(&[("prometheus.yml", yaml(""))]).await;
    let (config, fifo) = (
        scene.dir.path().join("prometheus.yml"),
        scene.dir.path().join("slow.yml"),
    );
    scene.wait("a scrape", |s| !s.values("a").is_empty()).await;
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    scene.write("prometheus.yml", &yaml(", tls_config: {insecure_skip_verify: true}"));
    let (loaded, scraper) = (load(&config).unwrap(), scene.scraper.clone());
    let reload = tokio::task::spawn_blocking(move || scraper.replace(loaded));
    // Opens once somebody reads.
    let opened = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(fifo).unwrap());
    let writer = opened.await.unwrap();
    let (before, path) = (scene.values("up").len(), scene.scraper.path());
    scene
        .wait("scrapes go on", |s| s.values("up").len() >= before + 3)
        .await;
    assert_eq!(
        (path, scene.scraper.gauges().up, reload.is_finished()),
        (config, 1, false)
    );
    assert!(scene.scraper.told().await.len() == 1 && scene.scraper.not_scraped().contains_key("j"));
    let tls = |s: &Scene| s.scraper.0.state.lock().pool.told()[0].target.job.http.tls.clone();
    assert!(
        !tls(&scene).insecure_skip_verify,
        "the old targets go with the old clients"
    );
    drop(writer);
    reload.await.unwrap();
    assert!(tls(&scene).insecure_skip_verify);
    let before = scene.values("up").len();
    scene
        .wait("scrapes go on", |s| s.values("up").len() >= before + 3)
        .await;
    assert!(scene.values("up").iter().all(|v| *v == 1.0), "{:?}", scene.values("up"));
    assert!(scene.values("a").iter().all(|v| *v == 1.0), "{:?}", scene.values("a"));
    scene.end().await;
}

/// Whatever panics while a page is read: the target is told to be down, and is asked again.
#[tokio::test]
async fn a_target_whose_scrape_panicked_is_down_and_is_asked_again() {
    let site = Site::start(vec![answer("", b"a 1\n")]).await;
    let laid = Arc::new(AtomicU64::new(0));
    let count = laid.clone();
    // Of the second scrape the page panics; of the third also what is stored instead.
    let floor: FloorOf = Arc::new(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        1 | 3 | 4 => panic!("a mistake"),
        _ => None,
    });
    let scene = Scene::start_with(&[("prometheus.yml", config(&site))], floor).await;
    let error = |s: &Scene| {
        s.scraper.0.state.lock().pool.told()[0]
            .last
            .clone()
            .and_then(|l| l.error)
    };
    scene
        .wait("two that broke off", |s| {
            laid.load(Ordering::SeqCst) == 5 && error(s).is_some_and(|e| e.contains("broke off"))
        })
        .await;
    assert_eq!(scene.values("up"), [1.0, 0.0]);
    scene.wait("scrapes go on", |s| s.values("up").len() >= 4).await;
    assert_eq!(
        (&scene.values("up")[..4], error(&scene)),
        (&[1.0, 0.0, 1.0, 1.0][..], None)
    );
    scene.end().await;
}

/// The runtime of this test has one thread: what is laid out there holds up all else.
#[tokio::test]
async fn a_thread_that_others_wait_for_does_not_lay_out_batches() {
    let page: String = (0..=BATCH_ROWS_MAX).map(|i| format!("m{i} 1\n")).collect();
    let site = Site::start(vec![answer("", page.as_bytes())]).await;
    let (here, elsewhere) = (std::thread::current().id(), Arc::new(AtomicU64::new(0)));
    let count = elsewhere.clone();
    let floor: FloorOf = Arc::new(move |_| {
        assert_ne!(std::thread::current().id(), here);
        count.fetch_add(1, Ordering::SeqCst);
        None
    });
    let yaml = config(&site).replace("200ms", "1s");
    let scene = Scene::start_with(&[("prometheus.yml", yaml)], floor).await;
    scene.wait("a scrape of two batches", |s| s.values("up") == [1.0]).await;
    assert_eq!(elsewhere.load(Ordering::SeqCst), 2);
    assert!(scene.recorder.batches.lock().len() == 2 && scene.values("m10000") == [1.0]);
    scene.end().await;
}

#[tokio::test]
async fn markers_are_counted_when_they_are_stored() {
    let pages = [&b"a 1\nb 1\n"[..], b"a 2\n"];
    let site = Site::start(pages.map(|p| answer("", p)).to_vec()).await;
    let scene = Scene::start(&[("prometheus.yml", config(&site))]).await;
    let stats = || scene.scraper.stats();
    scene.wait("a marker", |s| s.values("b").len() == 2).await;
    scene
        .wait("its count", |_| stats().stale_markers.load(Relaxed) == 1)
        .await;
    // Those of the end cannot be stored.
    scene.recorder.is_full.store(true, Ordering::SeqCst);
    scene.write("prometheus.yml", "scrape_configs: []");
    scene.reload().unwrap();
    scene
        .wait("the end", |s| {
            s.scraper.gauges().series == 0 && s.scraper.gauges().under_way == 0
        })
        .await;
    assert!(stats().lost_samples.load(Relaxed) >= 6);
    assert_eq!(stats().stale_markers.load(Relaxed), 1);
    scene.end().await;
}
