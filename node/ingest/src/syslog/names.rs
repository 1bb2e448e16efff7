//! How many hosts and programs of one listener name streams. Anybody can send any name, and each name is a stream to keep
//! for as long as its lines: beyond the bounds a name goes with its line and names no stream.

use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::xxh3_64;

/// Pairs of host and program that name streams, per listener.
pub const NAMES_MAX: usize = 50_000;
/// Programs of one host.
pub const APPS_PER_HOST_MAX: usize = 256;

/// Which names a listener has seen, by their hashes.
#[derive(Debug)]
pub struct Names {
    apps: BTreeMap<u64, BTreeSet<u64>>,
    count: usize,
    names_max: usize,
}

/// Which of a message's names may name its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    pub host: bool,
    pub app: bool,
}

impl Default for Names {
    fn default() -> Self {
        Self::with_max(NAMES_MAX)
    }
}

impl Names {
    pub(super) const fn with_max(names_max: usize) -> Self {
        Self {
            apps: BTreeMap::new(),
            count: 0,
            names_max,
        }
    }

    /// Remembers the names, if there is room.
    pub fn admit(&mut self, host: &str, app: Option<&str>) -> Named {
        let (host, is_full) = (xxh3_64(host.as_bytes()), self.count >= self.names_max);
        if is_full && !self.apps.contains_key(&host) {
            return Named {
                host: false,
                app: false,
            };
        }
        // A host counts as a name itself.
        self.count += usize::from(!self.apps.contains_key(&host));
        let apps = self.apps.entry(host).or_default();
        let Some(app) = app else {
            return Named { host: true, app: true };
        };
        let app = xxh3_64(app.as_bytes());
        if apps.contains(&app) {
            return Named { host: true, app: true };
        }
        if self.count >= self.names_max || apps.len() >= APPS_PER_HOST_MAX {
            return Named { host: true, app: false };
        }
        apps.insert(app);
        self.count += 1;
        Named { host: true, app: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_beyond_the_bounds_names_no_stream_and_known_ones_go_on() {
        let mut names = Names::with_max(1000);
        let mut of_host = |app: usize| names.admit("a", Some(&format!("app-{app}"))).app;
        assert!((0..APPS_PER_HOST_MAX).all(&mut of_host));
        assert!(!of_host(APPS_PER_HOST_MAX));
        assert!(of_host(0));
        let hosts = (0..2000)
            .filter(|h| names.admit(&format!("host-{h}"), None).host)
            .count();
        assert_eq!(hosts, 1000 - 1 - APPS_PER_HOST_MAX);
        assert_eq!(
            names.admit("another", Some("app")),
            Named {
                host: false,
                app: false
            }
        );
        assert_eq!(names.admit("host-1", Some("app")), Named { host: true, app: false });
        assert_eq!(names.admit("a", Some("app-1")), Named { host: true, app: true });
        assert_eq!(names.count, 1000);
    }
}
