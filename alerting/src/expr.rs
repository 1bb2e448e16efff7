//! What the gateway needs to know of a rule's expression: whether it can be one, and which metric it speaks of.

use hindcast_promql::ValueType;
use std::collections::BTreeSet;

/// Checks an expression. The metric's name comes back when the expression reads metrics of one family only (equal
/// up to the first `_`): results lose the name on the way, and the name tells which resource they are about.
pub fn check(expr: &str) -> Result<Option<String>, String> {
    let tree = hindcast_promql::parse(expr).map_err(|e| e.to_string())?;
    match tree.value_type() {
        ValueType::Vector | ValueType::Scalar => {}
        other => {
            return Err(format!(
                "it gives a {}, a rule needs a vector or a number",
                other.as_str()
            ));
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
        let metric = |expr| check(expr).unwrap();
        assert_eq!(
            metric("1 - avg by (host_name) (rate(system_cpu_time_seconds_total{cpu_mode=\"idle\"}[1m]))").as_deref(),
            Some("system_cpu_time_seconds_total")
        );
        assert_eq!(metric("node_a / node_b").as_deref(), Some("node_a"));
        assert_eq!(metric("node_a / pg_b"), None);
        assert_eq!(metric("{job=\"x\"} > 1"), None);
        assert_eq!(metric("vector(1)"), None);
        assert!(check("up[5m]").unwrap_err().contains("range vector"));
        assert!(check("sum(((").is_err());
    }
}
