//! Where progress is kept: one small file for each import that is under way.

use crate::agent::io::send::now;
use crate::import::resume::{SAVED_BYTES_MAX, Saved, key, seal, unseal};
use crate::import::{Format, ImportConfig, ImportError};
use hindcast_model::SpanNs;
use hindcast_proto::edge::TENANT_KEY;
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_client::ClusterClient;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Code;

/// An answer that takes longer counts as none.
const ANSWER_SPAN_MAX: Duration = Duration::from_secs(5);

pub struct Progress {
    pub saved: Saved,
    path: Option<PathBuf>,
    /// A save that failed was told.
    told: bool,
}

impl Progress {
    /// What an earlier run of this import left, if anything.
    pub async fn open(config: &ImportConfig) -> Result<Self, ImportError> {
        let mut progress = Self {
            saved: Saved::default(),
            path: None,
            told: false,
        };
        let Some(dir) = &config.progress_dir else {
            return Ok(progress);
        };
        // Progress belongs to one cluster: what another one confirmed is not stored in this one.
        let cluster = match cluster(config).await? {
            Ok(cluster) => cluster,
            Err(why) => {
                tracing::warn!(error = %why, "cannot ask which cluster this is: no progress is kept, and an import that is ended begins anew");
                return Ok(progress);
            }
        };
        let files: Vec<_> = config
            .files
            .iter()
            .map(|f| fs::canonicalize(f).unwrap_or_else(|_| f.clone()))
            .collect();
        let path = dir.join(format!("import-{}", key(config, &files, &cluster)));
        if let Err(e) = fs::create_dir_all(dir) {
            tracing::warn!(dir = %dir.display(), error = %e, "cannot keep progress: an import that is ended begins anew");
            return Ok(progress);
        }
        if config.restart {
            let _ = fs::remove_file(&path);
        } else if let Some(saved) = read(&path) {
            progress.saved = saved;
            progress.saved.report.resumed += 1;
        }
        progress.path = Some(path);
        Ok(progress)
    }

    pub fn save(&mut self) {
        let Some(path) = &self.path else { return };
        let aside = path.with_extension("tmp");
        // Not synced: after a power cut an older state repeats batches, which is harmless, and a torn one is known as such.
        let written = fs::write(&aside, seal(&self.saved)).and_then(|()| fs::rename(&aside, path));
        if let Err(e) = written
            && !self.told
        {
            self.told = true;
            tracing::warn!(file = %path.display(), error = %e, "cannot keep progress: an import that is ended begins at an earlier place");
        }
    }

    /// Everything is confirmed: the next import of these files is one of its own.
    pub fn finish(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

fn read(path: &Path) -> Option<Saved> {
    let len = fs::metadata(path).ok()?.len();
    let text = if len > SAVED_BYTES_MAX {
        Ok(String::new())
    } else {
        fs::read_to_string(path)
    };
    let why = match text {
        Ok(text) => match unseal(&text) {
            Ok(saved) => return Some(saved),
            Err(e) => e.to_string(),
        },
        Err(e) => e.to_string(),
    };
    tracing::warn!(file = %path.display(), %why, "what an earlier import left cannot be used; beginning anew");
    None
}

/// The id of the cluster, from whichever node answers; or why none says it, which does not hinder the import. Where batches go
/// by the same protocol and nobody answers at all, they would not arrive either: an error.
async fn cluster(config: &ImportConfig) -> Result<Result<String, String>, ImportError> {
    let ImportConfig {
        endpoints, tls, tenant, ..
    } = config;
    let is_http = config.format == Format::RemoteWrite;
    let usage = |why: String| ImportError::Usage { why };
    let dial = tls.dial(endpoints.urls().iter().map(String::as_str));
    let dial = dial.map_err(|e| usage(e.to_string()))?;
    let tenant: tonic::metadata::AsciiMetadataValue = tenant
        .parse()
        .map_err(|_| usage(format!("the tenant {tenant:?} is not plain ASCII")))?;
    let mut why = String::new();
    // A receiver of remote write may speak no other protocol: it is asked once.
    for round in 0..if is_http { 1 } else { super::ROUNDS_MAX } {
        if round > 0 {
            let pause = SpanNs::from_ms(200).doubled(round - 1).min(SpanNs::from_secs(5));
            tokio::time::sleep((now() + pause).since(now()).as_duration()).await;
        }
        let mut may_pass = false;
        for url in endpoints.urls() {
            let endpoint = tonic::transport::Endpoint::from_shared(url.clone()).map_err(|e| usage(e.to_string()))?;
            let endpoint = endpoint.connect_timeout(ANSWER_SPAN_MAX).timeout(ANSWER_SPAN_MAX);
            let mut client = ClusterClient::new(endpoint.connect_with_connector_lazy(dial.clone()));
            let mut request = tonic::Request::new(v1::StatusRequest {});
            request.metadata_mut().insert(TENANT_KEY, tenant.clone());
            match client.status(request).await {
                Ok(status) => return Ok(Ok(status.into_inner().cluster)),
                Err(status) => {
                    why = format!("{url}: {}", status.message());
                    may_pass |= is_passing(status.code());
                }
            }
        }
        if !may_pass {
            return Ok(Err(why));
        }
    }
    if is_http {
        Ok(Err(why))
    } else {
        Err(ImportError::Unreachable { why })
    }
}

/// Whether asking later may help.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted | Code::Aborted
    )
}
