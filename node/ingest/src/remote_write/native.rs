//! Prometheus' native histograms, integer and float, as they are written in requests and files.
//!
//! Schemas -4 to 8 are exponential, -53 has bounds of the sender's own.

use crate::Refusal;
use crate::wire::{Field, Reader, WireError};
use hindcast_model::histogram::{CUSTOM_SCHEMA, Hint, NATIVE_BUCKETS_MAX, SCHEMAS, STALE_LINE};
use hindcast_model::{Histogram, STALE_NAN_BITS, TimestampNs};

/// Counts of one side of one histogram.
pub const NATIVE_COUNTS_MAX: usize = 65_536;

/// One histogram of a series, as it is written.
#[derive(Debug, Default)]
pub(crate) struct Native {
    pub at: TimestampNs,
    pub count: f64,
    pub sum: f64,
    is_float: bool,
    schema: i32,
    zero_threshold: f64,
    zero_count: f64,
    positive: Side,
    negative: Side,
    custom: Vec<f64>,
    /// Bounds beyond those that are kept.
    custom_more: u64,
    hint: Hint,
}

/// Buckets as they are written: runs of neighbours, and a count for each.
#[derive(Debug, Default)]
struct Side {
    /// Gap to the run before, and length.
    spans: Vec<(i32, u32)>,
    counts: Vec<f64>,
    /// The last count, where differences are written.
    last: i64,
    wrong: Option<&'static str>,
}

impl Side {
    fn span(&mut self, message: &[u8]) -> Result<(), WireError> {
        let (mut offset, mut length) = (0, 0);
        let mut reader = Reader::new(message);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => offset = zigzag(field.varint("a span's offset")?) as i32,
                2 => length = field.varint("a span's length")? as u32,
                _ => {}
            }
        }
        match self.spans.len() {
            NATIVE_COUNTS_MAX => self.wrong = Some("it has too many spans"),
            _ => self.spans.push((offset, length)),
        }
        Ok(())
    }

    fn count(&mut self, count: f64) {
        if self.counts.len() == NATIVE_COUNTS_MAX {
            self.wrong = Some("it has too many buckets");
        } else if !(count.is_finite() && count >= 0.0) {
            self.wrong = Some("the count of a bucket is negative or no number");
        } else {
            self.counts.push(count);
        }
    }

    fn delta(&mut self, written: u64) {
        match self.last.checked_add(zigzag(written)) {
            Some(count) => {
                self.last = count;
                self.count(count as f64);
            }
            None => self.wrong = Some("the counts of its buckets overflow"),
        }
    }

    fn deltas(&mut self, field: Field<'_>) -> Result<(), WireError> {
        match field {
            Field::Bytes(packed) => {
                let mut reader = Reader::new(packed);
                while reader.left() > 0 {
                    self.delta(reader.varint()?);
                }
            }
            one => self.delta(one.varint("the count of a bucket")?),
        }
        Ok(())
    }

    fn counts(&mut self, field: Field<'_>) -> Result<(), WireError> {
        doubles(field, |count| self.count(count))
    }

    /// Bucket indices as Prometheus numbers them, with their counts.
    fn indexed(&self) -> Result<Vec<(i64, f64)>, Refusal> {
        let told: u64 = self.spans.iter().map(|s| u64::from(s.1)).sum();
        if let Some(why) = self.wrong {
            return Err(unreadable(why));
        }
        if told != self.counts.len() as u64 {
            return Err(unreadable(format!(
                "its spans are {told} buckets long, and it has counts for {}",
                self.counts.len()
            )));
        }
        let mut counts = self.counts.iter();
        let mut indexed = Vec::with_capacity(self.counts.len());
        let mut at = 0i64;
        for (i, &(gap, length)) in self.spans.iter().enumerate() {
            if i > 0 && gap < 0 {
                return Err(unreadable("a span begins before the one before it ends"));
            }
            at += i64::from(gap);
            for count in counts.by_ref().take(length as usize) {
                indexed.push((at, *count));
                at += 1;
            }
        }
        Ok(indexed)
    }
}

