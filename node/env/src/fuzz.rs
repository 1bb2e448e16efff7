//! Decoders against damaged bytes: entry points that any fuzzer can call, and a plain in-process mutation loop.
//!
//! Each crate lists its decoders as [`Target`]s beside seeds that its own encoders made. What is promised for each: any
//! bytes are read or refused; nothing panics, hangs, or takes memory beyond a stated bound. The loop knows no
//! coverage, so it lives from good seeds; cargo-fuzz calls the same entry points with coverage.
//!
//! A mutation nearly always breaks a checksum, and then shows nothing of what lies behind it. So entry points run
//! their decoders [`without_checksums`]: on this thread, for this call, a sum that does not fit is let pass.

use crate::clock::Clock;
use crate::rng::{Rng, SeededRng};
use hindcast_model::SpanNs;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A decoder that takes any bytes.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Bytes as our own encoders write them.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

thread_local! {
    static LENIENT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with checksums that always fit, on this thread. Only fuzz targets may ask for this.
pub fn without_checksums<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            LENIENT.set(self.0);
        }
    }
    let _restore = Restore(LENIENT.replace(true));
    f()
}

/// What a verifier asks after it compared: `fits`, unless a fuzz target runs.
#[inline]
pub fn sum_fits(fits: bool) -> bool {
    fits || LENIENT.get()
}

/// No mutant is longer.
pub const INPUT_BYTES_MAX: usize = 64 << 10;
/// A decoder that takes longer for such an input hangs, or lets its input choose how long it works.
pub const INPUT_SPAN_MAX: SpanNs = SpanNs::from_secs(5);
/// Findings kept per target; more are only counted.
pub const FINDINGS_MAX: usize = 10;

/// How long a target is hunted: until either bound is reached.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub span: SpanNs,
    pub inputs: u64,
}

/// An input that should not do what it does.
#[derive(Clone, Debug)]
pub struct Finding {
    pub input: Vec<u8>,
    pub what: String,
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub inputs: u64,
    pub slowest: SpanNs,
    pub found: u64,
    pub findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, input: &[u8], what: String) {
        self.found += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding {
                input: input.to_vec(),
                what,
            });
        }
    }
}

/// Runs a target on its seeds and on `more`, then on mutants of them. `watch` is asked now and then whether the target may go on
/// (its memory, say); what it says ends the hunt as a finding.
pub fn hunt(
    target: &Target,
    more: &[Vec<u8>],
    rng: &mut SeededRng,
    clock: &dyn Clock,
    budget: Budget,
    mut watch: impl FnMut() -> Option<String>,
) -> Report {
    const WATCH_EVERY: u64 = 256;
    let mut seeds = (target.seeds)();
    seeds.extend_from_slice(more);
    let started = clock.monotonic();
    let mut report = Report::default();
    let mut input = vec![];
    while report.inputs < budget.inputs {
        match seeds.get(report.inputs as usize) {
            Some(seed) => input.clone_from(seed),
            None => mutate(rng, &seeds, &mut input),
        }
        let before = clock.monotonic();
        let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        let after = clock.monotonic();
        let took = SpanNs(after.0 - before.0);
        report.inputs += 1;
        report.slowest = report.slowest.max(took);
        if let Err(panic) = ran {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            report.add(&input, format!("panic: {}", text.unwrap_or("?")));
        }
        if took > INPUT_SPAN_MAX {
            report.add(&input, format!("took {took}"));
        }
        if report.inputs.is_multiple_of(WATCH_EVERY)
            && let Some(what) = watch()
        {
            report.add(
                &input,
                format!("one of the last {WATCH_EVERY} inputs, this being the last: {what}"),
            );
            break;
        }
        if after.0 - started.0 > budget.span.0 {
            break;
        }
    }
    report
}

/// Numbers that decoders stumble over.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX - 1,
    u64::MAX,
];

