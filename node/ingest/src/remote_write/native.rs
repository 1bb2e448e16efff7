//! Prometheus' native histograms, integer and float, as the buckets of classic ones (`crate::histogram`).
//!
//! Schemas -4 to 8 are exponential, -53 has bounds of the sender's own. The hint about counter resets is not needed: classic
//! counters show their resets themselves.

use crate::Refusal;
use crate::histogram::{Buckets, Coarse, Exponential, Width, explicit, too_many};
use crate::wire::{Field, Reader, WireError};
use hindcast_model::{STALE_NAN_BITS, TimestampNs};

/// Counts of one side of one histogram.
pub const NATIVE_COUNTS_MAX: usize = 65_536;
const SCHEMAS: std::ops::RangeInclusive<i32> = -4..=8;
/// Bounds are in the message.
const CUSTOM_SCHEMA: i32 = -53;

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
}

/// What a histogram holds, not yet as buckets.
#[derive(Debug)]
pub(crate) enum Held {
    Exponential(Coarse),
    /// Bounds of the sender's own are all in the message.
    Explicit(Buckets),
}

impl Held {
    pub fn width(&self) -> Width {
        match self {
            Self::Exponential(coarse) => coarse.width(),
            Self::Explicit(buckets) => Width::of(buckets),
        }
    }

