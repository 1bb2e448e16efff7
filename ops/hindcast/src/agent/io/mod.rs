//! The agent's door to the outside: reads this host, follows files and the journal, sends.

#![allow(clippy::disallowed_methods, reason = "this is the door to the host that is watched")]

pub mod follow;
pub mod journal;
mod metrics_page;
pub mod proc;
mod queue;
pub mod send;

pub use proc::identity;

use super::batcher::{Batcher, Entry, items};
use super::metrics;
use super::reading::{Reading, watched};
use super::{AgentConfig, AgentReport, INTERVAL_MIN, Identity, LogFile};
use crate::agent::journal::JournalEntry;
use follow::Follower;
use hindcast_model::{Labels, TimestampNs};
use hindcast_proto::v1;
use queue::Queue;
use send::{Sender, Sent, acked, now};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// How often log files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long the end waits for what is not yet sent.
pub const STOP_SPAN_MAX: Duration = Duration::from_secs(5);

/// Watches this host until `stop` turns true, or after one reading with `config.once`.
pub async fn run(config: AgentConfig, stop: watch::Receiver<bool>) -> AgentReport {
    run_watched(config, stop, watch::Sender::new(AgentReport::default())).await
}

/// The same; `progress` holds the report so far.
pub async fn run_watched(
    config: AgentConfig,
    mut stop: watch::Receiver<bool>,
    progress: watch::Sender<AgentReport>,
) -> AgentReport {
    let sender = match Sender::new(&config.endpoints, &config.tls, &config.tenant, None) {
        Ok(sender) => sender,
        Err(e) => {
            return AgentReport {
                last_error: Some(e.to_string()),
                ..AgentReport::default()
            };
        }
    };
    let queue = match Queue::open(config.buffer_dir.as_deref(), config.buffer_bytes_max) {
        Ok(queue) => Arc::new(queue),
        Err(why) => {
            return AgentReport {
                last_error: Some(why),
                ..AgentReport::default()
            };
        }
    };
    let metrics = match config.metrics_listen {
        None => None,
        Some(at) => match metrics_page::serve(at, queue.clone(), sender.failures.clone(), progress.subscribe()).await {
            Ok(task) => Some(task),
            Err(e) => {
                return AgentReport {
                    last_error: Some(format!("cannot listen on {at} for /metrics: {e}")),
                    ..AgentReport::default()
                };
            }
        },
    };
    let (ended, collected) = watch::channel(false);
    // Tasks end with this function, however it ends.
    let mut sending = JoinSet::new();
    sending.spawn(send_all(queue.clone(), sender, collected, progress));
    collect(config, &queue, &mut stop).await;
    // All that is collected is queued: from here on the sender ends when the queue is empty, or after a while.
    queue.complete.store(true, Ordering::Release);
    let _ = ended.send(true);
    queue.filled.notify_one();
    let report = sending.join_next().await;
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    match report {
        Some(Ok(report)) => report,
        Some(Err(e)) => std::panic::resume_unwind(e.into_panic()),
        None => unreachable!("one task was begun"),
    }
}

async fn send_all(
    queue: Arc<Queue>,
    mut sender: Sender,
    mut collected: watch::Receiver<bool>,
    progress: watch::Sender<AgentReport>,
) -> AgentReport {
    let mut report = AgentReport::default();
    let mut over = Box::pin(async move {
        // An error means that the collector is gone, which is an end, too.
        let _ = collected.wait_for(|ended| *ended).await;
        tokio::time::sleep(STOP_SPAN_MAX).await;
    });
    loop {
        let Some((ticket, batch)) = queue.clone().take().await else {
            if queue.complete.load(Ordering::Acquire) && queue.is_empty() {
                break;
            }
            tokio::select! {
                () = queue.filled.notified() => continue,
                () = &mut over => break,
            }
        };
        let sent = tokio::select! {
            sent = sender.send(&batch) => sent,
            // It still waits where it was.
            () = &mut over => break,
        };
        count(&mut report, &batch, &sent);
        queue.clone().confirm(ticket, batch).await;
        report.retries = sender.retries;
        report.last_error = sender.last_error.clone();
        report.dropped = queue.dropped();
        progress.send_replace(report.clone());
    }
    let (kept, unsent) = queue.left();
    if unsent > 0 {
        tracing::warn!(unsent, "the end came before everything was sent");
    }
    if kept > 0 {
        tracing::info!(
            kept,
            "the end came before everything was sent; the rest waits on disk for the next start"
        );
    }
    report.kept = kept;
    report.retries = sender.retries;
    report.last_error = sender.last_error.clone();
    report.dropped = queue.dropped() + unsent;
    progress.send_replace(report.clone());
    report
}

