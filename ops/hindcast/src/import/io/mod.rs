//! The importer's door to the outside: reads files, shows progress, sends.

#![allow(
    clippy::disallowed_methods,
    reason = "this is the door to the files that a person names"
)]

mod progress;
mod remote_write;
mod tsdb;

use super::csv::Csv;
use super::resume::{LineMark, Mark};
use super::{
    BAD_LINES_SHOWN_MAX, BadLine, Format, INPUT_LINE_BYTES_MAX, ImportConfig, ImportError, ImportReport, Item, joined,
    jsonl, openmetrics,
};
use crate::agent::batcher::{Batcher, items};
use crate::agent::io::send::{Sender, Sent, acked, is_barred, now};
use flate2::read::MultiGzDecoder;
use hindcast_proto::v1;
use indicatif::{ProgressBar, ProgressBarIter};
use progress::Progress;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::SystemTime;
use tonic::Code;

/// Rounds over all endpoints before an import ends; with the pauses in between, longer than an election.
pub const ROUNDS_MAX: u32 = 8;

/// Imports all files, one after the other. `bar` counts bytes of the files as they are on disk.
pub async fn run(config: &ImportConfig, bar: &ProgressBar) -> Result<ImportReport, ImportError> {
    let mut total = 0;
    for path in &config.files {
        if config.format == Format::Tsdb {
            total += tsdb::bytes(path)?;
            continue;
        }
        let metadata = std::fs::metadata(path).map_err(|e| cannot_read(path, &e))?;
        if !metadata.is_file() {
            return Err(cannot_read(path, &std::io::Error::other("not a file")));
        }
        total += metadata.len();
    }
    bar.set_length(total);
    let sender = Sender::new(&config.endpoints, &config.tls, &config.tenant, Some(ROUNDS_MAX))
        .map_err(|e| ImportError::Usage { why: e.to_string() })?;
    let mut import = Import {
        config,
        sender,
        progress: Progress::open(config).await?,
    };
    for (i, path) in config.files.iter().enumerate() {
        bar.set_message(path.display().to_string());
        match config.format {
            Format::RemoteWrite => remote_write::send(&mut import, i, path, bar).await?,
            Format::Tsdb => tsdb::import(&mut import, i, path, bar).await?,
            _ => import.file(i, path, bar).await?,
        }
        import.done(i);
    }
    import.progress.finish();
    Ok(import.progress.saved.report)
}

fn cannot_read(path: &Path, why: &std::io::Error) -> ImportError {
    ImportError::Read {
        file: path.display().to_string(),
        why: why.to_string(),
    }
}

struct Import<'a> {
    config: &'a ImportConfig,
    sender: Sender,
    progress: Progress,
}

