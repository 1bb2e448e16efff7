//! What one tenant may write: a file of limits, and what it comes to for each tenant.
//!
//! Pure: text in, [`TenantLimits`] out, or why not, with the line. What `default` says holds for every tenant; a tenant's own entry
//! replaces single settings of it. What nobody sets, or sets to `none`, is bounded by `hindcast_model::limits` alone.
//!
//! Rates are of the cluster: samples per second, and bytes of lines with their metadata per second.

use crate::check::Bounds;
use hindcast_model::TenantId;
use hindcast_model::limits::{LABEL_VALUE_BYTES_MAX, LABELS_MAX, LINE_BYTES_MAX};
use parking_lot::RwLock;
use serde::de::{self, Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Tenants with an entry of their own.
pub const TENANTS_MAX: usize = 10_000;
/// Fewest labels that may be allowed: a name, `job`, `instance`, and one more.
pub const LABELS_MIN: usize = 4;
/// Fewest bytes of a value: names of metrics are values, too.
pub const LABEL_VALUE_BYTES_MIN: usize = 64;
/// How many seconds of its rate a bucket holds when nothing is said of the burst.
const BURST_SECS_DEFAULT: u64 = 10;
/// Beyond it, numbers of tokens would not be exact.
const RATE_MAX: u64 = 1 << 40;

/// Names that Loki and Mimir have for what is here, and what it is called.
const NAMES_ELSEWHERE: [(&str, &str); 12] = [
    ("ingestion_rate", "samples_per_second"),
    ("ingestion_burst_size", "samples_burst"),
    ("ingestion_rate_mb", "log_bytes_per_second, like 4MiB"),
    ("ingestion_burst_size_mb", "log_bytes_burst, like 16MiB"),
    ("max_global_series_per_user", "active_series_max"),
    ("max_series_per_user", "active_series_max"),
    ("max_label_names_per_series", "labels_max"),
    ("max_label_names_per_user", "labels_max"),
    ("max_label_value_length", "label_value_bytes_max"),
    ("max_line_size", "line_bytes_max"),
    ("max_line_size_truncate", "lines_too_long: cut"),
    ("overrides", "tenants"),
];

/// Why a file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", self.place())]
pub struct BadLimits {
    pub file: String,
    pub line: Option<usize>,
    pub why: String,
}

impl BadLimits {
    fn place(&self) -> String {
        self.line
            .map_or_else(|| self.file.clone(), |line| format!("{}:{line}", self.file))
    }
}

/// So much per second, and so much at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u64,
    pub burst: u64,
}

/// What one tenant may write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantLimits {
    pub bounds: Bounds,
    pub samples: Option<Rate>,
    pub log_bytes: Option<Rate>,
    pub active_series_max: Option<u64>,
}

/// The limits of all tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub default: TenantLimits,
    pub tenants: BTreeMap<TenantId, TenantLimits>,
}

impl Limits {
    pub fn of(&self, tenant: &TenantId) -> &TenantLimits {
        self.tenants.get(tenant).unwrap_or(&self.default)
    }
}

/// The limits in force, shared by all who ask.
#[derive(Debug, Default)]
pub struct LimitsInForce(RwLock<Arc<Limits>>);

impl LimitsInForce {
    pub fn current(&self) -> Arc<Limits> {
        self.0.read().clone()
    }

    pub fn replace(&self, limits: Limits) {
        *self.0.write() = Arc::new(limits);
    }
}

/// A setting as the file has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Set<T> {
    #[default]
    Unset,
    /// `none`.
    Free,
    To(T),
}

impl<T: Copy> Set<T> {
    fn or(self, other: Self) -> Self {
        match self {
            Self::Unset => other,
            set => set,
        }
    }

    const fn get(self) -> Option<T> {
        match self {
            Self::To(value) => Some(value),
            Self::Unset | Self::Free => None,
        }
    }
}

/// A number from `MIN` to `MAX`; with a unit where it is one of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Number<const MIN: u64, const MAX: u64, const BYTES: bool>(Set<u64>);

