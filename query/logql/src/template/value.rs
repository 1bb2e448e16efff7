//! What template functions take and give.

use crate::fields::Fields;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
    /// Nanoseconds since the epoch.
    Time(i64),
    /// The set of all labels.
    Labels,
}

impl Value {
    pub fn is_true(&self) -> bool {
        match self {
            Self::Nil => false,
            Self::Bool(b) => *b,
            Self::Int(i) => *i != 0,
            Self::Float(f) => *f != 0.0,
            Self::Text(t) => !t.is_empty(),
            Self::List(l) => !l.is_empty(),
            Self::Map(m) => !m.is_empty(),
            Self::Time(_) | Self::Labels => true,
        }
    }

    /// About how many bytes a copy of it takes.
    pub fn weight(&self) -> usize {
        const OF_ONE: usize = 32;
        OF_ONE
            + match self {
                Self::Text(text) => text.len(),
                Self::List(items) => items.iter().map(Self::weight).sum(),
                Self::Map(map) => map.iter().map(|(k, v)| OF_ONE + k.len() + v.weight()).sum(),
                _ => 0,
            }
    }

    /// As `{{ }}` writes it, where no labels are at hand.
    pub fn shown(&self) -> String {
        let mut out = String::new();
        self.show(&Fields::default(), &mut out);
        out
    }

    pub fn show(&self, fields: &Fields, out: &mut String) {
        match self {
            Self::Nil => out.push_str("<no value>"),
            Self::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Self::Int(i) => out.push_str(&i.to_string()),
            Self::Float(f) => out.push_str(&float(*f)),
            Self::Text(t) => out.push_str(t),
            Self::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(' ');
                    }
                    item.show(fields, out);
                }
                out.push(']');
            }
            Self::Map(map) => {
                out.push_str("map[");
                for (i, (key, value)) in map.iter().enumerate() {
                    out.push_str(if i > 0 { " " } else { "" });
                    out.push_str(key);
                    out.push(':');
                    value.show(fields, out);
                }
                out.push(']');
            }
            Self::Time(ns) => out.push_str(&super::go_time::format("2006-01-02 15:04:05.999999999 -0700 MST", *ns)),
            Self::Labels => {
                let mut pairs: Vec<(&str, &str)> = fields.iter().map(|(n, v, _)| (n, v)).collect();
                pairs.sort_unstable();
                let shown: Vec<String> = pairs.into_iter().map(|(n, v)| format!("{n}:{v}")).collect();
                out.push_str(&format!("map[{}]", shown.join(" ")));
            }
        }
    }

    /// Go's name of the type.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int64",
            Self::Float(_) => "float64",
            Self::Text(_) => "string",
            Self::List(_) => "[]interface {}",
            Self::Map(_) => "map[string]interface {}",
            Self::Time(_) => "time.Time",
            Self::Labels => "map[string]string",
        }
    }

    /// A JSON document as a value.
    pub fn of_json(json: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match json {
            Json::Null => Self::Nil,
            Json::Bool(b) => Self::Bool(b),
            Json::Number(n) => Self::Float(n.as_f64().unwrap_or(f64::NAN)),
            Json::String(s) => Self::Text(s),
            Json::Array(items) => Self::List(items.into_iter().map(Self::of_json).collect()),
            Json::Object(map) => Self::Map(map.into_iter().map(|(k, v)| (k, Self::of_json(v))).collect()),
        }
    }
}

/// As Go's `%v` writes a float: an exponent below 1e-4 and from 1e21 on.
pub fn float(v: f64) -> String {
    if v.is_nan() {
        return "NaN".to_owned();
    }
    if v.is_infinite() {
        return if v > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if v == 0.0 || (1e-4..1e21).contains(&v.abs()) {
        return v.to_string();
    }
    let text = format!("{v:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}e{sign}{exponent:0>2}")
}
