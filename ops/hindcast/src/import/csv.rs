//! Rows of a CSV file with one value each.
//!
//! Pure. The first two columns are time and value, unless a header names other ones `timestamp` (or `time`, `ts`) and
//! `value`; all other named columns are labels. Fields may be quoted; a quoted field does not go over a line's end.

use super::{BadLine, Item, float, when};
use hindcast_model::Labels;
use hindcast_model::labels::METRIC_NAME;

/// Reads the rows of one file in order.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Csv {
    metric: String,
    columns: Option<Columns>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Columns {
    time: usize,
    value: usize,
    count: usize,
    labels: Vec<(usize, String)>,
}

impl Csv {
    pub fn new(metric: &str) -> Self {
        Self {
            metric: metric.to_owned(),
            columns: None,
        }
    }

    pub fn parse(&mut self, line: &str) -> Result<Item, BadLine> {
        let line = line.trim_end_matches('\r');
        if line.trim().is_empty() {
            return Ok(Item::Nothing);
        }
        let fields = fields(line)?;
        let columns = match &self.columns {
            Some(columns) => columns,
            None => {
                // A header is a first row that begins with no time.
                let header = when::time_ns(&fields[0]).is_err();
                let columns = Columns::of(&fields, header)?;
                self.columns = Some(columns.clone());
                if header {
                    return Ok(Item::Nothing);
                }
                self.columns.insert(columns)
            }
        };
        if fields.len() != columns.count {
            return Err(BadLine::new(format!(
                "{} fields where {} belong",
                fields.len(),
                columns.count
            )));
        }
        let mut pairs = vec![(METRIC_NAME.to_owned(), self.metric.clone())];
        pairs.extend(
            columns
                .labels
                .iter()
                .map(|(i, name)| (name.clone(), fields[*i].clone())),
        );
        Ok(Item::Sample {
            labels: Labels::new(pairs),
            at_ms: Some(when::time_ms(&fields[columns.time])?),
            value: float(fields[columns.value].trim())?,
        })
    }
}

impl Columns {
    fn of(first: &[String], header: bool) -> Result<Self, BadLine> {
        let plain = Self {
            time: 0,
            value: 1,
            count: first.len(),
            labels: vec![],
        };
        if first.len() < 2 {
            return Err(BadLine::new("a row needs a time and a value"));
        }
        if !header {
            if first.len() > 2 {
                return Err(BadLine::new("more than two columns need a header that names them"));
            }
            return Ok(plain);
        }
        let place = |names: &[&str]| {
            first
                .iter()
                .position(|f| names.contains(&f.trim().to_ascii_lowercase().as_str()))
        };
        let (time, value) = (
            place(&["timestamp", "time", "ts", "date", "datetime"]).unwrap_or(plain.time),
            place(&["value"]).unwrap_or(plain.value),
        );
        if time == value {
            return Err(BadLine::new("the header names no column apart for time and value"));
        }
        let mut labels = vec![];
        for (i, name) in first.iter().enumerate().filter(|(i, _)| ![time, value].contains(i)) {
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let name: String = name.trim().chars().map(|c| if fits(c) { c } else { '_' }).collect();
            if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
                return Err(BadLine::new(format!("column {} has no name fit for a label", i + 1)));
            }
            if labels.iter().any(|(_, n)| *n == name) {
                return Err(BadLine::new(format!(
                    "two columns are both the label {name:?}; give one of them another name"
                )));
            }
            labels.push((i, name));
        }
        Ok(Self {
            time,
            value,
            labels,
            ..plain
        })
    }
}

fn fields(line: &str) -> Result<Vec<String>, BadLine> {
    let mut fields = vec![];
    let mut rest = line;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(mut quoted) => {
                let mut field = String::new();
                loop {
                    let end = quoted.find('"').ok_or_else(|| BadLine::new("a quote is not closed"))?;
                    field.push_str(&quoted[..end]);
                    quoted = &quoted[end + 1..];
                    match quoted.strip_prefix('"') {
                        Some(more) => {
                            field.push('"');
                            quoted = more;
                        }
                        None => break (field, quoted),
                    }
                }
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(BadLine::new("text after a quoted field")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use std::fmt::Write;

    #[test]
    fn a_header_with_a_column_twice_is_refused_and_not_one_of_them_kept() {
        let refused = Csv::new("m").parse("timestamp,value,host,host").unwrap_err();
        assert!(format!("{refused:?}").contains("both the label"), "{refused:?}");
    }

    fn check(file: &str, expect: Expect) {
        let mut csv = Csv::new("m");
        let mut out = String::new();
        for line in file.lines().map(str::trim).filter(|l| !l.is_empty()) {
            match csv.parse(line) {
                Ok(Item::Sample { labels, at_ms, value }) => {
                    writeln!(out, "{labels} {value} {}", at_ms.unwrap()).unwrap();
                }
                Ok(_) => writeln!(out, "nothing").unwrap(),
                Err(e) => writeln!(out, "bad: {e}").unwrap(),
            }
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn two_columns_need_no_header_and_more_become_labels() {
        check(
            "
            timestamp,value
            2014-02-14 14:27:00,51.846
            2014-02-14 14:32:00,
            1,2,3
            ",
            expect![[r#"
                nothing
                m 51.846 1392388020000
                bad: "" is not a number
                bad: 3 fields where 2 belong
            "#]],
        );
        check(
            "1700000000,1\n1700000001,nan",
            expect!["m 1 1700000000000\nm NaN 1700000001000\n"],
        );
        check(
            "host,Value,time,a b\n\"x,\"\"1\"\"\",3,1700000000,\n\"x,3,1,",
            expect![[r#"
                nothing
                m{host="x,\"1\""} 3 1700000000000
                bad: a quote is not closed
            "#]],
        );
        check(
            "1,2,3",
            expect!["bad: more than two columns need a header that names them\n"],
        );
        check("1", expect!["bad: a row needs a time and a value\n"]);
    }

    proptest! {
        #[test]
        fn quoted_fields_read_back(texts in proptest::collection::vec("[a-c,\" ]{0,8}", 1..6)) {
            let line: Vec<_> = texts.iter().map(|t| format!("\"{}\"", t.replace('"', "\"\""))).collect();
            prop_assert_eq!(fields(&line.join(",")), Ok(texts));
        }
    }
}