/// Counts what became of a batch.
pub fn count(report: &mut AgentReport, batch: &v1::WriteRequest, sent: &Sent) {
    let (samples, lines) = items(batch);
    match sent {
        Sent::Acked(answer) => {
            let (samples_acked, lines_acked) = acked(batch, answer);
            report.batches += 1;
            report.samples_acked += samples_acked;
            report.lines_acked += lines_acked;
            // An answer lists the first refusals only.
            report.refused += samples + lines - (samples_acked + lines_acked).min(samples + lines);
            if let Some(r) = answer.rejected.first() {
                tracing::warn!(what = %r.what, items = r.items, why = %r.why, "a part of a batch was refused");
            }
        }
        Sent::Refused(status) => {
            report.refused += samples + lines;
            tracing::warn!(batch = batch.seq, error = %status.message(), "a batch was refused");
        }
        Sent::GaveUp(status) => {
            report.dropped += samples + lines;
            tracing::warn!(batch = batch.seq, error = %status.message(), "a batch was given up");
        }
    }
}

async fn collect(config: AgentConfig, queue: &Arc<Queue>, stop: &mut watch::Receiver<bool>) {
    let started = now();
    // Kept for this run only; a restarted agent is another writer, so that its sequence may start at 1 again.
    let writer = format!("agent/{}/{}/{}", config.identity.host_name, proc::boot_id(), started.0);
    let mut collector = Collector {
        batcher: Batcher::new(writer, &config.identity.attributes()),
        followers: config
            .logs
            .iter()
            .map(|log| {
                let known = queue.tail(&log.path);
                let follower = known.map_or_else(
                    || Follower::from_end(&log.path),
                    |at| Follower::from_place(&log.path, at),
                );
                (stream(&config.identity, log), follower)
            })
            .collect(),
        before: None,
        unread_said: BTreeSet::new(),
        last_line_ns: started.0,
        cut: vec![],
        config,
    };
    collector.read_host(queue).await;
    if collector.config.once {
        return;
    }
    let (entries, mut journal) = mpsc::channel(journal::JOURNAL_ENTRIES_MAX);
    let following = collector.config.journal.then(|| tokio::spawn(journal::follow(entries)));
    let mut readings = interval(collector.config.interval.max(INTERVAL_MIN));
    let mut looks = interval(LOOK_INTERVAL);
    readings.tick().await;
    loop {
        tokio::select! {
            biased;
            () = asked_to_stop(stop) => break,
            _ = readings.tick() => collector.read_host(queue).await,
            _ = looks.tick() => collector.look(&mut journal, queue).await,
        }
    }
    collector.look(&mut journal, queue).await;
    if let Some(task) = following {
        task.abort();
    }
}

/// Ends when the end is asked for, or when nobody is left who could. Keeps no lock on the value.
pub async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn interval(every: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(every);
    // After a pause one reading, not all those that were missed.
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}

/// The labels of a followed file's lines.
fn stream(identity: &Identity, log: &LogFile) -> Labels {
    let name = log
        .path
        .file_name()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
    let mut labels = vec![
        pair("host_name", &identity.host_name),
        pair("log_file_name", &name),
        pair("log_file_path", &log.path.to_string_lossy()),
    ];
    labels.extend(log.service.iter().map(|s| pair("service_name", s)));
    Labels::new(labels)
}

struct Collector {
    config: AgentConfig,
    batcher: Batcher,
    followers: Vec<(Labels, Follower)>,
    before: Option<Reading>,
    unread_said: BTreeSet<&'static str>,
    last_line_ns: i64,
    /// Batches of what is being collected.
    cut: Vec<v1::WriteRequest>,
}

