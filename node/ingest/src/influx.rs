//! Influx line protocol: `measurement,tag=value field=1.5,other=2i 1700000000000000000`, a line each.
//!
//! Each field is a series: the measurement's name and the field's, joined by `_`; a field named `value` adds nothing. Names
//! get underscores where Prometheus' names have no other characters. Tags are labels. Booleans are 0 and 1; texts are not
//! stored, and counted apart, because senders mix them in where nothing is wrong. A tag `host` says which host owns a series
//! (it is what Telegraf puts on everything), as the resource attribute `host.name` does elsewhere.
//!
//! A line that cannot be read is refused with its number; the others are stored, as Influx does it. Lines without a time
//! have the time at which the request came.
//!
//! Promise: a line is stored with all its numbers or with none of them, but for numbers that are refused one by one (a time
//! too far ahead, a label too long, a name that another field of the line has already), which are counted.
//!
//! Each series has all tags of its line, so a small line can name much: [`LABEL_BYTES_MAX`] bounds it. Reading takes time in
//! proportion to the body: see [`OPEN_TEXTS_MAX`].

use crate::otlp::names::label_name;
use crate::owners::{Named, Seen};
use crate::{AdaptError, Adapted, LimitsContext, Protocol, Refusal, Rejections, check};
use hindcast_model::{Batch, BatchId, Labels, METRIC_NAME, Sample, SeriesBlock, TenantId, TimestampNs};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Fields of one line.
pub const FIELDS_MAX: usize = 4096;
/// Labels of all series that one request names. A line that would go beyond is refused, and those behind it are read.
pub const LABEL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Lines of one request for whose open text all of the rest is searched for its end. Behind so many that have none, a line
/// ends at its newline.
pub const OPEN_TEXTS_MAX: usize = 16;
/// The field that says nothing beside its measurement.
const PLAIN_FIELD: &str = "value";

/// In which unit times are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    Nanoseconds,
    Microseconds,
    Milliseconds,
    Seconds,
    Minutes,
    Hours,
}

impl Precision {
    /// As both versions of the API write it; nothing is nanoseconds.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" | "ns" | "n" => Self::Nanoseconds,
            "us" | "u" | "µ" | "µs" => Self::Microseconds,
            "ms" => Self::Milliseconds,
            "s" => Self::Seconds,
            "m" => Self::Minutes,
            "h" => Self::Hours,
            _ => return None,
        })
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Nanoseconds => "nanoseconds",
            Self::Microseconds => "microseconds",
            Self::Milliseconds => "milliseconds",
            Self::Seconds => "seconds",
            Self::Minutes => "minutes",
            Self::Hours => "hours",
        }
    }

    const fn nanos(self) -> i64 {
        match self {
            Self::Nanoseconds => 1,
            Self::Microseconds => 1_000,
            Self::Milliseconds => 1_000_000,
            Self::Seconds => 1_000_000_000,
            Self::Minutes => 60_000_000_000,
            Self::Hours => 3_600_000_000_000,
        }
    }
}

/// A request that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    pub adapted: Adapted,
    /// Fields with a text, which are nobody's fault.
    pub texts: Rejections,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Number(f64),
    Text,
}

/// A line, taken apart.
#[derive(Debug)]
struct Line<'m> {
    measurement: Cow<'m, str>,
    tags: Vec<(Cow<'m, str>, Cow<'m, str>)>,
    fields: Vec<(Cow<'m, str>, Value)>,
    /// In the request's unit.
    time: Option<i64>,
}

