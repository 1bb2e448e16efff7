//! Numbers as Prometheus writes them.

use std::fmt::Write;

/// Shortest digits that read back the same, never with an exponent: `count_values`, `le` labels.
pub fn go_fixed(v: f64) -> String {
    if v.is_nan() {
        "NaN".to_owned()
    } else if v.is_infinite() {
        if v > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        v.to_string()
    }
}

/// As the HTTP API writes sample values: like [`go_fixed`], but with an exponent for very large and very small ones.
pub fn go_json(v: f64) -> String {
    let magnitude = v.abs();
    if !v.is_finite() || magnitude == 0.0 || (1e-6..1e21).contains(&magnitude) {
        return go_fixed(v);
    }
    let text = format!("{v:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    let mut out = String::with_capacity(text.len() + 2);
    let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_go_writes_them() {
        for (v, fixed, json) in [
            (1.0, "1", "1"),
            (0.1, "0.1", "0.1"),
            (-0.0, "-0", "-0"),
            (12_340_000.0, "12340000", "12340000"),
            (1e21, "1000000000000000000000", "1e+21"),
            (-1.5e-7, "-0.00000015", "-1.5e-07"),
            (f64::INFINITY, "+Inf", "+Inf"),
            (f64::NAN, "NaN", "NaN"),
        ] {
            assert_eq!((go_fixed(v).as_str(), go_json(v).as_str()), (fixed, json));
        }
    }
}
