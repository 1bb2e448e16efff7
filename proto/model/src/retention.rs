//! How long data is kept: a function of tenant, domain, labels and what it is.

use crate::histogram::MARK;
use crate::ids::TenantId;
use crate::matcher::Matcher;
use crate::resource::Domain;
use crate::time::SpanNs;

/// How long each kind of data is kept; `None`: for ever, and data of every age is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeps {
    /// Samples as they came.
    pub raw: Option<SpanNs>,
    /// Windows of five minutes of them; not longer than `raw`: none are made.
    pub five_minutes: Option<SpanNs>,
    /// Windows of one hour; not longer than `five_minutes`: none besides those.
    pub hour: Option<SpanNs>,
    /// Log lines.
    pub logs: Option<SpanNs>,
}

impl Keeps {
    /// The same for samples and lines, and no windows.
    pub const fn all(keep: Option<SpanNs>) -> Self {
        Self {
            raw: keep,
            five_minutes: keep,
            hour: keep,
            logs: keep,
        }
    }
}

/// One rule of the retention policy. The most specific one that fits a series or stream decides: one that names the
/// tenant before one that does not, then the one with more matchers, then one that names the domain; of equals the
/// later one.
#[derive(Clone, Debug, PartialEq)]
pub struct RetentionRule {
    /// Under which what it lets go is counted.
    pub name: String,
    /// `None`: every tenant.
    pub tenant: Option<TenantId>,
    /// `None`: every domain.
    pub domain: Option<Domain>,
    /// Matchers that must all hold; empty: every label set.
    pub selector: Vec<Matcher>,
    pub keeps: Keeps,
}

/// What is kept when nothing is configured.
pub const KEEP_DEFAULT: SpanNs = SpanNs::from_secs(30 * 86_400);

/// The rules, and for native histograms one beside each: they stand among lines, and are kept as long as the samples of their
/// series. A rule that itself names their mark means the lines, and goes on as it is.
pub fn with_natives(rules: &[RetentionRule]) -> Vec<RetentionRule> {
    let mut all = rules.to_vec();
    if rules.iter().all(|r| r.keeps.raw == r.keeps.logs) {
        return all;
    }
    // One matcher more than the rule has: of all rules that fit a series of histograms, the one beside the most specific one is now the
    // most specific one.
    all.extend(rules.iter().cloned().map(|mut r| {
        if r.selector.iter().all(|m| m.name != MARK.0) {
            r.keeps.logs = r.keeps.raw;
        }
        r.selector.push(Matcher::equal(MARK.0, MARK.1));
        r
    }));
    all
}

fn fits(r: &RetentionRule, tenant: &TenantId, domain: Option<Domain>) -> bool {
    r.tenant.as_ref().is_none_or(|t| t == tenant) && r.domain.is_none_or(|d| Some(d) == domain)
}

/// How long data of `tenant` and `domain` is kept, as far as no rule with matchers says otherwise.
pub fn keeps_for(rules: &[RetentionRule], tenant: &TenantId, domain: Option<Domain>) -> Keeps {
    rules
        .iter()
        .filter(|r| r.selector.is_empty() && fits(r, tenant, domain))
        .max_by_key(|r| (r.tenant.is_some(), r.domain.is_some()))
        .map_or(Keeps::all(Some(KEEP_DEFAULT)), |r| r.keeps)
}

