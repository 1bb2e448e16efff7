//! Parameters of the HTTP APIs: from the query string, and of a POST also from the form in its body.

use super::http::Refusal;
use crate::shards::Consistency;
use axum::body::Body;
use axum::extract::{FromRequest, RawForm, Request};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
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
            let form = RawForm::from_request(request, &()).await;
            let form = form.map_err(|e| match e.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Refusal::form_too_large(),
                _ => Refusal::bad_data(e.body_text()),
            })?;
            all.0.extend(pairs(&form.0)?);
        }
        Ok(all)
    }

    fn of_uri(uri: &Uri) -> Result<Self, Refusal> {
        pairs(uri.query().unwrap_or_default().as_bytes()).map(Self)
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

/// Names and values of a form. Bytes that are no text are refused: with something else in their place, another question would be answered.
fn pairs(form: &[u8]) -> Result<Vec<(String, String)>, Refusal> {
    let mut pairs = vec![];
    for pair in form.split(|b| *b == b'&').filter(|p| !p.is_empty()) {
        let at = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
        let name = decoded(&pair[..at]).map_err(|_| Refusal::bad_data("the name of a parameter is not UTF-8"))?;
        let value = decoded(pair.get(at + 1..).unwrap_or_default())
            .map_err(|_| Refusal::bad_data(format!("invalid parameter {name:?}: it is not UTF-8")))?;
        pairs.push((name, value));
    }
    Ok(pairs)
}

fn decoded(text: &[u8]) -> Result<String, std::string::FromUtf8Error> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((byte, tail)) = rest.split_first() {
        let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
        rest = tail;
        match (byte, hex(tail.first()), hex(tail.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(*byte),
        }
    }
    String::from_utf8(out)
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
    fn a_query_of_bytes_that_are_no_text_is_refused_and_not_asked_otherwise() {
        let read = |query: &str| Params::of_uri(&format!("/x?{query}").parse::<Uri>().unwrap());
        assert!(read("query=%7Ba%3D%22%ff%22%7D").is_err());
        assert!(read("%ff=1").is_err());
        let all = params("q=a+b%2B%e2%82%ac&q=%zz%4&empty&=x&&e=a=b");
        let all: Vec<_> = all.0.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(
            all,
            [("q", "a b+€"), ("q", "%zz%4"), ("empty", ""), ("", "x"), ("e", "a=b")]
        );
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