impl Import<'_> {
    /// Everything of a file up to a place is confirmed.
    fn confirm(&mut self, i: usize, mark: Mark) {
        if let Some(file) = self.progress.saved.files.get_mut(i) {
            file.mark = Some(mark);
        }
        self.progress.save();
    }

    fn done(&mut self, i: usize) {
        if let Some(file) = self.progress.saved.files.get_mut(i).filter(|f| !f.done) {
            (file.done, file.mark) = (true, None);
            self.progress.saved.report.files += 1;
        }
        self.progress.save();
    }

    async fn file(&mut self, i: usize, path: &Path, bar: &ProgressBar) -> Result<(), ImportError> {
        let read_error = |e: std::io::Error| cannot_read(path, &e);
        let at_ms = match self.config.at_ms {
            Some(at) => at,
            None => changed_ms(path).map_err(read_error)?,
        };
        let writer = writer(self.config, path, at_ms).map_err(read_error)?;
        let known = self.progress.saved.file(i, &writer);
        if known.done {
            bar.inc(std::fs::metadata(path).map_err(read_error)?.len());
            return Ok(());
        }
        let mark = match &known.mark {
            Some(Mark::Lines(mark)) => Some(mark.clone()),
            _ => None,
        };
        let mut parser = Parser::new(self.config);
        let mut lines = Lines::open(path, bar).map_err(read_error)?;
        let mut page_ms = at_ms;
        if let Some(mark) = &mark {
            lines.go_on(mark, bar).map_err(read_error)?;
            page_ms = mark.page_ms;
            if let (Parser::Csv(csv), Some(before)) = (&mut parser, &mark.csv) {
                csv.clone_from(before);
            }
        }
        let mut batcher = Batcher::behind(mark.map_or(0, |m| m.seq), writer, &self.config.resource);
        while let Some(line) = lines.next().map_err(read_error)? {
            let filled = match line.and_then(|l| parser.parse(&l)) {
                Ok(Item::Nothing) => None,
                Ok(Item::PageTime(ms)) => {
                    page_ms = ms;
                    None
                }
                Ok(Item::Sample { labels, at_ms, value }) => {
                    batcher.sample(&joined(labels, &self.config.labels), at_ms.unwrap_or(page_ms), value)
                }
                Ok(Item::Line { labels, entry }) => batcher.line(&joined(labels, &self.config.labels), entry),
                Err(bad) => {
                    bad_line(&mut self.progress.saved.report, self.config, path, lines.number, &bad)?;
                    None
                }
            };
            if let Some(full) = filled {
                self.send(&full).await?;
                let mark = LineMark {
                    seq: batcher.seq(),
                    offset: lines.offset,
                    number: lines.number,
                    page_ms,
                    csv: match &parser {
                        Parser::Csv(csv) => Some(csv.clone()),
                        _ => None,
                    },
                };
                self.confirm(i, Mark::Lines(mark));
            }
        }
        match batcher.finish() {
            Some(rest) => self.send(&rest).await,
            None => Ok(()),
        }
    }

    async fn send(&mut self, batch: &v1::WriteRequest) -> Result<(), ImportError> {
        let (samples, lines) = items(batch);
        let retries_before = self.sender.retries;
        let sent = self.sender.send(batch).await;
        let report = &mut self.progress.saved.report;
        report.retries += self.sender.retries - retries_before;
        match sent {
            Sent::Acked(answer) => {
                let (samples_acked, lines_acked) = acked(batch, &answer);
                report.batches += 1;
                report.samples_acked += samples_acked;
                report.lines_acked += lines_acked;
                report.duplicates += u64::from(answer.duplicate);
                // An answer lists the first refusals only.
                report.refused += samples + lines - (samples_acked + lines_acked).min(samples + lines);
                for r in answer.rejected {
                    note(report, format!("{}: {} refused: {}", r.what, r.items, r.why));
                }
                Ok(())
            }
            Sent::Refused(status) => {
                report.refused += samples + lines;
                note(report, format!("batch {} refused: {}", batch.seq, status.message()));
                Ok(())
            }
            Sent::GaveUp(status) => {
                let why = self.sender.last_error.clone().unwrap_or_else(|| status.to_string());
                Err(match status.code() {
                    Code::Unauthenticated => not_taken(why, UNAUTHORIZED),
                    Code::PermissionDenied => not_taken(why, FORBIDDEN),
                    code if is_barred(code) => not_taken(why, NOT_THERE),
                    _ => ImportError::Unreachable { why },
                })
            }
        }
    }
}

/// What to do where no batch is taken.
const UNAUTHORIZED: &str = "say who sends (--tls-cert and --tls-key, or what a proxy in front of the node asks for)";
const FORBIDDEN: &str = "use a tenant and a certificate that may write (--tenant, --tls-cert, --tls-key)";
const NOT_THERE: &str =
    "name the address of a node, or let the proxy in front of it pass these requests on (--endpoint, --tenant)";

fn not_taken(why: String, todo: &'static str) -> ImportError {
    ImportError::NotTaken { why, todo }
}

fn note(report: &mut ImportReport, text: String) {
    if report.bad.len() < BAD_LINES_SHOWN_MAX {
        report.bad.push(text);
    }
}

fn bad_line(
    report: &mut ImportReport,
    config: &ImportConfig,
    path: &Path,
    number: u64,
    bad: &BadLine,
) -> Result<(), ImportError> {
    let line = format!("{}:{number}: {bad}", path.display());
    if config.strict {
        return Err(ImportError::BadLine { line });
    }
    report.bad_lines += 1;
    note(report, line);
    Ok(())
}

enum Parser {
    Openmetrics,
    Csv(Csv),
    Jsonl,
}

impl Parser {
    fn new(config: &ImportConfig) -> Self {
        match config.format {
            Format::Openmetrics => Self::Openmetrics,
            Format::Csv => Self::Csv(Csv::new(config.metric.as_deref().unwrap_or_default())),
            Format::Jsonl => Self::Jsonl,
            Format::RemoteWrite | Format::Tsdb => unreachable!("{:?} has no lines", config.format),
        }
    }

    fn parse(&mut self, line: &str) -> Result<Item, BadLine> {
        match self {
            Self::Openmetrics => openmetrics::parse(line),
            Self::Csv(csv) => csv.parse(line),
            Self::Jsonl => jsonl::parse(line),
        }
    }
}