/// The longest that any sample or line of a tenant may be kept as it came; `None` for ever.
pub fn longest_for(rules: &[RetentionRule], tenant: &TenantId) -> Option<SpanNs> {
    let domains = Domain::ALL.into_iter().map(Some).chain([None]);
    let plain = domains.map(|d| keeps_for(rules, tenant, d));
    let of_tenant = |r: &&RetentionRule| r.tenant.as_ref().is_none_or(|t| t == tenant);
    let narrow = rules.iter().filter(|r| !r.selector.is_empty()).filter(of_tenant);
    let all = plain.chain(narrow.map(|r| r.keeps)).flat_map(|k| [k.raw, k.logs]);
    let keeps: Option<Vec<SpanNs>> = all.collect();
    keeps?.into_iter().max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Labels;

    fn rule(tenant: Option<&TenantId>, domain: Option<Domain>, secs: u64) -> RetentionRule {
        RetentionRule {
            name: secs.to_string(),
            tenant: tenant.cloned(),
            domain,
            selector: vec![],
            keeps: Keeps::all(Some(SpanNs::from_secs(secs))),
        }
    }

    #[test]
    fn the_most_specific_rule_wins() {
        let a = TenantId::new("a").unwrap();
        let rules = [
            rule(None, None, 1),
            rule(None, Some(Domain::Sms), 2),
            rule(Some(&a), None, 3),
        ];
        let keep = |t: &TenantId, d| keeps_for(&rules, t, d).raw.unwrap().0 / 1_000_000_000;
        assert_eq!(keep(&TenantId::default(), None), 1);
        assert_eq!(keep(&TenantId::default(), Some(Domain::Sms)), 2);
        assert_eq!(keep(&a, Some(Domain::Sms)), 3);
        assert_eq!(keeps_for(&[], &a, None).logs, Some(KEEP_DEFAULT));
    }

    #[test]
    fn native_histograms_are_kept_as_long_as_samples_by_the_rule_that_fits_their_series() {
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        let secs = |s| Some(SpanNs::from_secs(s));
        let mut rules = vec![
            rule(None, None, 1),
            rule(None, Some(Domain::Sms), 2),
            rule(Some(&a), None, 3),
            rule(None, None, 4),
            rule(None, None, 5),
        ];
        rules[3].selector = vec![Matcher::equal("job", "shop")];
        rules[4].selector = vec![Matcher::equal(MARK.0, MARK.1), Matcher::equal("job", "own")];
        assert_eq!(with_natives(&rules), rules);
        for r in &mut rules {
            r.keeps.logs = r.keeps.raw.map(|keep| SpanNs(keep.0 * 100));
        }
        // As the storage chooses among rules.
        let logs = |tenant: &TenantId, domain, labels: &Labels| {
            let all = with_natives(&rules);
            let fits = all
                .iter()
                .filter(|r| fits(r, tenant, domain) && r.selector.iter().all(|m| m.matches(labels)));
            let best = fits.max_by_key(|r| (r.tenant.is_some(), r.selector.len(), r.domain.is_some()));
            best.unwrap().keeps.logs
        };
        let of = |job: &str| Labels::from_pairs([("__name__", "h"), ("job", job)]);
        let native = |job: &str| of(job).with(MARK.0, MARK.1);
        assert_eq!([of("x"), native("x")].map(|l| logs(&b, None, &l)), [secs(100), secs(1)]);
        assert_eq!(
            [of("x"), native("x")].map(|l| logs(&b, Some(Domain::Sms), &l)),
            [secs(200), secs(2)]
        );
        assert_eq!(
            [of("shop"), native("shop")].map(|l| logs(&b, Some(Domain::Sms), &l)),
            [secs(400), secs(4)]
        );
        assert_eq!(
            [of("shop"), native("shop")].map(|l| logs(&a, None, &l)),
            [secs(300), secs(3)]
        );
        assert_eq!(logs(&b, None, &of("own").with(MARK.0, "span")), secs(100));
        assert_eq!(logs(&b, None, &native("own")), secs(500), "it names the lines");
    }

    #[test]
    fn the_longest_keep_counts_matchers_and_logs_and_other_tenants_do_not() {
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        let secs = |s| Some(SpanNs::from_secs(s));
        let mut rules = vec![rule(None, None, 10), rule(Some(&b), None, 50)];
        assert_eq!(longest_for(&rules, &a), secs(10));
        rules[0].keeps.logs = secs(20);
        assert_eq!(longest_for(&rules, &a), secs(20));
        let mut narrow = rule(None, None, 30);
        narrow.selector = vec![Matcher::equal("job", "audit")];
        rules.push(narrow);
        assert_eq!(longest_for(&rules, &a), secs(30));
        assert_eq!(longest_for(&rules, &b), secs(50));
        rules[2].keeps.raw = None;
        assert_eq!(longest_for(&rules, &a), None);
    }
}
