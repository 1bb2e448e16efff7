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
        req{job="w"} 1795971003978 h1 s=1 c=9 sum=12.5 zt=0.001 zc=1 p=0:1,2,0,3 n=0:2
        reqf{job="w"} 1795971003978 h1 s=1 c=9 sum=12.5 zt=0.001 zc=1 p=0:1,2,0,3 n=0:2
        plain{job="w"} 1795971004233 0.5
        req{job="w"} 1795971004233 h1 s=1 c=11 sum=13.5 zt=0.001 zc=1 p=0:2,3,0,3 n=0:2
        reqf{job="w"} 1795971004233 h1 s=1 c=11 sum=13.5 zt=0.001 zc=1 p=0:2,3,0,3 n=0:2
        plain{job="w"} 1795971004485 1
        req{job="w"} 1795971004485 h1 s=1 c=13 sum=14.5 zt=0.001 zc=1 p=0:3,4,0,3 n=0:2
        reqf{job="w"} 1795971004485 h1 s=1 c=13 sum=14.5 zt=0.001 zc=1 p=0:3,4,0,3 n=0:2
        plain{job="w"} 1795971004737 1.5
        req{job="w"} 1795971004737 h1 s=1 c=15 sum=15.5 zt=0.001 zc=1 p=0:4,5,0,3 n=0:2
        reqf{job="w"} 1795971004737 h1 s=1 c=15 sum=15.5 zt=0.001 zc=1 p=0:4,5,0,3 n=0:2
        plain{job="w"} 1795971004989 2
        req{job="w"} 1795971004989 h1 s=1 c=17 sum=16.5 zt=0.001 zc=1 p=0:5,6,0,3 n=0:2
        reqf{job="w"} 1795971004989 h1 s=1 c=17 sum=16.5 zt=0.001 zc=1 p=0:5,6,0,3 n=0:2
        plain{job="w"} 1795971005241 2.5
        req{job="w"} 1795971005241 h1 s=1 c=19 sum=17.5 zt=0.001 zc=1 p=0:6,7,0,3 n=0:2
        reqf{job="w"} 1795971005241 h1 s=1 c=19 sum=17.5 zt=0.001 zc=1 p=0:6,7,0,3 n=0:2
        plain{job="w"} 1795971005493 3
        req{job="w"} 1795971005493 h1 s=1 c=21 sum=18.5 zt=0.001 zc=1 p=0:7,8,0,3 n=0:2
        reqf{job="w"} 1795971005493 h1 s=1 c=21 sum=18.5 zt=0.001 zc=1 p=0:7,8,0,3 n=0:2
        plain{job="w"} 1795971005745 3.5
        req{job="w"} 1795971005745 h1 s=1 c=23 sum=19.5 zt=0.001 zc=1 p=0:8,9,0,3 n=0:2
        reqf{job="w"} 1795971005745 h1 s=1 c=23 sum=19.5 zt=0.001 zc=1 p=0:8,9,0,3 n=0:2
    "#]].assert_eq(&shown.0);
}
