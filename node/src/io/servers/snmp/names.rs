//! Whose a trap is, by the address that it came from, also of devices that the list has by host names.
//!
//! Invariants
//! - A name that cannot be looked up is where it was found last: a name server that is away moves no traps.
//! - What comes from an address that is not known is nobody's while it might be of a device of another tenant, one whose name was never
//!   found: what a tenant may not see cannot be taken back from there.
//!
//! Bounds: [`ADDRESSES_PER_NAME_MAX`]; [`LOOKUPS_MAX`] at once, each within [`NAME_SPAN_MAX`].

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use hindcast_snmp::config::{Sender, Senders};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Addresses of one name; others are passed over.
pub const ADDRESSES_PER_NAME_MAX: usize = 16;
pub const LOOKUPS_MAX: usize = 16;
pub const NAME_SPAN_MAX: Duration = Duration::from_secs(5);
/// Names whose addresses are put in force together.
const TOGETHER_MAX: usize = 256;

/// How a name is looked up.
pub(super) type LookUp = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

pub(super) fn by_the_machine() -> LookUp {
    Arc::new(|host| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

/// What came of looking up one name.
pub(super) struct LookedUp {
    pub host: String,
    pub addresses: Result<Vec<IpAddr>, String>,
}

/// Looks names up; `take` hears of some at a time, as they come.
pub(super) async fn look_up(
    hosts: BTreeSet<String>,
    with: &LookUp,
    span_max: Duration,
    mut take: impl FnMut(Vec<LookedUp>),
) {
    let one = |host: String| async move {
        let addresses = match tokio::time::timeout(span_max, with(host.clone())).await {
            Ok(Ok(found)) if found.is_empty() => Err("it has no address".to_owned()),
            Ok(Ok(found)) => Ok(found),
            Ok(Err(why)) => Err(why.to_string()),
            Err(_) => Err(format!("no answer within {span_max:?}")),
        };
        LookedUp { host, addresses }
    };
    let mut all = stream::iter(hosts)
        .map(one)
        .buffer_unordered(LOOKUPS_MAX)
        .ready_chunks(TOGETHER_MAX);
    while let Some(some) = all.next().await {
        take(some);
    }
}

/// Of whom an address is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whose<'p> {
    Device(&'p Sender),
    /// Of no device of the list.
    Stranger,
    /// It may be of the device of this name, which was never found.
    Unknown(&'p str),
}

/// Where the devices of a list are.
#[derive(Debug, Default)]
pub(super) struct Places {
    senders: Arc<Senders>,
    /// By name, as each was found last.
    found: BTreeMap<String, Vec<IpAddr>>,
    by_address: BTreeMap<IpAddr, Sender>,
    nowhere: Option<String>,
}

impl Places {
    pub fn senders(&self) -> &Arc<Senders> {
        &self.senders
    }

    pub fn hosts(&self) -> BTreeSet<String> {
        self.senders.named.iter().map(|(host, _)| host.clone()).collect()
    }

    /// A list that is in force from now on. What was found of its names holds.
    pub fn set_senders(&mut self, senders: Arc<Senders>) {
        self.senders = senders;
        let hosts = self.hosts();
        self.found.retain(|host, _| hosts.contains(host));
        self.settle();
    }

    /// What could not be looked up changes nothing.
    pub fn take(&mut self, looked_up: impl IntoIterator<Item = LookedUp>) {
        let hosts = self.hosts();
        let mut is_new = false;
        for LookedUp { host, addresses } in looked_up {
            let Ok(mut addresses) = addresses else { continue };
            addresses.iter_mut().for_each(|a| *a = a.to_canonical());
            addresses.sort_unstable();
            addresses.dedup();
            addresses.truncate(ADDRESSES_PER_NAME_MAX);
            // The list may be another one by now.
            if hosts.contains(&host) && self.found.get(&host) != Some(&addresses) {
                self.found.insert(host, addresses);
                is_new = true;
            }
        }
        if is_new {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.by_address.clear();
        self.nowhere = None;
        for (host, sender) in &self.senders.named {
            match self.found.get(host) {
                Some(addresses) => {
                    for address in addresses {
                        self.by_address.entry(*address).or_insert_with(|| sender.clone());
                    }
                }
                None if sender.tenant != self.senders.tenant => {
                    self.nowhere.get_or_insert_with(|| host.clone());
                }
                None => {}
            }
        }
    }

    pub fn whose(&self, peer: IpAddr) -> Whose<'_> {
        let known = self.senders.devices.get(&peer).or_else(|| self.by_address.get(&peer));
        match (known, &self.nowhere) {
            (Some(sender), _) => Whose::Device(sender),
            (None, Some(host)) => Whose::Unknown(host),
            (None, None) => Whose::Stranger,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::TenantId;
    use parking_lot::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    fn sender(name: &str, tenant: &str) -> Sender {
        Sender {
            name: name.to_owned(),
            tenant: TenantId::new(tenant).unwrap(),
            labels: BTreeMap::new(),
        }
    }

    fn list(named: &[(&str, &str)]) -> Arc<Senders> {
        let named = named
            .iter()
            .map(|(host, tenant)| ((*host).to_owned(), sender(host, tenant)));
        Arc::new(Senders {
            tenant: TenantId::new("all").unwrap(),
            devices: BTreeMap::from([(address(9), sender("fixed", "nine"))]),
            named: named.collect(),
            ..Senders::default()
        })
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn looked_up(host: &str, addresses: &[IpAddr]) -> [LookedUp; 1] {
        let addresses = match addresses {
            [] => Err("no name server answers".to_owned()),
            some => Ok(some.to_vec()),
        };
        let host = host.to_owned();
        [LookedUp { host, addresses }]
    }

    fn whose(places: &Places, n: u8) -> String {
        match places.whose(address(n)) {
            Whose::Device(sender) => format!("{} of {}", sender.name, sender.tenant),
            Whose::Stranger => "a stranger".to_owned(),
            Whose::Unknown(host) => format!("perhaps {host}"),
        }
    }

    /// One look-up that failed, and its traps were lines of the tenant of strangers, which others read.
    #[test]
    fn a_name_that_cannot_be_looked_up_moves_no_traps_to_another_tenant() {
        let mut places = Places::default();
        places.set_senders(list(&[("sw-1", "a"), ("sw-2", "all")]));
        assert_eq!(whose(&places, 1), "perhaps sw-1", "it was not looked up yet");
        assert_eq!(whose(&places, 9), "fixed of nine");
        places.take(looked_up("sw-2", &[address(2)]));
        places.take(looked_up("sw-1", &[]));
        assert_eq!(
            (whose(&places, 2), whose(&places, 1)),
            ("sw-2 of all".to_owned(), "perhaps sw-1".to_owned())
        );
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        places.take(looked_up("sw-1", &[mapped]));
        assert_eq!(
            (whose(&places, 1), whose(&places, 3)),
            ("sw-1 of a".to_owned(), "a stranger".to_owned())
        );
        places.take(looked_up("sw-1", &[]));
        assert_eq!(whose(&places, 1), "sw-1 of a");
        // It moved.
        places.take(looked_up("sw-1", &[address(4)]));
        assert_eq!(
            (whose(&places, 1), whose(&places, 4)),
            ("a stranger".to_owned(), "sw-1 of a".to_owned())
        );
        // A list in which it is of another tenant is in force at once; and one without it.
        places.set_senders(list(&[("sw-1", "b")]));
        assert_eq!(whose(&places, 4), "sw-1 of b");
        places.set_senders(list(&[]));
        places.take(looked_up("sw-1", &[address(4)]));
        assert_eq!(whose(&places, 4), "a stranger");
        // One that nobody finds is no matter where all is of one tenant.
        places.set_senders(list(&[("sw-1", "all")]));
        assert_eq!(whose(&places, 4), "a stranger");
    }

    #[test]
    fn a_name_has_a_bounded_number_of_addresses() {
        let mut places = Places::default();
        places.set_senders(list(&[("many", "all")]));
        let all: Vec<_> = (100..200).map(address).collect();
        places.take(looked_up("many", &all));
        let known = (100..200).filter(|n| whose(&places, *n) == "many of all").count();
        assert_eq!(known, ADDRESSES_PER_NAME_MAX);
    }

    #[tokio::test]
    async fn names_are_looked_up_a_few_at_a_time_and_one_without_an_answer_is_left() {
        let span_max = Duration::from_millis(400);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let most_seen = most.clone();
        let with: LookUp = Arc::new(move |host| {
            let (now, most) = (now.clone(), most.clone());
            Box::pin(async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                if host == "mute" {
                    return std::future::pending().await;
                }
                tokio::time::sleep(span_max / 20).await;
                now.fetch_sub(1, SeqCst);
                Ok(vec![address(1)])
            })
        });
        let hosts = (0..50).map(|n| format!("sw-{n}")).chain(["mute".to_owned()]).collect();
        let told = Mutex::new(BTreeMap::new());
        let take = |some: Vec<LookedUp>| told.lock().extend(some.into_iter().map(|l| (l.host, l.addresses)));
        look_up(hosts, &with, span_max, take).await;
        let mut told = told.into_inner();
        assert_eq!(told.remove("mute"), Some(Err("no answer within 400ms".to_owned())));
        assert!(told.len() == 50 && told.values().all(Result::is_ok), "{told:?}");
        assert_eq!(most_seen.load(SeqCst), LOOKUPS_MAX);
    }
}
