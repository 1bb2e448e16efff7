//! The file as it lies on the disk, with its passwords and certificates.

use super::conn::Reach;
use crate::io::servers::scrape::fetch::{SECRET_BYTES_MAX, read_text, tls};
use hindcast_kafka::config::{CONFIG_BYTES_MAX, ConfigError, Elsewhere, parse};
use hindcast_kafka::{KafkaConfig, Source};
use hindcast_scrape::config::TlsConfig;
use rustls::pki_types::ServerName;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{0}")]
    File(String),
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{file}: source {source_name:?}: tls: {why}")]
    Tls {
        file: String,
        source_name: String,
        why: String,
    },
}

/// A file that can be used.
#[derive(Clone)]
pub struct Loaded {
    pub path: PathBuf,
    pub config: KafkaConfig,
    /// One of each source.
    pub(super) reaches: Vec<Reach>,
}

fn reach(source: &Source) -> Result<Reach, String> {
    let mut reach = Reach {
        tls: None,
        server_name: None,
        sasl: source.sasl.clone(),
        files: 0,
    };
    let Some(own) = &source.tls else { return Ok(reach) };
    let settings = TlsConfig {
        ca_file: own.ca_file.clone(),
        cert_file: own.cert_file.clone(),
        key_file: own.key_file.clone(),
        server_name: own.server_name.clone(),
        insecure_skip_verify: own.insecure_skip_verify,
    };
    let made = tls(&settings).map_err(|e| e.trim_start_matches("tls_config: ").to_owned())?;
    reach.tls = Some(Arc::new(made));
    // A reload takes up what was renewed under the same name.
    for file in [&own.ca_file, &own.cert_file, &own.key_file].into_iter().flatten() {
        let text = read_text(file, SECRET_BYTES_MAX)?;
        reach.files = xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), reach.files);
    }
    if let Some(name) = &own.server_name {
        let name = ServerName::try_from(name.clone()).map_err(|_| format!("server_name {name:?} is no host name"))?;
        reach.server_name = Some(name);
    }
    Ok(reach)
}

/// Reads a file, the passwords that it names, and certificates. Asks no broker.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let text = read_text(path, CONFIG_BYTES_MAX).map_err(LoadError::File)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let secret = |elsewhere: &Elsewhere| match elsewhere {
        Elsewhere::File(path) => read_text(path, SECRET_BYTES_MAX),
        Elsewhere::Variable(name) => {
            std::env::var(name).map_err(|_| format!("the variable {name} is not set, or is not UTF-8"))
        }
    };
    let file = path.display().to_string();
    let config = parse(&file, &text, folder, &secret)?;
    let reaches = config.sources.iter().map(|source| {
        reach(source).map_err(|why| LoadError::Tls {
            file: file.clone(),
            source_name: source.name.clone(),
            why,
        })
    });
    Ok(Loaded {
        path: path.to_owned(),
        reaches: reaches.collect::<Result<_, _>>()?,
        config,
    })
}
