//! Times queries one after the other, each to the last byte of its answer.

use super::http::{Http, uri};
use super::now_ms;
use crate::cli::{Output, QueryArgs};
use crate::report::QueryReport;
use anyhow::{Context, bail};
use bytes::Bytes;
use hindcast_proto::edge::TENANT_KEY;
use hyper::Uri;
use std::process::ExitCode;
use tokio::time::Instant;

pub async fn run(args: QueryArgs) -> anyhow::Result<ExitCode> {
    let path = if args.range.is_some() {
        "/api/v1/query_range"
    } else {
        "/api/v1/query"
    };
    let (http, uri) = (Http::new(), uri(&args.endpoint, path)?);
    let at = args.at.unwrap_or(now_ms() as f64 / 1000.0);
    let mut reports = vec![];
    for expr in &args.expr {
        let form = Bytes::from(form(&args, expr, at));
        let (first_us, _) = once(&http, &uri, &args.tenant, &form).await?;
        let mut us = Vec::with_capacity(args.runs as usize);
        let mut answer = Bytes::new();
        for _ in 0..args.runs {
            let took;
            (took, answer) = once(&http, &uri, &args.tenant, &form).await?;
            us.push(took);
        }
        let series = series_in(&answer).with_context(|| format!("the answer to {expr}"))?;
        if series == 0 {
            eprintln!("nothing found for {expr}: look at --at and --range");
        }
        reports.push(QueryReport::new(expr.clone(), first_us, &us, series, answer.len()));
    }
    match args.output {
        Output::Json => println!("{}", serde_json::to_string(&reports)?),
        Output::Text => reports.iter().for_each(|r| println!("{}", r.line())),
    }
    Ok(ExitCode::SUCCESS)
}

fn form(args: &QueryArgs, expr: &str, at: f64) -> String {
    let query = escaped(expr);
    match args.range {
        None => format!("query={query}&time={at:.3}"),
        Some(range) => {
            let (start, step) = (at - range.as_ms() as f64 / 1000.0, args.step.as_ms() as f64 / 1000.0);
            format!("query={query}&start={start:.3}&end={at:.3}&step={step:.3}")
        }
    }
}

/// As a form's value.
fn escaped(text: &str) -> String {
    let one = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(one).collect()
}

/// Microseconds, and the answer.
async fn once(http: &Http, uri: &Uri, tenant: &str, form: &Bytes) -> anyhow::Result<(u64, Bytes)> {
    let headers = [
        ("content-type", "application/x-www-form-urlencoded"),
        (TENANT_KEY, tenant),
    ];
    let begun = Instant::now();
    let (status, answer) = http.post(uri, &headers, form.clone()).await?;
    let took = begun.elapsed();
    if status != 200 {
        bail!(
            "HTTP {status} from {uri}: {}",
            String::from_utf8_lossy(&answer).trim_end()
        );
    }
    Ok((u64::try_from(took.as_micros())?, answer))
}

/// Series of an answer; a scalar counts as one.
fn series_in(answer: &[u8]) -> anyhow::Result<usize> {
    let json: serde_json::Value = serde_json::from_slice(answer).context("is not JSON")?;
    if json["status"] != "success" {
        bail!("is not a success: {}", json["error"]);
    }
    let result = json["data"]["result"].as_array().context("has no data.result")?;
    Ok(match json["data"]["resultType"].as_str() {
        Some("scalar" | "string") => 1,
        _ => result.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_survives_a_form() {
        assert_eq!(
            escaped("sum by (cpu) (rate(a{b=~\"c+\"}[5m]))"),
            "sum%20by%20%28cpu%29%20%28rate%28a%7Bb%3D~%22c%2B%22%7D%5B5m%5D%29%29".replace('~', "%7E")
        );
    }

    #[test]
    fn only_a_success_is_timed() {
        let vector = br#"{"status":"success","data":{"resultType":"vector","result":[{},{}]}}"#;
        let scalar = br#"{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}"#;
        assert_eq!(series_in(vector).unwrap(), 2);
        assert_eq!(series_in(scalar).unwrap(), 1);
        assert!(series_in(br#"{"status":"error","error":"no"}"#).is_err());
        assert!(series_in(b"<html>").is_err());
    }
}