fn unreadable(why: impl Into<String>) -> Refusal {
    Refusal::NativeHistogram { why: why.into() }
}

const fn zigzag(written: u64) -> i64 {
    (written >> 1) as i64 ^ -((written & 1) as i64)
}

fn doubles(field: Field<'_>, mut take: impl FnMut(f64)) -> Result<(), WireError> {
    match field {
        Field::Bytes(packed) => {
            let (chunks, rest) = packed.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(WireError::Truncated);
            }
            chunks.iter().for_each(|c| take(f64::from_le_bytes(*c)));
        }
        one => take(f64::from_bits(one.fixed64("a number of a histogram")?)),
    }
    Ok(())
}

/// Reads a `Histogram`, which is the same message in both versions.
pub(crate) fn read(message: &[u8]) -> Result<Native, WireError> {
    let mut read = Native::default();
    let mut at_ms = 0;
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => read.count = field.varint("a histogram's count")? as f64,
            2 => {
                read.is_float = true;
                read.count = f64::from_bits(field.fixed64("a histogram's count")?);
            }
            3 => read.sum = f64::from_bits(field.fixed64("a histogram's sum")?),
            4 => read.schema = zigzag(field.varint("a histogram's schema")?) as i32,
            5 => read.zero_threshold = f64::from_bits(field.fixed64("a histogram's zero threshold")?),
            6 => read.zero_count = field.varint("a histogram's zero count")? as f64,
            7 => read.zero_count = f64::from_bits(field.fixed64("a histogram's zero count")?),
            8 => read.negative.span(field.bytes("a span")?)?,
            9 => read.negative.deltas(field)?,
            10 => read.negative.counts(field)?,
            11 => read.positive.span(field.bytes("a span")?)?,
            12 => read.positive.deltas(field)?,
            13 => read.positive.counts(field)?,
            14 => {
                read.hint = hint(field.varint("a histogram's reset hint")?);
            }
            15 => at_ms = field.varint("a histogram's timestamp")? as i64,
            16 => doubles(field, |bound| match read.custom.len() {
                NATIVE_COUNTS_MAX => read.custom_more += 1,
                _ => read.custom.push(bound),
            })?,
            _ => {}
        }
    }
    read.at = TimestampNs::from_ms(at_ms);
    Ok(read)
}

/// A histogram as Prometheus keeps it in files: counts of buckets, not differences.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept<'a> {
    pub at_ms: i64,
    pub count: f64,
    pub sum: f64,
    pub is_float: bool,
    pub schema: i32,
    pub zero_threshold: f64,
    pub zero_count: f64,
    /// Gap to the run before, and length; then the counts.
    pub positive: (&'a [(i32, u32)], &'a [f64]),
    pub negative: (&'a [(i32, u32)], &'a [f64]),
    pub custom: &'a [f64],
    pub hint: Hint,
}

/// As Prometheus numbers what is said of resets.
pub(crate) fn hint(number: u64) -> Hint {
    match number {
        1 => Hint::Reset,
        2 => Hint::NotReset,
        3 => Hint::Gauge,
        _ => Hint::Unknown,
    }
}

impl Native {
    /// A histogram that was read from a file; its spans and counts are no more than [`NATIVE_COUNTS_MAX`].
    pub fn kept(kept: &Kept<'_>) -> Self {
        let side = |(spans, counts): (&[(i32, u32)], &[f64])| {
            let mut side = Side {
                spans: spans.to_vec(),
                ..Side::default()
            };
            counts.iter().for_each(|n| side.count(*n));
            side
        };
        Self {
            at: TimestampNs::from_ms(kept.at_ms),
            count: kept.count,
            sum: kept.sum,
            is_float: kept.is_float,
            schema: kept.schema,
            zero_threshold: kept.zero_threshold,
            zero_count: kept.zero_count,
            positive: side(kept.positive),
            negative: side(kept.negative),
            custom: kept.custom.to_vec(),
            custom_more: 0,
            hint: kept.hint,
        }
    }

    pub fn is_stale(&self) -> bool {
        self.sum.to_bits() == STALE_NAN_BITS
    }