fn mutate(rng: &mut SeededRng, seeds: &[Vec<u8>], input: &mut Vec<u8>) {
    input.clear();
    if seeds.is_empty() || rng.below(64) == 0 {
        let len = rng.below(200);
        input.extend((0..len).map(|_| rng.next_u64() as u8));
        return;
    }
    input.extend_from_slice(&seeds[rng.below(seeds.len() as u64) as usize]);
    for _ in 0..1 + rng.below(6) {
        mutate_once(rng, seeds, input);
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn mutate_once(rng: &mut SeededRng, seeds: &[Vec<u8>], input: &mut Vec<u8>) {
    let len = input.len();
    if len == 0 {
        return input.push(rng.next_u64() as u8);
    }
    // Headers, counts and footers decide most: half of all changes hit one of the ends.
    let at = match rng.below(4) {
        0 => rng.below(len.min(64) as u64) as usize,
        1 => len - 1 - rng.below(len.min(96) as u64) as usize,
        _ => rng.below(len as u64) as usize,
    };
    let span = (1 + rng.below(32) as usize).min(len - at);
    match rng.below(10) {
        0 | 1 => input[at] ^= 1 << rng.below(8),
        2 => input[at] = rng.next_u64() as u8,
        3 => input[at] = input[at].wrapping_add(if rng.below(2) == 0 { 1 } else { 255 }),
        4 => {
            let number = NUMBERS[rng.below(NUMBERS.len() as u64) as usize].to_le_bytes();
            let width = 1 << rng.below(4);
            let end = (at + width).min(len);
            input[at..end].copy_from_slice(&number[..end - at]);
        }
        5 => {
            // A varint of any length.
            let mut number = NUMBERS[rng.below(NUMBERS.len() as u64) as usize];
            let mut varint = vec![];
            while number >= 0x80 {
                varint.push(number as u8 | 0x80);
                number >>= 7;
            }
            varint.push(number as u8);
            input.splice(at..at + 1, varint);
        }
        6 => drop(input.drain(at..at + span)),
        7 => {
            let again = input[at..at + span].to_vec();
            input.splice(at..at, again);
        }
        8 => input.truncate(at),
        _ => {
            // A piece of another seed.
            let other = &seeds[rng.below(seeds.len() as u64) as usize];
            if !other.is_empty() {
                let from = rng.below(other.len() as u64) as usize;
                let piece = &other[from..(from + span).min(other.len())];
                input.splice(at..at + piece.len().min(len - at), piece.iter().copied());
            }
        }
    }
}

/// What a crate's own test does with its targets: seeds must be read, and some thousand mutants must do no harm.
///
/// # Panics
/// When a target does.
pub fn check_targets(targets: &[Target], clock: &dyn Clock, span_each: SpanNs) {
    for (n, target) in targets.iter().enumerate() {
        assert!(!(target.seeds)().is_empty(), "{} has no seeds", target.name);
        let budget = Budget {
            span: span_each,
            inputs: 4_000,
        };
        let report = hunt(target, &[], &mut SeededRng::new(n as u64), clock, budget, || None);
        if let Some(finding) = report.findings.first() {
            panic!("{}: {} by {:02x?}", target.name, finding.what, finding.input);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SimClock;

    fn two_seeds() -> Vec<Vec<u8>> {
        vec![b"\x04four".to_vec(), vec![0; 300]]
    }

    /// Believes the length in the first byte.
    fn believes_lengths(bytes: &[u8]) {
        if let Some((len, rest)) = bytes.split_first() {
            let _ = rest[..usize::from(*len)].len();
        }
    }

    fn budget(inputs: u64) -> Budget {
        Budget {
            span: SpanNs::from_secs(1),
            inputs,
        }
    }

    #[test]
    fn a_decoder_that_believes_its_input_is_found_and_the_same_seed_finds_the_same() {
        let target = Target {
            name: "believes",
            run: believes_lengths,
            seeds: two_seeds,
        };
        let hunts = [0, 0].map(|seed| {
            let clock = SimClock::default();
            hunt(&target, &[], &mut SeededRng::new(seed), &clock, budget(500), || None)
        });
        assert!(hunts[0].found > 0);
        assert!(
            hunts[0].findings[0].what.contains("panic"),
            "{:?}",
            hunts[0].findings[0]
        );
        assert_eq!(hunts[0].findings[0].input, hunts[1].findings[0].input);
        assert_eq!((hunts[0].inputs, hunts[0].found), (hunts[1].inputs, hunts[1].found));
    }

    #[test]
    fn a_decoder_that_checks_is_left_alone_and_memory_is_watched() {
        let target = Target {
            name: "checks",
            run: |bytes| {
                let _ = bytes.split_first().and_then(|(n, rest)| rest.get(..usize::from(*n)));
            },
            seeds: two_seeds,
        };
        let clock = SimClock::default();
        let report = hunt(&target, &[], &mut SeededRng::new(1), &clock, budget(1000), || None);
        assert_eq!((report.inputs, report.found), (1000, 0));
        let report = hunt(&target, &[], &mut SeededRng::new(1), &clock, budget(1000), || {
            Some("too much".into())
        });
        assert_eq!((report.inputs, report.found), (256, 1));
    }

    #[test]
    fn checksums_count_again_after_a_target_even_one_that_panicked() {
        assert!(!sum_fits(false));
        assert!(without_checksums(|| sum_fits(false)));
        let _ = catch_unwind(|| without_checksums(|| panic!("on purpose")));
        assert!(!sum_fits(false) && sum_fits(true));
    }
}
