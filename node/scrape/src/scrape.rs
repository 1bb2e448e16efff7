//! One answer of a target, or its absence, as rows.
//!
//! Pure. A page is taken whole or not at all: what cannot be read, or goes beyond a limit of its job, is a failed scrape,
//! which ends the series of the last one. Whatever happens, a scrape has `up`, `scrape_duration_seconds`,
//! `scrape_samples_scraped`, `scrape_samples_post_metric_relabeling` and `scrape_series_added`.
//!
//! Promise: a series of the last scrape that is not in this one gets a staleness marker at this one's time; so do `up` and
//! its kin when other `external_labels` give them another name. Samples with times of their own have no part in that, unless
//! the job says so (`track_timestamps_staleness`).

use crate::config::{Job, Limits, SAMPLES_PER_SCRAPE_MAX};
use crate::relabel;
use crate::target::{Target, named};
use crate::text::{Format, Page, PageExemplar, PageSample};
use crate::{Pairs, pool};
use hashbrown::{HashMap, HashSet};
use hindcast_model::{Labels, METRIC_NAME, STALE_NAN_BITS, Sample, SpanNs, TimestampNs};
use std::collections::BTreeMap;

/// What every scrape says of itself: whether it went well, how long it took, its samples, those that were kept, new series.
pub const OF_SCRAPE: &[&str] = &[
    "up",
    "scrape_duration_seconds",
    "scrape_samples_scraped",
    "scrape_samples_post_metric_relabeling",
    "scrape_series_added",
];
/// The first of these, of a device that is polled: under names by which they belong to the device.
pub const OF_POLL: &[&str] = &["snmp_up", "snmp_poll_duration_seconds", "snmp_poll_samples"];

/// Before it nanoseconds in 64 bits begin; rounded up to a whole millisecond, as samples are stored.
const OWN_TIME_MS_MIN: i64 = i64::MIN / 1_000_000;

/// Exemplars of one page; further ones are left out.
pub const EXEMPLARS_PER_SCRAPE_MAX: usize = 10_000;

/// The series of a target's last scrape.
#[derive(Clone, Debug, Default)]
pub struct Series {
    of_page: HashSet<Labels>,
    /// A target shows an exemplar until it has a newer one, and each is stored once. Of its last page that could be read.
    exemplars: HashMap<Labels, PageExemplar>,
    /// `None`: the target was not scraped before.
    of_itself: Option<OfItself>,
}

/// `up` and its kin.
#[derive(Clone, Debug, PartialEq)]
struct OfItself {
    /// Their labels, without their names.
    labels: Labels,
    names: &'static [&'static str],
}

impl OfItself {
    fn all(&self) -> impl Iterator<Item = Labels> {
        self.names.iter().map(|name| named(&self.labels, name))
    }
}

impl Series {
    pub fn len(&self) -> usize {
        self.of_page.len()
    }

    /// Nothing was scraped, so nothing ends.
    pub fn is_empty(&self) -> bool {
        self.of_page.is_empty() && self.of_itself.is_none()
    }

    /// Those of the page get no markers then.
    pub fn forget_page(&mut self) {
        self.of_page = HashSet::new();
    }

    /// Adds the series of a target that bore the same labels.
    pub fn absorb(&mut self, other: Self) {
        self.of_page.extend(other.of_page);
        self.exemplars.extend(other.exemplars);
        match (&self.of_itself, other.of_itself) {
            // Other external labels came meanwhile: the next scrape does not have these, and ends them.
            (Some(own), Some(others)) if *own != others => {
                self.of_page.extend(others.all());
            }
            (Some(_), _) => {}
            (None, others) => self.of_itself = others,
        }
    }
}

#[cfg(test)]
impl FromIterator<Labels> for Series {
    fn from_iter<I: IntoIterator<Item = Labels>>(labels: I) -> Self {
        Self {
            of_page: labels.into_iter().collect(),
            exemplars: HashMap::new(),
            of_itself: Some(OfItself {
                labels: Labels::empty(),
                names: OF_SCRAPE,
            }),
        }
    }
}

/// What a target answered.
#[derive(Clone, Debug)]
pub enum Answer<'a> {
    /// A page, decompressed.
    Page { body: &'a [u8], format: Format },
    /// What a device was polled for.
    Samples(Vec<PageSample>),
}