    /// The line that it is stored as, or why that cannot be.
    pub fn line(&self) -> Result<String, Refusal> {
        match self.histogram()? {
            None => Ok(STALE_LINE.to_owned()),
            Some(histogram) => line_of(&histogram),
        }
    }

    /// What it says; `None`: that the series ended, and then nothing else in the message means anything.
    pub fn histogram(&self) -> Result<Option<Histogram>, Refusal> {
        if self.is_stale() {
            return Ok(None);
        }
        let (count, zero_count) = (self.count, self.zero_count);
        let (positive, negative) = (self.positive.indexed()?, self.negative.indexed()?);
        let is_count = |n: f64| n.is_finite() && n >= 0.0;
        if !is_count(count) || !is_count(zero_count) || !is_count(self.zero_threshold) {
            return Err(unreadable("a count of it is negative or no number"));
        }
        let in_buckets = positive.iter().chain(&negative).map(|(_, n)| n).sum::<f64>() + zero_count;
        if !self.is_float && in_buckets > count {
            return Err(unreadable(format!(
                "its buckets hold {in_buckets}, more than its count of {count}"
            )));
        }
        let mut histogram = Histogram {
            schema: self.schema,
            count,
            sum: self.sum,
            zero_threshold: self.zero_threshold,
            zero_count,
            hint: self.hint,
            ..Histogram::default()
        };
        if self.schema == CUSTOM_SCHEMA {
            self.own_bounds(&mut histogram, &positive, !negative.is_empty() || zero_count > 0.0)?;
        } else if !SCHEMAS.contains(&self.schema) {
            return Err(unreadable(format!("schema {} is none of -4 to 8 and -53", self.schema)));
        }
        for (side, counts) in [(&mut histogram.positive, positive), (&mut histogram.negative, negative)] {
            for (index, n) in counts.into_iter().filter(|(_, n)| *n > 0.0) {
                let index =
                    i32::try_from(index).map_err(|_| unreadable(format!("bucket {index} is beyond all numbers")))?;
                side.push((index, n));
            }
        }
        Ok(Some(histogram))
    }

    fn own_bounds(&self, into: &mut Histogram, counts: &[(i64, f64)], has_others: bool) -> Result<(), Refusal> {
        let bounds = self.custom.len() as u64 + self.custom_more;
        if bounds > NATIVE_BUCKETS_MAX as u64 {
            return Err(unreadable(format!(
                "it has {bounds} bounds, more than {NATIVE_BUCKETS_MAX}"
            )));
        }
        if has_others {
            return Err(unreadable("it has bounds of its own and negative buckets"));
        }
        if let Some((index, _)) = counts.iter().find(|(i, _)| !(0..=bounds as i64).contains(i)) {
            return Err(unreadable(format!("bucket {index} is none of its {bounds} bounds")));
        }
        let rise = self.custom.is_sorted_by(|a, b| a < b) && self.custom.iter().all(|b| b.is_finite());
        if !rise {
            return Err(unreadable("its bounds do not rise, or one of them is no number"));
        }
        into.zero_threshold = 0.0;
        into.custom = self.custom.as_slice().into();
        Ok(())
    }
}

