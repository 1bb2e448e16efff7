//! Which parts of a request may be stored: the limits of `hindcast_model::limits`, and times.
//!
//! Values are never looked at: NaN, staleness markers and infinities are data. A label with an empty value is the
//! same as none. Times: at most `FUTURE_SPAN_MAX` ahead of `now`, and not before the floor (the oldest that
//! retention keeps), where there is one.

use crate::new_series::WidestLabel;
use hindcast_model::limits::{
    FUTURE_SPAN_MAX, LABEL_NAME_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, LINE_BYTES_MAX,
};
use hindcast_model::{LogLine, METRIC_NAME, TimestampNs};
use hindcast_proto::history::HISTORY_LABEL;
use hindcast_proto::topology::TOPOLOGY_LABEL;
use hindcast_proto::trace::TRACE_LABEL;
use std::collections::BTreeMap;

/// Refused parts that are listed one by one; beyond it they are only counted.
pub const REJECTED_LISTED_MAX: usize = 100;
/// Metadata entries of one line.
pub const METADATA_MAX: usize = 128;
/// Names and values of one line's metadata, together.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;
/// How much of a name or value is repeated in a message.
const SHOWN_CHARS_MAX: usize = 200;

/// How large parts of a request may be: at most what `hindcast_model::limits` names, and less where the file of limits says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub labels_max: usize,
    pub label_value_bytes_max: usize,
    pub line_bytes_max: usize,
    /// Longer lines are cut, once they are masked, instead of refused.
    pub cuts_lines: bool,
}

impl Bounds {
    pub const DEFAULT: Self = Self {
        labels_max: LABELS_MAX,
        label_value_bytes_max: LABEL_VALUE_BYTES_MAX,
        line_bytes_max: LINE_BYTES_MAX,
        cuts_lines: false,
    };

    /// The beginning of a text, as much of it as a line may have. The whole text where longer ones are refused.
    #[inline]
    pub(crate) fn cut<'t>(&self, text: &'t str) -> &'t str {
        match self.cuts_lines && text.len() > self.line_bytes_max {
            true => &text[..text.floor_char_boundary(self.line_bytes_max)],
            false => text,
        }
    }

    /// Cuts lines that are longer than one may be, between characters; says so in metadata of the name `mark`, if there is one. How
    /// many were cut. None where longer ones are refused: what masking made longer than it came is kept.
    pub fn cut_lines(&self, lines: &mut [LogLine], mark: Option<&str>) -> u64 {
        let mut cut = 0;
        if !self.cuts_lines {
            return 0;
        }
        for l in lines.iter_mut().filter(|l| l.line.len() > self.line_bytes_max) {
            let mut end = self.line_bytes_max;
            while end > 0 && l.line[end] & 0xc0 == 0x80 {
                end -= 1;
            }
            l.line.truncate(end);
            if let Some(mark) = mark
                && let Err(at) = l.metadata.binary_search_by(|(n, _)| n.as_str().cmp(mark))
            {
                l.metadata.insert(at, (mark.to_owned(), "true".to_owned()));
            }
            cut += 1;
        }
        cut
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a check needs to know of time, and of the tenant's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsContext {
    pub now: TimestampNs,
    /// The oldest instant that the tenant keeps; `None` keeps everything.
    pub floor: Option<TimestampNs>,
    pub bounds: Bounds,
}

/// A bound, and who set it where it was not this program.
fn of_limits(max: usize, most: usize, name: &str) -> String {
    match max == most {
        true => max.to_string(),
        false => format!("{max} ({name} in the file of limits)"),
    }
}

fn too_many_series(max: u64, widest: Option<&WidestLabel>) -> String {
    let cause = widest.map_or(String::new(), |w| {
        format!(": label {:?} has {} values", shown(&w.name), w.values)
    });
    format!(
        "it would be a new series, and the tenant has its {max} active ones (active_series_max in the file of limits){cause}"
    )
}

impl LimitsContext {
    /// Checks labels as they came, before duplicates are folded. `of_series`: a metric's, which need a name.
    pub fn labels<S: AsRef<str>>(&self, pairs: &[(S, S)], of_series: bool) -> Result<(), Refusal> {
        labels(pairs, of_series, &self.bounds)
    }

    /// Checks one line and its metadata.
    pub fn line<S: AsRef<str>>(&self, line_bytes: usize, metadata: &[(S, S)]) -> Result<(), Refusal> {
        line(line_bytes, metadata, &self.bounds)
    }

