//! Cold files in a folder or an S3-compatible store, through the crate `object_store`.
//!
//! `file:///an/absolute/folder` (synced before `put` answers) or `s3://bucket/prefix`, with credentials, region and
//! endpoint from variables named as AWS names them. Requests that fail for a while are tried again with growing pauses;
//! a put is read back and its BLAKE3 compared before it counts.
//! Bounded: `PARTS_AT_ONCE_MAX` parts of `PART_BYTES` are in memory for a put, one for its verification.
//!
//! Calls block the calling thread; the work runs on a thread of the store's own.

mod http;
pub mod jobs;

use bytes::Bytes;
use futures::TryStreamExt;
use hindcast_env::cold::{ColdEntry, ColdError, ColdRef, ColdResult, ColdStore, LIST_MAX, check_name};
use hindcast_env::disk::DiskResult;
use hindcast_env::{DiskError, ReadAt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

/// A part of an upload, and what is read back at once. S3 wants at least 5 MiB, and 10,000 parts at most: 78 GiB.
pub const PART_BYTES: u64 = 8 << 20;
/// Parts on their way at once.
pub const PARTS_AT_ONCE_MAX: usize = 4;
/// Tries of a request after the first one.
const RETRIES_MAX: usize = 5;
/// No try begins later than this after the first one.
const RETRY_SPAN_MAX: Duration = Duration::from_secs(60);
const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// One request with all its tries and its data.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(180);
/// Names the file with certificates (PEM) of a private store.
pub const CA_FILE_VARIABLE: &str = "HINDCAST_COLD_CA_FILE";

/// A store of cold files. Clones share it.
#[derive(Clone)]
pub struct ObjectCold(Arc<Shared>);

struct Shared {
    url: String,
    prefix: Path,
    store: Arc<dyn ObjectStore>,
    /// Taken when the store goes.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The last handle may go on a thread that must not block.
            runtime.shutdown_background();
        }
    }
}

