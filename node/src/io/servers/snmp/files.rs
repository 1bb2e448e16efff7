//! The list of devices as it lies on the disk, its secrets, and the targets that it comes to.

use crate::io::servers::scrape::fetch::{SECRET_BYTES_MAX, read_text};
use hindcast_model::{Labels, TenantId};
use hindcast_scrape::Job;
use hindcast_scrape::target::{Target, polled};
use hindcast_snmp::config::{CONFIG_BYTES_MAX, ConfigError, Elsewhere, Senders, beside, parse};
use hindcast_snmp::session::Session;
use hindcast_snmp::{Device, SnmpConfig};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Why a list is not taken.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{0}")]
    File(String),
    #[error("{0}")]
    Config(#[from] ConfigError),
}

/// A device and what is known of it from polls before.
#[derive(Debug)]
pub struct Polled {
    pub(super) device: Device,
    /// `None` while it is being polled, and before it was.
    pub(super) session: Mutex<Option<Session>>,
    target: Arc<Target>,
}

/// A list that can be used. Clones share what is known of the devices.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    by_key: Arc<BTreeMap<u64, Polled>>,
    senders: Arc<Senders>,
}

impl Devices {
    fn new(config: SnmpConfig) -> Self {
        let mut jobs: BTreeMap<(String, TenantId), Arc<Job>> = BTreeMap::new();
        let mut by_key = BTreeMap::new();
        for device in config.devices {
            let named = (device.job.clone(), device.tenant.clone());
            let job = jobs
                .entry(named)
                .or_insert_with_key(|(name, tenant)| Arc::new(Job::of_polls(name.clone(), tenant.clone())));
            let own = [("job", &device.job), ("instance", &device.name)];
            let labels = device.labels.iter().map(|(n, v)| (n.as_str(), v));
            let labels: Labels = labels.chain(own).map(|(n, v)| (n.to_owned(), v.clone())).collect();
            let target = polled(job, format!("snmp://{}", device.address()), labels, device.interval);
            let of_key = Polled {
                device,
                session: Mutex::new(None),
                target: Arc::new(target),
            };
            by_key.insert(of_key.target.key, of_key);
        }
        Self {
            by_key: Arc::new(by_key),
            senders: Arc::new(config.senders),
        }
    }

    pub fn get(&self, key: u64) -> Option<&Polled> {
        self.by_key.get(&key)
    }

    pub fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.by_key.values().map(|p| &p.target)
    }

    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.by_key.values().map(|p| &p.device)
    }

    /// Who may send traps.
    pub fn senders(&self) -> &Arc<Senders> {
        &self.senders
    }
}

/// Reads a list and the secrets that it names. Many different passwords take a while.
pub fn load(path: &Path) -> Result<Devices, LoadError> {
    let text = read_text(path, CONFIG_BYTES_MAX).map_err(LoadError::File)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let secret = |elsewhere: &Elsewhere| match beside(elsewhere, folder) {
        Elsewhere::File(path) => read_text(&path, SECRET_BYTES_MAX),
        Elsewhere::Variable(name) => {
            std::env::var(&name).map_err(|_| format!("the variable {name} is not set, or is not UTF-8"))
        }
    };
    Ok(Devices::new(parse(&path.display().to_string(), &text, &secret)?))
}