    pub fn time(&self, at: TimestampNs) -> Result<(), Refusal> {
        if at > self.now + FUTURE_SPAN_MAX {
            return Err(Refusal::TooFarAhead { at, now: self.now });
        }
        match self.floor {
            Some(floor) if at < floor => Err(Refusal::TooOld { at, floor }),
            _ => Ok(()),
        }
    }
}

/// For people, who do not count in seconds since 1970.
fn rfc3339(at: &TimestampNs) -> String {
    let shown = jiff::Timestamp::from_nanosecond(i128::from(at.0));
    shown.map_or_else(|_| at.to_string(), |t| t.to_string())
}

/// Why a part of a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it has no labels")]
    NoLabels,
    #[error("it has no label __name__")]
    NoName,
    #[error("it has {labels} labels, more than {}", of_limits(*.max, LABELS_MAX, "labels_max"))]
    TooManyLabels { labels: usize, max: usize },
    #[error("a label name is empty or has control characters: {name:?}")]
    BadLabelName { name: String },
    #[error("the label name {name:?} takes {bytes} bytes, more than {LABEL_NAME_BYTES_MAX}")]
    LabelNameTooLong { name: String, bytes: usize },
    #[error("the value of label {name:?} takes {bytes} bytes, more than {}", of_limits(*.max, LABEL_VALUE_BYTES_MAX, "label_value_bytes_max"))]
    LabelValueTooLong { name: String, bytes: usize, max: usize },
    #[error("the label {name:?} is given twice")]
    LabelTwice { name: String },
    #[error("the label {name:?} is reserved for records of Hindcast's own")]
    Reserved { name: String },
    #[error("the labels cannot be read: {why}")]
    BadLabels { why: String },
    #[error("the line takes {bytes} bytes, more than {}", of_limits(*.max, LINE_BYTES_MAX, "line_bytes_max"))]
    LineTooLong { bytes: usize, max: usize },
    #[error(
        "the line has {entries} metadata entries of {bytes} bytes, more than {METADATA_MAX} or {METADATA_BYTES_MAX} bytes"
    )]
    MetadataTooLarge { entries: usize, bytes: usize },
    #[error("{}", too_many_series(*.max, .widest.as_ref()))]
    TooManySeries { max: u64, widest: Option<WidestLabel> },
    #[error("its time {} is more than {FUTURE_SPAN_MAX} ahead of {}; check the sender's clock", rfc3339(.at), rfc3339(.now))]
    TooFarAhead { at: TimestampNs, now: TimestampNs },
    #[error("its time {} is older than {}, the oldest that is kept", rfc3339(.at), rfc3339(.floor))]
    TooOld { at: TimestampNs, floor: TimestampNs },
    #[error("the data point has no value that can be read; in JSON asDouble is a number, asInt 64 bits")]
    NoValue,
    #[error(
        "the metric has no data of a known type, or its data points cannot be read; in JSON times are digits, numbers finite"
    )]
    UnknownData,
    #[error("its aggregation temporality is neither delta nor cumulative")]
    UnknownTemporality,
    #[error("its buckets are not readable: {why}")]
    BadBuckets { why: String },
    #[error("its histogram cannot be read: {why}")]
    NativeHistogram { why: String },
    #[error("the histograms of this request become too many series; send fewer of them at once (max_samples_per_send)")]
    TooManyRows,
    #[error("its references into the table of symbols cannot be followed: {why}")]
    BadSymbols { why: String },
    #[error("the label {name:?} stands behind one that sorts after it; labels of remote write 2.0 are sorted by name")]
    LabelsUnsorted { name: String },
    #[error("a delta at {at} is older than the last one of its series, {last}")]
    DeltaOutOfOrder { at: TimestampNs, last: TimestampNs },
    #[error("{series_max} delta series are summed already on this node; send cumulative sums")]
    TooManyDeltas { series_max: usize },
    #[error("the line cannot be read: {why}")]
    BadLine { why: String },
    #[error("its value is a text, and only numbers are stored")]
    TextValue,
    /// With what the sender may have meant.
    #[error("{why}; {hint}")]
    Hinted { why: Box<Self>, hint: String },
    #[error("the span cannot be kept: {why}")]
    BadSpan { why: String },
}

