//! Parameters of the HTTP APIs: from the query string, and of a POST also from the form in its body.

use super::http::Refusal;
use crate::shards::Consistency;
use axum::body::Body;
use axum::extract::{Form, FromRequest, Query, Request};
use axum::http::{HeaderMap, Method, Uri};
use hindcast_env::clock::Clock;
use hindcast_env::io::SystemClock;
use hindcast_model::{SpanNs, TenantId, TimestampNs};
use hindcast_proto::edge;

pub(super) struct Params(Vec<(String, String)>);

pub(super) fn now() -> TimestampNs {
    SystemClock::new().now()
}

pub(super) fn tenant(headers: &HeaderMap) -> Result<TenantId, Refusal> {
    let named = headers.get(edge::TENANT_KEY).map(|v| v.to_str()).transpose();
    let named = named.map_err(|_| Refusal::bad_data("the header X-Scope-OrgID is not plain ASCII"))?;
    edge::tenant_of_header(named).map_err(|e| Refusal::bad_data(e.to_string()))
}

impl Params {
    pub(super) async fn read(request: Request<Body>) -> Result<Self, Refusal> {
        let mut all = Self::of_uri(request.uri())?;
        if request.method() == Method::POST {
            let form = Form::<Vec<(String, String)>>::from_request(request, &()).await;
            all.0.extend(form.map_err(|e| Refusal::bad_data(e.body_text()))?.0);
        }
        Ok(all)
    }

    fn of_uri(uri: &Uri) -> Result<Self, Refusal> {
        let query = Query::<Vec<(String, String)>>::try_from_uri(uri);
        Ok(Self(query.map_err(|e| Refusal::bad_data(e.body_text()))?.0))
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The last value that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(n, v)| n == name && !v.is_empty())
            .map(|(_, v)| v.as_str())
    }

    pub(super) fn consistency(&self) -> Result<Consistency, Refusal> {
        match self.get("consistency") {
            None => Ok(Consistency::default()),
            Some(text) => Consistency::parse(text).ok_or_else(|| {
                Refusal::bad_data(format!(
                    "invalid parameter \"consistency\": {text:?} is neither linearizable nor stale-ok"
                ))
            }),
        }
    }

    /// An empty value is left to the parser, which says what is wrong with it.
    pub(super) fn required(&self, name: &str) -> Result<&str, Refusal> {
        let found = self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        found.ok_or_else(|| Refusal::bad_data(format!("invalid parameter {name:?}: it is missing")))
    }

    fn parsed<T>(&self, name: &str, what: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Refusal> {
        self.get(name)
            .map(|text| {
                parse(text).ok_or_else(|| {
                    Refusal::bad_data(format!(
                        "invalid parameter {name:?}: cannot parse {text:?} to a valid {what}"
                    ))
                })
            })
            .transpose()
    }

    /// Unix seconds with a fraction, or RFC 3339.
    pub(super) fn time(&self, name: &str) -> Result<Option<TimestampNs>, Refusal> {
        self.parsed(name, "timestamp", seconds_or_rfc3339)
    }

    /// As Loki reads times: long numbers are nanoseconds, short ones seconds.
    pub(super) fn log_time(&self, name: &str) -> Result<Option<TimestampNs>, Refusal> {
        self.parsed(name, "timestamp", |text| {
            let digits = text.trim_start_matches('-');
            if digits.len() > 10 && digits.bytes().all(|b| b.is_ascii_digit()) {
                text.parse().ok().map(TimestampNs)
            } else {
                seconds_or_rfc3339(text)
            }
        })
    }

    /// Seconds, or `1h30m`.
    pub(super) fn span(&self, name: &str) -> Result<Option<SpanNs>, Refusal> {
        self.parsed(name, "duration", |text| match text.parse::<f64>() {
            Ok(s) if (0.0..=9.2e9).contains(&s) => Some(SpanNs::from_ms((s * 1000.0).round() as u64)),
            Ok(_) => None,
            Err(_) => SpanNs::parse(text),
        })
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, Refusal> {
        self.parsed(name, "number", |text| text.parse().ok())
    }

    pub(super) fn signed(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.parsed(name, "number", |text| text.parse().ok())
    }
}

fn seconds_or_rfc3339(text: &str) -> Option<TimestampNs> {
    if let Ok(s) = text.parse::<f64>() {
        return (s.abs() <= 9.2e9).then(|| TimestampNs::from_ms((s * 1000.0).round() as i64));
    }
    let at: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(at.as_nanosecond()).ok().map(TimestampNs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(query: &str) -> Params {
        let uri: Uri = format!("/x?{query}").parse().unwrap();
        Params::of_uri(&uri).unwrap_or_else(|_| panic!("{query}"))
    }

    #[test]
    fn times_and_lengths_are_read_as_prometheus_and_loki_read_them() {
        let p = params("a=1.5&b=1970-01-01T00%3A00%3A02Z&c=1700000000000000001&d=-3&e=x&f=1h30m&g=0.25&h=");
        let time = |n| p.time(n).ok().flatten().map(|t| t.0);
        assert_eq!(time("a"), Some(1_500_000_000));
        assert_eq!(time("b"), Some(2_000_000_000));
        assert_eq!(time("d"), Some(-3_000_000_000));
        assert!(p.time("e").is_err() && p.time("h").is_ok_and(|t| t.is_none()));
        assert_eq!(
            p.log_time("c").ok().flatten(),
            Some(TimestampNs(1_700_000_000_000_000_001))
        );
        assert_eq!(p.log_time("a").ok().flatten(), Some(TimestampNs(1_500_000_000)));
        assert_eq!(p.span("f").ok().flatten(), Some(SpanNs::from_secs(5400)));
        assert_eq!(p.span("g").ok().flatten(), Some(SpanNs::from_ms(250)));
        assert!(p.span("d").is_err());
    }
}
