//! Properties of histograms, and what their lines say.

use super::*;
use expect_test::expect;
use proptest::prelude::*;

fn side() -> impl Strategy<Value = Buckets> {
    prop::collection::vec((1i32..6, 1u32..50), 0..12).prop_map(|steps| {
        let mut at = -20;
        let step = |(gap, n)| {
            at += gap;
            (at, f64::from(n))
        };
        steps.into_iter().map(step).collect()
    })
}

/// A histogram whose count is what its buckets hold.
fn whole(mut h: Histogram) -> Histogram {
    h.count = h.zero_count + h.positive.iter().chain(&h.negative).map(|(_, n)| n).sum::<f64>();
    h
}

fn exponential() -> impl Strategy<Value = Histogram> {
    let hint = prop_oneof![
        Just(Hint::Unknown),
        Just(Hint::Gauge),
        Just(Hint::Reset),
        Just(Hint::NotReset)
    ];
    let threshold = prop_oneof![Just(0.0), Just(0.001), 0.0..8.0f64];
    (SCHEMAS, side(), side(), 0u32..9, threshold, -1e3..1e3f64, hint).prop_map(
        |(schema, positive, negative, zero_count, zero_threshold, sum, hint)| {
            let raw = Histogram {
                schema,
                sum,
                zero_threshold,
                zero_count: f64::from(zero_count),
                positive,
                negative,
                hint,
                ..Histogram::default()
            };
            // As senders make them: no bucket reaches into the zero bucket.
            let layout = Layout::common([&raw].into_iter()).unwrap().unwrap();
            let reach = |i: i32| edge(schema, i - 1) >= layout.zero_threshold;
            let outside = |side: &Buckets| side.iter().filter(|(i, _)| reach(*i)).copied().collect();
            whole(Histogram {
                positive: outside(&raw.positive),
                negative: outside(&raw.negative),
                zero_threshold: layout.zero_threshold,
                ..raw
            })
        },
    )
}

fn custom() -> impl Strategy<Value = Histogram> {
    (
        prop::collection::btree_set(-5i32..20, 0..8),
        prop::collection::vec(0u32..9, 9),
        -1e3..1e3f64,
    )
        .prop_map(|(bounds, counts, sum)| {
            let bounds: Vec<f64> = bounds.into_iter().map(f64::from).collect();
            let all = (0..=bounds.len() as i32).zip(counts).filter(|(_, n)| *n > 0);
            whole(Histogram {
                schema: CUSTOM_SCHEMA,
                sum,
                positive: all.map(|(i, n)| (i, f64::from(n))).collect(),
                custom: bounds.into(),
                ..Histogram::default()
            })
        })
}

fn any_kind() -> impl Strategy<Value = Histogram> {
    prop_oneof![3 => exponential(), 1 => custom()]
}

fn held(h: &Histogram) -> f64 {
    h.buckets().map(|b| b.count).sum()
}

fn is_close(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= 1e-9 * (1.0 + a.abs() + b.abs())
}