impl Refusal {
    /// Every code, for counters.
    pub const CODES: [&'static str; 27] = [
        "no_labels",
        "no_name",
        "too_many_labels",
        "bad_label_name",
        "label_name_too_long",
        "label_value_too_long",
        "label_twice",
        "reserved",
        "bad_labels",
        "line_too_long",
        "metadata_too_large",
        "too_far_ahead",
        "too_old",
        "no_value",
        "unknown_data",
        "unknown_temporality",
        "bad_buckets",
        "native_histogram",
        "too_many_rows",
        "bad_symbols",
        "labels_unsorted",
        "delta_out_of_order",
        "too_many_deltas",
        "bad_line",
        "text_value",
        "bad_span",
        "too_many_series",
    ];

    /// A short, stable name of the reason, for counters.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoLabels => "no_labels",
            Self::NoName => "no_name",
            Self::TooManyLabels { .. } => "too_many_labels",
            Self::BadLabelName { .. } => "bad_label_name",
            Self::LabelNameTooLong { .. } => "label_name_too_long",
            Self::LabelValueTooLong { .. } => "label_value_too_long",
            Self::LabelTwice { .. } => "label_twice",
            Self::Reserved { .. } => "reserved",
            Self::BadLabels { .. } => "bad_labels",
            Self::LineTooLong { .. } => "line_too_long",
            Self::MetadataTooLarge { .. } => "metadata_too_large",
            Self::TooFarAhead { .. } => "too_far_ahead",
            Self::TooOld { .. } => "too_old",
            Self::NoValue => "no_value",
            Self::UnknownData => "unknown_data",
            Self::UnknownTemporality => "unknown_temporality",
            Self::BadBuckets { .. } => "bad_buckets",
            Self::NativeHistogram { .. } => "native_histogram",
            Self::TooManyRows => "too_many_rows",
            Self::BadSymbols { .. } => "bad_symbols",
            Self::LabelsUnsorted { .. } => "labels_unsorted",
            Self::DeltaOutOfOrder { .. } => "delta_out_of_order",
            Self::TooManyDeltas { .. } => "too_many_deltas",
            Self::BadLine { .. } => "bad_line",
            Self::TextValue => "text_value",
            Self::Hinted { why, .. } => why.code(),
            Self::BadSpan { .. } => "bad_span",
            Self::TooManySeries { .. } => "too_many_series",
        }
    }
}

/// One refused part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The series or stream, as PromQL writes it, cut short when long.
    pub what: String,
    /// Samples, data points or lines.
    pub items: u64,
    pub why: String,
    pub code: &'static str,
}

/// All that was refused of a request: the first parts one by one, every part in the counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejections {
    listed: Vec<Rejected>,
    by_code: BTreeMap<&'static str, u64>,
}

impl Rejections {
    /// Adds `items` refused parts. The same reason for the same thing as just before adds to that entry.
    pub fn add(&mut self, items: u64, why: &Refusal, what: impl FnOnce() -> String) {
        *self.by_code.entry(why.code()).or_default() += items;
        if self.listed.len() == REJECTED_LISTED_MAX {
            return;
        }
        let what = printable(shown(&what()));
        match self.listed.last_mut() {
            Some(last) if last.what == what && last.code == why.code() => last.items += items,
            _ => self.listed.push(Rejected {
                what,
                items,
                why: why.to_string(),
                code: why.code(),
            }),
        }
    }

    /// Adds what was refused of another part of the same batch.
    pub fn merge(&mut self, other: Self) {
        for (code, items) in other.by_code {
            *self.by_code.entry(code).or_default() += items;
        }
        let room = REJECTED_LISTED_MAX - self.listed.len();
        self.listed.extend(other.listed.into_iter().take(room));
    }

    /// At most [`REJECTED_LISTED_MAX`] of them.
    pub fn listed(&self) -> &[Rejected] {
        &self.listed
    }

    /// How many items were refused, by reason.
    pub fn by_code(&self) -> &BTreeMap<&'static str, u64> {
        &self.by_code
    }

    pub fn items(&self) -> u64 {
        self.by_code.values().sum()
    }

    pub fn is_empty(&self) -> bool {
        self.by_code.is_empty()
    }

    /// One line for people: how many, and the first `entries_max` reasons.
    pub fn summary(&self, entries_max: usize) -> String {
        let mut text = format!("{} refused", self.items());
        for (i, r) in self.listed.iter().take(entries_max).enumerate() {
            let lead = if i == 0 { ": " } else { "; " };
            text += &format!("{lead}{} ({}): {}", r.what, r.items, r.why);
        }
        if self.listed.len() > entries_max {
            text += "; …";
        }
        text
    }
}