impl<'de, const MIN: u64, const MAX: u64, const BYTES: bool> Deserialize<'de> for Number<MIN, MAX, BYTES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const MIN: u64, const MAX: u64, const BYTES: bool>;
        impl<const MIN: u64, const MAX: u64, const BYTES: bool> de::Visitor<'_> for Visitor<MIN, MAX, BYTES> {
            type Value = Number<MIN, MAX, BYTES>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let unit = if BYTES { " of bytes, like 64KiB," } else { "" };
                write!(f, "a number{unit} from {MIN} to {MAX}, or none")
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Self::Value, E> {
                match (MIN..=MAX).contains(&n) {
                    true => Ok(Number(Set::To(n))),
                    false => Err(E::invalid_value(de::Unexpected::Unsigned(n), &self)),
                }
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Self::Value, E> {
                match u64::try_from(n) {
                    Ok(n) => self.visit_u64(n),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(n), &self)),
                }
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                match (text, bytes(text).filter(|_| BYTES)) {
                    ("none", _) => Ok(Number(Set::Free)),
                    (_, Some(n)) => self.visit_u64(n),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A number of bytes with a unit.
fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("", 1),
    ];
    let scaled = |(unit, size): (&str, u64)| {
        let number: u64 = text.trim().strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(size)
    };
    UNITS.into_iter().find_map(scaled)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum TooLong {
    Refuse,
    Cut,
}

const LABELS_TO: u64 = LABELS_MAX as u64;
const LABELS_FROM: u64 = LABELS_MIN as u64;
const VALUE_TO: u64 = LABEL_VALUE_BYTES_MAX as u64;
const VALUE_FROM: u64 = LABEL_VALUE_BYTES_MIN as u64;
const LINE_TO: u64 = LINE_BYTES_MAX as u64;

#[derive(Clone, Copy, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTenant {
    samples_per_second: Number<1, RATE_MAX, false>,
    samples_burst: Number<1, RATE_MAX, false>,
    log_bytes_per_second: Number<1, RATE_MAX, true>,
    log_bytes_burst: Number<1, RATE_MAX, true>,
    active_series_max: Number<0, { u32::MAX as u64 }, false>,
    labels_max: Number<LABELS_FROM, LABELS_TO, false>,
    label_value_bytes_max: Number<VALUE_FROM, VALUE_TO, true>,
    line_bytes_max: Number<1, LINE_TO, true>,
    lines_too_long: Option<TooLong>,
}

impl RawTenant {
    /// What is not set is as `other` has it.
    fn or(self, other: &Self) -> Self {
        Self {
            samples_per_second: Number(self.samples_per_second.0.or(other.samples_per_second.0)),
            samples_burst: Number(self.samples_burst.0.or(other.samples_burst.0)),
            log_bytes_per_second: Number(self.log_bytes_per_second.0.or(other.log_bytes_per_second.0)),
            log_bytes_burst: Number(self.log_bytes_burst.0.or(other.log_bytes_burst.0)),
            active_series_max: Number(self.active_series_max.0.or(other.active_series_max.0)),
            labels_max: Number(self.labels_max.0.or(other.labels_max.0)),
            label_value_bytes_max: Number(self.label_value_bytes_max.0.or(other.label_value_bytes_max.0)),
            line_bytes_max: Number(self.line_bytes_max.0.or(other.line_bytes_max.0)),
            lines_too_long: self.lines_too_long.or(other.lines_too_long),
        }
    }

    fn resolve(self) -> Result<TenantLimits, String> {
        let rate = |what: &str, per_second: Set<u64>, burst: Set<u64>| match (per_second.get(), burst.get()) {
            (Some(per_second), burst) => {
                let burst = burst.unwrap_or(per_second.saturating_mul(BURST_SECS_DEFAULT));
                Ok(Some(Rate { per_second, burst }))
            }
            // A tenant that is free of a rate has no use for the burst that `default` may name.
            (None, Some(_)) if per_second == Set::Unset => Err(format!(
                "{what}_burst says how much may come at once, and nothing says how much per second: set {what}_per_second, too"
            )),
            (None, _) => Ok(None),
        };
        let default = Bounds::default();
        let bound = |set: Set<u64>, most: usize| set.get().map_or(most, |n| n as usize);
        Ok(TenantLimits {
            bounds: Bounds {
                labels_max: bound(self.labels_max.0, default.labels_max),
                label_value_bytes_max: bound(self.label_value_bytes_max.0, default.label_value_bytes_max),
                line_bytes_max: bound(self.line_bytes_max.0, default.line_bytes_max),
                cuts_lines: self.lines_too_long == Some(TooLong::Cut),
            },
            samples: rate("samples", self.samples_per_second.0, self.samples_burst.0)?,
            log_bytes: rate("log_bytes", self.log_bytes_per_second.0, self.log_bytes_burst.0)?,
            active_series_max: self.active_series_max.0.get(),
        })
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "the sections default and tenants")]
struct RawFile {
    default: Option<RawTenant>,
    #[serde(deserialize_with = "tenants")]
    tenants: BTreeMap<TenantId, RawTenant>,
}