/// Turns a decompressed body into a batch. Its id is the hash of the body, and of the time where a line takes it from there: the same
/// line without a time, sent again a second later, is another one.
pub fn adapt(tenant: &TenantId, body: &[u8], precision: Precision, limits: &LimitsContext) -> Result<Read, AdaptError> {
    let text = std::str::from_utf8(body).map_err(|e| AdaptError::Malformed {
        protocol: Protocol::Influx,
        why: format!("it is not UTF-8 from byte {} on", e.valid_up_to()),
    })?;
    let mut lines = Lines {
        tenant,
        limits,
        precision,
        of_tags: BTreeMap::new(),
        label_bytes: 0,
        series: vec![],
        seen: Seen::default(),
        rejected: Rejections::default(),
        texts: Rejections::default(),
        is_timed_here: false,
    };
    let (mut split, mut number) = (Split::new(text), 1);
    while let Some(line) = split.next_line() {
        // A quoted text may hold newlines.
        let newlines = memchr::memchr_iter(b'\n', line.as_bytes()).count();
        let line = line
            .strip_suffix('\r')
            .unwrap_or(line)
            .trim_start_matches([' ', '\t', '\0']);
        if !line.is_empty() && !line.starts_with('#') {
            match read_line(line) {
                Ok(read) => lines.keep(&read, number),
                Err(why) => lines
                    .rejected
                    .add(1, &Refusal::BadLine { why }, || format!("line {number}")),
            }
        }
        number += 1 + newlines;
    }
    let mut batch = Batch::new(tenant.clone());
    batch.series = lines.series;
    batch.series.retain(|s| !s.samples.is_empty());
    lines.seen.into_batch(&mut batch);
    let received = if lines.is_timed_here { limits.now.0 } else { 0 };
    let named = [
        &(precision.nanos() as u64).to_le_bytes()[..],
        &received.to_le_bytes(),
        body,
    ]
    .concat();
    batch.id = Some(BatchId::of_body(tenant, Protocol::Influx.as_str(), &named));
    Ok(Read {
        adapted: Adapted {
            batch,
            rejected: lines.rejected,
        },
        texts: lines.texts,
    })
}

/// What becomes of the lines of one request.
struct Lines<'a> {
    tenant: &'a TenantId,
    limits: &'a LimitsContext,
    precision: Precision,
    /// Series by their tags, and then by their names: lines of many fields are looked up without a copy of their tags each.
    of_tags: BTreeMap<Labels, BTreeMap<String, usize>>,
    /// Of all series.
    label_bytes: usize,
    series: Vec<SeriesBlock>,
    seen: Seen,
    rejected: Rejections,
    texts: Rejections,
    is_timed_here: bool,
}

impl Lines<'_> {
    fn keep(&mut self, line: &Line<'_>, number: usize) {
        let at = match line.time {
            None => {
                self.is_timed_here = true;
                self.limits.now
            }
            Some(time) => match time.checked_mul(self.precision.nanos()) {
                Some(ns) => TimestampNs(ns),
                None => {
                    let why = format!(
                        "its time is not within the years 1678 to 2261, which can be stored; {}",
                        self.unit_hint(time)
                    );
                    return self
                        .rejected
                        .add(1, &Refusal::BadLine { why }, || format!("line {number}"));
                }
            },
        };
        let at = TimestampNs::from_ms(at.0.div_euclid(1_000_000));
        let texts = line.fields.iter().filter(|(_, v)| *v == Value::Text).count();
        if texts > 0 {
            self.texts
                .add(texts as u64, &Refusal::TextValue, || format!("line {number}"));
        }
        let tags: Vec<_> = line.tags.iter().map(|(n, v)| (label_name(n), v.to_string())).collect();
        let measurement = metric_name(&line.measurement);
        let fields = self.fields(line, number, at, &tags, &measurement);
        let of_tags = Labels::new(tags.clone());
        let known = self.of_tags.get(&of_tags);
        let is_new = |name: &String| known.is_none_or(|k| !k.contains_key(name));
        let tag_bytes: usize = tags.iter().map(|(n, v)| n.len() + v.len()).sum();
        let new = fields.iter().filter(|(name, _)| is_new(name));
        let bytes: usize = new.map(|(name, _)| tag_bytes + METRIC_NAME.len() + name.len()).sum();
        if self.label_bytes + bytes > LABEL_BYTES_MAX {
            let why = format!(
                "its series have {bytes} bytes of labels, and with those before it more than the {LABEL_BYTES_MAX} that one \
                 request may name; send fewer lines at once, or fewer tags and fields on a line"
            );
            return self
                .rejected
                .add(1, &Refusal::BadLine { why }, || format!("line {number}"));
        }
        self.label_bytes += bytes;
        let host = line.tags.iter().find(|(n, v)| n == "host" && !v.is_empty());
        let attrs: Vec<_> = host
            .map(|(_, v)| ("host.name".to_owned(), v.to_string()))
            .into_iter()
            .collect();
        if fields.is_empty() {
            return;
        }
        let known = self.of_tags.entry(of_tags).or_default();
        for (name, value) in fields {
            let sample = Sample { at, value };
            match known.get(&name) {
                Some(series) => self.series[*series].samples.push(sample),
                None => {
                    let pairs = tags.iter().map(|(n, v)| (n.as_str(), v.as_str()));
                    let labels = Labels::from_sorted(std::iter::once((METRIC_NAME, name.as_str())).chain(pairs));
                    let named = Named::new(self.tenant, labels, &attrs);
                    self.seen.note(&named.resource);
                    known.insert(name, self.series.len());
                    self.series.push(SeriesBlock {
                        labels: named.labels,
                        owner: named.owner,
                        samples: vec![sample],
                    });
                }
            }
        }
    }

    /// Most times that cannot be are in another unit than the request says.
    fn unit_hint(&self, time: i64) -> String {
        let unit = self.precision.as_str();
        format!(
            "{time} was read as {unit}: if that is not its unit, name it in the URL with precision=ns, us, ms, s, m or h"
        )
    }

    /// The names and numbers of a line that fit, each name once; the others are refused.
    fn fields(
        &mut self,
        line: &Line<'_>,
        number: usize,
        at: TimestampNs,
        tags: &[(String, String)],
        measurement: &str,
    ) -> Vec<(String, f64)> {
        // What is wrong with the tags is wrong with each field; it is looked for once.
        let mut pairs = tags.to_vec();
        pairs.push((METRIC_NAME.to_owned(), PLAIN_FIELD.to_owned()));
        let in_time = self.limits.time(at).map_err(|why| match line.time {
            None => why,
            Some(time) => Refusal::Hinted {
                why: Box::new(why),
                hint: self.unit_hint(time),
            },
        });
        let fits = in_time.and_then(|()| self.limits.labels(&pairs, true));
        let (mut kept, mut names) = (vec![], BTreeSet::new());
        for (field, value) in &line.fields {
            let Value::Number(value) = value else { continue };
            let name = match &**field {
                PLAIN_FIELD => measurement.to_owned(),
                field => format!("{measurement}_{}", plain(field)),
            };
            let mut fits = fits
                .clone()
                .and_then(|()| self.limits.labels(&[(METRIC_NAME, name.as_str())], true));
            if fits.is_ok() && !names.insert(name.clone()) {
                // Two samples of one time would leave one of them, and nobody would know which.
                let why = format!(
                    "another field of the line is stored as {:?} already; give the field a name that differs in letters or \
                     digits of ASCII",
                    check::shown(&name)
                );
                fits = Err(Refusal::BadLine { why });
            }
            match fits {
                Ok(()) => kept.push((name, *value)),
                Err(why) => self.rejected.add(1, &why, || format!("line {number}, field {field}")),
            }
        }
        kept
    }
}