impl ObjectCold {
    /// Opens the store that the URL names. `variables` are the process's, or what stands for them.
    pub fn open(url: &str, variables: impl IntoIterator<Item = (String, String)>) -> ColdResult<Self> {
        let bad = |why: String| ColdError::BadUrl {
            url: url.to_owned(),
            why,
        };
        let (store, prefix): (Arc<dyn ObjectStore>, Path) = match url.split_once("://") {
            Some(("file", folder)) => {
                if !folder.starts_with('/') {
                    return Err(bad("the folder must be absolute".to_owned()));
                }
                let folder = folder.trim_end_matches('/');
                if folder.is_empty() {
                    return Err(bad("a folder of its own is needed, not the root".to_owned()));
                }
                let prefix = Path::from_absolute_path(folder).map_err(|e| bad(e.to_string()))?;
                #[allow(clippy::disallowed_methods, reason = "this is the door to the cold folder")]
                if let Err(error) = std::fs::create_dir_all(folder) {
                    // As with any store that is away: a node starts, and what needs the store says so.
                    tracing::warn!(url, %error, "the folder of cold files cannot be made; it is tried again with each file");
                }
                (Arc::new(LocalFileSystem::new().with_fsync(true)), prefix)
            }
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(bad("it names no bucket".to_owned()));
                }
                let prefix = prefix.trim_matches('/');
                if !prefix.is_empty() {
                    check_name(prefix)?;
                }
                (s3(bucket, variables, &bad)?, Path::from(prefix))
            }
            _ => return Err(bad("its scheme is neither file nor s3".to_owned())),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("cold")
            .enable_all()
            .build()
            .map_err(|e| bad(format!("no thread can be started: {e}")))?;
        Ok(Self(Arc::new(Shared {
            url: url.trim_end_matches('/').to_owned(),
            prefix,
            store,
            runtime: Some(runtime),
        })))
    }

    fn path(&self, name: &str) -> ColdResult<Path> {
        check_name(name)?;
        Ok(self.0.prefix.clone().join_all(name))
    }

    /// Begins work on the store's thread; its result comes to the receiver.
    fn begin<T: Send + 'static>(
        &self,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> mpsc::Receiver<Result<object_store::Result<T>, tokio::time::error::Elapsed>> {
        let (tell, told) = mpsc::sync_channel(1);
        let runtime = self.0.runtime.as_ref().expect("the runtime goes with the store");
        runtime.spawn(async move {
            // Who asked may have gone.
            let _ = tell.send(tokio::time::timeout(OPERATION_TIMEOUT, work).await);
        });
        told
    }

    fn end<T>(
        &self,
        name: &str,
        told: mpsc::Receiver<Result<object_store::Result<T>, tokio::time::error::Elapsed>>,
    ) -> ColdResult<T> {
        let unavailable = |why: String| ColdError::Unavailable {
            store: self.0.url.clone(),
            why,
        };
        match told.recv() {
            Ok(Ok(done)) => done.map_err(|e| self.error(name, e)),
            Ok(Err(_)) => Err(unavailable(format!(
                "{name} took longer than {} s",
                OPERATION_TIMEOUT.as_secs()
            ))),
            Err(_) => Err(unavailable(format!("work on {name} ended early"))),
        }
    }

    fn run<T: Send + 'static>(
        &self,
        name: &str,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> ColdResult<T> {
        self.end(name, self.begin(work))
    }

    fn error(&self, name: &str, e: object_store::Error) -> ColdError {
        let store = self.0.url.clone();
        match e {
            object_store::Error::NotFound { .. } => ColdError::Missing {
                store,
                name: name.to_owned(),
            },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                ColdError::Refused { store, why: words(&e) }
            }
            e => ColdError::Unavailable { store, why: words(&e) },
        }
    }

    fn damaged(&self, name: &str, why: String) -> ColdError {
        ColdError::Damaged {
            store: self.0.url.clone(),
            name: name.to_owned(),
            why,
        }
    }

    /// Sends the file; the BLAKE3 of what was sent.
    fn send(&self, name: &str, path: &Path, file: &dyn ReadAt) -> ColdResult<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        if file.len() <= PART_BYTES {
            let bytes = file.read_at(0, file.len() as usize)?;
            hasher.update(&bytes);
            let (store, path) = (self.0.store.clone(), path.clone());
            self.run(name, async move { store.put(&path, bytes.into()).await })?;
            return Ok(*hasher.finalize().as_bytes());
        }
        let (store, path) = (self.0.store.clone(), path.clone());
        let mut upload = self.run(name, async move { store.put_multipart(&path).await })?;
        let sent = self.send_parts(name, upload.as_mut(), file, &mut hasher);
        let (done, mut upload) = match sent {
            Ok(()) => self.run(name, async move { Ok((upload.complete().await, upload)) })?,
            Err(e) => {
                self.abort(name, upload);
                return Err(e);
            }
        };
        match done {
            Ok(_) => Ok(*hasher.finalize().as_bytes()),
            Err(e) => {
                let e = self.error(name, e);
                // The first error is the one to tell; parts that stay are for the bucket's lifecycle rule.
                let _ = self.run(name, async move { upload.abort().await });
                Err(e)
            }
        }
    }

    fn abort(&self, name: &str, mut upload: Box<dyn MultipartUpload>) {
        let _ = self.run(name, async move { upload.abort().await });
    }

    fn send_parts(
        &self,
        name: &str,
        upload: &mut dyn MultipartUpload,
        file: &dyn ReadAt,
        hasher: &mut blake3::Hasher,
    ) -> ColdResult<()> {
        let mut under_way = VecDeque::new();
        let mut at = 0;
        while at < file.len() {
            let bytes = file.read_at(at, PART_BYTES.min(file.len() - at) as usize)?;
            at += bytes.len() as u64;
            hasher.update(&bytes);
            if under_way.len() == PARTS_AT_ONCE_MAX
                && let Some(first) = under_way.pop_front()
            {
                self.end(name, first)?;
            }
            under_way.push_back(self.begin(upload.put_part(PutPayload::from(bytes))));
        }
        under_way.into_iter().try_for_each(|part| self.end(name, part))
    }

    /// Reads back what is in the store and compares.
    fn verify(&self, put: &ColdRef) -> ColdResult<()> {
        let reader = self.open(put)?;
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < put.bytes {
            let bytes = reader.read_at(at, PART_BYTES.min(put.bytes - at) as usize)?;
            at += bytes.len() as u64;
            hasher.update(&bytes);
        }
        if *hasher.finalize().as_bytes() == put.blake3 {
            Ok(())
        } else {
            Err(self.damaged(&put.name, "read back, its BLAKE3 is another one".to_owned()))
        }
    }
}

/// Joins names below a prefix.
trait JoinAll {
    fn join_all(self, name: &str) -> Path;
}

impl JoinAll for Path {
    fn join_all(self, name: &str) -> Path {
        name.split('/').fold(self, |path, part| path.join(part))
    }
}

