//! The file of limits, and how limits are shown.

use hindcast_ingest::tenant_limits::{FILE_BYTES_MAX, Limits, Rate, TenantLimits, parse};
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

/// Reads the file, whole or not at all. Without one there are no limits but those of the program.
pub fn load(path: Option<&Path>) -> Result<Limits, String> {
    let Some(path) = path else { return Ok(Limits::default()) };
    let name = path.display().to_string();
    let unreadable = |why: String| format!("{name} cannot be read: {why}");
    parse(&name, &read(path).map_err(unreadable)?).map_err(|e| e.to_string())
}

#[allow(
    clippy::disallowed_methods,
    reason = "an operator's file, outside of the node's own disk"
)]
fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = vec![];
    let read = file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}

fn rate_json(rate: Option<Rate>) -> Value {
    rate.map_or(Value::Null, |r| json!({"per_second": r.per_second, "burst": r.burst}))
}

/// One tenant's limits; what is free is null.
pub fn limits_json(limits: &TenantLimits) -> Value {
    json!({
        "samples": rate_json(limits.samples),
        "log_bytes": rate_json(limits.log_bytes),
        "active_series_max": limits.active_series_max,
        "labels_max": limits.bounds.labels_max,
        "label_value_bytes_max": limits.bounds.label_value_bytes_max,
        "line_bytes_max": limits.bounds.line_bytes_max,
        "lines_too_long": if limits.bounds.cuts_lines { "cut" } else { "refuse" },
    })
}

/// All limits of a file.
pub fn all_json(limits: &Limits) -> Value {
    let tenants = limits.tenants.iter().map(|(t, of)| (t.to_string(), limits_json(of)));
    json!({"default": limits_json(&limits.default), "tenants": tenants.collect::<serde_json::Map<_, _>>()})
}

/// One tenant's limits on a line.
pub fn limits_line(limits: &TenantLimits) -> String {
    let rate = |what: &str, rate: Option<Rate>| match rate {
        None => format!("{what} free"),
        Some(r) => format!("{what} {}/s, {} at once", r.per_second, r.burst),
    };
    let series = limits
        .active_series_max
        .map_or("free".to_owned(), |n| format!("at most {n}"));
    let b = limits.bounds;
    format!(
        "{}; {}; active series {series}; {} labels, values of {} bytes; lines of {} bytes, longer ones are {}",
        rate("samples", limits.samples),
        rate("bytes of lines", limits.log_bytes),
        b.labels_max,
        b.label_value_bytes_max,
        b.line_bytes_max,
        if b.cuts_lines { "cut" } else { "refused" },
    )
}