/// The file's time of change; now, where the file system keeps none.
fn changed_ms(path: &Path) -> std::io::Result<i64> {
    let changed = std::fs::metadata(path)?.modified()?;
    let since = changed.duration_since(SystemTime::UNIX_EPOCH);
    Ok(since.map_or_else(|_| now().as_ms(), |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
}

/// A writer's name that equal content and options share, and nothing else.
fn writer(config: &ImportConfig, path: &Path, at_ms: i64) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new_derive_key("hindcast 2026 import writer");
    hasher.update_reader(File::open(path)?)?;
    let options = format!(
        "{:?} {:?} {:?} {:?} {at_ms}",
        config.format, config.metric, config.labels, config.resource
    );
    hasher.update(options.as_bytes());
    Ok(format!("import/{}", &hasher.finalize().to_hex()[..32]))
}

/// Lines of a file, plain or gzipped, none longer than `INPUT_LINE_BYTES_MAX`.
struct Lines {
    reader: Reader,
    number: u64,
    /// Bytes of text before the next line.
    offset: u64,
}

enum Reader {
    Plain(BufReader<ProgressBarIter<File>>),
    Gzip(Box<BufReader<MultiGzDecoder<BufReader<ProgressBarIter<File>>>>>),
}

impl Reader {
    fn get(&mut self) -> &mut dyn BufRead {
        match self {
            Self::Plain(reader) => reader,
            Self::Gzip(reader) => reader,
        }
    }
}

impl Lines {
    fn open(path: &Path, bar: &ProgressBar) -> std::io::Result<Self> {
        let mut magic = [0; 2];
        let is_gzip = File::open(path)?.read(&mut magic)? == 2 && magic == [0x1f, 0x8b];
        let file = bar.wrap_read(File::open(path)?);
        const READ_BYTES: usize = 256 * 1024;
        Ok(Self {
            reader: if is_gzip {
                let unpacked = MultiGzDecoder::new(BufReader::new(file));
                Reader::Gzip(Box::new(BufReader::with_capacity(READ_BYTES, unpacked)))
            } else {
                Reader::Plain(BufReader::with_capacity(READ_BYTES, file))
            },
            number: 0,
            offset: 0,
        })
    }

    /// To where an earlier run was. A packed file is unpacked up to there.
    fn go_on(&mut self, mark: &LineMark, bar: &ProgressBar) -> std::io::Result<()> {
        match &mut self.reader {
            Reader::Plain(reader) => {
                let before = bar.position();
                reader.seek(SeekFrom::Start(mark.offset))?;
                // A seek sets the bar, as if this were the only file.
                bar.set_position(before + mark.offset);
            }
            Reader::Gzip(reader) => {
                std::io::copy(&mut reader.by_ref().take(mark.offset), &mut std::io::sink())?;
            }
        }
        (self.offset, self.number) = (mark.offset, mark.number);
        Ok(())
    }

    /// The outer result is the file's, the inner one the line's; `None` at the end.
    fn next(&mut self) -> std::io::Result<Option<Result<String, BadLine>>> {
        let mut line = vec![];
        let n = self
            .reader
            .get()
            .take(INPUT_LINE_BYTES_MAX as u64 + 1)
            .read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.offset += n as u64;
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if n > INPUT_LINE_BYTES_MAX {
            self.skip_line()?;
            return Ok(Some(Err(BadLine::new(format!(
                "longer than {INPUT_LINE_BYTES_MAX} bytes"
            )))));
        }
        Ok(Some(String::from_utf8(line).map_err(|_| BadLine::new("not UTF-8"))))
    }

    fn skip_line(&mut self) -> std::io::Result<()> {
        loop {
            let buffered = self.reader.get().fill_buf()?;
            if buffered.is_empty() {
                return Ok(());
            }
            let end = buffered.iter().position(|b| *b == b'\n');
            let used = end.map_or(buffered.len(), |e| e + 1);
            self.reader.get().consume(used);
            self.offset += used as u64;
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Endpoints;
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn lines_of(bytes: &[u8]) -> Vec<String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut lines = Lines::open(file.path(), &ProgressBar::hidden()).unwrap();
        let mut out = vec![];
        while let Some(line) = lines.next().unwrap() {
            out.push(line.unwrap_or_else(|e| format!("bad {}: {e}", lines.number)));
        }
        out
    }

    #[test]
    fn plain_and_gzipped_files_read_alike_and_an_over_long_line_is_one_bad_line() {
        let mut text = b"one\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', 3 * INPUT_LINE_BYTES_MAX));
        text.extend(b"\n\xff\nlast");
        let mut gz = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        gz.write_all(&text).unwrap();
        let expected = ["one", "bad 2: longer than 1048576 bytes", "bad 3: not UTF-8", "last"];
        assert_eq!(lines_of(&text), expected);
        assert_eq!(lines_of(&gz.finish().unwrap()), expected);
    }

    fn config(format: Format, files: &[&Path], url: &str) -> ImportConfig {
        ImportConfig {
            format,
            files: files.iter().map(|f| f.to_path_buf()).collect(),
            endpoints: Endpoints::parse(url).unwrap(),
            tls: crate::tls::TlsArgs::default(),
            tenant: "default".into(),
            metric: None,
            labels: vec![],
            resource: vec![],
            at_ms: None,
            strict: false,
            progress_dir: None,
            restart: false,
        }
    }

    /// Answers with these statuses one after the other, the last one for good; how many requests of remote write came.
    async fn serve_http(statuses: &'static [u16], is_http2: bool) -> (String, Arc<AtomicUsize>) {
        use hyper::server::conn::{http1, http2};
        use hyper_util::rt::{TokioExecutor, TokioIo};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let counted = counted.clone();
                let answer = hyper::service::service_fn(move |_: hyper::Request<hyper::body::Incoming>| {
                    let n = counted.fetch_add(1, Ordering::Relaxed).min(statuses.len() - 1);
                    let mut answer = hyper::Response::new(http_body_util::Empty::<bytes::Bytes>::new());
                    *answer.status_mut() = hyper::StatusCode::from_u16(statuses[n]).unwrap();
                    std::future::ready(Ok::<_, std::convert::Infallible>(answer))
                });
                let io = TokioIo::new(socket);
                if is_http2 {
                    tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(io, answer));
                } else {
                    tokio::spawn(http1::Builder::new().serve_connection(io, answer));
                }
            }
        });
        (url, asked)
    }

    /// The body of a request of remote write with nothing in it.
    fn body() -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let packed = snap::raw::Encoder::new().compress_vec(&[]).unwrap();
        file.write_all(&packed).unwrap();
        file
    }

    #[tokio::test]
    async fn remote_write_to_a_receiver_that_speaks_http_only_goes_on_without_progress() {
        let (url, asked) = serve_http(&[204], false).await;
        let (file, dir) = (body(), tempfile::tempdir().unwrap());
        let mut config = config(Format::RemoteWrite, &[file.path()], &url);
        config.progress_dir = Some(dir.path().to_owned());
        let done = tokio::time::timeout(Duration::from_secs(8), run(&config, &ProgressBar::hidden())).await;
        let report = done.expect("no waiting").unwrap();
        assert_eq!((report.files, report.batches, report.retries), (1, 1, 0));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn remote_write_sends_again_after_408_429_and_503_and_says_how_often() {
        let (url, asked) = serve_http(&[408, 429, 503, 204], false).await;
        let file = body();
        let config = config(Format::RemoteWrite, &[file.path()], &url);
        let report = run(&config, &ProgressBar::hidden()).await.unwrap();
        assert_eq!((report.batches, report.refused, report.retries), (1, 0, 3));
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn a_proxy_that_answers_401_403_or_404_ends_an_import_with_what_to_do() {
        for (statuses, todo) in [(&[401], "say who sends"), (&[403], "may write"), (&[404], "--endpoint")] {
            let mut lines = tempfile::NamedTempFile::new().unwrap();
            lines.write_all(b"up 1 1\n").unwrap();
            let body = body();
            for (format, file, is_http2) in [
                (Format::Openmetrics, lines.path(), true),
                (Format::RemoteWrite, body.path(), false),
            ] {
                let (url, asked) = serve_http(statuses, is_http2).await;
                let dir = tempfile::tempdir().unwrap();
                let mut config = config(format, &[file], &url);
                if is_http2 {
                    config.progress_dir = Some(dir.path().to_owned());
                }
                let ended = run(&config, &ProgressBar::hidden()).await.unwrap_err();
                assert!(matches!(ended, ImportError::NotTaken { .. }), "{ended}");
                assert!(ended.to_string().contains(todo), "{ended}");
                // The question which cluster it is, and the batch.
                assert_eq!(asked.load(Ordering::Relaxed), 1 + usize::from(is_http2));
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is noted");
            }
        }
    }

    #[test]
    fn the_bar_of_a_plain_file_that_is_gone_on_with_ends_at_its_length() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let text = "up 1\n".repeat(20_000);
        file.write_all(text.as_bytes()).unwrap();
        let half = text.len() as u64 / 2;
        let mark = LineMark {
            seq: 1,
            offset: half,
            number: 10_000,
            page_ms: 0,
            csv: None,
        };
        let bar = ProgressBar::hidden();
        // Another file was read before.
        bar.set_position(7);
        let mut lines = Lines::open(file.path(), &bar).unwrap();
        lines.go_on(&mark, &bar).unwrap();
        assert_eq!(bar.position(), 7 + half);
        while lines.next().unwrap().is_some() {}
        assert_eq!((bar.position(), lines.number), (7 + 2 * half, 20_000));
    }

    #[test]
    fn a_writer_is_named_by_content_and_options() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "up 1\n").unwrap();
        let mut config = config(Format::Openmetrics, &[], "a:1");
        let name = |config: &ImportConfig, at| writer(config, file.path(), at).unwrap();
        let first = name(&config, 1);
        assert_eq!(first, name(&config, 1));
        assert_ne!(first, name(&config, 2));
        config.labels.push(("job".into(), "x".into()));
        assert_ne!(first, name(&config, 1));
    }
}