/// Each once, under a name that can be one.
fn tenants<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<TenantId, RawTenant>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = BTreeMap<TenantId, RawTenant>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("tenants by name, each with its limits")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }
        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            use de::Error;
            let mut tenants = BTreeMap::new();
            while let Some(name) = map.next_key::<String>()? {
                let tenant = TenantId::new(&name).map_err(A::Error::custom)?;
                if tenants.len() == TENANTS_MAX {
                    return Err(A::Error::custom(format!("there are more than {TENANTS_MAX} tenants")));
                }
                let limits = map.next_value::<Option<RawTenant>>()?.unwrap_or_default();
                if tenants.insert(tenant, limits).is_some() {
                    return Err(A::Error::custom(format!("tenant {name:?} stands there twice")));
                }
            }
            Ok(tenants)
        }
    }
    deserializer.deserialize_any(Visitor)
}

/// Reads a file of limits; `file` is its name in errors.
pub fn parse(file: &str, text: &str) -> Result<Limits, BadLimits> {
    let bad = |line, why: String| BadLimits {
        file: file.to_owned(),
        line,
        why,
    };
    if text.len() > FILE_BYTES_MAX {
        return Err(bad(None, format!("it takes more than {FILE_BYTES_MAX} bytes")));
    }
    let raw: Option<RawFile> = serde_norway::from_str(text).map_err(|e| {
        let line = e.location().map(|l| l.line());
        bad(line, words(&e.to_string()))
    })?;
    let raw = raw.unwrap_or_default();
    let default = raw.default.unwrap_or_default();
    let resolved = |path: &[&str], of: RawTenant| {
        let name = path[path.len() - 1];
        of.resolve()
            .map_err(|why| bad(line_of(text, path), format!("{name}: {why}")))
    };
    let mut limits = Limits {
        default: resolved(&["default"], default)?,
        tenants: BTreeMap::new(),
    };
    for (tenant, own) in raw.tenants {
        let own = resolved(&["tenants", tenant.as_str()], own.or(&default))?;
        limits.tenants.insert(tenant, own);
    }
    Ok(limits)
}

/// Where an entry begins: each name of its path on a line of its own, the first one without an indentation.
fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    let mut lines = (1..).zip(text.lines());
    let mut line = None;
    for (depth, name) in path.iter().enumerate() {
        let begins = |line: &str| {
            let key = line.trim_start().split(':').next().unwrap_or_default();
            let is_indented = line.starts_with(char::is_whitespace);
            is_indented == (depth > 0) && key.trim().trim_matches(['"', '\'']) == *name
        };
        line = Some(lines.find(|(_, l)| begins(l))?.0);
    }
    line
}