    pub fn buckets(self) -> Buckets {
        match self {
            Self::Exponential(coarse) => coarse.classic(),
            Self::Explicit(buckets) => buckets,
        }
    }
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
        }
    }

    pub fn is_stale(&self) -> bool {
        self.sum.to_bits() == STALE_NAN_BITS
    }

    /// What it holds, or why that cannot be.
    pub fn held(&self) -> Result<Held, Refusal> {
        if self.is_stale() {
            // A marker says that nothing was seen: what else is in the message means nothing.
            return Ok(Held::Explicit(Buckets::new()));
        }
        let (count, zero_count) = (self.count, self.zero_count);
        let (positive, negative) = (self.positive.indexed()?, self.negative.indexed()?);
        if [count, zero_count].iter().any(|n| !(n.is_finite() && *n >= 0.0)) || self.zero_threshold.is_nan() {
            return Err(unreadable("a count of it is negative or no number"));
        }
        let in_buckets = positive.iter().chain(&negative).map(|(_, n)| n).sum::<f64>() + zero_count;
        if !self.is_float && in_buckets > count {
            return Err(unreadable(format!(
                "its buckets hold {in_buckets}, more than its count of {count}"
            )));
        }
        if self.schema == CUSTOM_SCHEMA {
            return self.of_own_bounds(positive, !negative.is_empty()).map(Held::Explicit);
        }
        if !SCHEMAS.contains(&self.schema) {
            return Err(unreadable(format!("schema {} is none of -4 to 8 and -53", self.schema)));
        }
        // Prometheus names a bucket by its upper edge, OpenTelemetry by its lower one.
        let lower = |side: Vec<(i64, f64)>| side.into_iter().map(|(i, n)| (i - 1, n));
        let all = Exponential {
            scale: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count,
            positive: lower(positive),
            negative: lower(negative),
        };
        all.coarse().map(Held::Exponential)
    }

    fn of_own_bounds(&self, counts: Vec<(i64, f64)>, has_negative: bool) -> Result<Buckets, Refusal> {
        let bounds = self.custom.len() as u64 + self.custom_more;
        if bounds > crate::histogram::HISTOGRAM_BUCKETS_MAX as u64 {
            return Err(too_many("bounds", bounds));
        }
        if has_negative {
            return Err(unreadable("it has bounds of its own and negative buckets"));
        }
        let mut by_bound = vec![0.0; self.custom.len() + 1];
        for (index, n) in counts {
            let place = usize::try_from(index).ok().and_then(|i| by_bound.get_mut(i));
            *place.ok_or_else(|| unreadable(format!("bucket {index} is none of its {bounds} bounds")))? = n;
        }
        explicit(&self.custom, by_bound.into_iter())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::histogram::tests::EXPANDED;
    use crate::histogram::{HISTOGRAM_BUCKETS_MAX, HISTOGRAM_ROWS_MAX};
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

    /// The series that it becomes, or why it is refused.
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
        assert_eq!(laid.native.rows, laid.intake.samples);
        for s in desk.confirm(laid).series {
            let value = s.samples[0].value;
            let value = match value.to_bits() {
                STALE_NAN_BITS => "stale".to_owned(),
                _ => value.to_string(),
            };
            shown += &format!("{} {value}\n", s.labels);
        }
        expect.assert_eq(&shown);
    }

    #[test]
    fn a_histogram_becomes_a_series_per_bound() {
        check(
            &few(7),
            expect![[r#"
                h_bucket{le="-0.5"} 2
                h_bucket{le="0.001"} 3
                h_bucket{le="0.5"} 3
                h_bucket{le="1"} 5
                h_bucket{le="2"} 8
                h_bucket{le="4"} 8
                h_bucket{le="8"} 9
                h_bucket{le="+Inf"} 9
                h_sum 12.5
                h_count 9
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
                h_bucket{le="-1"} 0
                h_bucket{le="0.25"} 4
                h_bucket{le="+Inf"} 6
                h_sum 3
                h_count 6
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
                h_bucket{le="0.0000152587890625"} 0
                h_bucket{le="1"} 0.5
                h_bucket{le="65536"} 2.5
                h_bucket{le="+Inf"} 2.5
                h_sum 1
                h_count 2.5
            "#]],
        );
        let stale = Histogram {
            sum: f64::from_bits(STALE_NAN_BITS),
            ..Default::default()
        };
        check(
            &stale,
            expect![[r#"
                h_bucket{le="+Inf"} stale
                h_sum stale
                h_count stale
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
                positive_spans: vec![span(0, 2), span(600, 1)],
                ..few(1)
            },
            expect![[r#"
            bad_buckets: its buckets are not readable: 603 buckets, more than 512
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
    fn a_small_request_of_wide_histograms_does_not_eat_the_memory() {
        const SENT: usize = 100_000;
        // Two buckets, as far apart as is allowed.
        let wide = |at_ms| Histogram {
            count: 2,
            positive_spans: vec![span(0, 1), span(509, 1)],
            positive_deltas: vec![1, 0],
            at_ms,
            ..Default::default()
        };
        let body = body_of(&[("__name__", "h")], (0..SENT as i64).map(wide));
        assert!(body.len() < 25 * SENT);
        let (desk, tenant) = (Desk::new(1), TenantId::default());
        let laid = |limits: &LimitsContext| {
            EXPANDED.set(0);
            let laid = super::super::read(&tenant, &body, limits, &desk.books(Naming::Known)).unwrap();
            (laid, EXPANDED.get())
        };
        let (got, expanded) = laid(&LIMITS);
        assert_eq!(expanded as u64, got.native.histograms, "no more than there is room for");
        assert!(
            (1..=HISTOGRAM_ROWS_MAX as u64 / 515).contains(&got.native.histograms),
            "{}",
            got.native.histograms
        );
        assert_eq!(got.native.rows, got.native.histograms * 515);
        assert_eq!(
            got.rejected.by_code()["too_many_rows"],
            SENT as u64 - got.native.histograms
        );
        let floor = Some(TimestampNs::from_ms(SENT as i64));
        let (got, expanded) = laid(&LimitsContext { floor, ..LIMITS });
        assert_eq!((got.rejected.by_code()["too_old"], expanded), (SENT as u64, 0));
    }

    #[test]
    fn a_new_request_of_many_histograms_is_stored_as_far_as_it_fits_and_its_samples_with_it() {
        let labels = [
            "az",
            "cluster",
            "code",
            "handler",
            "instance",
            "job",
            "method",
            "namespace",
            "pod",
            "__name__",
        ];
        let values: Vec<String> = labels.iter().map(|l| format!("{l}-of-some-length-1")).collect();
        let counts = Histogram {
            count: 160,
            schema: 2,
            positive_spans: vec![span(-80, 160)],
            positive_deltas: [1].into_iter().chain([0; 159]).collect(),
            at_ms: 7,
            ..Default::default()
        };
        let mut body = vec![];
        for i in 0..2_000 {
            let pod = format!("pod-{i}");
            let mut pairs: Vec<_> = labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            pairs[8].1 = &pod;
            body.append(&mut body_of(&pairs, [counts.clone()].into_iter()));
            // A plain series each, too.
            pairs[9].1 = "up";
            let sample = b"\x12\x0b\x09\0\0\0\0\0\0\xf0\x3f\x10\x07";
            body.append(&mut request_of(&pairs, sample));
        }
        let (desk, tenant) = (Desk::new(1), TenantId::default());
        let laid = super::super::read(&tenant, &body, &LIMITS, &desk.books(Naming::Known)).unwrap();
        assert_eq!(laid.intake.samples - laid.native.rows, 2_000);
        assert!(laid.native.rows > 50_000, "{}", laid.native.rows);
        assert_eq!(laid.native.histograms + laid.rejected.by_code()["too_many_rows"], 2_000);
        let [share] = &laid.intake.shares[..] else {
            panic!("one shard")
        };
        let bytes = entry_bytes(share);
        assert!(bytes < ENTRY_BYTES_MAX - 64, "{bytes}");
    }

    proptest! {
        /// Whatever the schema, each count is below the bound that its bucket had, and none is lost.
        #[test]
        fn counts_lie_below_the_bound_of_their_bucket(
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
            let read = read(&histogram.encode_to_vec()).unwrap();
            let Ok(buckets) = read.held().map(Held::buckets) else {
                // One bucket of four doublings or more may lie beyond what is kept apart.
                prop_assert!(schema <= 2);
                return Ok(());
            };
            prop_assert!(buckets.len() <= HISTOGRAM_BUCKETS_MAX + 1);
            let edge = |index: i32| (f64::from(index) * f64::from(-schema).exp2()).exp2();
            for (i, _) in counts.iter().enumerate() {
                let upper = edge(first + i as i32);
                if upper < f64::MIN_POSITIVE {
                    // Several of them have no bound but zero.
                    continue;
                }
                let sent: i64 = counts[..=i].iter().sum();
                let kept: f64 = buckets.iter().filter(|(b, _)| b.0 <= upper * (1.0 + 1e-9)).map(|(_, n)| n).sum();
                // Coarser bounds count less below a finer one, never more.
                prop_assert!(kept <= sent as f64);
                if schema <= crate::histogram::SCALE_MAX && upper.is_finite() {
                    prop_assert_eq!(kept, sent as f64);
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&body).map(|h| h.held().map(Held::buckets));
        }
    }
}