/// What a scrape came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    /// A series with its samples; each series once.
    pub rows: Vec<(Labels, Vec<Sample>)>,
    /// Why it failed.
    pub error: Option<String>,
    pub scraped: usize,
    pub kept: usize,
    /// Samples whose series had one at the same time already; the first one stays.
    pub doubled: u64,
    /// Those that the target did not show before, by series; without a time of their own, that of the scrape.
    pub exemplars: Vec<(Labels, PageExemplar)>,
    /// Not understood, or too many.
    pub exemplars_left_out: u64,
}

struct PageRows {
    rows: Vec<(Labels, Vec<Sample>)>,
    /// By series, where its row is.
    places: HashMap<Labels, usize>,
    /// By row, the times of a series whose times do not rise.
    times: HashMap<usize, HashSet<TimestampNs>>,
    current: HashSet<Labels>,
    /// By series, the last one.
    exemplars: HashMap<Labels, PageExemplar>,
    exemplars_left_out: u64,
    scraped: usize,
    kept: usize,
    doubled: u64,
}

/// Makes rows of an answer at the time `at`. `series` is changed to those of this scrape.
pub fn take(
    target: &Target,
    external: &BTreeMap<String, String>,
    answer: Result<Answer<'_>, String>,
    at: TimestampNs,
    took: SpanNs,
    series: &mut Series,
) -> Taken {
    let mut page = PageRows {
        rows: vec![],
        places: HashMap::new(),
        times: HashMap::new(),
        current: HashSet::new(),
        exemplars: HashMap::new(),
        exemplars_left_out: 0,
        scraped: 0,
        kept: 0,
        doubled: 0,
    };
    let error = answer.and_then(|answer| page.read(target, external, answer, at)).err();
    if error.is_some() {
        // Of a page that cannot be taken nothing is stored.
        (page.rows, page.current) = (vec![], HashSet::new());
        page.exemplars = std::mem::take(&mut series.exemplars);
    }
    let exemplars = match error {
        None => new_exemplars(&page.exemplars, series, at, target.job.interval),
        Some(_) => vec![],
    };
    let named_by = with_external(target, external);
    let itself = OfItself {
        labels: named_by,
        names: target.of_itself,
    };
    let own: Vec<_> = itself.all().collect();
    let before = std::mem::take(series);
    let added = page.current.iter().filter(|l| !before.of_page.contains(*l)).count();
    let mut rows = page.rows;
    let is_gone = |labels: &Labels| !page.current.contains(labels) && !own.contains(labels);
    let mut gone: Vec<_> = before.of_page.iter().filter(|l| is_gone(l)).cloned().collect();
    if let Some(old) = before.of_itself.filter(|old| *old != itself) {
        gone.extend(old.all().filter(is_gone));
    }
    gone.sort_unstable_by(|a, b| a.iter().cmp(b.iter()));
    let marked = gone.into_iter().map(|labels| match page.places.get(&labels) {
        // It has samples with times of their own in this page.
        Some(_) if error.is_none() => None,
        _ => Some((labels, vec![marker(at)])),
    });
    rows.extend(marked.flatten());
    let up = if error.is_none() { 1.0 } else { 0.0 };
    let seconds = took.0 as f64 / 1e9;
    let values = [up, seconds, page.scraped as f64, page.kept as f64, added as f64];
    rows.extend(own.into_iter().zip(values.map(|value| vec![Sample { at, value }])));
    *series = Series {
        of_page: page.current,
        exemplars: page.exemplars,
        of_itself: Some(itself),
    };
    Taken {
        rows,
        error: error.map(|e| e.chars().take(pool::ERROR_CHARS_MAX).collect()),
        scraped: page.scraped,
        kept: page.kept,
        doubled: page.doubled,
        exemplars,
        exemplars_left_out: page.exemplars_left_out,
    }
}

/// What the target did not show before. Of a target that was not read before, those of before this interval are what another node has
/// stored, or this one before it was started again.
fn new_exemplars(
    shown: &HashMap<Labels, PageExemplar>,
    before: &Series,
    at: TimestampNs,
    interval: SpanNs,
) -> Vec<(Labels, PageExemplar)> {
    let is_new = |labels: &Labels, exemplar: &PageExemplar| match (before.exemplars.get(labels), exemplar.at_ms) {
        (Some(last), Some(at)) => last.at_ms.is_none_or(|last| last < at),
        (Some(last), None) => last != exemplar,
        (None, Some(own)) => before.of_itself.is_some() || TimestampNs::from_ms(own) > at - interval,
        (None, None) => true,
    };
    let new = shown.iter().filter(|(labels, exemplar)| is_new(labels, exemplar));
    let mut new: Vec<_> = new
        .map(|(labels, exemplar)| {
            let at_ms = Some(exemplar.at_ms.unwrap_or_else(|| at.as_ms()));
            let exemplar = exemplar.clone();
            (labels.clone(), PageExemplar { at_ms, ..exemplar })
        })
        .collect();
    new.sort_unstable_by(|a, b| a.0.iter().cmp(b.0.iter()));
    new
}

