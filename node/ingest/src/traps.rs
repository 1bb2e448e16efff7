//! Traps of devices, which were made lines elsewhere, as batches.
//!
//! A line that cannot be stored (too much metadata, a label too long) is refused by itself, with the reason; the others are stored.
//! Who sent one as an inform is to hear nothing then: so what is refused and what is stored are told apart before a batch is made.
//! The caller names the batches.

use crate::owners::{Named, Seen};
use crate::{LimitsContext, Rejections};
use hindcast_model::{Batch, Labels, LogLine, StreamBlock, TenantId};
use std::collections::BTreeMap;

/// A line, and the labels of its stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Trap {
    pub labels: Vec<(String, String)>,
    pub line: LogLine,
}

/// Whether a line can be stored; if not, why is in `rejected`.
pub fn fits(trap: &Trap, limits: &LimitsContext, rejected: &mut Rejections) -> bool {
    let fits = limits
        .labels(&trap.labels, false)
        .and_then(|()| limits.time(trap.line.at))
        .and_then(|()| limits.line(trap.line.line.len(), &trap.line.metadata));
    if let Err(why) = &fits {
        rejected.add(1, why, || Labels::new(trap.labels.clone()).to_string());
    }
    fits.is_ok()
}

/// Makes a batch of lines that fit. Of one stream they keep their order.
pub fn adapt<'t>(tenant: &TenantId, traps: impl IntoIterator<Item = &'t Trap>) -> Batch {
    let (mut batch, mut seen) = (Batch::new(tenant.clone()), Seen::default());
    let mut of_labels: BTreeMap<&[(String, String)], usize> = BTreeMap::new();
    for trap in traps {
        let at = *of_labels.entry(&trap.labels).or_insert_with(|| {
            let named = Named::new(tenant, Labels::new(trap.labels.clone()), &[]);
            seen.note(&named.resource);
            batch.streams.push(StreamBlock {
                labels: named.labels,
                owner: named.owner,
                lines: vec![],
            });
            batch.streams.len() - 1
        });
        batch.streams[at].lines.push(trap.line.clone());
    }
    seen.into_batch(&mut batch);
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::TimestampNs;

    fn trap(labels: &[(&str, &str)], text: &str, metadata: usize) -> Trap {
        Trap {
            labels: labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            line: LogLine {
                at: TimestampNs::from_secs(100),
                line: text.to_owned().into(),
                metadata: (0..metadata).map(|n| (format!("m{n}"), "x".to_owned())).collect(),
            },
        }
    }

    #[test]
    fn a_trap_is_of_its_device_or_interface_and_what_does_not_fit_is_refused_by_itself() {
        let limits = LimitsContext {
            now: TimestampNs::from_secs(1_000),
            floor: None,
            bounds: crate::check::Bounds::DEFAULT,
        };
        let of_device = [("instance", "sw1"), ("snmp_device", "sw1")];
        let of_interface = [("instance", "sw1"), ("ifIndex", "3")];
        let traps = [
            trap(&of_device, "a", 0),
            trap(&of_interface, "b", 0),
            trap(&of_device, "c", 1),
            trap(&of_device, "d", crate::check::METADATA_MAX + 1),
        ];
        let mut rejected = Rejections::default();
        let taken = traps.iter().filter(|t| fits(t, &limits, &mut rejected));
        let batch = adapt(&TenantId::default(), taken);
        let names: Vec<_> = batch
            .resources
            .iter()
            .map(|r| (r.kind.as_str(), r.name.as_str()))
            .collect();
        assert!(
            names.contains(&("device", "sw1")) && names.contains(&("interface", "sw1/3")),
            "{names:?}"
        );
        let lines: Vec<_> = batch.streams.iter().map(|s| s.lines.len()).collect();
        assert_eq!(lines, [2, 1]);
        assert_eq!(
            rejected.by_code().iter().collect::<Vec<_>>(),
            [(&"metadata_too_large", &1)]
        );
    }
}