/// The first characters of a text that may be of any length.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// Line breaks and their kin as escapes: who was refused stands in logs and in the middle of a line.
fn printable(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// A text of at most so many bytes; a longer one ends in `…`.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes_max - '…'.len_utf8())])
}

fn labels<S: AsRef<str>>(pairs: &[(S, S)], of_series: bool, bounds: &Bounds) -> Result<(), Refusal> {
    let mut present = 0;
    let mut named = false;
    for (name, value) in pairs {
        let (name, value) = (name.as_ref(), value.as_ref());
        label(name, value, bounds)?;
        present += usize::from(!value.is_empty());
        named |= name == METRIC_NAME && !value.is_empty();
    }
    match present {
        0 => return Err(Refusal::NoLabels),
        labels if labels > bounds.labels_max => {
            let max = bounds.labels_max;
            return Err(Refusal::TooManyLabels { labels, max });
        }
        _ => {}
    }
    if of_series && !named {
        return Err(Refusal::NoName);
    }
    twice(pairs)
}

fn label(name: &str, value: &str, bounds: &Bounds) -> Result<(), Refusal> {
    let bytes = name.len();
    if bytes > LABEL_NAME_BYTES_MAX {
        return Err(Refusal::LabelNameTooLong {
            name: shown(name),
            bytes,
        });
    }
    if bytes == 0 || name.chars().any(char::is_control) {
        return Err(Refusal::BadLabelName { name: name.to_owned() });
    }
    if [HISTORY_LABEL, TOPOLOGY_LABEL, TRACE_LABEL].contains(&name) {
        return Err(Refusal::Reserved { name: name.to_owned() });
    }
    if value.len() > bounds.label_value_bytes_max {
        return Err(Refusal::LabelValueTooLong {
            name: name.to_owned(),
            bytes: value.len(),
            max: bounds.label_value_bytes_max,
        });
    }
    Ok(())
}

/// Senders sort labels, so neighbours tell; only where they do not is a sorted copy made.
fn twice<S: AsRef<str>>(pairs: &[(S, S)]) -> Result<(), Refusal> {
    let again = |name: &str| Err(Refusal::LabelTwice { name: name.to_owned() });
    if pairs.is_sorted_by(|a, b| a.0.as_ref() < b.0.as_ref()) {
        return Ok(());
    }
    let mut names: Vec<&str> = pairs.iter().map(|(n, _)| n.as_ref()).collect();
    names.sort_unstable();
    names.windows(2).find(|w| w[0] == w[1]).map_or(Ok(()), |w| again(w[0]))
}

