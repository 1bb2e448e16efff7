//! How far an import has come, so that the next one goes on there.
//!
//! Pure. What is saved belongs to one cluster, tenant, set of options and list of files ([`key`]); a file whose content changed is
//! begun anew. Saved after every confirmed batch: a process that is killed repeats one batch, which the server
//! knows again for ten minutes (`limits::DEDUP_SPAN`). After that, samples overwrite themselves, and its log lines are stored twice.

use super::csv::Csv;
use super::{ImportConfig, ImportReport};
use hindcast_ingest::tsdb;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

const VERSION: u32 = 1;
/// A longer text is none of ours.
pub const SAVED_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    pub files: Vec<File>,
    pub report: ImportReport,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// Named by content and options.
    pub writer: String,
    pub done: bool,
    pub mark: Option<Mark>,
}

/// Up to where everything is confirmed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Mark {
    Lines(LineMark),
    Tsdb { place: tsdb::Place, tally: tsdb::Tally },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LineMark {
    /// Of the last batch.
    pub seq: u64,
    /// Bytes of text, unpacked.
    pub offset: u64,
    pub number: u64,
    pub page_ms: i64,
    pub csv: Option<Csv>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    version: u32,
    saved: Saved,
}

/// The name of what is saved for an import.
pub fn key(config: &ImportConfig, files: &[PathBuf], cluster: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("hindcast 2026 import progress");
    let options = format!(
        "{cluster:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        config.tenant, config.format, config.metric, config.labels, config.resource, config.at_ms, files
    );
    hasher.update(options.as_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}

/// A text whose first line is a checksum of the rest: a write that a power cut tore is not taken for an earlier place.
pub fn seal(saved: &Saved) -> String {
    let sealed = Sealed {
        version: VERSION,
        saved: saved.clone(),
    };
    let body = serde_json::to_string(&sealed).expect("numbers and texts are JSON");
    format!("{}\n{body}\n", blake3::hash(body.as_bytes()).to_hex())
}

/// Why saved progress cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("its checksum is wrong")]
    Checksum,
    #[error("another version of hindcast wrote it: {why}")]
    Version { why: String },
}

pub fn unseal(text: &str) -> Result<Saved, Unreadable> {
    let (sum, body) = text.split_once('\n').ok_or(Unreadable::Checksum)?;
    let body = body.strip_suffix('\n').ok_or(Unreadable::Checksum)?;
    if blake3::hash(body.as_bytes()).to_hex().as_str() != sum {
        return Err(Unreadable::Checksum);
    }
    let other = |why: String| Unreadable::Version { why };
    let sealed: Sealed = serde_json::from_str(body).map_err(|e| other(e.to_string()))?;
    if sealed.version != VERSION {
        return Err(other(format!("version {}", sealed.version)));
    }
    Ok(sealed.saved)
}

impl Saved {
    /// What is known of a file, if it is still the same.
    pub fn file(&mut self, i: usize, writer: &str) -> &mut File {
        if self.files.len() <= i {
            self.files.resize_with(i + 1, File::default);
        }
        let file = &mut self.files[i];
        if file.writer != writer {
            *file = File {
                writer: writer.to_owned(),
                ..File::default()
            };
        }
        file
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn saved() -> Saved {
        let mut saved = Saved::default();
        saved.file(1, "w").mark = Some(Mark::Lines(LineMark {
            seq: 7,
            offset: 1 << 40,
            number: 9,
            page_ms: -1,
            csv: Some(Csv::new("m")),
        }));
        saved.report.samples_acked = 70_000;
        saved
    }

    #[test]
    fn progress_is_that_of_the_same_content_only() {
        let mut saved = saved();
        assert!(saved.file(1, "w").mark.is_some());
        assert_eq!(saved.file(1, "other").mark, None);
        assert_eq!(saved.file(0, "first").mark, None);
    }

    proptest! {
        #[test]
        fn what_is_sealed_reads_back_and_nothing_else_does(at in any::<proptest::sample::Index>(), flip in 1u8..=255) {
            let sealed = seal(&saved());
            prop_assert_eq!(unseal(&sealed), Ok(saved()));
            let at = at.index(sealed.len());
            prop_assert!(unseal(&sealed[..at]).is_err());
            let mut damaged = sealed.into_bytes();
            damaged[at] ^= flip;
            prop_assert!(String::from_utf8(damaged).map_or(true, |text| unseal(&text).is_err()));
        }
    }
}