proptest! {
    #[test]
    fn a_line_gives_the_histogram_back(h in any_kind(), sum in prop_oneof![any::<f64>(), Just(-0.0), Just(f64::NAN)]) {
        let h = Histogram { sum, ..h };
        let line = h.to_line().unwrap();
        let back = Histogram::of_line(line.as_bytes()).unwrap().unwrap();
        prop_assert!(h.sum.is_nan() && back.sum.is_nan() || back.sum.to_bits() == h.sum.to_bits(), "{line}");
        prop_assert_eq!(Histogram { sum: 0.0, ..back }, Histogram { sum: 0.0, ..h });
    }

    #[test]
    fn no_text_is_read_as_what_cannot_be(text in "(h1 )?(s=[0-9-]{1,3}|p=[0-9:;,-]{0,12}|b=[0-9,.]{0,6}|c=[0-9naif.]{1,4}| ){0,6}") {
        if let Ok(Some(h)) = Histogram::of_line(text.as_bytes()) {
            prop_assert!(h.buckets().all(|b| b.lower <= b.upper), "{h:?}");
            prop_assert!(h.to_line().is_some());
        }
    }

    #[test]
    fn made_alike_nothing_is_lost(a in exponential(), b in exponential()) {
        let layout = Layout::common([&a, &b].into_iter()).unwrap().unwrap();
        for h in [&a, &b] {
            let fitted = h.fitted(&layout);
            prop_assert_eq!(held(&fitted), held(h));
            prop_assert_eq!((fitted.schema, fitted.zero_threshold), (layout.schema, layout.zero_threshold));
            prop_assert!(fitted.positive.is_sorted_by(|a, b| a.0 < b.0) && fitted.negative.is_sorted_by(|a, b| a.0 < b.0));
        }
        let (ab, ba) = (a.plus(&b).unwrap(), b.plus(&a).unwrap());
        prop_assert_eq!(&ab, &ba);
        prop_assert_eq!(held(&ab.histogram), held(&a) + held(&b));
        // What grew did not begin anew, whatever its layout.
        let grown = Histogram { hint: Hint::Unknown, ..ab.histogram };
        prop_assert!(!grown.is_reset_after(&a), "{a:?} {grown:?}");
        let none = a.minus(&a).unwrap().histogram;
        prop_assert!(none.positive.is_empty() && none.negative.is_empty() && none.count == 0.0);
    }

    #[test]
    fn bounds_that_both_have_remain(a in custom(), b in custom()) {
        let both = a.plus(&b).unwrap();
        prop_assert_eq!(held(&both.histogram), held(&a) + held(&b));
        let kept = &both.histogram.custom;
        prop_assert!(kept.iter().all(|x| a.custom.contains(x) && b.custom.contains(x)));
        prop_assert_eq!(both.reconciled, a.custom != b.custom);
        // Below a bound that remains, there is what there was.
        let below = |h: &Histogram, bound| h.buckets().filter(|b| b.upper <= bound).map(|b| b.count).sum::<f64>();
        for bound in kept.iter() {
            prop_assert_eq!(below(&both.histogram, *bound), below(&a, *bound) + below(&b, *bound));
        }
    }

    #[test]
    fn what_fell_in_one_bucket_began_anew(h in exponential(), at in any::<prop::sample::Index>()) {
        prop_assume!(!h.positive.is_empty());
        let mut after = Histogram { hint: Hint::Unknown, count: h.count + 1.0, ..h.clone() };
        let at = at.index(after.positive.len());
        after.positive[at].1 -= 0.5;
        prop_assert!(after.is_reset_after(&h));
        after.hint = Hint::NotReset;
        prop_assert!(!after.is_reset_after(&h));
        let told = Histogram { hint: Hint::Reset, ..h.clone() };
        prop_assert!(told.is_reset_after(&h));
    }

    #[test]
    fn quantiles_rise_and_stay_within_buckets(h in any_kind(), parts in prop::collection::vec(0.0..=1.0f64, 2..6)) {
        prop_assume!(h.count > 0.0);
        let mut parts = parts;
        parts.sort_by(f64::total_cmp);
        let values: Vec<f64> = parts.iter().map(|q| h.quantile(*q).0).collect();
        for two in values.windows(2) {
            prop_assert!(two[0] <= two[1] || is_close(two[0], two[1]), "{values:?} {h:?}");
        }
        for v in values {
            prop_assert!(h.is_custom() || h.buckets().any(|b| b.lower <= v + 1e-9 * v.abs() && v <= b.upper + 1e-9 * v.abs()), "{v} {h:?}");
        }
    }

    #[test]
    fn the_fraction_below_a_quantile_is_its_part(h in exponential(), q in 0.01..0.99f64) {
        let h = whole(Histogram { zero_count: 0.0, ..h });
        prop_assume!(h.count > 0.0);
        let value = h.quantile(q).0;
        let (part, _) = h.fraction(f64::NEG_INFINITY, value);
        // At the edge of a bucket the value is that of many parts.
        let edges = h.buckets().flat_map(|b| [b.lower, b.upper]).any(|e| is_close(e, value));
        prop_assert!(edges || (part - q).abs() < 1e-9, "{part} {q}");
    }

    #[test]
    fn what_is_trimmed_away_and_what_is_left_are_all(h in any_kind(), bound in -50.0..50.0f64) {
        let (below, above) = (h.trimmed(bound, true), h.trimmed(bound, false));
        // Of a bucket without an end nobody can tell.
        let ends = |h: &Histogram| h.buckets().all(|b| b.lower.is_finite() && b.upper.is_finite() || b.lower >= bound || b.upper <= bound);
        prop_assert!(!ends(&h) || is_close(held(&below) + held(&above), held(&h)), "{below:?} {above:?} {h:?}");
        prop_assert!(held(&below) <= held(&h) + 1e-9 && held(&above) <= held(&h) + 1e-9);
        // Where nothing went, everything is as it was; where anything went, the count is that of the buckets.
        for trimmed in [&below, &above] {
            prop_assert!(trimmed.same(&h) || is_close(trimmed.count, held(trimmed)), "{trimmed:?} {h:?}");
        }
    }
}