/// The line of a histogram, or that it has more than is kept.
pub(crate) fn line_of(histogram: &Histogram) -> Result<String, Refusal> {
    let line = histogram.to_line();
    line.ok_or_else(|| {
        unreadable(format!(
            "it has more than {NATIVE_BUCKETS_MAX} buckets in use on one side, or one beyond all numbers"
        ))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::histogram::HISTOGRAM_ROWS_MAX;
    use crate::testing::{Desk, LIMITS, entry_bytes};
    use crate::{LimitsContext, Naming, Rejections};
    use expect_test::{Expect, expect};
    use hindcast_model::TenantId;
    use hindcast_model::limits::ENTRY_BYTES_MAX;
    use proptest::prelude::*;
    use prost::Message;

    /// Prometheus' message as prost derives it: the reference for our own reader.
    #[derive(Clone, PartialEq, Message)]
    pub struct Histogram {
        #[prost(uint64, tag = "1")]
        pub count: u64,
        #[prost(double, tag = "2")]
        pub count_float: f64,
        #[prost(double, tag = "3")]
        pub sum: f64,
        #[prost(sint32, tag = "4")]
        pub schema: i32,
        #[prost(double, tag = "5")]
        pub zero_threshold: f64,
        #[prost(uint64, tag = "6")]
        pub zero_count: u64,
        #[prost(message, repeated, tag = "8")]
        pub negative_spans: Vec<Span>,
        #[prost(sint64, repeated, tag = "9")]
        pub negative_deltas: Vec<i64>,
        #[prost(message, repeated, tag = "11")]
        pub positive_spans: Vec<Span>,
        #[prost(sint64, repeated, tag = "12")]
        pub positive_deltas: Vec<i64>,
        #[prost(double, repeated, tag = "13")]
        pub positive_counts: Vec<f64>,
        #[prost(int64, tag = "15")]
        pub at_ms: i64,
        #[prost(double, repeated, tag = "16")]
        pub custom: Vec<f64>,
    }
    #[derive(Clone, Copy, PartialEq, Message)]
    pub struct Span {
        #[prost(sint32, tag = "1")]
        pub offset: i32,
        #[prost(uint32, tag = "2")]
        pub length: u32,
    }

    fn span(offset: i32, length: u32) -> Span {
        Span { offset, length }
    }

    /// Two in (0.5, 1], three in (1, 2], none in (2, 4], one in (4, 8]; one about zero, two in [-1, -0.5).
    pub fn few(at_ms: i64) -> Histogram {
        Histogram {
            count: 9,
            sum: 12.5,
            zero_threshold: 0.001,
            zero_count: 1,
            negative_spans: vec![span(0, 1)],
            negative_deltas: vec![2],
            positive_spans: vec![span(0, 2), span(1, 1)],
            positive_deltas: vec![2, 1, -2],
            at_ms,
            ..Default::default()
        }
    }

    /// The line that it becomes, with its stream, or why it is refused.
    fn check(histogram: &Histogram, expect: Expect) {
        let body = body_of(&[("__name__", "h")], [histogram.clone()].into_iter());
        let (desk, tenant) = (Desk::new(1), TenantId::default());
        let laid = super::super::read(&tenant, &body, &LIMITS, &desk.books(Naming::Known)).unwrap();
        let refused: &Rejections = &laid.rejected;
        let mut shown: String = refused
            .listed()
            .iter()
            .map(|r| format!("{}: {}\n", r.code, r.why))
            .collect();
        assert_eq!(laid.native.histograms + refused.items(), 1);
        assert_eq!((laid.intake.samples, laid.intake.lines), (0, laid.native.histograms));
        for s in desk.confirm(laid).streams {
            let line = String::from_utf8_lossy(&s.lines[0].line);
            assert!(hindcast_model::Histogram::of_line(&s.lines[0].line).is_ok());
            shown += &format!("{} {} {line}\n", s.labels, s.lines[0].at.as_ms());
        }
        expect.assert_eq(&shown);
    }

    #[test]
    fn a_histogram_is_a_line_of_its_series() {
        check(
            &few(7),
            expect![[r#"
                h{hindcast_trace="histogram"} 7 h1 s=0 c=9 sum=12.5 zt=0.001 zc=1 p=0:2,3,0,1 n=0:2
            "#]],
        );
    }

    #[test]
    fn bounds_of_the_senders_own_stay_as_they_are() {
        let own = Histogram {
            count: 6,
            sum: 3.0,
            schema: CUSTOM_SCHEMA,
            positive_spans: vec![span(1, 2)],
            positive_deltas: vec![4, -2],
            custom: vec![-1.0, 0.25],
            ..few(7)
        };
        let own = Histogram {
            negative_spans: vec![],
            negative_deltas: vec![],
            zero_count: 0,
            ..own
        };
        check(
            &own,
            expect![[r#"
                h{hindcast_trace="histogram"} 7 h1 s=-53 c=6 sum=3 p=1:4,2 b=-1,0.25
            "#]],
        );
    }

    #[test]
    fn floats_and_markers_are_read() {
        let float = Histogram {
            count: 0,
            count_float: 2.5,
            sum: 1.0,
            schema: -4,
            positive_spans: vec![span(0, 2)],
            positive_counts: vec![0.5, 2.0],
            ..Default::default()
        };
        check(
            &float,
            expect![[r#"
                h{hindcast_trace="histogram"} 0 h1 s=-4 c=2.5 sum=1 p=0:0.5,2
            "#]],
        );
        let stale = Histogram {
            sum: f64::from_bits(STALE_NAN_BITS),
            ..Default::default()
        };
        check(
            &stale,
            expect![[r#"
                h{hindcast_trace="histogram"} 0 h1 stale
            "#]],
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let more = |histogram: Histogram, expect| check(&histogram, expect);
        more(
            Histogram { schema: 9, ..few(1) },
            expect![[r#"
            native_histogram: its histogram cannot be read: schema 9 is none of -4 to 8 and -53
        "#]],
        );
        more(
            Histogram { count: 8, ..few(1) },
            expect![[r#"
            native_histogram: its histogram cannot be read: its buckets hold 9, more than its count of 8
        "#]],
        );
        more(
            Histogram {
                positive_deltas: vec![2, 1],
                ..few(1)
            },
            expect![[r#"
            native_histogram: its histogram cannot be read: its spans are 3 buckets long, and it has counts for 2
        "#]],
        );
        more(
            Histogram {
                positive_deltas: vec![2, -3, 0],
                ..few(1)
            },
            expect![[r#"
            native_histogram: its histogram cannot be read: the count of a bucket is negative or no number
        "#]],
        );
        more(
            Histogram {
                positive_spans: vec![span(0, 2), span(-1, 1)],
                ..few(1)
            },
            expect![[r#"
            native_histogram: its histogram cannot be read: a span begins before the one before it ends
        "#]],
        );
        more(
            Histogram {
                positive_spans: vec![span(0, 2), span(1 << 21, 1)],
                ..few(1)
            },
            expect![[r#"
                native_histogram: its histogram cannot be read: it has more than 2048 buckets in use on one side, or one beyond all numbers
            "#]],
        );
        let most = Histogram {
            count: u64::MAX,
            positive_spans: vec![span(0, NATIVE_COUNTS_MAX as u32 + 1)],
            positive_deltas: vec![0; NATIVE_COUNTS_MAX + 1],
            ..Default::default()
        };
        more(
            most,
            expect![[r#"
            native_histogram: its histogram cannot be read: it has too many buckets
        "#]],
        );
    }

    fn field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
        out.push(tag);
        crate::intake::put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }

    /// A request of one series with these labels, and what is behind them.
    fn request_of(labels: &[(&str, &str)], rows: &[u8]) -> Vec<u8> {
        let (mut series, mut body) = (vec![], vec![]);
        for (name, value) in labels {
            let mut label = vec![];
            field(&mut label, 0x0a, name.as_bytes());
            field(&mut label, 0x12, value.as_bytes());
            field(&mut series, 0x0a, &label);
        }
        series.extend_from_slice(rows);
        field(&mut body, 0x0a, &series);
        body
    }

    fn body_of(labels: &[(&str, &str)], histograms: impl Iterator<Item = Histogram>) -> Vec<u8> {
        let mut rows = vec![];
        histograms.for_each(|h| field(&mut rows, 0x22, &h.encode_to_vec()));
        request_of(labels, &rows)
    }

    #[test]
    fn a_request_of_many_histograms_is_stored_as_far_as_it_fits_and_its_samples_with_it() {
        // Counts of many digits, each of which is one byte in the message.
        let wide = |at_ms| Histogram {
            count: u64::MAX,
            positive_spans: vec![span(0, NATIVE_BUCKETS_MAX as u32)],
            positive_deltas: [1 << 50].into_iter().chain([0; NATIVE_BUCKETS_MAX - 1]).collect(),
            at_ms,
            ..Default::default()
        };
        let mut body = body_of(&[("__name__", "h")], (0..3_000).map(wide));
        assert!(body.len() < 3_000 * 2 * NATIVE_BUCKETS_MAX);
        let sample = b"\x12\x0b\x09\0\0\0\0\0\0\xf0\x3f\x10\x07";
        body.append(&mut request_of(&[("__name__", "up")], sample));
        let (desk, tenant) = (Desk::new(1), TenantId::default());
        let read =
            |limits: &LimitsContext| super::super::read(&tenant, &body, limits, &desk.books(Naming::Known)).unwrap();
        let laid = read(&LIMITS);
        assert_eq!(laid.intake.samples, 1);
        assert!(laid.native.histograms > 100, "{}", laid.native.histograms);
        assert_eq!(laid.native.histograms + laid.rejected.by_code()["too_many_rows"], 3_000);
        let [share] = &laid.intake.shares[..] else {
            panic!("one shard")
        };
        let bytes = entry_bytes(share);
        assert!(bytes < ENTRY_BYTES_MAX - 64, "{bytes}");
        let floor = Some(TimestampNs::from_ms(3_000));
        assert_eq!(
            read(&LimitsContext { floor, ..LIMITS }).rejected.by_code()["too_old"],
            3_001
        );
    }

    #[test]
    fn a_request_has_so_many_histograms_and_no_more() {
        let one = |at_ms| Histogram {
            at_ms,
            ..Default::default()
        };
        let sent = HISTOGRAM_ROWS_MAX as i64 + 10;
        let body = body_of(&[("__name__", "h")], (0..sent).map(one));
        let (desk, tenant) = (Desk::new(1), TenantId::default());
        let laid = super::super::read(&tenant, &body, &LIMITS, &desk.books(Naming::Known)).unwrap();
        assert_eq!(
            (laid.native.histograms, laid.rejected.by_code()["too_many_rows"]),
            (HISTOGRAM_ROWS_MAX as u64, 10)
        );
    }

    /// One of two thousand buckets was charged as one float.
    #[test]
    fn a_histogram_counts_as_samples_by_its_size() {
        let of = |buckets: u32| {
            let histogram = Histogram {
                count: 1 << 30,
                positive_spans: vec![span(0, buckets)],
                positive_deltas: std::iter::once(1_000_000).chain((1..buckets).map(|_| 1)).collect(),
                ..Default::default()
            };
            let body = body_of(&[("__name__", "h")], std::iter::once(histogram));
            let (desk, tenant) = (Desk::new(1), TenantId::default());
            let laid = super::super::read(&tenant, &body, &LIMITS, &desk.books(Naming::Known)).unwrap();
            (laid.native.histograms, laid.native.samples)
        };
        assert_eq!(of(1), (1, 1));
        assert_eq!(of(40), (1, 6));
        assert_eq!(of(160), (1, 21));
    }

    proptest! {
        /// What was sent is what is stored, bucket by bucket.
        #[test]
        fn counts_stay_in_their_buckets(
            schema in -4i32..=8, first in -200i32..200, counts in proptest::collection::vec(0i64..50, 1..160),
        ) {
            let deltas: Vec<i64> = counts.iter().scan(0, |last, n| Some(n - std::mem::replace(last, *n))).collect();
            let sent: i64 = counts.iter().sum();
            let histogram = Histogram {
                count: sent as u64,
                schema,
                positive_spans: vec![span(first, counts.len() as u32)],
                positive_deltas: deltas,
                ..Default::default()
            };
            let line = read(&histogram.encode_to_vec()).unwrap().line().unwrap();
            let stored = hindcast_model::Histogram::of_line(line.as_bytes()).unwrap().unwrap();
            let kept = (first..).zip(&counts).filter(|(_, n)| **n > 0).map(|(i, n)| (i, *n as f64));
            prop_assert_eq!(stored.positive.clone(), kept.collect::<Vec<_>>());
            prop_assert_eq!((stored.schema, stored.count), (schema, sent as f64));
            // Written out as a message and read again it is the same.
            let again = read(&hindcast_proto::native::message(Some(&stored), 7)).unwrap();
            prop_assert_eq!(again.histogram(), Ok(Some(stored)));
        }

        #[test]
        fn random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&body).map(|h| h.line());
        }
    }
}