/// Underscores for what a metric's name has not.
fn plain(text: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == ':' { c } else { '_' };
    text.chars().map(keep).collect()
}

fn metric_name(measurement: &str) -> String {
    let name = plain(measurement);
    match name.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!("_{name}"),
        false => name,
    }
}

/// A body, line by line. A line ends at a newline that is not within a quoted text; a quote opens a text only where a field's
/// value begins.
struct Split<'m> {
    rest: &'m str,
    /// Texts whose end was looked for up to the body's end, in vain.
    open_texts: usize,
    /// Bytes that were looked at for quotes.
    #[cfg(test)]
    looked_at: usize,
}

impl<'m> Split<'m> {
    const fn new(rest: &'m str) -> Self {
        Self {
            rest,
            open_texts: 0,
            #[cfg(test)]
            looked_at: 0,
        }
    }

    fn next_line(&mut self) -> Option<&'m str> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.line_end();
        let line = &self.rest[..end];
        self.rest = self.rest.get(end + 1..).unwrap_or("");
        Some(line)
    }

    fn line_end(&mut self) -> usize {
        let bytes = self.rest.as_bytes();
        let plain_end = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
        // Most lines have no texts; comments may have any quotes.
        let is_comment = self.rest.trim_start_matches([' ', '\t', '\0']).starts_with('#');
        let may_be_longer = !is_comment
            && self.open_texts < OPEN_TEXTS_MAX
            && plain_end < bytes.len()
            && memchr::memchr(b'"', &bytes[..plain_end]).is_some();
        let Some(fields) = may_be_longer.then(|| fields_at(self.rest)).flatten() else {
            return plain_end;
        };
        let (mut at, mut quoted) = (fields, false);
        while at < bytes.len() {
            match bytes[at] {
                // Between quotes a backslash escapes; elsewhere it does for what parts a line, and never a newline.
                b'\\' if bytes.get(at + 1).is_some_and(|b| quoted || *b != b'\n') => at += 1,
                b'"' if quoted => quoted = false,
                b'"' if bytes[at - 1] == b'=' => quoted = true,
                b'\n' if !quoted => break,
                _ => {}
            }
            at += 1;
        }
        #[cfg(test)]
        {
            self.looked_at += at - fields;
        }
        if quoted {
            // A text without its end: the line ends where it would without it, so that those behind it are read.
            self.open_texts += 1;
            return plain_end;
        }
        at.min(bytes.len())
    }
}