/// An error of the reader in words that say what to do.
fn words(said: &str) -> String {
    // The place stands before the words already.
    let said = said.rsplit_once(" at line ").map_or(said, |(words, _)| words);
    let Some((before, after)) = said.split_once("unknown field `") else {
        return said.to_owned();
    };
    let name = after.split('`').next().unwrap_or_default();
    match NAMES_ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == name) {
        Some((_, here)) => format!("{before}{name} is called {here} here"),
        None => format!("{before}{name} is not a setting that is known there; take it out or correct it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn shown(limits: &TenantLimits) -> String {
        let rate = |r: Option<Rate>| {
            r.map_or("free".to_owned(), |r| {
                format!("{}/s, {} at once", r.per_second, r.burst)
            })
        };
        let b = limits.bounds;
        format!(
            "samples {}; lines {}; series {}; {} labels of {} bytes; lines of {} bytes{}",
            rate(limits.samples),
            rate(limits.log_bytes),
            limits.active_series_max.map_or("free".to_owned(), |n| n.to_string()),
            b.labels_max,
            b.label_value_bytes_max,
            b.line_bytes_max,
            if b.cuts_lines { ", cut" } else { "" },
        )
    }

    fn check(text: &str, expect: Expect) {
        let got = match parse("limits.yml", text) {
            Err(e) => e.to_string(),
            Ok(limits) => {
                let mut out = format!("default: {}\n", shown(&limits.default));
                for (tenant, of) in &limits.tenants {
                    out += &format!("{tenant}: {}\n", shown(of));
                }
                out
            }
        };
        expect.assert_eq(&got);
    }

    #[test]
    fn a_tenant_has_what_the_default_has_but_for_what_it_sets() {
        check(
            "
default:
  samples_per_second: 50000
  samples_burst: 200000
  log_bytes_per_second: 4MiB
  active_series_max: 500000
  labels_max: 30
  label_value_bytes_max: 2KiB
  line_bytes_max: 64KiB
  lines_too_long: cut
tenants:
  team-a:
    samples_per_second: none
    lines_too_long: refuse
  team-b:
    active_series_max: 10
    line_bytes_max: none
  team-c:
",
            expect![[r"
                default: samples 50000/s, 200000 at once; lines 4194304/s, 41943040 at once; series 500000; 30 labels of 2048 bytes; lines of 65536 bytes, cut
                team-a: samples free; lines 4194304/s, 41943040 at once; series 500000; 30 labels of 2048 bytes; lines of 65536 bytes
                team-b: samples 50000/s, 200000 at once; lines 4194304/s, 41943040 at once; series 10; 30 labels of 2048 bytes; lines of 262144 bytes, cut
                team-c: samples 50000/s, 200000 at once; lines 4194304/s, 41943040 at once; series 500000; 30 labels of 2048 bytes; lines of 65536 bytes, cut
            "]],
        );
        let nothing = expect![[r"
            default: samples free; lines free; series free; 64 labels of 4096 bytes; lines of 262144 bytes
        "]];
        check("", nothing);
    }

    #[test]
    fn a_wrong_file_is_refused_with_the_line() {
        check(
            "default:\n  labels_max: 65\n",
            expect![
                "limits.yml:2: default.labels_max: invalid value: integer `65`, expected a number from 4 to 64, or none"
            ],
        );
        check(
            "default:\n  labels_max: many\n",
            expect![[
                r#"limits.yml:2: default.labels_max: invalid value: string "many", expected a number from 4 to 64, or none"#
            ]],
        );
        check(
            "default:\n  samples_per_second: 4MiB\n",
            expect![[
                r#"limits.yml:2: default.samples_per_second: invalid value: string "4MiB", expected a number from 1 to 1099511627776, or none"#
            ]],
        );
        check(
            "default:\n  line_bytes_max: -1\n",
            expect![
                "limits.yml:2: default.line_bytes_max: invalid value: integer `-1`, expected a number of bytes, like 64KiB, from 1 to 262144, or none"
            ],
        );
        check(
            "default:\n  lines_too_long: drop\n",
            expect!["limits.yml:2: default.lines_too_long: unknown variant `drop`, expected `refuse` or `cut`"],
        );
        check(
            "default:\n  ingestion_rate: 5\n",
            expect!["limits.yml:2: default: ingestion_rate is called samples_per_second here"],
        );
        check(
            "overrides:\n  a: {}\n",
            expect!["limits.yml:1: overrides is called tenants here"],
        );
        check(
            "default:\n  colour: red\n",
            expect!["limits.yml:2: default: colour is not a setting that is known there; take it out or correct it"],
        );
        check(
            "default: {}\ntenants:\n  a/b:\n    labels_max: 5\n",
            expect![[
                r#"limits.yml:3: tenants: "a/b" is not a tenant name: use 1 to 128 of the characters A-Z a-z 0-9 _ . -"#
            ]],
        );
        check(
            "tenants:\n  a: {}\n  b: {}\n  a: {}\n",
            expect![[r#"limits.yml:2: tenants: tenant "a" stands there twice"#]],
        );
        check(
            "tenants:\n  a:\n    samples_burst: 5\n",
            expect![
                "limits.yml:2: a: samples_burst says how much may come at once, and nothing says how much per second: set samples_per_second, too"
            ],
        );
        check(
            "default:\n  labels_max: 5\ntenants:\n  default:\n    samples_burst: 5\n",
            expect![
                "limits.yml:4: default: samples_burst says how much may come at once, and nothing says how much per second: set samples_per_second, too"
            ],
        );
        check(
            "- a\n",
            expect!["limits.yml:1: invalid type: sequence, expected the sections default and tenants"],
        );
    }

    #[test]
    fn only_so_many_tenants_and_bytes_are_read() {
        let text = |n: usize| (0..n).fold("tenants:\n".to_owned(), |t, i| t + &format!("  t{i}: {{}}\n"));
        assert_eq!(parse("f", &text(TENANTS_MAX)).unwrap().tenants.len(), TENANTS_MAX);
        let why = parse("f", &text(TENANTS_MAX + 1)).unwrap_err().why;
        assert!(why.contains("more than 10000 tenants"), "{why}");
        let why = parse("f", &"#".repeat(FILE_BYTES_MAX + 1)).unwrap_err().why;
        assert!(why.contains("more than 4194304 bytes"), "{why}");
    }
}