impl Collector {
    async fn read_host(&mut self, queue: &Arc<Queue>) {
        let at = now();
        let reading = match tokio::task::spawn_blocking(|| Reading::parse(&proc::texts())).await {
            Ok(reading) => reading,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        };
        let config = &self.config;
        let shown = watched(&reading, self.before.as_ref(), &config.processes, config.processes_top);
        for (labels, value) in metrics::rows(&reading, &shown, &config.identity, config.per_cpu) {
            if let Some(full) = self.batcher.sample(&labels, at.as_ms(), value) {
                self.cut.push(full);
            }
        }
        for what in reading.unread.difference(&self.unread_said) {
            tracing::warn!("cannot read /proc/{what}; its series are absent");
        }
        self.unread_said.extend(&reading.unread);
        self.before = Some(reading);
        self.queue(queue).await;
    }

    async fn look(&mut self, journal: &mut mpsc::Receiver<JournalEntry>, queue: &Arc<Queue>) {
        let mut followers = std::mem::take(&mut self.followers);
        let looked = tokio::task::spawn_blocking(move || {
            let lines: Vec<_> = followers
                .iter_mut()
                .map(|(labels, f)| (labels.clone(), f.look()))
                .collect();
            (followers, lines)
        });
        let found = match looked.await {
            Ok((followers, found)) => {
                self.followers = followers;
                found
            }
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        };
        for (labels, lines) in found {
            for line in lines {
                let at_ns = self.line_time(now());
                let entry = Entry {
                    at_ns,
                    line,
                    metadata: vec![],
                };
                if let Some(full) = self.batcher.line(&labels, entry) {
                    self.cut.push(full);
                }
            }
        }
        while let Ok(JournalEntry { unit, entry }) = journal.try_recv() {
            let labels = Labels::from_pairs([("host_name", &self.config.identity.host_name), ("unit", &unit)]);
            if let Some(full) = self.batcher.line(&labels, entry) {
                self.cut.push(full);
            }
        }
        self.queue(queue).await;
    }

    /// Times of lines strictly rise, so that lines read together keep their order.
    fn line_time(&mut self, now: TimestampNs) -> i64 {
        self.last_line_ns = now.0.max(self.last_line_ns + 1);
        self.last_line_ns
    }