/// Where a line's fields begin: behind the first space that is not escaped. `None`: the line ends before.
fn fields_at(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = text.len() - text.trim_start_matches([' ', '\t', '\0']).len();
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if bytes.get(at + 1) != Some(&b'\n') => at += 1,
            b' ' => return Some(at + 1),
            b'\n' => return None,
            _ => {}
        }
        at += 1;
    }
    None
}

/// A name or value up to one of `ends`. A backslash escapes them; before anything else it is itself.
fn word<'m>(text: &'m str, ends: &[u8]) -> (Cow<'m, str>, &'m str) {
    let bytes = text.as_bytes();
    let (mut at, mut escapes) = (0, false);
    while at < bytes.len() && !ends.contains(&bytes[at]) {
        if bytes[at] == b'\\' && bytes.get(at + 1).is_some_and(|b| is_escaped(*b)) {
            escapes = true;
            at += 1;
        }
        at += 1;
    }
    let (word, rest) = text.split_at(at.min(bytes.len()));
    if !escapes {
        return (Cow::Borrowed(word), rest);
    }
    let mut plain = String::with_capacity(word.len());
    let mut chars = word.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek() {
            Some(next) if c == '\\' && u8::try_from(*next).is_ok_and(is_escaped) => plain.extend(chars.next()),
            _ => plain.push(c),
        }
    }
    (Cow::Owned(plain), rest)
}

const fn is_escaped(byte: u8) -> bool {
    matches!(byte, b',' | b' ' | b'=')
}

fn read_line(line: &str) -> Result<Line<'_>, String> {
    let (measurement, mut rest) = word(line, b", ");
    if measurement.is_empty() {
        return Err("it has no measurement".to_owned());
    }
    let mut tags = vec![];
    while let Some(after) = rest.strip_prefix(',') {
        let (name, after) = word(after, b"=, ");
        let Some(after) = after.strip_prefix('=') else {
            return Err(format!("the tag {:?} has no value", check::shown(&name)));
        };
        let (value, after) = word(after, b", ");
        if name.is_empty() || value.is_empty() {
            return Err(format!(
                "a tag has no name or no value: {:?}={:?}",
                check::shown(&name),
                check::shown(&value)
            ));
        }
        tags.push((name, value));
        if tags.len() > hindcast_model::limits::LABELS_MAX {
            return Err(format!("it has more than {} tags", hindcast_model::limits::LABELS_MAX));
        }
        rest = after;
    }
    rest = rest.trim_start_matches(' ');
    let mut fields = vec![];
    loop {
        let (name, after) = word(rest, b"=, ");
        let Some(after) = after.strip_prefix('=') else {
            return Err(match name.is_empty() {
                true => "it has no fields".to_owned(),
                false => format!("the field {:?} has no value", check::shown(&name)),
            });
        };
        if name.is_empty() {
            return Err("a field has no name".to_owned());
        }
        let (value, after) = value(after).map_err(|why| format!("the field {:?}: {why}", check::shown(&name)))?;
        fields.push((name, value));
        if fields.len() > FIELDS_MAX {
            return Err(format!("it has more than {FIELDS_MAX} fields"));
        }
        match after.strip_prefix(',') {
            Some(after) => rest = after,
            None => {
                rest = after;
                break;
            }
        }
    }
    let stamp = rest.trim_matches([' ', '\t']);
    if !stamp.is_empty() && !rest.starts_with(' ') {
        return Err(format!("{:?} stands behind a field's value", check::shown(stamp)));
    }
    let time = match stamp {
        "" => None,
        stamp => Some(
            stamp
                .parse()
                .map_err(|_| format!("{:?} is no time", check::shown(stamp)))?,
        ),
    };
    Ok(Line {
        measurement,
        tags,
        fields,
        time,
    })
}

fn value(text: &str) -> Result<(Value, &str), String> {
    if let Some(inner) = text.strip_prefix('"') {
        let bytes = inner.as_bytes();
        let mut at = 0;
        loop {
            match memchr::memchr2(b'"', b'\\', bytes.get(at..).unwrap_or_default()) {
                None => return Err("its text has no end".to_owned()),
                Some(n) if bytes[at + n] == b'"' => return Ok((Value::Text, &inner[at + n + 1..])),
                Some(n) => at += n + 2,
            }
        }
    }
    let end = text
        .bytes()
        .position(|b| matches!(b, b',' | b' '))
        .unwrap_or(text.len());
    let (given, rest) = text.split_at(end);
    let number = match given {
        "t" | "T" | "true" | "True" | "TRUE" => 1.0,
        "f" | "F" | "false" | "False" | "FALSE" => 0.0,
        _ => {
            number(given).ok_or_else(|| format!("{:?} is no number, boolean or text in quotes", check::shown(given)))?
        }
    };
    Ok((Value::Number(number), rest))
}

