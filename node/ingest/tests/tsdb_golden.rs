//! What real tools wrote: a block of `promtool tsdb create-blocks-from openmetrics`, and the log of a Prometheus 2.42 that was
//! killed, with floats, integer histograms and float histograms.

use expect_test::expect;
use hindcast_env::io::RealDisk;
use hindcast_ingest::tsdb::{Finding, Flow, Place, Sink, Tally, Walk};
use hindcast_model::{Histogram, Labels};
use std::fmt::Write;

#[derive(Default)]
struct Shown(String);

impl Sink for Shown {
    fn row(&mut self, labels: &Labels, at_ms: i64, value: f64) -> Flow {
        let _ = writeln!(self.0, "{labels} {at_ms} {value}");
        Flow::Continue(())
    }
    fn native(&mut self, labels: &Labels, at_ms: i64, histogram: Option<&Histogram>) -> Flow {
        let line = histogram.map_or_else(|| "stale".to_owned(), |h| h.to_line().unwrap());
        let _ = writeln!(self.0, "{labels} {at_ms} {line}");
        Flow::Continue(())
    }
    fn at(&mut self, _: &Place, tally: &Tally, _: u64) -> Flow {
        assert_eq!(tally.histograms_refused, 0);
        Flow::Continue(())
    }
    fn found(&mut self, finding: Finding) {
        let _ = writeln!(self.0, "{finding}");
    }
}