    /// What was collected waits from here on, with how far log files were read for it.
    async fn queue(&mut self, queue: &Arc<Queue>) {
        self.cut.extend(self.batcher.finish());
        let group = std::mem::take(&mut self.cut);
        if group.is_empty() {
            return;
        }
        let tails = self
            .followers
            .iter()
            .map(|(_, f)| (f.path.to_string_lossy().into_owned(), f.place()));
        queue.clone().push(group, tails.collect()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Endpoints;
    use hindcast_proto::v1::ingest_server::{Ingest, IngestServer};
    use parking_lot::Mutex;
    use std::collections::BTreeMap;
    use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
    use tonic::{Request, Response, Status, Streaming};

    /// Stores each batch once; its very first answer is lost.
    #[derive(Clone, Default)]
    struct Forgetful {
        stored: Arc<Mutex<BTreeMap<(String, u64), v1::WriteRequest>>>,
    }

    #[tonic::async_trait]
    impl Ingest for Forgetful {
        type WriteStreamStream = ReceiverStream<Result<v1::WriteResponse, Status>>;

        async fn write(&self, request: Request<v1::WriteRequest>) -> Result<Response<v1::WriteResponse>, Status> {
            let batch = request.into_inner();
            let (samples, lines) = items(&batch);
            let key = (batch.writer.clone(), batch.seq);
            let mut stored = self.stored.lock();
            let duplicate = stored.contains_key(&key);
            if !duplicate {
                let first = stored.is_empty();
                stored.insert(key, batch.clone());
                if first {
                    return Err(Status::unavailable("stored, but the answer is lost"));
                }
            }
            Ok(Response::new(v1::WriteResponse {
                seq: batch.seq,
                samples: if duplicate { 0 } else { samples },
                lines: if duplicate { 0 } else { lines },
                duplicate,
                ..v1::WriteResponse::default()
            }))
        }

        async fn write_stream(
            &self,
            _: Request<Streaming<v1::WriteRequest>>,
        ) -> Result<Response<Self::WriteStreamStream>, Status> {
            Err(Status::unimplemented("not used here"))
        }
    }

    async fn serve(server: Forgetful) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = tonic::transport::Server::builder()
            .add_service(IngestServer::new(server).accept_compressed(tonic::codec::CompressionEncoding::Zstd));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        url
    }

    #[tokio::test]
    async fn what_is_confirmed_is_stored_once_past_a_dead_node_and_a_lost_answer() {
        let server = Forgetful::default();
        let url = serve(server.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        std::fs::write(&path, "before\n").unwrap();
        // Nobody listens on port 1.
        let endpoints = Endpoints::parse(&format!("http://127.0.0.1:1,{url}")).unwrap();
        let mut config = AgentConfig::new(endpoints, proc::identity(Some("web-1".to_owned())));
        config.interval = INTERVAL_MIN;
        config.logs = vec![LogFile {
            path: path.clone(),
            service: None,
        }];
        let (stop, stopped) = watch::channel(false);
        let progress = watch::Sender::new(AgentReport::default());
        let mut reports = progress.subscribe();
        let agent = tokio::spawn(run_watched(config, stopped, progress));
        reports.wait_for(|r| r.batches >= 1).await.unwrap();
        std::fs::write(&path, "before\none\ntwo\n").unwrap();
        reports.wait_for(|r| r.lines_acked >= 2).await.unwrap();
        stop.send(true).unwrap();
        let report = agent.await.unwrap();

        let stored = server.stored.lock();
        let (samples, lines) = stored.values().map(items).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        assert_eq!((report.samples_acked, report.lines_acked), (samples, lines));
        assert_eq!(
            (report.batches, report.dropped, report.refused),
            (stored.len() as u64, 0, 0)
        );
        assert!(report.retries >= 2, "{report:?}");
        let got: Vec<_> = stored
            .values()
            .flat_map(|b| &b.streams)
            .flat_map(|s| &s.lines)
            .collect();
        assert_eq!(got.iter().map(|l| l.line.as_str()).collect::<Vec<_>>(), ["one", "two"]);
        assert!(got[0].at_ns < got[1].at_ns);
        assert!(stored.keys().map(|(_, seq)| *seq).eq(1..=stored.len() as u64));
    }

    fn lines_of(server: &Forgetful) -> Vec<String> {
        let stored = server.stored.lock();
        let lines = stored.values().flat_map(|b| &b.streams).flat_map(|s| &s.lines);
        let mut lines: Vec<_> = lines.map(|l| l.line.clone()).collect();
        lines.sort();
        lines
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_an_agent_left_on_disk_and_in_log_files_the_next_one_sends_once() {
        let server = Forgetful::default();
        let url = serve(server.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        std::fs::write(&path, "before\n").unwrap();
        // Nobody listens on port 1.
        let mut config = AgentConfig::new(
            Endpoints::parse("http://127.0.0.1:1").unwrap(),
            proc::identity(Some("web-1".to_owned())),
        );
        config.interval = INTERVAL_MIN;
        config.buffer_dir = Some(dir.path().join("buffer"));
        config.logs = vec![LogFile {
            path: path.clone(),
            service: None,
        }];
        let (_stop, stopped) = watch::channel(false);
        let first = tokio::spawn(run(config.clone(), stopped.clone()));
        // The first line is behind the end that the agent found.
        let spool = || {
            std::fs::read_dir(dir.path().join("buffer"))
                .into_iter()
                .flatten()
                .flatten()
        };
        while !spool().any(|f| f.metadata().is_ok_and(|m| m.len() > 100)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::fs::write(&path, "before\none\ntwo\nha").unwrap();
        tokio::time::sleep(LOOK_INTERVAL * 3).await;
        // As if it were killed: nothing is said to it.
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        std::fs::write(&path, "before\none\ntwo\nhalf\nthree\n").unwrap();
        config.endpoints = Endpoints::parse(&format!("http://127.0.0.1:1,{url}")).unwrap();
        let progress = watch::Sender::new(AgentReport::default());
        let mut reports = progress.subscribe();
        // The lock of the first one goes with its last task.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (stop, stopped) = watch::channel(false);
        let second = tokio::spawn(run_watched(config.clone(), stopped, progress));
        reports.wait_for(|r| r.lines_acked >= 4).await.unwrap();
        stop.send(true).unwrap();
        let report = second.await.unwrap();
        assert_eq!(lines_of(&server), ["half", "one", "three", "two"]);
        assert_eq!((report.dropped, report.refused, report.kept), (0, 0, 0), "{report:?}");
        // Both agents' batches came under their own names.
        let writers: BTreeSet<String> = server.stored.lock().keys().map(|(writer, _)| writer.clone()).collect();
        assert_eq!(writers.len(), 2);
    }

    /// Too busy for the first requests, and without packed ones, as a plain proxy would be.
    #[derive(Clone, Default)]
    struct Busy {
        refused: Arc<Mutex<Vec<std::time::Instant>>>,
        inner: Forgetful,
    }

    #[tonic::async_trait]
    impl Ingest for Busy {
        type WriteStreamStream = ReceiverStream<Result<v1::WriteResponse, Status>>;

        async fn write(&self, request: Request<v1::WriteRequest>) -> Result<Response<v1::WriteResponse>, Status> {
            #[derive(Debug, thiserror::Error)]
            #[error("too much at once")]
            struct TooMuch;
            impl hindcast_model::Classify for TooMuch {
                fn class(&self) -> hindcast_model::Class {
                    hindcast_model::Class::RetryLater
                }
            }
            let busy = {
                let mut refused = self.refused.lock();
                refused.push(std::time::Instant::now());
                refused.len() <= 2
            };
            if busy {
                return Err(hindcast_proto::edge::status(&TooMuch));
            }
            self.inner.write(request).await
        }

        async fn write_stream(
            &self,
            request: Request<Streaming<v1::WriteRequest>>,
        ) -> Result<Response<Self::WriteStreamStream>, Status> {
            self.inner.write_stream(request).await
        }
    }

    /// Answers every request with a status of HTTP, as a proxy whose node is gone, and counts them.
    async fn serve_http(status: u16) -> (String, Arc<Mutex<usize>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(0));
        let counted = asked.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let counted = counted.clone();
                let answer = hyper::service::service_fn(move |_: hyper::Request<hyper::body::Incoming>| {
                    *counted.lock() += 1;
                    let mut answer = hyper::Response::new(http_body_util::Empty::<bytes::Bytes>::new());
                    *answer.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
                    std::future::ready(Ok::<_, std::convert::Infallible>(answer))
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                        .serve_connection(hyper_util::rt::TokioIo::new(socket), answer),
                );
            }
        });
        (url, asked)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_proxy_that_answers_401_403_or_404_does_not_empty_the_spool() {
        for status in [401, 403, 404] {
            let (url, asked) = serve_http(status).await;
            let dir = tempfile::tempdir().unwrap();
            let mut config = AgentConfig::new(
                Endpoints::parse(&url).unwrap(),
                proc::identity(Some("web-1".to_owned())),
            );
            config.interval = INTERVAL_MIN;
            config.buffer_dir = Some(dir.path().join("buffer"));
            let (_stop, stopped) = watch::channel(false);
            let agent = tokio::spawn(run(config.clone(), stopped));
            while *asked.lock() < 3 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            agent.abort();
            assert!(agent.await.unwrap_err().is_cancelled());
            // The lock goes with the agent's last task.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let server = Forgetful::default();
            config.endpoints = Endpoints::parse(&serve(server.clone()).await).unwrap();
            config.once = true;
            let (_stop, stopped) = watch::channel(false);
            let report = run(config, stopped).await;
            assert_eq!((report.refused, report.dropped, report.kept), (0, 0, 0), "{report:?}");
            // The very first batch of the first agent came, too.
            let stored = server.stored.lock();
            let writers: BTreeSet<&String> = stored.keys().map(|(writer, _)| writer).collect();
            assert_eq!(writers.len(), 2, "{status}");
            let first = stored.keys().next().unwrap();
            assert_eq!(first.1, 1, "{status}");
        }
    }

    #[tokio::test]
    async fn a_busy_node_is_asked_again_no_sooner_than_it_said_and_gets_plain_batches_if_it_takes_no_others() {
        let server = Busy::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = tonic::transport::Server::builder().add_service(IngestServer::new(server.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        let mut sender = Sender::new(
            &Endpoints::parse(&url).unwrap(),
            &crate::tls::TlsArgs::default(),
            "default",
            None,
        )
        .unwrap();
        let batch = v1::WriteRequest {
            writer: "w".to_owned(),
            seq: 1,
            ..v1::WriteRequest::default()
        };
        assert!(matches!(sender.send(&batch).await, Sent::Acked(_)));
        // The server says one second.
        let asked = server.refused.lock().clone();
        for pair in asked[..3].windows(2) {
            assert!(pair[1] - pair[0] >= Duration::from_secs(1), "{asked:?}");
        }
    }
}
