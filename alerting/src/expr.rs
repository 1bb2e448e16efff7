//! What the gateway needs to know of a rule's expression: whether it can be one, and which metric it speaks of.

use crate::rule::Language;
use hindcast_model::METRIC_NAME;
use hindcast_promql::ValueType;
use std::collections::BTreeSet;

/// Why an expression cannot be a rule's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub why: String,
    pub fix: &'static str,
    /// It is not even of the language.
    pub is_language: bool,
}

impl Wrong {
    fn language(why: impl std::fmt::Display, fix: &'static str) -> Self {
        Self {
            why: why.to_string(),
            fix,
            is_language: true,
        }
    }
}

/// Checks an expression. The metric's name comes back when the expression reads metrics of one family only (equal
/// up to the first `_`): results lose the name on the way, and the name tells which resource they are about. Values made
/// of logs have no name.
pub fn check(expr: &str, language: Language) -> Result<Option<String>, Wrong> {
    match language {
        Language::Promql => check_promql(expr),
        Language::Logql => check_logql(expr).map(|()| None),
    }
}

fn check_logql(expr: &str) -> Result<(), Wrong> {
    match hindcast_logql::parse(expr) {
        Ok(hindcast_logql::Expr::Metric(_)) => Ok(()),
        Ok(hindcast_logql::Expr::Lines(_)) => Err(Wrong {
            why: "it gives lines, a rule needs values".to_owned(),
            fix: "count them: `sum by (instance) (count_over_time({…}[5m])) > 0`",
            is_language: false,
        }),
        Err(e) if hindcast_promql::parse(expr).is_ok() => Err(Wrong::language(
            e,
            "it is PromQL: move the rule to a group without `type: loki`",
        )),
        Err(e) => Err(Wrong::language(e, "correct the expression")),
    }
}

/// Whether an expression that is PromQL would also be one over logs, and reads no metric by its name.
pub fn may_mean_logs(expr: &str) -> bool {
    let Ok(tree) = hindcast_promql::parse(expr) else {
        return false;
    };
    let (mut selectors, mut named) = (0, 0);
    tree.selectors(&mut |selector| {
        selectors += 1;
        named += usize::from(selector.matchers.iter().any(|m| m.name == METRIC_NAME));
    });
    selectors > 0 && named == 0 && check_logql(expr).is_ok()
}

fn check_promql(expr: &str) -> Result<Option<String>, Wrong> {
    let tree = hindcast_promql::parse(expr).map_err(|e| match check_logql(expr) {
        Ok(()) => Wrong::language(e, "it is LogQL: move the rule to a group with `type: loki`"),
        Err(lines) if !lines.is_language => Wrong::language(
            e,
            "it is LogQL: move the rule to a group with `type: loki`, and count its lines",
        ),
        Err(_) => Wrong::language(e, "correct the expression"),
    })?;
    match tree.value_type() {
        ValueType::Vector | ValueType::Scalar => {}
        other => {
            return Err(Wrong {
                why: format!("it gives a {}, a rule needs a vector or a number", other.as_str()),
                fix: "correct the expression",
                is_language: false,
            });
        }
    }
    let mut names: Vec<Option<String>> = vec![];
    tree.selectors(&mut |selector| names.push(selector.name.clone()));
    let families: BTreeSet<_> = names
        .iter()
        .map(|n| n.as_deref().and_then(|n| n.split('_').next()))
        .collect();
    Ok(if families.len() == 1 {
        names.swap_remove(0)
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metric_is_known_where_all_names_are_of_one_family() {
        let metric = |expr| check(expr, Language::Promql).unwrap();
        assert_eq!(
            metric("1 - avg by (host_name) (rate(system_cpu_time_seconds_total{cpu_mode=\"idle\"}[1m]))").as_deref(),
            Some("system_cpu_time_seconds_total")
        );
        assert_eq!(metric("node_a / node_b").as_deref(), Some("node_a"));
        assert_eq!(metric("node_a / pg_b"), None);
        assert_eq!(metric("{job=\"x\"} > 1"), None);
        assert_eq!(metric("vector(1)"), None);
        let wrong = |expr| check(expr, Language::Promql).unwrap_err();
        assert!(wrong("up[5m]").why.contains("range vector"));
        assert!(wrong("sum(((").is_language);
    }

    #[test]
    fn values_of_logs_have_no_name_and_lines_are_no_values() {
        let values = "sum by (instance) (count_over_time({log_source=\"snmptrap\"} |= \"x\" [5m])) > 0";
        assert_eq!(check(values, Language::Logql), Ok(None));
        let wrong = |expr| check(expr, Language::Logql).unwrap_err();
        assert!(!wrong("{log_source=\"snmptrap\"}").is_language);
        assert!(wrong("up == 0").fix.contains("without"));
        for other in [values, "{a=\"b\"} |= \"x\""] {
            let wrong = check(other, Language::Promql).unwrap_err();
            assert!(wrong.fix.contains("`type: loki`"), "{wrong:?}");
        }
        let both = "sum by (instance) (count_over_time({trap=\"linkDown\"}[5m])) > 0";
        assert!(may_mean_logs(both) && !may_mean_logs("count_over_time(up{trap=\"x\"}[5m]) > 0"));
        assert!(!may_mean_logs("vector(1)"));
    }
}