#[test]
fn real_files_are_read() {
    let disk = RealDisk::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tsdb")).unwrap();
    let mut shown = Shown::default();
    let walk = Walk::open(&disk).unwrap();
    let _ = walk.run(Place::START, Tally::default(), &mut shown);
    expect![[r#"
        temp{room="a"} 1795900000000 1
        temp{room="a"} 1795900060000 1.5
        temp{room="a"} 1795900120000 NaN
        temp{room="b"} 1795900000000 -0.25
        temp{room="b"} 1795900075000 1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
        plain{job="w"} 1795971003978 0
        req_bucket{job="w", le="-0.7071067811865476"} 1795971003978 2
        req_bucket{job="w", le="0.001"} 1795971003978 3
        req_bucket{job="w", le="0.7071067811865476"} 1795971003978 3
        req_bucket{job="w", le="1"} 1795971003978 4
        req_bucket{job="w", le="1.4142135623730951"} 1795971003978 6
        req_bucket{job="w", le="2"} 1795971003978 6
        req_bucket{job="w", le="2.8284271247461903"} 1795971003978 9
        req_bucket{job="w", le="+Inf"} 1795971003978 9
        req_sum{job="w"} 1795971003978 12.5
        req_count{job="w"} 1795971003978 9
        reqf_bucket{job="w", le="-0.7071067811865476"} 1795971003978 2
        reqf_bucket{job="w", le="0.001"} 1795971003978 3
        reqf_bucket{job="w", le="0.7071067811865476"} 1795971003978 3
        reqf_bucket{job="w", le="1"} 1795971003978 4
        reqf_bucket{job="w", le="1.4142135623730951"} 1795971003978 6
        reqf_bucket{job="w", le="2"} 1795971003978 6
        reqf_bucket{job="w", le="2.8284271247461903"} 1795971003978 9
        reqf_bucket{job="w", le="+Inf"} 1795971003978 9
        reqf_sum{job="w"} 1795971003978 12.5
        reqf_count{job="w"} 1795971003978 9
        plain{job="w"} 1795971004233 0.5
        req_bucket{job="w", le="-0.7071067811865476"} 1795971004233 2
        req_bucket{job="w", le="0.001"} 1795971004233 3
        req_bucket{job="w", le="0.7071067811865476"} 1795971004233 3
        req_bucket{job="w", le="1"} 1795971004233 5
        req_bucket{job="w", le="1.4142135623730951"} 1795971004233 8
        req_bucket{job="w", le="2"} 1795971004233 8
        req_bucket{job="w", le="2.8284271247461903"} 1795971004233 11
        req_bucket{job="w", le="+Inf"} 1795971004233 11
        req_sum{job="w"} 1795971004233 13.5
        req_count{job="w"} 1795971004233 11
        reqf_bucket{job="w", le="-0.7071067811865476"} 1795971004233 2
        reqf_bucket{job="w", le="0.001"} 1795971004233 3
        reqf_bucket{job="w", le="0.7071067811865476"} 1795971004233 3
        reqf_bucket{job="w", le="1"} 1795971004233 5
        reqf_bucket{job="w", le="1.4142135623730951"} 1795971004233 8
        reqf_bucket{job="w", le="2"} 1795971004233 8
        reqf_bucket{job="w", le="2.8284271247461903"} 1795971004233 11
        reqf_bucket{job="w", le="+Inf"} 1795971004233 11
        reqf_sum{job="w"} 1795971004233 13.5
        reqf_count{job="w"} 1795971004233 11
        plain{job="w"} 1795971004485 1
        req_bucket{job="w", le="-0.7071067811865476"} 1795971004485 2
        req_bucket{job="w", le="0.001"} 1795971004485 3
        req_bucket{job="w", le="0.7071067811865476"} 1795971004485 3
        req_bucket{job="w", le="1"} 1795971004485 6
        req_bucket{job="w", le="1.4142135623730951"} 1795971004485 10
        req_bucket{job="w", le="2"} 1795971004485 10
        req_bucket{job="w", le="2.8284271247461903"} 1795971004485 13
        req_bucket{job="w", le="+Inf"} 1795971004485 13
        req_sum{job="w"} 1795971004485 14.5
        req_count{job="w"} 1795971004485 13
        reqf_bucket{job="w", le="-0.7071067811865476"} 1795971004485 2
        reqf_bucket{job="w", le="0.001"} 1795971004485 3
        reqf_bucket{job="w", le="0.7071067811865476"} 1795971004485 3
        reqf_bucket{job="w", le="1"} 1795971004485 6
        reqf_bucket{job="w", le="1.4142135623730951"} 1795971004485 10
        reqf_bucket{job="w", le="2"} 1795971004485 10
        reqf_bucket{job="w", le="2.8284271247461903"} 1795971004485 13
        reqf_bucket{job="w", le="+Inf"} 1795971004485 13
        reqf_sum{job="w"} 1795971004485 14.5
        reqf_count{job="w"} 1795971004485 13
        plain{job="w"} 1795971004737 1.5
        req_bucket{job="w", le="-0.7071067811865476"} 1795971004737 2
        req_bucket{job="w", le="0.001"} 1795971004737 3
        req_bucket{job="w", le="0.7071067811865476"} 1795971004737 3
        req_bucket{job="w", le="1"} 1795971004737 7
        req_bucket{job="w", le="1.4142135623730951"} 1795971004737 12
        req_bucket{job="w", le="2"} 1795971004737 12
        req_bucket{job="w", le="2.8284271247461903"} 1795971004737 15
        req_bucket{job="w", le="+Inf"} 1795971004737 15
        req_sum{job="w"} 1795971004737 15.5
        req_count{job="w"} 1795971004737 15
        reqf_bucket{job="w", le="-0.7071067811865476"} 1795971004737 2
        reqf_bucket{job="w", le="0.001"} 1795971004737 3
        reqf_bucket{job="w", le="0.7071067811865476"} 1795971004737 3
        reqf_bucket{job="w", le="1"} 1795971004737 7
        reqf_bucket{job="w", le="1.4142135623730951"} 1795971004737 12
        reqf_bucket{job="w", le="2"} 1795971004737 12
        reqf_bucket{job="w", le="2.8284271247461903"} 1795971004737 15
        reqf_bucket{job="w", le="+Inf"} 1795971004737 15
        reqf_sum{job="w"} 1795971004737 15.5
        reqf_count{job="w"} 1795971004737 15
        plain{job="w"} 1795971004989 2
        req_bucket{job="w", le="-0.7071067811865476"} 1795971004989 2
        req_bucket{job="w", le="0.001"} 1795971004989 3
        req_bucket{job="w", le="0.7071067811865476"} 1795971004989 3
        req_bucket{job="w", le="1"} 1795971004989 8
        req_bucket{job="w", le="1.4142135623730951"} 1795971004989 14
        req_bucket{job="w", le="2"} 1795971004989 14
        req_bucket{job="w", le="2.8284271247461903"} 1795971004989 17
        req_bucket{job="w", le="+Inf"} 1795971004989 17
        req_sum{job="w"} 1795971004989 16.5
        req_count{job="w"} 1795971004989 17
        reqf_bucket{job="w", le="-0.7071067811865476"} 1795971004989 2
        reqf_bucket{job="w", le="0.001"} 1795971004989 3
        reqf_bucket{job="w", le="0.7071067811865476"} 1795971004989 3
        reqf_bucket{job="w", le="1"} 1795971004989 8
        reqf_bucket{job="w", le="1.4142135623730951"} 1795971004989 14
        reqf_bucket{job="w", le="2"} 1795971004989 14
        reqf_bucket{job="w", le="2.8284271247461903"} 1795971004989 17
        reqf_bucket{job="w", le="+Inf"} 1795971004989 17
        reqf_sum{job="w"} 1795971004989 16.5
        reqf_count{job="w"} 1795971004989 17
        plain{job="w"} 1795971005241 2.5
        req_bucket{job="w", le="-0.7071067811865476"} 1795971005241 2
        req_bucket{job="w", le="0.001"} 1795971005241 3
        req_bucket{job="w", le="0.7071067811865476"} 1795971005241 3
        req_bucket{job="w", le="1"} 1795971005241 9
        req_bucket{job="w", le="1.4142135623730951"} 1795971005241 16
        req_bucket{job="w", le="2"} 1795971005241 16
        req_bucket{job="w", le="2.8284271247461903"} 1795971005241 19
        req_bucket{job="w", le="+Inf"} 1795971005241 19
        req_sum{job="w"} 1795971005241 17.5
        req_count{job="w"} 1795971005241 19
        reqf_bucket{job="w", le="-0.7071067811865476"} 1795971005241 2
        reqf_bucket{job="w", le="0.001"} 1795971005241 3
        reqf_bucket{job="w", le="0.7071067811865476"} 1795971005241 3
        reqf_bucket{job="w", le="1"} 1795971005241 9
        reqf_bucket{job="w", le="1.4142135623730951"} 1795971005241 16
        reqf_bucket{job="w", le="2"} 1795971005241 16
        reqf_bucket{job="w", le="2.8284271247461903"} 1795971005241 19
        reqf_bucket{job="w", le="+Inf"} 1795971005241 19
        reqf_sum{job="w"} 1795971005241 17.5
        reqf_count{job="w"} 1795971005241 19
        plain{job="w"} 1795971005493 3
        req_bucket{job="w", le="-0.7071067811865476"} 1795971005493 2
        req_bucket{job="w", le="0.001"} 1795971005493 3
        req_bucket{job="w", le="0.7071067811865476"} 1795971005493 3
        req_bucket{job="w", le="1"} 1795971005493 10
        req_bucket{job="w", le="1.4142135623730951"} 1795971005493 18
        req_bucket{job="w", le="2"} 1795971005493 18
        req_bucket{job="w", le="2.8284271247461903"} 1795971005493 21
        req_bucket{job="w", le="+Inf"} 1795971005493 21
        req_sum{job="w"} 1795971005493 18.5
        req_count{job="w"} 1795971005493 21
        reqf_bucket{job="w", le="-0.7071067811865476"} 1795971005493 2
        reqf_bucket{job="w", le="0.001"} 1795971005493 3
        reqf_bucket{job="w", le="0.7071067811865476"} 1795971005493 3
        reqf_bucket{job="w", le="1"} 1795971005493 10
        reqf_bucket{job="w", le="1.4142135623730951"} 1795971005493 18
        reqf_bucket{job="w", le="2"} 1795971005493 18
        reqf_bucket{job="w", le="2.8284271247461903"} 1795971005493 21
        reqf_bucket{job="w", le="+Inf"} 1795971005493 21
        reqf_sum{job="w"} 1795971005493 18.5
        reqf_count{job="w"} 1795971005493 21
        plain{job="w"} 1795971005745 3.5
        req_bucket{job="w", le="-0.7071067811865476"} 1795971005745 2
        req_bucket{job="w", le="0.001"} 1795971005745 3
        req_bucket{job="w", le="0.7071067811865476"} 1795971005745 3
        req_bucket{job="w", le="1"} 1795971005745 11
        req_bucket{job="w", le="1.4142135623730951"} 1795971005745 20
        req_bucket{job="w", le="2"} 1795971005745 20
        req_bucket{job="w", le="2.8284271247461903"} 1795971005745 23
        req_bucket{job="w", le="+Inf"} 1795971005745 23
        req_sum{job="w"} 1795971005745 19.5
        req_count{job="w"} 1795971005745 23
        reqf_bucket{job="w", le="-0.7071067811865476"} 1795971005745 2
        reqf_bucket{job="w", le="0.001"} 1795971005745 3
        reqf_bucket{job="w", le="0.7071067811865476"} 1795971005745 3
        reqf_bucket{job="w", le="1"} 1795971005745 11
        reqf_bucket{job="w", le="1.4142135623730951"} 1795971005745 20
        reqf_bucket{job="w", le="2"} 1795971005745 20
        reqf_bucket{job="w", le="2.8284271247461903"} 1795971005745 23
        reqf_bucket{job="w", le="+Inf"} 1795971005745 23
        reqf_sum{job="w"} 1795971005745 19.5
        reqf_count{job="w"} 1795971005745 23
    "#]].assert_eq(&shown.0);
}
