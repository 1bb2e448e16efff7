//! Prometheus' native histograms, integer and float, as the buckets of classic ones (`crate::histogram`).
//!
//! Schemas -4 to 8 are exponential, -53 has bounds of the sender's own. The hint about counter resets is not needed: classic
//! counters show their resets themselves.

use crate::Refusal;
use crate::histogram::{Buckets, Exponential, explicit, too_many};
use crate::wire::{Field, Reader, WireError};
use hindcast_model::{STALE_NAN_BITS, TimestampNs};

/// Counts of one side of one histogram.
pub const NATIVE_COUNTS_MAX: usize = 65_536;
const SCHEMAS: std::ops::RangeInclusive<i32> = -4..=8;
/// Bounds are in the message.
const CUSTOM_SCHEMA: i32 = -53;

/// One histogram of a series.
#[derive(Debug)]
pub(crate) struct Native {
    pub at: TimestampNs,
    pub count: f64,
    pub sum: f64,
    pub stale: bool,
    pub buckets: Result<Buckets, Refusal>,
}

/// Buckets as they are written: runs of neighbours, and a count for each.
#[derive(Default)]
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
    let (mut positive, mut negative) = (Side::default(), Side::default());
    let (mut count, mut zero_count, mut sum, mut zero_threshold) = (0.0, 0.0, 0.0f64, 0.0);
    let (mut schema, mut at_ms, mut custom, mut custom_more) = (0, 0, vec![], 0u64);
    let mut is_float = false;
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => count = field.varint("a histogram's count")? as f64,
            2 => {
                is_float = true;
                count = f64::from_bits(field.fixed64("a histogram's count")?);
            }
            3 => sum = f64::from_bits(field.fixed64("a histogram's sum")?),
            4 => schema = zigzag(field.varint("a histogram's schema")?) as i32,
            5 => zero_threshold = f64::from_bits(field.fixed64("a histogram's zero threshold")?),
            6 => zero_count = field.varint("a histogram's zero count")? as f64,
            7 => zero_count = f64::from_bits(field.fixed64("a histogram's zero count")?),
            8 => negative.span(field.bytes("a span")?)?,
            9 => negative.deltas(field)?,
            10 => negative.counts(field)?,
            11 => positive.span(field.bytes("a span")?)?,
            12 => positive.deltas(field)?,
            13 => positive.counts(field)?,
            15 => at_ms = field.varint("a histogram's timestamp")? as i64,
            16 => doubles(field, |bound| match custom.len() {
                NATIVE_COUNTS_MAX => custom_more += 1,
                _ => custom.push(bound),
            })?,
            _ => {}
        }
    }
    let stale = sum.to_bits() == STALE_NAN_BITS;
    let buckets = || {
        let (positive, negative) = (positive.indexed()?, negative.indexed()?);
        if [count, zero_count].iter().any(|n| !(n.is_finite() && *n >= 0.0)) || zero_threshold.is_nan() {
            return Err(unreadable("a count of it is negative or no number"));
        }
        let in_buckets = positive.iter().chain(&negative).map(|(_, n)| n).sum::<f64>() + zero_count;
        if !is_float && in_buckets > count {
            return Err(unreadable(format!(
                "its buckets hold {in_buckets}, more than its count of {count}"
            )));
        }
        if schema == CUSTOM_SCHEMA {
            let bounds = custom.len() as u64 + custom_more;
            if bounds > crate::histogram::HISTOGRAM_BUCKETS_MAX as u64 {
                return Err(too_many("bounds", bounds));
            }
            if !negative.is_empty() {
                return Err(unreadable("it has bounds of its own and negative buckets"));
            }
            let mut counts = vec![0.0; custom.len() + 1];
            for (index, n) in positive {
                let place = usize::try_from(index).ok().and_then(|i| counts.get_mut(i));
                *place.ok_or_else(|| unreadable(format!("bucket {index} is none of its {bounds} bounds")))? = n;
            }
            return explicit(&custom, counts.into_iter());
        }
        if !SCHEMAS.contains(&schema) {
            return Err(unreadable(format!("schema {schema} is none of -4 to 8 and -53")));
        }
        // Prometheus names a bucket by its upper edge, OpenTelemetry by its lower one.
        let lower = |side: Vec<(i64, f64)>| side.into_iter().map(|(i, n)| (i - 1, n));
        Exponential {
            scale: schema,
            zero_threshold,
            zero_count,
            positive: lower(positive),
            negative: lower(negative),
        }
        .classic()
    };
    Ok(Native {
        at: TimestampNs::from_ms(at_ms),
        count,
        sum,
        stale,
        // A marker says that nothing was seen: what else is in the message means nothing.
        buckets: if stale { Ok(Buckets::new()) } else { buckets() },
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::histogram::HISTOGRAM_BUCKETS_MAX;
    use crate::testing::{Desk, LIMITS};
    use crate::{Naming, Rejections};
    use expect_test::{Expect, expect};
    use hindcast_model::TenantId;
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
        let mut series = vec![];
        let field = |out: &mut Vec<u8>, tag: u8, bytes: &[u8]| {
            out.push(tag);
            crate::intake::put_varint(out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        };
        field(&mut series, 0x0a, b"\x0a\x08__name__\x12\x01h");
        field(&mut series, 0x22, &histogram.encode_to_vec());
        let mut body = vec![];
        field(&mut body, 0x0a, &series);
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
            let Ok(buckets) = read.buckets else {
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
            let _ = read(&body);
        }
    }
}
