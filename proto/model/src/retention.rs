//! How long data is kept: a function of tenant and domain.

use crate::ids::TenantId;
use crate::resource::Domain;
use crate::time::SpanNs;
use serde::{Deserialize, Serialize};

/// One line of the retention policy. The most specific rule that fits wins: tenant before domain before all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionRule {
    /// `None`: every tenant.
    pub tenant: Option<TenantId>,
    /// `None`: every domain.
    pub domain: Option<Domain>,
    /// `None`: for ever, and data of every age is accepted.
    pub keep: Option<SpanNs>,
}

/// What is kept when nothing is configured.
pub const KEEP_DEFAULT: SpanNs = SpanNs::from_secs(30 * 86_400);

/// How long data of `tenant` and `domain` is kept; `None` for ever.
pub fn keep_for(rules: &[RetentionRule], tenant: &TenantId, domain: Option<Domain>) -> Option<SpanNs> {
    rules
        .iter()
        .filter(|r| r.tenant.as_ref().is_none_or(|t| t == tenant) && r.domain.is_none_or(|d| Some(d) == domain))
        .max_by_key(|r| (r.tenant.is_some(), r.domain.is_some()))
        .map_or(Some(KEEP_DEFAULT), |r| r.keep)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_rule_wins() {
        let a = TenantId::new("a").unwrap();
        let rule = |tenant: Option<&TenantId>, domain, secs| RetentionRule {
            tenant: tenant.cloned(),
            domain,
            keep: Some(SpanNs::from_secs(secs)),
        };
        let rules = [
            rule(None, None, 1),
            rule(None, Some(Domain::Sms), 2),
            rule(Some(&a), None, 3),
        ];
        let keep = |t: &TenantId, d| keep_for(&rules, t, d).unwrap().0 / 1_000_000_000;
        assert_eq!(keep(&TenantId::default(), None), 1);
        assert_eq!(keep(&TenantId::default(), Some(Domain::Sms)), 2);
        assert_eq!(keep(&a, Some(Domain::Sms)), 3);
        assert_eq!(keep_for(&[], &a, None), Some(KEEP_DEFAULT));
    }
}