fn line<S: AsRef<str>>(bytes: usize, metadata: &[(S, S)], bounds: &Bounds) -> Result<(), Refusal> {
    // A line that is to be cut is masked first, and no longer than its request.
    if bytes > bounds.line_bytes_max && !bounds.cuts_lines {
        let max = bounds.line_bytes_max;
        return Err(Refusal::LineTooLong { bytes, max });
    }
    let bytes = metadata.iter().map(|(n, v)| n.as_ref().len() + v.as_ref().len()).sum();
    if metadata.len() > METADATA_MAX || bytes > METADATA_BYTES_MAX {
        return Err(Refusal::MetadataTooLarge {
            entries: metadata.len(),
            bytes,
        });
    }
    let names = metadata.iter().map(|(n, _)| n.as_ref());
    match names
        .into_iter()
        .find(|n| n.is_empty() || n.chars().any(char::is_control))
    {
        Some(name) => Err(Refusal::BadLabelName { name: shown(name) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(pairs: &[(&str, &str)], expect: Expect) {
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let got = labels(&pairs, true, &Bounds::DEFAULT);
        expect.assert_eq(&got.map_or_else(|e| format!("{}: {e}", e.code()), |()| "kept".into()));
    }

    #[test]
    fn labels_within_limits_are_kept_and_others_named() {
        let long = "x".repeat(LABEL_VALUE_BYTES_MAX + 1);
        check(&[("__name__", "up"), ("job", "a")], expect!["kept"]);
        check(&[("__name__", "up"), ("größe", "a"), ("empty", "")], expect!["kept"]);
        check(&[], expect!["no_labels: it has no labels"]);
        check(&[("a", "")], expect!["no_labels: it has no labels"]);
        check(&[("job", "a")], expect!["no_name: it has no label __name__"]);
        check(
            &[("__name__", "up"), ("a\n", "b")],
            expect![[r#"bad_label_name: a label name is empty or has control characters: "a\n""#]],
        );
        check(
            &[("__name__", "up"), ("", "b")],
            expect![[r#"bad_label_name: a label name is empty or has control characters: """#]],
        );
        check(
            &[("__name__", "up"), ("v", &long)],
            expect![[r#"label_value_too_long: the value of label "v" takes 4097 bytes, more than 4096"#]],
        );
        check(
            &[("b", "1"), ("__name__", "up"), ("b", "2")],
            expect![[r#"label_twice: the label "b" is given twice"#]],
        );
        check(
            &[("__name__", "up"), ("hindcast_history", "alert")],
            expect![[r#"reserved: the label "hindcast_history" is reserved for records of Hindcast's own"#]],
        );
    }

    #[test]
    fn the_largest_that_fits_fits_and_one_more_does_not() {
        let pairs = |n: usize| -> Vec<(String, String)> {
            let rest = (1..n).map(|i| (format!("l{i:03}"), "v".to_owned()));
            std::iter::once(("__name__".to_owned(), "m".to_owned()))
                .chain(rest)
                .collect()
        };
        let labels = |pairs: &[(String, String)], of_series| labels(pairs, of_series, &Bounds::DEFAULT);
        assert_eq!(labels(&pairs(LABELS_MAX), true), Ok(()));
        assert_eq!(
            labels(&pairs(LABELS_MAX + 1), true),
            Err(Refusal::TooManyLabels {
                labels: LABELS_MAX + 1,
                max: LABELS_MAX
            })
        );
        let named = |len: usize| vec![("n".repeat(len), "v".to_owned())];
        assert_eq!(labels(&named(LABEL_NAME_BYTES_MAX), false), Ok(()));
        assert!(matches!(
            labels(&named(LABEL_NAME_BYTES_MAX + 1), false),
            Err(Refusal::LabelNameTooLong { bytes: 129, .. })
        ));
        let none: &[(String, String)] = &[];
        let line = |bytes, metadata: &[(String, String)]| line(bytes, metadata, &Bounds::DEFAULT);
        assert_eq!(line(LINE_BYTES_MAX, none), Ok(()));
        assert!(line(LINE_BYTES_MAX + 1, none).is_err());
        let metadata = vec![("k".to_owned(), "v".to_owned()); METADATA_MAX];
        assert_eq!(line(0, &metadata), Ok(()));
        assert!(line(0, &[&metadata[..], &metadata[..1]].concat()).is_err());
    }

    #[test]
    fn times_are_kept_from_the_floor_to_ten_minutes_ahead() {
        let now = TimestampNs::from_secs(1_000_000);
        let limits = LimitsContext {
            now,
            floor: Some(TimestampNs::from_secs(1000)),
            bounds: Bounds::DEFAULT,
        };
        assert_eq!(limits.time(now + FUTURE_SPAN_MAX), Ok(()));
        assert!(matches!(
            limits.time(TimestampNs(now.0 + FUTURE_SPAN_MAX.0 as i64 + 1)),
            Err(Refusal::TooFarAhead { .. })
        ));
        assert_eq!(limits.time(TimestampNs::from_secs(1000)), Ok(()));
        assert!(matches!(
            limits.time(TimestampNs(999_999_999_999)),
            Err(Refusal::TooOld { .. })
        ));
        let keeps_all = LimitsContext { floor: None, ..limits };
        assert_eq!(keeps_all.time(TimestampNs::MIN), Ok(()));
    }

    #[test]
    fn a_name_with_line_breaks_makes_no_line_of_its_own_in_an_answer() {
        let mut rejections = Rejections::default();
        rejections.add(1, &Refusal::NoName, || "a\r\nX-Injected: 1\u{1b}[31m 온도".into());
        assert_eq!(
            rejections.summary(9),
            r"1 refused: a\r\nX-Injected: 1\u{1b}[31m 온도 (1): it has no label __name__"
        );
    }

    #[test]
    fn counts_stay_exact_when_the_list_is_full() {
        let mut rejections = Rejections::default();
        for i in 0..REJECTED_LISTED_MAX + 50 {
            rejections.add(2, &Refusal::NoName, || format!("series {i}"));
        }
        rejections.add(1, &Refusal::NoValue, || "x".into());
        assert_eq!(rejections.listed().len(), REJECTED_LISTED_MAX);
        assert_eq!(rejections.items(), 301);
        assert_eq!(rejections.by_code()["no_name"], 300);
        assert_eq!(
            rejections.summary(1),
            "301 refused: series 0 (2): it has no label __name__; …"
        );
    }
}