/// The end of all series of a target that is not scraped any more: rows of markers.
pub fn end(series: Series, at: TimestampNs) -> Vec<(Labels, Vec<Sample>)> {
    let mut labels: Vec<_> = series.of_page.into_iter().collect();
    labels.sort_unstable_by(|a, b| a.iter().cmp(b.iter()));
    labels.extend(series.of_itself.iter().flat_map(OfItself::all));
    labels.into_iter().map(|l| (l, vec![marker(at)])).collect()
}

fn marker(at: TimestampNs) -> Sample {
    Sample {
        at,
        value: f64::from_bits(STALE_NAN_BITS),
    }
}

/// What is common to `up` and its kin.
fn with_external(target: &Target, external: &BTreeMap<String, String>) -> Labels {
    let mut labels = target.labels.clone();
    for (name, value) in external {
        if labels.get(name).is_none() {
            labels = labels.with(name, value);
        }
    }
    labels
}

impl PageRows {
    fn read(
        &mut self,
        target: &Target,
        external: &BTreeMap<String, String>,
        answer: Answer<'_>,
        at: TimestampNs,
    ) -> Result<(), String> {
        match answer {
            Answer::Samples(samples) => self.read_all(target, external, samples.into_iter().map(Ok), at),
            Answer::Page { body, format } => {
                let text = std::str::from_utf8(body)
                    .map_err(|e| format!("the page is not UTF-8 from byte {} on", e.valid_up_to()))?;
                let samples = Page::new(text, format).map(|sample| sample.map_err(|e| e.to_string()));
                self.read_all(target, external, samples, at)
            }
        }
    }

    fn read_all(
        &mut self,
        target: &Target,
        external: &BTreeMap<String, String>,
        samples: impl Iterator<Item = Result<PageSample, String>>,
        at: TimestampNs,
    ) -> Result<(), String> {
        let job = &*target.job;
        let mut too_many = None;
        for sample in samples {
            let PageSample {
                pairs,
                value,
                at_ms,
                exemplar,
            } = sample?;
            self.scraped += 1;
            let Some(labels) = self.labels(target, external, pairs)? else {
                continue;
            };
            self.kept += 1;
            // Beyond the limit, samples are only counted: the count tells how far beyond it the target is.
            if self.kept > job.limits.samples {
                too_many = Some(job.limits.samples);
                continue;
            }
            match exemplar {
                None => {}
                Some(Ok(exemplar)) if self.exemplars.len() < EXEMPLARS_PER_SCRAPE_MAX => {
                    self.exemplars.insert(labels.clone(), exemplar);
                }
                Some(_) => self.exemplars_left_out += 1,
            }
            let own_time = at_ms.filter(|_| job.honor_timestamps);
            let sample = Sample {
                at: own_time.map_or(at, |ms| TimestampNs::from_ms(ms.max(OWN_TIME_MS_MIN))),
                value,
            };
            self.put(labels, sample, own_time.is_none() || job.track_timestamps_staleness);
        }
        match too_many {
            None => Ok(()),
            Some(max) => Err(format!(
                "the page has {} samples after relabeling, more than the {}",
                self.kept,
                match max < SAMPLES_PER_SCRAPE_MAX {
                    true => format!("limit of {max}; raise sample_limit, or drop some"),
                    // The program's own bound.
                    false => format!("{max} that one scrape may have; drop some"),
                }
            )),
        }
    }

    /// Labels as they are stored; `None`: dropped.
    fn labels(
        &self,
        target: &Target,
        external: &BTreeMap<String, String>,
        pairs: Vec<(String, String)>,
    ) -> Result<Option<Labels>, String> {
        let job = &*target.job;
        let mut labels = Pairs::from(pairs);
        join(job, &target.labels, &mut labels);
        if !job.metric_relabel.is_empty() && !relabel::apply(&job.metric_relabel, &mut labels) {
            return Ok(None);
        }
        if labels.value(METRIC_NAME).is_empty() {
            return Err("metric_relabel_configs take the name of a metric away".to_owned());
        }
        check(&job.limits, &labels)?;
        for (name, value) in external {
            labels.set_absent(name, value.clone());
        }
        Ok(Some(labels.into_labels()))
    }