fn of(text: &str) -> Histogram {
    Histogram::of_line(text.as_bytes()).unwrap().unwrap()
}

#[test]
fn a_line_says_what_is_there_and_nothing_else() {
    let h = Histogram {
        schema: 3,
        count: 9.0,
        sum: 0.1 + 0.2,
        zero_threshold: 2.938735877055719e-39,
        zero_count: 1.0,
        positive: vec![(-2, 2.0), (-1, 3.0), (1, 1.0), (7, 1.0)],
        negative: vec![(0, 1.0)],
        hint: Hint::Gauge,
        ..Histogram::default()
    };
    expect!["h1 s=3 c=9 sum=0.30000000000000004 zt=2.938735877055719e-39 zc=1 r=g p=-2:2,3,0,1;7:1 n=0:1"]
        .assert_eq(&h.to_line().unwrap());
    let listed = Histogram {
        schema: CUSTOM_SCHEMA,
        positive: vec![(2, 1e20)],
        custom: [0.1, 5.0].into(),
        ..Histogram::default()
    };
    expect!["h1 s=-53 p=2:1e20 b=0.1,5"].assert_eq(&listed.to_line().unwrap());
    expect!["h1 s=0"].assert_eq(&Histogram::default().to_line().unwrap());
    assert_eq!(Histogram::of_line(STALE_LINE.as_bytes()), Ok(None));
    for bad in [
        "",
        "h1",
        "h2 s=0",
        "h1 s=9",
        "h1 s=0 b=1",
        "h1 s=-53 p=2:1 b=1",
        "h1 s=0 p=2:1;1:1",
        "h1 s=0 zt=NaN",
    ] {
        assert_eq!(Histogram::of_line(bad.as_bytes()), Err(line::BadLine), "{bad:?}");
    }
}

#[test]
fn a_histogram_has_so_many_buckets_and_no_more() {
    let of_n = |n: i32| Histogram {
        positive: (0..n).map(|i| (i, 1.0)).collect(),
        ..Histogram::default()
    };
    let most = NATIVE_BUCKETS_MAX as i32;
    assert!(
        of_n(most)
            .to_line()
            .is_some_and(|l| l.len() < crate::limits::LINE_BYTES_MAX)
    );
    assert_eq!(of_n(most + 1).to_line(), None);
    let far = Histogram {
        positive: vec![(1 << 21, 1.0)],
        ..Histogram::default()
    };
    assert_eq!(far.to_line(), None);
}

#[test]
fn edges_of_buckets_are_what_the_schema_says() {
    let wide = |schema, index| edge(schema, index);
    assert_eq!(
        (wide(0, 0), wide(0, 3), wide(0, -1), wide(-1, 1), wide(1, 2)),
        (1.0, 8.0, 0.5, 4.0, 2.0)
    );
    assert!(is_close(wide(1, 1), std::f64::consts::SQRT_2) && is_close(wide(8, 256), 2.0));
    assert_eq!(
        (wide(0, 1024), wide(0, 1025), wide(-4, 64)),
        (f64::MAX, f64::INFINITY, f64::MAX)
    );
    assert_eq!(
        (wide(0, -1074), wide(0, -1075), wide(-4, i32::MIN)),
        (f64::from_bits(1), 0.0, 0.0)
    );
    assert_eq!(wide(-4, i32::MAX), f64::INFINITY);
}

#[test]
fn scaled_by_less_than_nothing_it_is_a_gauge_and_by_zero_without_buckets() {
    let h = of("h1 s=0 c=4 sum=6 p=1:4");
    assert_eq!(h.times(-1.0), of("h1 s=0 c=-4 sum=-6 r=g p=1:-4"));
    assert_eq!(h.times(0.0), of("h1 s=0"));
    assert_eq!(h.over(2.0), of("h1 s=0 c=2 sum=3 p=1:2"));
    let none = h.over(0.0);
    assert!(none.zero_count.is_nan() && none.count.is_infinite() && none.positive.is_empty());
}

#[test]
fn nan_among_the_observations_is_said() {
    let h = of("h1 s=0 c=5 sum=NaN p=1:4");
    assert_eq!(h.quantile(0.5).1, Some(Remark::QuantileIsHigh));
    let (value, remark) = h.quantile(0.9);
    assert!(value.is_nan() && remark == Some(Remark::QuantileIsNan));
    assert_eq!(h.fraction(0.0, 8.0), (0.8, Some(Remark::FractionWithoutNan)));
}