fn s3(
    bucket: &str,
    variables: impl IntoIterator<Item = (String, String)>,
    bad: &dyn Fn(String) -> ColdError,
) -> ColdResult<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::new();
    let mut certificates = vec![];
    for (name, value) in variables {
        if name == CA_FILE_VARIABLE {
            let unreadable = |e: rustls::pki_types::pem::Error| bad(format!("{CA_FILE_VARIABLE}={value}: {e}"));
            for certificate in CertificateDer::pem_file_iter(&value).map_err(unreadable)? {
                certificates.push(certificate.map_err(unreadable)?);
            }
        } else if let Some(key) = name
            .starts_with("AWS_")
            .then(|| name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().ok())
            .flatten()
        {
            builder = builder.with_config(key, value);
        }
    }
    let http = http::Hyper::new(certificates).map_err(|e| bad(e.to_string()))?;
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: RETRY_PAUSE_FIRST,
            max_backoff: RETRY_PAUSE_MAX,
            base: 2.0,
        },
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_SPAN_MAX,
    };
    let store = builder
        .with_bucket_name(bucket)
        .with_http_connector(http)
        .with_retry(retry)
        // Files go one at a time: the plain DELETE is what every S3-compatible store knows.
        .with_disable_bulk_delete(true)
        .build()
        .map_err(|e| bad(words(&e)))?;
    Ok(Arc::new(store))
}

/// An error and its causes, each said once.
fn words(e: &dyn std::error::Error) -> String {
    let mut said = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let more = s.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        source = s.source();
    }
    said
}

struct ObjectFile {
    cold: ObjectCold,
    name: String,
    path: Path,
    bytes: u64,
}

impl ReadAt for ObjectFile {
    fn read_at(&self, offset: u64, len: usize) -> DiskResult<Bytes> {
        let shown = || format!("{}/{}", self.cold.0.url, self.name);
        let eof = |why: String| {
            let kind = std::io::ErrorKind::UnexpectedEof;
            DiskError::new("read", &shown(), std::io::Error::new(kind, why))
        };
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.bytes);
        let Some(end) = end else {
            let why = format!("bytes {offset} and {len} more are asked for, of {}", self.bytes);
            return Err(eof(why));
        };
        if len == 0 {
            return Ok(Bytes::new());
        }
        let (store, path) = (self.cold.0.store.clone(), self.path.clone());
        let read = self
            .cold
            .run(&self.name, async move { store.get_range(&path, offset..end).await });
        let bytes = read.map_err(|e| e.into_disk_error("read", &shown()))?;
        if bytes.len() != len {
            return Err(eof(format!("{} bytes came instead of {len}", bytes.len())));
        }
        Ok(bytes)
    }

    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ColdStore for ObjectCold {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn put(&self, name: &str, file: &dyn ReadAt) -> ColdResult<ColdRef> {
        let path = self.path(name)?;
        let put = ColdRef {
            name: name.to_owned(),
            bytes: file.len(),
            blake3: self.send(name, &path, file)?,
        };
        let verified = self.verify(&put);
        if let Err(ColdError::Damaged { .. }) = verified {
            // What is known to be wrong must not be found by anybody.
            let _ = self.delete(name);
        }
        verified.map(|()| put)
    }

    fn open(&self, file: &ColdRef) -> ColdResult<Arc<dyn ReadAt>> {
        let path = self.path(&file.name)?;
        let (store, at) = (self.0.store.clone(), path.clone());
        let found = self.run(&file.name, async move { store.head(&at).await })?;
        if found.size != file.bytes {
            let why = format!("it has {} bytes instead of {}", found.size, file.bytes);
            return Err(self.damaged(&file.name, why));
        }
        Ok(Arc::new(ObjectFile {
            cold: self.clone(),
            name: file.name.clone(),
            path,
            bytes: file.bytes,
        }))
    }

    fn delete(&self, name: &str) -> ColdResult<()> {
        let (store, path) = (self.0.store.clone(), self.path(name)?);
        match self.run(name, async move { store.delete(&path).await }) {
            Err(ColdError::Missing { .. }) => Ok(()),
            done => done,
        }
    }

    fn list(&self, folder: &str) -> ColdResult<Vec<ColdEntry>> {
        let (store, prefix) = (self.0.store.clone(), self.0.prefix.clone());
        let below = match folder {
            "" => prefix.clone(),
            folder => self.path(folder)?,
        };
        let found = self.run("the list of files", async move {
            let mut entries = vec![];
            let mut listed = store.list((!below.as_ref().is_empty()).then_some(&below));
            while let Some(meta) = listed.try_next().await? {
                let below: Option<Vec<String>> = meta
                    .location
                    .prefix_match(&prefix)
                    .map(|parts| parts.map(|p| p.as_ref().to_owned()).collect());
                if let Some(parts) = below {
                    entries.push(ColdEntry {
                        name: parts.join("/"),
                        bytes: meta.size,
                    });
                }
                if entries.len() > LIST_MAX {
                    break;
                }
            }
            Ok(entries)
        });
        let mut entries = found?;
        if entries.len() > LIST_MAX {
            return Err(ColdError::TooMany {
                store: self.0.url.clone(),
            });
        }
        entries.sort();
        Ok(entries)
    }
}
