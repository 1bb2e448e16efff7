//! Where one batch is sent next, when, and when it ends.
//!
//! Pure: a function of what came of the last attempt and the time. Endpoints are tried in turn without a pause; after
//! a round of failures on all of them the pause doubles, up to [`PAUSE_MAX`], and is no shorter than what a node asked for. With
//! jitter, it is cut by up to a half at random, so that the agents of many hosts do not come back all at once. The endpoint that
//! answered stays the first choice for the next batch.

use hindcast_env::{Rng, SeededRng};
use hindcast_model::time::{SpanNs, TimestampNs};

pub const PAUSE_FIRST: SpanNs = SpanNs::from_ms(200);
pub const PAUSE_MAX: SpanNs = SpanNs::from_secs(5);
/// A node that asks for more is asked again after this.
pub const WAIT_MAX: SpanNs = SpanNs::from_secs(300);

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A batch is to be sent, or the pause is over.
    Due,
    Accepted,
    /// The batch itself is wrong: no retry changes that.
    Refused,
    /// Not reached, no quorum, too busy, or no answer in time: it may or may not be stored. A node that is too busy may say how long
    /// it is to be left alone.
    Failed {
        wait: Option<SpanNs>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Send { endpoint: usize },
    WakeAt(TimestampNs),
    End(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    Refused,
    GaveUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Sending,
    Waiting,
}

/// Deliveries of one client, one batch at a time.
#[derive(Clone, Debug)]
pub struct Delivery {
    endpoints: usize,
    endpoint: usize,
    /// Rounds over all endpoints before a batch is given up; `None`: never.
    rounds_max: Option<u32>,
    failures: u32,
    /// The longest that was asked for in this round.
    wait: SpanNs,
    jitter: Option<SeededRng>,
    state: State,
}

impl Delivery {
    pub fn new(endpoints: usize, rounds_max: Option<u32>) -> Self {
        assert!(endpoints > 0, "a delivery needs an endpoint");
        Self {
            endpoints,
            endpoint: 0,
            rounds_max,
            failures: 0,
            wait: SpanNs(0),
            jitter: None,
            state: State::Idle,
        }
    }

    pub fn with_jitter(mut self, rng: SeededRng) -> Self {
        self.jitter = Some(rng);
        self
    }

    pub fn step(&mut self, input: Input, now: TimestampNs) -> Next {
        match (self.state, input) {
            (State::Idle | State::Waiting, Input::Due) => self.send(),
            (State::Sending, Input::Accepted) => self.end(Outcome::Delivered),
            (State::Sending, Input::Refused) => self.end(Outcome::Refused),
            (State::Sending, Input::Failed { wait }) => {
                self.wait = self.wait.max(wait.unwrap_or(SpanNs(0)).min(WAIT_MAX));
                self.failures = self.failures.saturating_add(1);
                self.endpoint = (self.endpoint + 1) % self.endpoints;
                let endpoints = u32::try_from(self.endpoints).unwrap_or(u32::MAX);
                if !self.failures.is_multiple_of(endpoints) {
                    return self.send();
                }
                let rounds = self.failures / endpoints;
                if self.rounds_max.is_some_and(|max| rounds >= max) {
                    return self.end(Outcome::GaveUp);
                }
                self.state = State::Waiting;
                let wait = std::mem::replace(&mut self.wait, SpanNs(0));
                Next::WakeAt(now + self.jittered(PAUSE_FIRST.doubled(rounds - 1).min(PAUSE_MAX)).max(wait))
            }
            (state, input) => unreachable!("{input:?} while {state:?}"),
        }
    }

    fn jittered(&mut self, pause: SpanNs) -> SpanNs {
        match &mut self.jitter {
            Some(rng) => SpanNs(pause.0 - rng.below(pause.0 / 2 + 1)),
            None => pause,
        }
    }

    /// Forgets an attempt whose caller went away before its end.
    pub fn abandon(&mut self) {
        self.state = State::Idle;
        self.failures = 0;
        self.wait = SpanNs(0);
    }

    fn send(&mut self) -> Next {
        self.state = State::Sending;
        Next::Send {
            endpoint: self.endpoint,
        }
    }

    fn end(&mut self, outcome: Outcome) -> Next {
        self.abandon();
        Next::End(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use std::fmt::Write;

    /// Lines of `<ms> <input>` against a client with that many endpoints.
    fn check(endpoints: usize, rounds_max: Option<u32>, script: &str, expect: Expect) {
        let mut delivery = Delivery::new(endpoints, rounds_max);
        let mut out = String::new();
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let (ms, what) = line.split_once(' ').unwrap();
            let input = match what {
                "due" => Input::Due,
                "accepted" => Input::Accepted,
                "refused" => Input::Refused,
                "failed" => Input::Failed { wait: None },
                other => {
                    let ms = other.strip_prefix("busy ").unwrap_or_else(|| panic!("{other}"));
                    let wait = Some(SpanNs::from_ms(ms.parse().unwrap()));
                    Input::Failed { wait }
                }
            };
            let next = match delivery.step(input, TimestampNs::from_ms(ms.parse().unwrap())) {
                Next::Send { endpoint } => format!("send to {endpoint}"),
                Next::WakeAt(at) => format!("wake at {}", at.as_ms()),
                Next::End(outcome) => format!("{outcome:?}"),
            };
            writeln!(out, "{line:<12} -> {next}").unwrap();
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn the_next_node_is_tried_at_once_and_kept_while_it_answers() {
        check(
            3,
            None,
            "
            0 due
            1 failed
            2 failed
            3 accepted
            9 due
            9 failed
            9 failed
            10 failed
            210 due
            210 failed
            210 failed
            211 failed
            ",
            expect![[r#"
                0 due        -> send to 0
                1 failed     -> send to 1
                2 failed     -> send to 2
                3 accepted   -> Delivered
                9 due        -> send to 2
                9 failed     -> send to 0
                9 failed     -> send to 1
                10 failed    -> wake at 210
                210 due      -> send to 2
                210 failed   -> send to 0
                210 failed   -> send to 1
                211 failed   -> wake at 611
            "#]],
        );
    }

    #[test]
    fn a_refused_batch_ends_and_a_short_patience_gives_up() {
        check(
            1,
            Some(2),
            "
            0 due
            1 refused
            2 due
            3 failed
            203 due
            204 failed
            ",
            expect![[r#"
                0 due        -> send to 0
                1 refused    -> Refused
                2 due        -> send to 0
                3 failed     -> wake at 203
                203 due      -> send to 0
                204 failed   -> GaveUp
            "#]],
        );
    }

    #[test]
    fn a_busy_node_is_left_alone_for_as_long_as_it_asked_within_a_bound() {
        check(
            2,
            None,
            "
            0 due
            1 busy 3000
            2 failed
            3002 due
            3002 failed
            3003 failed
            3403 due
            3403 busy 9000000
            3404 failed
            ",
            expect![[r#"
                0 due        -> send to 0
                1 busy 3000  -> send to 1
                2 failed     -> wake at 3002
                3002 due     -> send to 0
                3002 failed  -> send to 1
                3003 failed  -> wake at 3403
                3403 due     -> send to 0
                3403 busy 9000000 -> send to 1
                3404 failed  -> wake at 303404
            "#]],
        );
    }

    proptest! {
        #[test]
        fn jitter_cuts_a_pause_by_no_more_than_a_half(seed in any::<u64>(), failures in 1usize..40) {
            let mut plain = Delivery::new(1, None);
            let mut shaken = Delivery::new(1, None).with_jitter(SeededRng::new(seed));
            let now = TimestampNs::EPOCH;
            for _ in 0..failures {
                let pause = |d: &mut Delivery| {
                    d.step(Input::Due, now);
                    match d.step(Input::Failed { wait: None }, now) {
                        Next::WakeAt(at) => at.since(now).0,
                        next => panic!("{next:?}"),
                    }
                };
                let (whole, cut) = (pause(&mut plain), pause(&mut shaken));
                prop_assert!(cut <= whole && cut >= whole / 2);
            }
        }

        #[test]
        fn however_long_it_fails_the_pause_stays_bounded_and_every_endpoint_has_its_turn(
            endpoints in 1usize..6, failures in 1usize..200,
        ) {
            let mut delivery = Delivery::new(endpoints, None);
            let mut now = TimestampNs::EPOCH;
            let mut sends = vec![0usize; endpoints];
            let mut next = delivery.step(Input::Due, now);
            for _ in 0..failures {
                if let Next::WakeAt(at) = next {
                    prop_assert!(at.since(now) <= PAUSE_MAX && at > now);
                    now = at;
                    next = delivery.step(Input::Due, now);
                }
                let Next::Send { endpoint } = next else { panic!("{next:?}") };
                sends[endpoint] += 1;
                next = delivery.step(Input::Failed { wait: None }, now);
            }
            let (least, most) = (sends.iter().min().unwrap(), sends.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{:?}", sends);
        }
    }
}