    fn put(&mut self, labels: Labels, sample: Sample, is_tracked: bool) {
        if is_tracked {
            self.current.insert(labels.clone());
        }
        match self.places.get(&labels) {
            Some(place) => {
                let samples = &mut self.rows[*place].1;
                let last = samples.last().map(|s| s.at);
                let is_new = match self.times.get_mut(place) {
                    Some(times) => times.insert(sample.at),
                    // While times rise, the last one is the greatest.
                    None if last < Some(sample.at) => true,
                    None if last == Some(sample.at) => false,
                    // One page may have all its samples in one series: going through them each time would never end.
                    None => {
                        let mut times: HashSet<_> = samples.iter().map(|s| s.at).collect();
                        let is_new = times.insert(sample.at);
                        self.times.insert(*place, times);
                        is_new
                    }
                };
                match is_new {
                    true => samples.push(sample),
                    false => self.doubled += 1,
                }
            }
            None => {
                self.places.insert(labels.clone(), self.rows.len());
                self.rows.push((labels, vec![sample]));
            }
        }
    }
}

/// Puts the target's labels on a sample. Where both have one, the target's wins and the sample's is kept as `exported_…`,
/// or, with `honor_labels`, the sample's wins, also an empty one.
fn join(job: &Job, of_target: &Labels, labels: &mut Pairs) {
    if job.honor_labels {
        for (name, value) in of_target.iter() {
            labels.set_absent(name, value);
        }
        return;
    }
    let mut moved = vec![];
    for (name, value) in of_target.iter() {
        let own = labels.value(name).to_owned();
        if !own.is_empty() {
            moved.push((name, own));
        }
        labels.set(name, value);
    }
    // Short names first, as Prometheus: so that `exported_` before one does not meet another.
    moved.sort_by_key(|(name, _)| name.len());
    for (name, value) in moved {
        let mut free = format!("exported_{name}");
        while !labels.value(&free).is_empty() {
            free = format!("exported_{free}");
        }
        labels.set(&free, value);
    }
}

