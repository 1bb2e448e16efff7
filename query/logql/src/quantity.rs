//! Numbers with units, as Go and Loki write them: lengths of time (`1h2m0.5s`, `3d`) and sizes (`1.5KiB`, `20MB`).

/// Nanoseconds. Units `ns us µs ms s m h`, each number with a fraction if it likes; also `d`, `w` and `y`.
pub fn duration_ns(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0f64;
    let mut whole: i64 = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|n| *n > 0)?;
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let unit: i64 = match &after[..letters] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "w" => 7 * 86_400_000_000_000,
            "y" => 365 * 86_400_000_000_000,
            _ => return None,
        };
        match number.parse::<i64>() {
            Ok(n) => whole = whole.checked_add(n.checked_mul(unit)?)?,
            Err(_) => total += number.parse::<f64>().ok()? * unit as f64,
        }
        rest = &after[letters..];
    }
    if total >= 9.2e18 {
        return None;
    }
    let ns = whole.checked_add(total.round() as i64)?;
    Some(if negative { -ns } else { ns })
}

/// Bytes. Decimal units `B kB MB GB …`, binary ones `KiB MiB …`, in any case; the `B` may be missing.
pub fn bytes(text: &str) -> Option<f64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != ',')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = if number.contains(',') {
        number.replace(',', "").parse().ok()?
    } else {
        number.parse().ok()?
    };
    let unit = unit.trim();
    let is = |names: &[&str]| names.iter().any(|n| unit.eq_ignore_ascii_case(n));
    let factor = match () {
        () if is(&["", "b"]) => 1.0,
        () if is(&["k", "kb"]) => 1e3,
        () if is(&["m", "mb"]) => 1e6,
        () if is(&["g", "gb"]) => 1e9,
        () if is(&["t", "tb"]) => 1e12,
        () if is(&["p", "pb"]) => 1e15,
        () if is(&["e", "eb"]) => 1e18,
        () if is(&["ki", "kib"]) => 1024.0,
        () if is(&["mi", "mib"]) => 1_048_576.0,
        () if is(&["gi", "gib"]) => 1_073_741_824.0,
        () if is(&["ti", "tib"]) => 1_099_511_627_776.0,
        () if is(&["pi", "pib"]) => 1_125_899_906_842_624.0,
        () if is(&["ei", "eib"]) => 1_152_921_504_606_846_976.0,
        () => return None,
    };
    let bytes = (number * factor).floor();
    (bytes < 18_446_744_073_709_551_616.0).then_some(bytes)
}

/// Whether it is one of the two: what the lexer asks of digits with letters behind them.
pub fn is_quantity(text: &str) -> bool {
    duration_ns(text).is_some() || bytes(text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_go_and_loki() {
        for (text, ns) in [
            ("1.5s", Some(1_500_000_000)),
            ("1h2m0.5s", Some(3_720_500_000_000)),
            ("-45ms", Some(-45_000_000)),
            ("3d", Some(259_200_000_000_000)),
            ("10µs", Some(10_000)),
            ("0", Some(0)),
            ("5", None),
            ("5x", None),
            ("", None),
            ("1.2.3s", None),
            ("9999999999h", None),
        ] {
            assert_eq!(duration_ns(text), ns, "{text}");
        }
        for (text, size) in [
            ("0.6KiB", Some(614.0)),
            ("24B", Some(24.0)),
            ("1kb", Some(1000.0)),
            ("2 MiB", Some(2_097_152.0)),
            ("1,000", Some(1000.0)),
            ("x", None),
            ("-1B", None),
        ] {
            assert_eq!(bytes(text), size, "{text}");
        }
    }
}
