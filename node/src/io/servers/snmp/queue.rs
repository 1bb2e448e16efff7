//! What of traps may wait to be stored.
//!
//! Pure. All tenants share one bound, and none takes more of it than it leaves free: one that sends more than is stored of it finds no
//! room while others still do.

use hindcast_model::TenantId;
use std::collections::BTreeMap;

#[derive(Debug)]
pub(super) struct Queued {
    bytes_max: usize,
    bytes: usize,
    by_tenant: BTreeMap<TenantId, usize>,
}

impl Queued {
    pub const fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            by_tenant: BTreeMap::new(),
        }
    }

    /// Whether so many bytes of a tenant may wait, too; then they do.
    pub fn admit(&mut self, tenant: &TenantId, bytes: usize) -> bool {
        let own = self.by_tenant.get(tenant).copied().unwrap_or(0);
        if own + bytes + self.bytes + bytes > self.bytes_max {
            return false;
        }
        self.bytes += bytes;
        self.by_tenant.insert(tenant.clone(), own + bytes);
        true
    }

    pub fn release(&mut self, tenant: &TenantId, bytes: usize) {
        self.bytes -= bytes;
        if let Some(own) = self.by_tenant.get_mut(tenant) {
            *own -= bytes;
            if *own == 0 {
                self.by_tenant.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tenant(n: usize) -> TenantId {
        TenantId::new(&format!("t{n}")).unwrap()
    }

    #[test]
    fn who_sends_too_much_leaves_room_for_others() {
        let mut queued = Queued::new(1000);
        let fill = |queued: &mut Queued, n| (0..).take_while(|_| queued.admit(&tenant(n), 10)).count();
        assert_eq!(fill(&mut queued, 0), 50, "alone, half of it");
        assert_eq!(fill(&mut queued, 1), 25);
        assert_eq!(fill(&mut queued, 0), 0, "who has half takes no more");
        assert_eq!(fill(&mut queued, 2), 12);
        queued.release(&tenant(0), 500);
        assert!(fill(&mut queued, 3) > 12 && queued.bytes <= 1000);
    }

    proptest! {
        /// Whatever comes and goes, the bound holds, and nothing is left of what went.
        #[test]
        fn the_bound_holds(steps in proptest::collection::vec((0usize..4, 1usize..300, any::<bool>()), 1..200)) {
            let mut queued = Queued::new(1000);
            let mut waiting = vec![];
            for (n, bytes, comes) in steps {
                if comes {
                    let own: usize = waiting.iter().filter(|(t, _)| *t == n).map(|(_, b)| b).sum();
                    let is_fair = queued.bytes + bytes <= 1000 && own + bytes <= 1000 - queued.bytes - bytes;
                    prop_assert_eq!(queued.admit(&tenant(n), bytes), is_fair);
                    waiting.extend(is_fair.then_some((n, bytes)));
                } else if let Some((n, bytes)) = waiting.pop() {
                    queued.release(&tenant(n), bytes);
                }
                prop_assert!(queued.bytes <= 1000);
                prop_assert_eq!(queued.bytes, waiting.iter().map(|(_, b)| b).sum::<usize>());
            }
            for (n, bytes) in waiting {
                queued.release(&tenant(n), bytes);
            }
            prop_assert!(queued.bytes == 0 && queued.by_tenant.is_empty());
        }
    }
}
