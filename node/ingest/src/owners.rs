//! Labels as they are stored, and whose they are: checked, completed from the resource's attributes, with an owner.

use crate::{LimitsContext, Refusal};
use hindcast_model::{Batch, Labels, Owner, Resource, ResourceId, TenantId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Labels as they are stored, and whose they are.
#[derive(Clone)]
pub(crate) struct Named {
    pub labels: Labels,
    pub owner: Owner,
    pub resource: Option<Arc<Resource>>,
}

impl Named {
    /// Finds the owner of a set whose resource attributes are `attrs`.
    pub fn new(tenant: &TenantId, labels: Labels, attrs: &[(String, String)]) -> Self {
        let resource = crate::identity::owning(tenant, &labels, attrs).map(Arc::new);
        let owner = owner_of(resource.as_deref());
        Self {
            labels,
            owner,
            resource,
        }
    }
}

pub(crate) fn owner_of(resource: Option<&Resource>) -> Owner {
    resource.map_or(Owner::None, |r| Owner::Resource { id: r.id, kind: r.kind })
}

/// What else than its own labels names a set: tenant, resource attributes, and whether it is a series or a stream.
pub(crate) struct Scope {
    bytes: Box<[u8]>,
    seed: u64,
}

impl Scope {
    pub fn new(tenant: &TenantId, attrs: &[(String, String)], role: &str) -> Self {
        let mut bytes = Vec::new();
        let pairs = attrs.iter().flat_map(|(n, v)| [n.as_str(), v.as_str()]);
        for text in [role, tenant.as_str()].into_iter().chain(pairs) {
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        let seed = xxhash_rust::xxh3::xxh3_64(&bytes);
        Self {
            bytes: bytes.into(),
            seed,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What hashes of labels within it begin with.
    pub const fn seed(&self) -> u64 {
        self.seed
    }
}

/// The distinct resources that a request speaks of.
#[derive(Default)]
pub(crate) struct Seen {
    by_id: BTreeMap<ResourceId, Arc<Resource>>,
    last: Option<ResourceId>,
}

impl Seen {
    pub fn note(&mut self, resource: &Option<Arc<Resource>>) {
        let Some(resource) = resource else { return };
        // Series of one resource come in runs.
        if self.last != Some(resource.id) {
            self.last = Some(resource.id);
            self.by_id.entry(resource.id).or_insert_with(|| resource.clone());
        }
    }

    /// Writes them into the batch, in the order of their ids.
    pub fn into_batch(self, batch: &mut Batch) {
        batch.resources = self.into_list();
    }

    /// In the order of their ids.
    pub fn into_list(self) -> Vec<Resource> {
        self.by_id.into_values().map(Arc::unwrap_or_clone).collect()
    }
}

/// Checks and names the labels of a series or stream of a protocol that sends them as label lists.
pub(crate) fn name_labels(
    tenant: &TenantId,
    pairs: Vec<(String, String)>,
    attrs: &[(String, String)],
    of_series: bool,
    limits: &LimitsContext,
) -> Result<Named, Refusal> {
    limits.labels(&pairs, of_series)?;
    let labels = Labels::new(pairs);
    let named = Named::new(tenant, labels, attrs);
    if attrs.is_empty() {
        return Ok(named);
    }
    let filled = if of_series {
        crate::identity::fill_series(&named.labels, attrs, named.resource.as_deref())
    } else {
        crate::identity::fill_stream(&named.labels, attrs)
    };
    limits.labels(&filled.iter().collect::<Vec<_>>(), of_series)?;
    Ok(Named {
        labels: filled,
        ..named
    })
}