fn number(given: &str) -> Option<f64> {
    if let Some(digits) = given.strip_suffix('i') {
        return digits.parse::<i64>().ok().map(|n| n as f64);
    }
    if let Some(digits) = given.strip_suffix('u') {
        return digits.parse::<u64>().ok().map(|n| n as f64);
    }
    // Rust also reads `inf` and `nan`, which the protocol has not.
    let is_number = given
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    given.parse::<f64>().ok().filter(|n| is_number && n.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_model::Domain;
    use proptest::prelude::*;

    const LIMITS: LimitsContext = LimitsContext {
        now: TimestampNs(1_700_000_000_123_456_789),
        floor: None,
        bounds: crate::check::Bounds::DEFAULT,
    };

    fn read(body: &str, precision: Precision) -> Read {
        adapt(&TenantId::default(), body.as_bytes(), precision, &LIMITS).unwrap()
    }

    fn shown(read: &Read) -> String {
        let mut out = String::new();
        for s in &read.adapted.batch.series {
            let owner = s.owner.domain().map_or("-", Domain::as_str);
            let values: Vec<_> = s.samples.iter().map(|s| format!("{}@{}", s.value, s.at)).collect();
            out += &format!("{} {owner} = {}\n", s.labels, values.join(" "));
        }
        for r in read.adapted.rejected.listed() {
            out += &format!("{}: {}\n", r.what, r.why);
        }
        for r in read.texts.listed() {
            out += &format!("{} ({}): {}\n", r.what, r.items, r.why);
        }
        out
    }

    fn check(body: &str, expect: Expect) {
        expect.assert_eq(&shown(&read(body, Precision::Nanoseconds)));
    }

    #[test]
    fn each_field_is_a_series_and_texts_are_counted() {
        check(
            "cpu,cpu=cpu0,host=web-1 usage_idle=97.5,usage_user=1e0 1700000000000000000\n\
             system,host=web-1 load1=0.5,n_cpus=4i,uptime_format=\"3 days, 4:05\",big=18446744073709551615u,ok=true,bad=F 1700000000999999999\n\
             up value=1\n",
            expect![[r#"
                cpu_usage_idle{cpu="cpu0", host="web-1"} SMS = 97.5@1700000000.000
                cpu_usage_user{cpu="cpu0", host="web-1"} SMS = 1@1700000000.000
                system_load1{host="web-1"} SMS = 0.5@1700000000.999
                system_n_cpus{host="web-1"} SMS = 4@1700000000.999
                system_big{host="web-1"} SMS = 18446744073709552000@1700000000.999
                system_ok{host="web-1"} SMS = 1@1700000000.999
                system_bad{host="web-1"} SMS = 0@1700000000.999
                up - = 1@1700000000.123
                line 2 (1): its value is a text, and only numbers are stored
            "#]],
        );
    }

    #[test]
    fn escapes_quotes_and_names_are_read_as_influx_writes_them() {
        check(
            "my\\ disk\\,x,ta\\=g=a\\ b\\,c,path=C:\\x fie\\ ld=1,t=\"a, b=c \\\"d\\\" \\\\\",net.in-bytes=2 1700000000000000000\r\n\
             # a comment with \" a quote\n\
             \n\
             log msg=\"two\nlines\",n=3i 1700000000000000000\n\
             9lives,서버=하나 값=1 1700000000000000000\n\
             m a=1   1700000000000000000  \n",
            expect![[r#"
                my_disk_x_fie_ld{path="C:\\x", ta_g="a b,c"} - = 1@1700000000.000
                my_disk_x_net_in_bytes{path="C:\\x", ta_g="a b,c"} - = 2@1700000000.000
                log_n - = 3@1700000000.000
                _9lives__{key__="하나"} - = 1@1700000000.000
                m_a - = 1@1700000000.000
                line 1 (1): its value is a text, and only numbers are stored
                line 4 (1): its value is a text, and only numbers are stored
            "#]],
        );
    }

    #[test]
    fn bad_lines_are_named_and_the_others_stored() {
        check(
            "a v=1 1700000000000000000\n\
             a\n\
             a,t v=1\n\
             a,t= v=1\n\
             ,t=x v=1\n\
             a v=\n\
             a v=1x\n\
             a v=nan\n\
             a v=1 soon\n\
             a v=\"open\n\
             a =1\n\
             a v=1,\n\
             a v=\"x\"y 1\n\
             a v=9223372036854775808i\n\
             a v=1e999\n\
             b v=2 1700000000000000000",
            expect![[r#"
                a_v - = 1@1700000000.000
                b_v - = 2@1700000000.000
                line 2: the line cannot be read: it has no fields
                line 3: the line cannot be read: the tag "t" has no value
                line 4: the line cannot be read: a tag has no name or no value: "t"=""
                line 5: the line cannot be read: it has no measurement
                line 6: the line cannot be read: the field "v": "" is no number, boolean or text in quotes
                line 7: the line cannot be read: the field "v": "1x" is no number, boolean or text in quotes
                line 8: the line cannot be read: the field "v": "nan" is no number, boolean or text in quotes
                line 9: the line cannot be read: "soon" is no time
                line 10: the line cannot be read: "x\"y 1" stands behind a field's value
                line 14: the line cannot be read: the field "v": "9223372036854775808i" is no number, boolean or text in quotes
                line 15: the line cannot be read: the field "v": "1e999" is no number, boolean or text in quotes
            "#]],
        );
    }

    #[test]
    fn times_are_in_the_unit_of_the_request() {
        let mut out = String::new();
        for (unit, time) in [
            ("", "1600000000123456789"),
            ("us", "1600000000123456"),
            ("ms", "1"),
            ("s", "1600000000"),
            ("m", "26666666"),
            ("h", "444444"),
            ("s", "1600000000000000000"),
            ("ms", "1800000000000"),
        ] {
            let precision = Precision::parse(unit).unwrap();
            out += &format!("{unit:?} {}", shown(&read(&format!("a value=1 {time}"), precision)));
        }
        expect![[r#"
            "" a - = 1@1600000000.123
            "us" a - = 1@1600000000.123
            "ms" a - = 1@0.001
            "s" a - = 1@1600000000.000
            "m" a - = 1@1599999960.000
            "h" a - = 1@1599998400.000
            "s" line 1: the line cannot be read: its time is not within the years 1678 to 2261, which can be stored; 1600000000000000000 was read as seconds: if that is not its unit, name it in the URL with precision=ns, us, ms, s, m or h
            "ms" line 1, field value: its time 2027-01-15T08:00:00Z is more than 10m ahead of 2023-11-14T22:13:20.123456789Z; check the sender's clock; 1800000000000 was read as milliseconds: if that is not its unit, name it in the URL with precision=ns, us, ms, s, m or h
        "#]]
        .assert_eq(&out);
        assert_eq!(Precision::parse("d"), None);
    }

    /// A script sent seconds, and was told that "1.700" was older than "1697408000.123".
    #[test]
    fn a_time_in_another_unit_is_said_as_a_date_and_with_the_units_name() {
        let limits = LimitsContext {
            floor: Some(TimestampNs::from_secs(1_697_408_000)),
            ..LIMITS
        };
        let said = |precision, time: &str| {
            let body = format!("a value=1 {time}");
            let read = adapt(&TenantId::default(), body.as_bytes(), precision, &limits).unwrap();
            assert_eq!(read.adapted.rejected.items(), 1);
            shown(&read)
        };
        let out = [
            said(Precision::Nanoseconds, "1700000000"),
            said(Precision::Milliseconds, "1700000000123000"),
            said(Precision::Seconds, "-9223372036854775808"),
        ];
        expect![[r#"
            line 1, field value: its time 1970-01-01T00:00:01.7Z is older than 2023-10-15T22:13:20Z, the oldest that is kept; 1700000000 was read as nanoseconds: if that is not its unit, name it in the URL with precision=ns, us, ms, s, m or h
            line 1: the line cannot be read: its time is not within the years 1678 to 2261, which can be stored; 1700000000123000 was read as milliseconds: if that is not its unit, name it in the URL with precision=ns, us, ms, s, m or h
            line 1: the line cannot be read: its time is not within the years 1678 to 2261, which can be stored; -9223372036854775808 was read as seconds: if that is not its unit, name it in the URL with precision=ns, us, ms, s, m or h
        "#]].assert_eq(&out.concat());
    }

    #[test]
    fn a_body_is_known_again_unless_its_time_is_that_of_its_coming() {
        let id = |body: &str, precision, now| {
            let limits = LimitsContext {
                now: TimestampNs(now),
                ..LIMITS
            };
            adapt(&TenantId::default(), body.as_bytes(), precision, &limits)
                .unwrap()
                .adapted
                .batch
                .id
                .unwrap()
        };
        let (ns, s) = (Precision::Nanoseconds, Precision::Seconds);
        assert_eq!(id("a v=1 5", ns, 1_000_000_000), id("a v=1 5", ns, 2_000_000_000));
        assert_ne!(id("a v=1 5", ns, 1_000_000_000), id("a v=1 5", s, 1_000_000_000));
        assert_ne!(id("a v=1", ns, 1_000_000_000), id("a v=1", ns, 2_000_000_000));
        let bad = adapt(&TenantId::default(), b"a v=1\n\xff", ns, &LIMITS).unwrap_err();
        assert!(bad.to_string().contains("from byte 6 on"), "{bad}");
    }

    #[test]
    fn the_widest_line_that_fits_fits_and_one_more_does_not() {
        let fields = |n: usize| (0..n).map(|i| format!("f{i}=1")).collect::<Vec<_>>().join(",");
        let line = |n: usize| read(&format!("a {}", fields(n)), Precision::Nanoseconds).adapted;
        assert_eq!(line(FIELDS_MAX).batch.samples(), FIELDS_MAX as u64);
        let more = line(FIELDS_MAX + 1);
        assert_eq!((more.batch.samples(), more.rejected.items()), (0, 1));
        let tags: String = (0..65).map(|i| format!(",t{i}=v")).collect();
        assert!(shown(&read(&format!("a{tags} v=1"), Precision::Nanoseconds)).contains("more than 64 tags"));
    }

    #[test]
    fn a_body_of_quotes_without_end_is_read_in_time_that_grows_with_it() {
        // Each line opens a text that the next one closes: all of them look as if they went on to the body's end.
        for lines in [1_000, 10_000] {
            let body = "a\" b=\"\n".repeat(lines);
            let mut split = Split::new(&body);
            let mut read = 0;
            while let Some(line) = split.next_line() {
                assert_eq!(line, "a\" b=\"");
                read += 1;
            }
            assert_eq!((read, split.open_texts), (lines, OPEN_TEXTS_MAX));
            assert!(split.looked_at <= OPEN_TEXTS_MAX * body.len(), "{}", split.looked_at);
        }
        // What stands before and behind them is read.
        for open in [OPEN_TEXTS_MAX - 1, OPEN_TEXTS_MAX + 5] {
            let body = format!(
                "log msg=\"two\nlines\",n=3i 5\n{}up value=1 5\n",
                "a\" b=\"\n".repeat(open)
            );
            let read = read(&body, Precision::Nanoseconds).adapted;
            assert_eq!((read.batch.samples(), read.rejected.items()), (2, open as u64));
        }
    }

    #[test]
    fn labels_beyond_what_a_request_may_name_are_refused_with_their_line_and_the_rest_goes_on() {
        let value = "v".repeat(hindcast_model::limits::LABEL_VALUE_BYTES_MAX);
        let tags: String = (0..63).map(|i| format!(",t{i:02}={value}")).collect();
        let fields = |n: usize| (0..n).map(|i| format!("f{i:04}=1")).collect::<Vec<_>>().join(",");
        let of_one = 63 * (value.len() + 3) + METRIC_NAME.len() + "a_f0000".len();
        let most = LABEL_BYTES_MAX / of_one;
        let body = format!(
            "a{tags} {} 5\na{tags} {} 6\na{tags} {} 7\nb value=2 8\n",
            fields(most + 1),
            fields(most),
            fields(most + 1),
        );
        let read = read(&body, Precision::Nanoseconds).adapted;
        // The second line reaches the bound. The third has one series that is not known from there.
        assert_eq!((read.batch.samples(), read.rejected.items()), (most as u64 + 1, 2));
        assert_eq!(read.batch.series.len(), most + 1);
        let bytes: usize = (read.batch.series.iter())
            .flat_map(|s| s.labels.iter().map(|(n, v)| n.len() + v.len()))
            .sum();
        assert!(bytes <= LABEL_BYTES_MAX && bytes > LABEL_BYTES_MAX - of_one, "{bytes}");
        let listed: Vec<_> = read.rejected.listed().iter().map(|r| r.what.as_str()).collect();
        assert_eq!(listed, ["line 1", "line 3"]);
        let why = &read.rejected.listed()[0].why;
        assert!(why.contains("than the 67108864 that one request may name"), "{why}");
        // Series that are known cost nothing: any number of lines for them is taken.
        let again = format!("a{tags} {} 5\n", fields(most)).repeat(3);
        let again = super::adapt(&TenantId::default(), again.as_bytes(), Precision::Nanoseconds, &LIMITS).unwrap();
        assert_eq!(again.adapted.batch.samples(), 3 * most as u64);
        assert!(again.adapted.rejected.is_empty());
    }

    #[test]
    fn fields_that_become_one_name_are_refused_from_the_second_on() {
        check(
            "room 온도=21,습도=40 5\n\
             m a-b=1,a.b=2,c=3,a-b=4 5\n\
             m a.b=9 1000005\n",
            expect![[r#"
                room___ - = 21@0.000
                m_a_b - = 1@0.000 9@0.001
                m_c - = 3@0.000
                line 1, field 습도: the line cannot be read: another field of the line is stored as "room___" already; give the field a name that differs in letters or digits of ASCII
                line 2, field a.b: the line cannot be read: another field of the line is stored as "m_a_b" already; give the field a name that differs in letters or digits of ASCII
                line 2, field a-b: the line cannot be read: another field of the line is stored as "m_a_b" already; give the field a name that differs in letters or digits of ASCII
            "#]],
        );
    }

    fn escaped(text: &str, also: &[char]) -> String {
        let mut out = String::new();
        for c in text.chars() {
            if also.contains(&c) {
                out.push('\\');
            }
            out.push(c);
        }
        out
    }

    proptest! {
        /// What is written as the protocol says is read back, bit by bit.
        #[test]
        fn what_is_written_is_read_back(
            lines in proptest::collection::vec((
                "[a-z ,=가]{0,6}[a-z]",
                proptest::collection::btree_map("[a-z][a-z ,=]{0,4}[a-z]", "[a-z ,=\"가]{0,6}[a-z]", 0..4),
                proptest::collection::btree_map("[a-z][a-z ,=]{0,4}[a-z]", any::<f64>().prop_filter("finite", |v| v.is_finite()), 1..5),
                "[a-z\"\\\\\n ,=#]{0,8}",
                0i64..1_700_000_000_000,
            ), 1..6),
        ) {
            let mut body = String::new();
            let (mut want, mut refused) = (vec![], 0);
            for (measurement, tags, fields, text, ms) in &lines {
                if measurement.starts_with(' ') { continue }
                body += &escaped(measurement, &[',', ' ']);
                // Two that are stored under one name are refused, with the whole line.
                let mut labels = BTreeSet::new();
                tags.iter().filter(|(n, _)| labels.insert(label_name(n))).for_each(|(n, v)| body += &format!(",{}={}", escaped(n, &[',', ' ', '=']), escaped(v, &[',', ' ', '='])));
                body += &format!(" text=\"{}\"", escaped(text, &['"', '\\']));
                let mut names = BTreeSet::new();
                for (n, v) in fields {
                    body += &format!(",{}={v:?}", escaped(n, &[',', ' ', '=']));
                    // The second of two that are stored under one name is refused.
                    match names.insert(plain(n)) {
                        true => want.push((v.to_bits(), *ms)),
                        false => refused += 1,
                    }
                }
                body += &format!(" {}\n", ms * 1_000_000);
            }
            let got = read(&body, Precision::Nanoseconds);
            prop_assert_eq!(got.adapted.rejected.items(), refused, "{}{:?}", body, got.adapted.rejected);
            let mut got: Vec<_> = got.adapted.batch.series.iter().flat_map(|s| &s.samples)
                .map(|s| (s.value.to_bits(), s.at.0 / 1_000_000)).collect();
            want.sort_unstable();
            got.sort_unstable();
            prop_assert_eq!(got, want, "{}", body);
        }

        #[test]
        fn no_text_panics_and_no_line_hides_the_next(text in "[a-z,= \"\\\\i1.\n#]{0,60}") {
            let limits = LIMITS;
            let _ = adapt(&TenantId::default(), text.as_bytes(), Precision::Hours, &limits);
            // Behind a line that was closed, or never opened, a good one is read.
            if !text.contains('"') && !text.ends_with('\\') {
                let read = read(&format!("{text}\nlast value=1 5"), Precision::Nanoseconds);
                let is_last = |s: &SeriesBlock| s.labels.metric_name() == Some("last");
                prop_assert!(read.adapted.batch.series.iter().any(is_last));
            }
        }
    }
}
