//! OpenTelemetry names as Prometheus writes them: the public translation with underscores and suffixes.

use hindcast_model::Labels;
use std::collections::BTreeMap;

/// What a metric is, as far as its name cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Gauge,
    MonotonicSum,
    Other,
}

/// Unit codes (UCUM) and the words for them.
const UNITS: &[(&str, &str)] = &[
    ("d", "days"),
    ("h", "hours"),
    ("min", "minutes"),
    ("s", "seconds"),
    ("ms", "milliseconds"),
    ("us", "microseconds"),
    ("ns", "nanoseconds"),
    ("By", "bytes"),
    ("KiBy", "kibibytes"),
    ("MiBy", "mebibytes"),
    ("GiBy", "gibibytes"),
    ("TiBy", "tibibytes"),
    ("KBy", "kilobytes"),
    ("MBy", "megabytes"),
    ("GBy", "gigabytes"),
    ("TBy", "terabytes"),
    ("m", "meters"),
    ("V", "volts"),
    ("A", "amperes"),
    ("J", "joules"),
    ("W", "watts"),
    ("g", "grams"),
    ("Cel", "celsius"),
    ("Hz", "hertz"),
    ("%", "percent"),
    ("1", ""),
];

const PER_UNITS: &[(&str, &str)] = &[
    ("s", "second"),
    ("m", "minute"),
    ("h", "hour"),
    ("d", "day"),
    ("w", "week"),
    ("mo", "month"),
    ("y", "year"),
];

/// The words of a unit: `By/s` gives `bytes` and `second`. Annotations in braces say nothing.
fn unit_words(unit: &str) -> (String, String) {
    let word = |part: &str, table: &[(&str, &str)]| {
        let part = part.trim();
        if part.contains('{') || part.contains('}') {
            return String::new();
        }
        let known = table.iter().find(|(code, _)| *code == part);
        known.map_or_else(|| tokens(part).join("_"), |(_, word)| (*word).to_owned())
    };
    let (main, per) = unit.split_once('/').unwrap_or((unit, ""));
    (word(main, UNITS), word(per, PER_UNITS))
}

/// A unit in the words that stand in names: `By/s` gives `bytes_per_second`.
pub fn unit_text(unit: &str) -> String {
    match unit_words(unit) {
        (main, per) if per.is_empty() => main,
        (main, per) if main.is_empty() => format!("per_{per}"),
        (main, per) => format!("{main}_per_{per}"),
    }
}

fn tokens(text: &str) -> Vec<&str> {
    let parts = text.split(|c: char| !c.is_ascii_alphanumeric() && c != ':');
    parts.filter(|t| !t.is_empty()).collect()
}

/// The stored name of a metric.
pub fn metric_name(name: &str, unit: &str, form: Form) -> String {
    let mut parts = tokens(name);
    let (main, per) = unit_words(unit);
    if !main.is_empty() && !parts.contains(&main.as_str()) {
        parts.push(&main);
    }
    if !per.is_empty() && !parts.contains(&per.as_str()) {
        parts.extend(["per", &per]);
    }
    let suffix = match form {
        Form::MonotonicSum => Some("total"),
        Form::Gauge if unit == "1" => Some("ratio"),
        _ => None,
    };
    if let Some(suffix) = suffix {
        // The suffix comes last, also where the name has it in its middle.
        parts.retain(|p| *p != suffix);
        parts.push(suffix);
    }
    let joined = parts.join("_");
    if joined.starts_with(|c: char| c.is_ascii_digit()) {
        return format!("_{joined}");
    }
    joined
}

/// The label name of an attribute. Never one that starts with an underscore: those are Prometheus's own.
pub fn label_name(attribute: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let name: String = attribute.chars().map(plain).collect();
    match name.chars().next() {
        Some(c) if c.is_ascii_digit() => format!("key_{name}"),
        Some('_') => format!("key{name}"),
        _ => name,
    }
}

/// Attributes as labels. Where two attributes get one name, their values are joined by `;`, in order of the
/// attributes' names, so that neither is lost.
pub fn label_pairs(sorted_attributes: &[(String, String)]) -> Vec<(String, String)> {
    let mut pairs: BTreeMap<String, String> = BTreeMap::new();
    for (attribute, value) in sorted_attributes {
        let held = pairs.entry(label_name(attribute)).or_default();
        if !held.is_empty() {
            held.push(';');
        }
        held.push_str(value);
    }
    pairs.into_iter().collect()
}

/// A bound or quantile as a label value: the shortest digits that read back, never an exponent.
pub fn number(value: f64) -> String {
    if value == f64::INFINITY {
        "+Inf".to_owned()
    } else {
        value.to_string()
    }
}

/// `labels` under another metric name and with one more label.
pub fn derived(labels: &Labels, suffix: &str, extra: Option<(&str, String)>) -> Labels {
    let name = format!("{}{suffix}", labels.metric_name().unwrap_or_default());
    let named = std::iter::once((hindcast_model::METRIC_NAME.to_owned(), name));
    let rest = labels.iter().filter(|(n, _)| *n != hindcast_model::METRIC_NAME);
    let rest = rest.map(|(n, v)| (n.to_owned(), v.to_owned()));
    let extra = extra.map(|(n, v)| (n.to_owned(), v));
    named.chain(rest).chain(extra).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_public_translation() {
        use Form::{Gauge, MonotonicSum, Other};
        let cases = [
            ("smoke.requests", "1", MonotonicSum, "smoke_requests_total"),
            ("smoke.temperature", "Cel", Gauge, "smoke_temperature_celsius"),
            ("smoke.latency", "ms", Other, "smoke_latency_milliseconds"),
            ("smoke.queue", "{item}", Other, "smoke_queue"),
            ("system.cpu.time", "s", MonotonicSum, "system_cpu_time_seconds_total"),
            (
                "system.memory.utilization",
                "1",
                Gauge,
                "system_memory_utilization_ratio",
            ),
            ("system.network.io", "By", MonotonicSum, "system_network_io_bytes_total"),
            ("network.rate", "By/s", Gauge, "network_rate_bytes_per_second"),
            (
                "http.server.total.requests",
                "{request}",
                MonotonicSum,
                "http_server_requests_total",
            ),
            ("queue.bytes", "By", Gauge, "queue_bytes"),
            ("2xx..odd--name", "", Other, "_2xx_odd_name"),
            ("fuel", "gal_us", Gauge, "fuel_gal_us"),
        ];
        for (name, unit, form, want) in cases {
            assert_eq!(metric_name(name, unit, form), want, "{name} {unit:?} {form:?}");
        }
    }

    #[test]
    fn attributes_keep_apart_or_are_joined() {
        let attrs = [("a.b", "1"), ("a_b", "2"), ("7up", "x"), ("__name__", "evil")];
        let attrs: Vec<_> = attrs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let got = label_pairs(&attrs);
        let want = [("a_b", "1;2"), ("key_7up", "x"), ("key__name__", "evil")];
        assert!(got.iter().map(|(n, v)| (n.as_str(), v.as_str())).eq(want), "{got:?}");
        assert_eq!(
            [number(0.005), number(1.0), number(1e21), number(f64::INFINITY)],
            ["0.005", "1", "1000000000000000000000", "+Inf"]
        );
    }
}