fn check(limits: &Limits, labels: &Pairs) -> Result<(), String> {
    let name = labels.value(METRIC_NAME);
    if let Some(max) = limits.labels.filter(|max| labels.len() > *max) {
        return Err(format!(
            "{name} has {} labels, more than label_limit {max}",
            labels.len()
        ));
    }
    for (label, value) in labels.iter() {
        if let Some(max) = limits.label_name_bytes.filter(|max| label.len() > *max) {
            return Err(format!(
                "a label of {name} has a name of {} bytes, more than label_name_length_limit {max}",
                label.len()
            ));
        }
        if let Some(max) = limits.label_value_bytes.filter(|max| value.len() > *max) {
            return Err(format!(
                "the label {label} of {name} has {} bytes, more than label_value_length_limit {max}",
                value.len()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use std::fmt::Write;
    use std::sync::Arc;

    fn target(job: &str) -> (Target, BTreeMap<String, String>) {
        let yaml = format!(
            "global: {{external_labels: {{site: s}}}}\nscrape_configs: [{{job_name: j, static_configs: [{{targets: [a]}}], {job}}}]"
        );
        let mut config = crate::config::parse("f", &yaml).unwrap();
        let job = Arc::new(config.jobs.remove(0));
        let found = crate::target::find(&job, &job.groups, 1).active.remove(0);
        ((*found).clone(), config.external_labels)
    }

    /// Scrapes one page after the other, a second apart; `down` is no answer.
    fn check(job: &str, pages: &[&str], expect: Expect) {
        let ((target, external), mut series, mut out) = (target(job), Series::default(), String::new());
        for (n, page) in (1..).zip(pages) {
            let answer = match *page {
                "down" => Err("no connection".to_owned()),
                page => Ok(Answer::Page {
                    body: page.as_bytes(),
                    format: Format::Prometheus,
                }),
            };
            let at = TimestampNs::from_secs(n);
            let taken = take(&target, &external, answer, at, SpanNs::from_ms(5), &mut series);
            writeln!(out, "{n}: {}", taken.error.as_deref().unwrap_or("well")).unwrap();
            show(&taken.rows, &mut out);
        }
        expect.assert_eq(&out);
    }

    fn show(rows: &[(Labels, Vec<Sample>)], out: &mut String) {
        let mut report = vec![];
        for (labels, samples) in rows {
            for s in samples {
                let value = match s.value.to_bits() {
                    STALE_NAN_BITS => "stale".to_owned(),
                    _ => s.value.to_string(),
                };
                if OF_SCRAPE.contains(&labels.get(METRIC_NAME).unwrap()) && s.value.to_bits() != STALE_NAN_BITS {
                    report.push(value);
                } else {
                    writeln!(out, "  {labels} {value} @{}", s.at.as_ms()).unwrap();
                }
            }
        }
        if !report.is_empty() {
            writeln!(out, "  up, seconds, scraped, kept, added: {}", report.join(", ")).unwrap();
        }
    }

    #[test]
    fn an_exemplar_that_a_page_shows_for_long_is_taken_once() {
        let (target, external) = target("scrape_interval: 10s");
        let mut series = Series::default();
        let mut scrape = |secs: i64, page: &str| {
            let page = format!("{page}\n# EOF\n");
            let format = Format::OpenMetrics;
            let body = page.as_bytes();
            let at = TimestampNs::from_secs(secs);
            let taken = take(
                &target,
                &external,
                Ok(Answer::Page { body, format }),
                at,
                SpanNs(1),
                &mut series,
            );
            let of = |(labels, e): &(Labels, PageExemplar)| {
                let id = &e.labels[0].1;
                format!(
                    "{} {id} {} {}",
                    labels.metric_name().unwrap(),
                    e.value,
                    e.at_ms.unwrap()
                )
            };
            let taken: Vec<_> = taken.exemplars.iter().map(of).chain(taken.error).collect();
            taken.join(", ")
        };
        // The first time: what is older than an interval was there before.
        let first = "a_total 1 # {t=\"old\"} 1 80\nb_total 1 # {t=\"new\"} 2 95\nc_total 1 # {t=\"timeless\"} 3";
        expect!["b_total new 2 95000, c_total timeless 3 100000"].assert_eq(&scrape(100, first));
        expect![""].assert_eq(&scrape(110, first));
        // A newer one, one that is older than the last, and another one without a time.
        let next = "a_total 1 # {t=\"newer\"} 1 105\nb_total 1 # {t=\"older\"} 2 94\nc_total 1 # {t=\"timeless\"} 4";
        expect!["a_total newer 1 105000, c_total timeless 4 120000"].assert_eq(&scrape(120, next));
        // A page that cannot be read takes nothing and forgets nothing.
        expect!["line 4: no value"].assert_eq(&scrape(130, &format!("{first}\nbad")));
        expect![""].assert_eq(&scrape(140, next));
    }

    #[test]
    fn of_one_page_so_many_exemplars_are_taken_and_the_rest_is_counted() {
        let (target, external) = target("");
        let lines = |n: usize| {
            let line = |i| format!("a_total{{i=\"{i}\"}} 1 # {{t=\"x\"}} 1\n");
            (0..n).map(line).collect::<String>()
        };
        let page = format!("{}b_total 1 # x\n# EOF\n", lines(EXEMPLARS_PER_SCRAPE_MAX + 2));
        let answer = Answer::Page {
            body: page.as_bytes(),
            format: Format::OpenMetrics,
        };
        let mut series = Series::default();
        let taken = take(&target, &external, Ok(answer), TimestampNs(0), SpanNs(1), &mut series);
        assert_eq!(
            (taken.exemplars.len(), taken.exemplars_left_out),
            (EXEMPLARS_PER_SCRAPE_MAX, 3)
        );
        assert_eq!((taken.error, taken.kept), (None, EXEMPLARS_PER_SCRAPE_MAX + 3));
    }

    #[test]
    fn series_that_vanish_are_marked_once_and_a_failed_scrape_ends_all() {
        check(
            "",
            &["m 1\nn{x=\"1\"} 2", "m 3", "m 4", "down", "down", "m 5"],
            expect![[r#"
            1: well
              m{instance="a", job="j", site="s"} 1 @1000
              n{instance="a", job="j", site="s", x="1"} 2 @1000
              up, seconds, scraped, kept, added: 1, 0.005, 2, 2, 2
            2: well
              m{instance="a", job="j", site="s"} 3 @2000
              n{instance="a", job="j", site="s", x="1"} stale @2000
              up, seconds, scraped, kept, added: 1, 0.005, 1, 1, 0
            3: well
              m{instance="a", job="j", site="s"} 4 @3000
              up, seconds, scraped, kept, added: 1, 0.005, 1, 1, 0
            4: no connection
              m{instance="a", job="j", site="s"} stale @4000
              up, seconds, scraped, kept, added: 0, 0.005, 0, 0, 0
            5: no connection
              up, seconds, scraped, kept, added: 0, 0.005, 0, 0, 0
            6: well
              m{instance="a", job="j", site="s"} 5 @6000
              up, seconds, scraped, kept, added: 1, 0.005, 1, 1, 1
        "#]],
        );
    }

    #[test]
    fn labels_of_the_target_win_unless_those_of_the_page_are_honored() {
        let page = "m{job=\"x\",instance=\"i\",exported_job=\"y\"} 1\nf{instance=\"\"} 2";
        check(
            "",
            &[page],
            expect![[r#"
            1: well
              m{exported_exported_job="x", exported_instance="i", exported_job="y", instance="a", job="j", site="s"} 1 @1000
              f{instance="a", job="j", site="s"} 2 @1000
              up, seconds, scraped, kept, added: 1, 0.005, 2, 2, 2
        "#]],
        );
        check(
            "honor_labels: true",
            &[page],
            expect![[r#"
            1: well
              m{exported_job="y", instance="i", job="x", site="s"} 1 @1000
              f{job="j", site="s"} 2 @1000
              up, seconds, scraped, kept, added: 1, 0.005, 2, 2, 2
        "#]],
        );
    }

    #[test]
    fn timestamps_of_the_page_are_honored_and_not_tracked_unless_it_is_said() {
        let pages = ["m 1 500\nm 2 600\nm 9 600", "n 1"];
        check(
            "",
            &pages,
            expect![[r#"
            1: well
              m{instance="a", job="j", site="s"} 1 @500
              m{instance="a", job="j", site="s"} 2 @600
              up, seconds, scraped, kept, added: 1, 0.005, 3, 3, 0
            2: well
              n{instance="a", job="j", site="s"} 1 @2000
              up, seconds, scraped, kept, added: 1, 0.005, 1, 1, 1
        "#]],
        );
        check(
            "honor_timestamps: false",
            &pages,
            expect![[r#"
            1: well
              m{instance="a", job="j", site="s"} 1 @1000
              up, seconds, scraped, kept, added: 1, 0.005, 3, 3, 1
            2: well
              n{instance="a", job="j", site="s"} 1 @2000
              m{instance="a", job="j", site="s"} stale @2000
              up, seconds, scraped, kept, added: 1, 0.005, 1, 1, 1
        "#]],
        );
        check(
            "track_timestamps_staleness: true",
            &pages,
            expect![[r#"
            1: well
              m{instance="a", job="j", site="s"} 1 @500
              m{instance="a", job="j", site="s"} 2 @600
              up, seconds, scraped, kept, added: 1, 0.005, 3, 3, 1
            2: well
              n{instance="a", job="j", site="s"} 1 @2000
              m{instance="a", job="j", site="s"} stale @2000
              up, seconds, scraped, kept, added: 1, 0.005, 1, 1, 1
        "#]],
        );
    }

    #[test]
    fn metrics_are_relabeled_and_dropped() {
        check(
            "metric_relabel_configs: [{action: drop, source_labels: [__name__], regex: 'go_.*'}, {source_labels: [mode], target_label: m}, {action: labeldrop, regex: mode}]",
            &["go_x 1\ncpu{mode=\"idle\"} 2"],
            expect![[r#"
                1: well
                  cpu{instance="a", job="j", m="idle", site="s"} 2 @1000
                  up, seconds, scraped, kept, added: 1, 0.005, 2, 1, 1
            "#]],
        );
        check(
            "metric_relabel_configs: [{action: labeldrop, regex: __name__}]",
            &["a 1"],
            expect![[r#"
            1: metric_relabel_configs take the name of a metric away
              up, seconds, scraped, kept, added: 0, 0.005, 1, 0, 0
        "#]],
        );
    }

    #[test]
    fn what_is_beyond_a_limit_is_a_failed_scrape() {
        check(
            "sample_limit: 2",
            &["a 1\nb 1", "a 1\nb 1\nc 1\nd 1"],
            expect![[r#"
            1: well
              a{instance="a", job="j", site="s"} 1 @1000
              b{instance="a", job="j", site="s"} 1 @1000
              up, seconds, scraped, kept, added: 1, 0.005, 2, 2, 2
            2: the page has 4 samples after relabeling, more than the limit of 2; raise sample_limit, or drop some
              a{instance="a", job="j", site="s"} stale @2000
              b{instance="a", job="j", site="s"} stale @2000
              up, seconds, scraped, kept, added: 0, 0.005, 4, 4, 0
        "#]],
        );
        check(
            "label_limit: 3",
            &["a{x=\"1\"} 1"],
            expect![[r#"
            1: a has 4 labels, more than label_limit 3
              up, seconds, scraped, kept, added: 0, 0.005, 1, 0, 0
        "#]],
        );
        check(
            "label_name_length_limit: 8",
            &["a{long_name=\"1\"} 1"],
            expect![[r#"
            1: a label of a has a name of 9 bytes, more than label_name_length_limit 8
              up, seconds, scraped, kept, added: 0, 0.005, 1, 0, 0
        "#]],
        );
        check(
            "label_value_length_limit: 3",
            &["a{x=\"1234\"} 1"],
            expect![[r#"
            1: the label x of a has 4 bytes, more than label_value_length_limit 3
              up, seconds, scraped, kept, added: 0, 0.005, 1, 0, 0
        "#]],
        );
        check(
            "",
            &["a 1\nb"],
            expect![[r#"
            1: line 2: no value
              up, seconds, scraped, kept, added: 0, 0.005, 1, 1, 0
        "#]],
        );
    }

    #[test]
    fn the_end_of_a_target_ends_what_it_says_of_itself_too() {
        let ((target, external), mut series, mut out) = (target(""), Series::default(), "at the end\n".to_owned());
        let page = Answer::Page {
            body: b"m 1",
            format: Format::Prometheus,
        };
        let at = TimestampNs::from_secs(1);
        assert_eq!(end(Series::default(), at), []);
        take(&target, &external, Ok(page), at, SpanNs::ZERO, &mut series);
        show(&end(series, TimestampNs::from_secs(2)), &mut out);
        expect![[r#"
            at the end
              m{instance="a", job="j", site="s"} stale @2000
              up{instance="a", job="j", site="s"} stale @2000
              scrape_duration_seconds{instance="a", job="j", site="s"} stale @2000
              scrape_samples_scraped{instance="a", job="j", site="s"} stale @2000
              scrape_samples_post_metric_relabeling{instance="a", job="j", site="s"} stale @2000
              scrape_series_added{instance="a", job="j", site="s"} stale @2000
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn a_page_that_is_not_text_is_a_failed_scrape() {
        let (target, external) = target("");
        let page = Answer::Page {
            body: b"m 1\n\xff",
            format: Format::Prometheus,
        };
        let taken = take(
            &target,
            &external,
            Ok(page),
            TimestampNs::EPOCH,
            SpanNs::ZERO,
            &mut Series::default(),
        );
        assert_eq!(taken.error.as_deref(), Some("the page is not UTF-8 from byte 4 on"));
    }

    #[test]
    fn other_external_labels_end_what_a_target_said_of_itself_under_the_old_ones() {
        let ((target, external), mut series, mut out) = (target(""), Series::default(), "in turn\n".to_owned());
        let other = BTreeMap::from([("site".to_owned(), "t".to_owned())]);
        for (n, external) in (1..).zip([&external, &other, &other]) {
            let page = Answer::Page {
                body: b"m 1",
                format: Format::Prometheus,
            };
            let at = TimestampNs::from_secs(n);
            let taken = take(&target, external, Ok(page), at, SpanNs::ZERO, &mut series);
            show(&taken.rows, &mut out);
        }
        expect![[r#"
            in turn
              m{instance="a", job="j", site="s"} 1 @1000
              up, seconds, scraped, kept, added: 1, 0, 1, 1, 1
              m{instance="a", job="j", site="t"} 1 @2000
              m{instance="a", job="j", site="s"} stale @2000
              scrape_duration_seconds{instance="a", job="j", site="s"} stale @2000
              scrape_samples_post_metric_relabeling{instance="a", job="j", site="s"} stale @2000
              scrape_samples_scraped{instance="a", job="j", site="s"} stale @2000
              scrape_series_added{instance="a", job="j", site="s"} stale @2000
              up{instance="a", job="j", site="s"} stale @2000
              up, seconds, scraped, kept, added: 1, 0, 1, 1, 1
              m{instance="a", job="j", site="t"} 1 @3000
              up, seconds, scraped, kept, added: 1, 0, 1, 1, 0
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn series_that_a_target_takes_over_end_when_it_does_not_have_them() {
        let ((target, external), mut out) = (target(""), String::new());
        let other = BTreeMap::from([("site".to_owned(), "t".to_owned())]);
        let [mut series, mut old] = [(&other, "m 1"), (&external, "m 1\nn 1")].map(|(external, body)| {
            let page = Answer::Page {
                body: body.as_bytes(),
                format: Format::Prometheus,
            };
            let mut series = Series::default();
            let at = TimestampNs::from_secs(1);
            take(&target, external, Ok(page), at, SpanNs::ZERO, &mut series);
            series
        });
        let mut empty = Series::default();
        empty.absorb(std::mem::take(&mut old));
        series.absorb(empty);
        show(&end(series, TimestampNs::from_secs(2)), &mut out);
        let ended = |site: &str| {
            out.lines()
                .filter(|l| l.contains(&format!("site=\"{site}\"}} stale")))
                .count()
        };
        assert_eq!((ended("s"), ended("t")), (7, 6), "{out}");
    }

    /// Comparing each with all before it took minutes.
    #[test]
    fn a_page_with_one_series_and_many_times_of_its_own_is_taken_in_the_end() {
        let (target, external) = target("");
        let clock = hindcast_env::io::SystemClock::new();
        let count = 200_000;
        for (kind, ms) in [
            ("rising", [1, 1, 0]),
            ("falling", [-1, 0, 1]),
            ("up and down", [7919, 3, 0]),
        ] {
            let [step, start, _] = ms;
            let time = |i: i64| (start + i * step).rem_euclid(count);
            let mut body: String = (0..count).map(|i| format!("a {i} {}\n", time(i))).collect();
            body += &format!("a 1 {}\na 1 {}\n", time(0), time(count / 2));
            let answer = Answer::Page {
                body: body.as_bytes(),
                format: Format::Prometheus,
            };
            let began = hindcast_env::Clock::monotonic(&clock);
            let taken = take(
                &target,
                &external,
                Ok(answer),
                TimestampNs::EPOCH,
                SpanNs::ZERO,
                &mut Series::default(),
            );
            let took = SpanNs(hindcast_env::Clock::monotonic(&clock).0 - began.0);
            assert_eq!((taken.rows[0].1.len() as i64, taken.doubled), (count, 2), "{kind}");
            assert!(took < SpanNs::from_secs(30), "{kind}: {took}");
        }
    }

    #[test]
    fn a_limit_that_cannot_be_raised_does_not_ask_for_it() {
        let (target, external) = target("");
        let body = "a 1\n".repeat(SAMPLES_PER_SCRAPE_MAX + 1);
        let answer = Answer::Page {
            body: body.as_bytes(),
            format: Format::Prometheus,
        };
        let mut series = Series::default();
        let taken = take(
            &target,
            &external,
            Ok(answer),
            TimestampNs::EPOCH,
            SpanNs::ZERO,
            &mut series,
        );
        assert_eq!(
            taken.error.as_deref(),
            Some(
                "the page has 500001 samples after relabeling, more than the 500000 that one scrape may have; drop some"
            )
        );
    }

    /// Rounded down to a millisecond, as it is stored, it would be before all time.
    #[test]
    fn the_oldest_time_that_a_page_can_name_is_one() {
        check(
            "",
            &["m 1 -9223372036854775808"],
            expect![[r#"
            1: well
              m{instance="a", job="j", site="s"} 1 @-9223372036854
              up, seconds, scraped, kept, added: 1, 0.005, 1, 1, 0
        "#]],
        );
    }

    proptest! {
        /// At each moment, the series that were there last are those of the last page: what is not in it was marked, once.
        #[test]
        fn who_reads_the_rows_knows_what_is_there(pages in proptest::collection::vec(proptest::option::of(0u8..32), 1..12)) {
            let ((target, external), mut series) = (target(""), Series::default());
            let mut alive = std::collections::BTreeSet::new();
            for (n, page) in (1..).zip(pages) {
                let names: Vec<u8> = page.map_or(vec![], |bits| (0..5).filter(|i| bits >> i & 1 == 1).collect());
                let body: String = names.iter().map(|i| format!("m{i} {n}\n")).collect();
                let answer = match page {
                    None => Err("down".to_owned()),
                    Some(_) => Ok(Answer::Page { body: body.as_bytes(), format: Format::Prometheus }),
                };
                let taken = take(&target, &external, answer, TimestampNs::from_secs(n), SpanNs::ZERO, &mut series);
                for (labels, samples) in &taken.rows {
                    let name = labels.get(METRIC_NAME).unwrap().to_owned();
                    prop_assert_eq!(samples.len(), 1);
                    if samples[0].value.to_bits() == STALE_NAN_BITS {
                        prop_assert!(alive.remove(&name), "{} was not there", name);
                    } else {
                        alive.insert(name);
                    }
                }
                let expected: Vec<_> = names.iter().map(|i| format!("m{i}")).collect();
                let there: Vec<_> = alive.iter().filter(|n| n.starts_with('m')).cloned().collect();
                prop_assert_eq!(there, expected);
            }
        }
    }
}
