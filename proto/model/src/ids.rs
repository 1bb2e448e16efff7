//! Names of things: types, never bare integers.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadId;
            /// Takes the shown form, in any case, or the bare number.
            fn from_str(s: &str) -> Result<Self, BadId> {
                let digits = match s.get(..$prefix.len()) {
                    Some(p) if p.eq_ignore_ascii_case($prefix) => &s[$prefix.len()..],
                    _ => s,
                };
                digits.parse().map(Self).map_err(|_| BadId { given: s.to_owned(), example: concat!($prefix, "1") })
            }
        }
    };
}

/// An id that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an id of this kind; write it like {example:?}")]
pub struct BadId {
    pub given: String,
    pub example: &'static str,
}

number_id!(
    /// A node of the cluster. Starts at 1; 0 is "none" (raft-rs).
    NodeId, ""
);
number_id!(
    /// A Raft group: 0 is the meta group, 1..=S are shards.
    GroupId, ""
);
number_id!(
    /// A shard: the Raft group of the same number, 1..=S.
    ShardId, ""
);
number_id!(
    /// `INC-1`, counted by the meta group over all tenants.
    IncidentId, "INC-"
);
number_id!(
    /// `T-1`, counted by the meta group over all tenants; strictly increasing, never reused.
    TicketId, "T-"
);
number_id!(
    /// `CUT-1`: a recorded vector of commit positions.
    CutId, "CUT-"
);

impl GroupId {
    pub const META: Self = Self(0);
}

impl From<ShardId> for GroupId {
    fn from(s: ShardId) -> Self {
        Self(s.0)
    }
}

/// Whose data it is. 1 to 128 bytes of `[A-Za-z0-9_.-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TenantId(Arc<str>);

/// A tenant name that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tenant name: use 1 to 128 of the characters A-Z a-z 0-9 _ . -")]
pub struct BadTenant(pub String);

impl TenantId {
    pub fn new(name: &str) -> Result<Self, BadTenant> {
        let fits = !name.is_empty()
            && name.len() <= 128
            && name != "."
            && name != ".."
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if fits {
            Ok(Self(name.into()))
        } else {
            Err(BadTenant(name.chars().take(200).collect()))
        }
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TenantId {
    /// The tenant of writers and readers that name none.
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TenantId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = String::deserialize(d)?;
        Self::new(&s).map_err(serde::de::Error::custom)
    }
}

/// When a fact became known: the Raft group that counted it, and its index there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommitPosition {
    pub group: GroupId,
    pub index: u64,
}

/// One commit position per Raft group: what an answer had seen, or what a cut allows to see.
pub type Positions = BTreeMap<GroupId, u64>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_what_they_show_and_say_what_is_wrong() {
        assert_eq!("INC-12".parse(), Ok(IncidentId(12)));
        assert_eq!("inc-12".parse(), Ok(IncidentId(12)));
        assert_eq!("12".parse(), Ok(TicketId(12)));
        assert_eq!(TicketId(7).to_string(), "T-7");
        let err = "INC-x".parse::<IncidentId>().unwrap_err();
        assert_eq!(
            err.to_string(),
            "\"INC-x\" is not an id of this kind; write it like \"INC-1\""
        );
    }

    #[test]
    fn a_tenant_name_cannot_leave_its_folder() {
        for bad in ["", "..", ".", "a/b", "a b", "é"] {
            assert!(TenantId::new(bad).is_err(), "{bad}");
        }
        assert!(TenantId::new("team-a.prod_1").is_ok());
    }
}
