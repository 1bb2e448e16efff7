//! `hindcast cardinality`.

use super::masking::ask;
use super::{Client, Done, Output, plain};
use hyper::Method;
use serde_json::Value;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast cardinality
      the ten metrics and labels with most active series, and which label makes them many
  hindcast cardinality --tenant team-a --limit 50 -o json")]
pub struct CardinalityArgs {
    /// Entries of each list, at most 10000.
    #[arg(long, default_value_t = 10)]
    limit: usize,
    #[command(flatten)]
    client: Client,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub async fn run(args: CardinalityArgs) -> Done {
    let path = format!("/api/hindcast/v1/cardinality?limit={}", args.limit);
    let shown = ask(&args.client, Method::GET, &path, String::new()).await?;
    match args.output {
        Output::Json => println!("{shown}"),
        Output::Table => print!("{}", table(&shown)),
    }
    Ok(ExitCode::SUCCESS)
}

/// For people.
pub fn table(shown: &Value) -> String {
    let text = |v: &Value| plain(v.as_str().unwrap_or_default());
    let number = |v: &Value| v.as_u64().unwrap_or(0);
    let rows = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let max = shown["limits"]["active_series_max"].as_u64();
    let of = max.map_or("no limit".to_owned(), |max| format!("limit {max}"));
    let mut out = format!(
        "tenant {}: {} active series, {of}\n",
        text(&shown["tenant"]),
        number(&shown["series"])
    );
    let driving = &shown["driving_label"];
    if driving.is_object() {
        out += &format!(
            "label {} makes them many: {} values in {} series\n",
            text(&driving["name"]),
            number(&driving["values"]),
            number(&driving["series"])
        );
    }
    out += "\n    values     series  label\n";
    for l in rows(&shown["labels"]) {
        out += &format!(
            "{:>10} {:>10}  {}\n",
            number(&l["values"]),
            number(&l["series"]),
            text(&l["name"])
        );
    }
    out += "\n    series  metric\n";
    for m in rows(&shown["metrics"]) {
        out += &format!("{:>10}  {}\n", number(&m["series"]), text(&m["name"]));
    }
    out += "\n    series  label and value\n";
    for p in rows(&shown["pairs"]) {
        out += &format!(
            "{:>10}  {}={:?}\n",
            number(&p["series"]),
            text(&p["name"]),
            text(&p["value"])
        );
    }
    for missing in rows(&shown["missing"]) {
        out += &format!("not counted: {}\n", text(&missing));
    }
    out
}
