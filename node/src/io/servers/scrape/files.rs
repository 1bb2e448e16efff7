//! The configuration and the files of `file_sd_configs`, as they lie on the disk.

use super::fetch::{Client, read_text};
use crate::io::servers::snmp::Devices;
use hindcast_scrape::config::{self, CONFIG_BYTES_MAX, FileSd, Group, ScrapeConfig, TlsConfig};
use hindcast_scrape::discovery::{self, FILE_BYTES_MAX, FILES_MAX, fits};
use hindcast_scrape::target::{TARGETS_MAX, Target, find};
use hindcast_scrape::{ConfigError, Job};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// A configuration that can be used: what its files name was there.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    pub path: PathBuf,
    pub config: Arc<ScrapeConfig>,
    pub jobs: Vec<Arc<Job>>,
    pub(super) clients: BTreeMap<TlsConfig, Client>,
    /// What is polled beside it: it is shared, stored and ended in the same way.
    pub(super) devices: Devices,
}

impl Loaded {
    /// Devices that are polled, beside what is scraped or alone.
    pub fn with_devices(self, devices: Devices) -> Self {
        Self { devices, ..self }
    }

    pub fn devices(&self) -> &Devices {
        &self.devices
    }
}

/// Targets of a job that are not scraped.
#[derive(Clone, Debug, Default)]
pub struct NotScraped {
    pub dropped: Vec<BTreeMap<String, String>>,
    pub dropped_count: u64,
    pub bad: Vec<String>,
    pub bad_count: u64,
}

/// What jobs and their files came to.
#[derive(Clone, Debug, Default)]
pub struct AllFound {
    pub targets: Vec<Arc<Target>>,
    /// By job.
    pub not_scraped: BTreeMap<String, NotScraped>,
}

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{0}")]
    File(String),
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{path}: job {job:?}: {why}")]
    Job { path: String, job: String, why: String },
}

/// Reads a configuration and the certificates that it names.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let text = read_text(path, CONFIG_BYTES_MAX).map_err(LoadError::File)?;
    let shown = path.display().to_string();
    let folder = path.parent().unwrap_or(Path::new(""));
    let config = config::parse(&shown, &text)?.below(folder);
    let mut clients = BTreeMap::new();
    for job in &config.jobs {
        let tls = &job.http.tls;
        if !clients.contains_key(tls) {
            let client = Client::new(tls).map_err(|why| LoadError::Job {
                path: shown.clone(),
                job: job.name.clone(),
                why,
            })?;
            clients.insert(tls.clone(), client);
        }
    }
    Ok(Loaded {
        path: path.to_owned(),
        jobs: config.jobs.iter().cloned().map(Arc::new).collect(),
        config: Arc::new(config),
        clients,
        devices: Devices::default(),
    })
}

/// What was read of a file, and by what it is known to have changed.
#[derive(Debug)]
struct Known {
    stamp: Option<(SystemTime, u64)>,
    groups: Vec<Group>,
    /// What was wrong with it last.
    error: Option<String>,
}

/// All files of `file_sd_configs`.
#[derive(Debug, Default)]
pub struct Files {
    known: BTreeMap<PathBuf, Known>,
    /// Times that a file could not be used.
    pub failures: u64,
}

impl Files {
    /// Looks at all files that the jobs name. `everything`: also at those that look as before. True: something changed. A file
    /// that cannot be read or understood keeps the targets that it had; one that is gone has none.
    pub fn look(&mut self, jobs: &[Arc<Job>], everything: bool) -> bool {
        let mut there = BTreeSet::new();
        for pattern in jobs.iter().flat_map(|j| &j.files).flat_map(|f| &f.patterns) {
            for path in matching(pattern) {
                if there.len() < FILES_MAX {
                    there.insert(path);
                }
            }
        }
        let before = self.known.len();
        self.known.retain(|path, _| there.contains(path));
        let mut changed = self.known.len() != before;
        for path in there {
            changed |= self.read(path, everything);
        }
        changed
    }

    fn read(&mut self, path: PathBuf, everything: bool) -> bool {
        let stamp = std::fs::metadata(&path)
            .ok()
            .and_then(|m| Some((m.modified().ok()?, m.len())));
        if !everything
            && self
                .known
                .get(&path)
                .is_some_and(|k| k.stamp == stamp && stamp.is_some())
        {
            return false;
        }
        let shown = path.display().to_string();
        let read = read_text(&path, FILE_BYTES_MAX)
            .and_then(|text| discovery::parse(&shown, &text).map_err(|why| format!("{shown}: {why}")));
        let known = self.known.entry(path).or_insert(Known {
            stamp: None,
            groups: vec![],
            error: None,
        });
        known.stamp = stamp;
        match read {
            Ok(groups) => {
                known.error = None;
                let changed = known.groups != groups;
                known.groups = groups;
                changed
            }
            Err(error) => {
                self.failures += 1;
                if known.error.as_ref() != Some(&error) {
                    tracing::warn!(error, "a file of targets cannot be used; its targets stay as they were");
                }
                known.error = Some(error);
                false
            }
        }
    }

    /// What the jobs' own groups and their files say.
    pub fn find(&self, jobs: &[Arc<Job>]) -> AllFound {
        let mut all = AllFound::default();
        for job in jobs {
            let named = |path: &Path| job.files.iter().any(|f| is_named(f, path));
            let of_files = self.known.iter().filter(|(path, _)| named(path));
            let groups = job.groups.iter().chain(of_files.flat_map(|(_, known)| &known.groups));
            let found = find(job, groups, TARGETS_MAX - all.targets.len());
            all.targets.extend(found.active);
            let not = NotScraped {
                dropped: found.dropped,
                dropped_count: found.dropped_count,
                bad: found.bad,
                bad_count: found.bad_count,
            };
            all.not_scraped.insert(job.name.clone(), not);
        }
        all
    }
}

fn split(pattern: &str) -> (PathBuf, String) {
    let path = Path::new(pattern);
    let name = path
        .file_name()
        .map_or(String::new(), |n| n.to_string_lossy().into_owned());
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    (folder.unwrap_or(Path::new(".")).to_owned(), name)
}

fn is_named(files: &FileSd, path: &Path) -> bool {
    files.patterns.iter().any(|pattern| {
        let (folder, name) = split(pattern);
        let own = path
            .file_name()
            .map_or(String::new(), |n| n.to_string_lossy().into_owned());
        path.parent() == Some(folder.as_path()) && fits(&name, &own)
    })
}

/// Files whose name fits, in the order of their names. A folder that is not there has none.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let (folder, name) = split(pattern);
    if !name.contains('*') {
        let path = folder.join(name);
        return if path.exists() { vec![path] } else { vec![] };
    }
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return vec![];
    };
    let names = entries.filter_map(|e| Some(e.ok()?.file_name()));
    let mut files: Vec<_> = names
        .filter(|n| fits(&name, &n.to_string_lossy()))
        .map(|n| folder.join(n))
        .collect();
    files.sort();
    files.truncate(FILES_MAX);
    files
}
