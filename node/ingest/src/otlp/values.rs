//! OpenTelemetry values as text: strings as they are, everything else as JSON writes it, bytes in base64.

use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value};
use serde_json::{Map, Value as Json};

/// The value as a label's or a line's text. Absent is "".
pub fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|v| v.value) {
        None => String::new(),
        Some(Value::StringValue(s)) => s,
        Some(Value::BytesValue(b)) => base64(&b),
        Some(Value::DoubleValue(d)) if !d.is_finite() => d.to_string(),
        Some(other) => json(Some(AnyValue { value: Some(other) })).to_string(),
    }
}

/// The value as JSON. Its depth is bounded by the decoder that read it.
pub fn json(value: Option<AnyValue>) -> Json {
    match value.and_then(|v| v.value) {
        None => Json::Null,
        Some(Value::StringValue(s)) => Json::String(s),
        Some(Value::BoolValue(b)) => Json::Bool(b),
        Some(Value::IntValue(i)) => Json::from(i),
        // JSON has no NaN or infinity; as text they are at least readable.
        Some(Value::DoubleValue(d)) => {
            serde_json::Number::from_f64(d).map_or_else(|| d.to_string().into(), Json::Number)
        }
        Some(Value::ArrayValue(a)) => a.values.into_iter().map(|v| json(Some(v))).collect(),
        Some(Value::KvlistValue(kv)) => {
            let pairs = kv.values.into_iter().map(|kv| (kv.key, json(kv.value)));
            Json::Object(pairs.collect::<Map<_, _>>())
        }
        Some(Value::BytesValue(b)) => Json::String(base64(&b)),
        // An index into a table that only the profiles signal has.
        Some(Value::StringValueStrindex(_)) => Json::Null,
    }
}

/// Standard alphabet, padded.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

/// A length of time as Go writes one below a minute, exact: `1.5s`, `12.3ms`, `7us`, `0ns`.
pub fn duration(ns: u64) -> String {
    let (unit, per) = match ns {
        1_000_000_000.. => ("s", 1_000_000_000),
        1_000_000.. => ("ms", 1_000_000),
        1_000.. => ("us", 1_000),
        _ => ("ns", 1),
    };
    let (whole, part) = (ns / per, ns % per);
    if part == 0 {
        return format!("{whole}{unit}");
    }
    let digits = per.ilog10() as usize;
    let part = format!("{part:0digits$}");
    format!("{whole}.{}{unit}", part.trim_end_matches('0'))
}

/// Lower-case hex, as trace ids are shown.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_the_standard_says() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(hex(&[0, 255, 16]), "00ff10");
    }

    #[test]
    fn lengths_of_time_are_written_whole() {
        let cases = [
            (0, "0ns"),
            (999, "999ns"),
            (1_000, "1us"),
            (1_050, "1.05us"),
            (12_300_000, "12.3ms"),
            (1_000_000_001, "1.000000001s"),
            (u64::MAX, "18446744073.709551615s"),
        ];
        for (ns, shown) in cases {
            assert_eq!(duration(ns), shown);
        }
    }
}
