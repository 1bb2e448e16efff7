//! What an answer means for a batch: confirmed, to be sent again, or wrong; and when it is sent again.
//!
//! Pure. Only what a server has confirmed is counted. A batch that may or may not be stored is sent again with the same
//! id, which a server stores once.

use std::time::Duration;

pub const PAUSE_FIRST: Duration = Duration::from_millis(20);
pub const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A batch that nobody confirms for so long ends the run: its figures would be of a broken cluster.
pub const UNCONFIRMED_SPAN_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many samples are stored; for the others the server gave a reason.
    Acked { samples: u64, refused: Option<String> },
    /// Not now, or not known: the same bytes again.
    Again(String),
    /// Wrong on every retry.
    Refused(String),
}

/// From gRPC's code, by number.
pub fn of_grpc_code(code: i32, message: &str) -> Outcome {
    let text = format!("gRPC code {code}: {message}");
    match code {
        // CANCELLED, UNKNOWN (a broken connection), DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, UNAVAILABLE.
        1 | 2 | 4 | 8 | 10 | 14 => Outcome::Again(text),
        _ => Outcome::Refused(text),
    }
}

/// From remote write's HTTP status. A 400 does not say how much was stored: none of it counts.
pub fn of_http_status(status: u16, samples: u64, message: &str) -> Outcome {
    let text = format!("HTTP {status}: {}", message.trim_end());
    match status {
        200..=299 => Outcome::Acked { samples, refused: None },
        429 | 500..=599 => Outcome::Again(text),
        _ => Outcome::Refused(text),
    }
}

/// The endpoint of attempt number `attempt` (from 0), beginning with the writer's own, and the pause before it.
pub fn attempt(first: usize, endpoints: usize, attempt: u32) -> (usize, Duration) {
    let endpoints_u32 = u32::try_from(endpoints).unwrap_or(u32::MAX).max(1);
    let round = attempt / endpoints_u32;
    let pause = match attempt % endpoints_u32 {
        // All were asked: let them elect.
        0 if round > 0 => PAUSE_FIRST.saturating_mul(1 << (round - 1).min(10)).min(PAUSE_MAX),
        _ => Duration::ZERO,
    };
    ((first + attempt as usize) % endpoints.max(1), pause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn the_next_node_is_asked_at_once_and_each_round_waits_longer() {
        let mut out = String::new();
        for n in 0..12 {
            let (endpoint, pause) = attempt(1, 3, n);
            out += &format!("{n}: node {endpoint} after {pause:?}\n");
        }
        out += &format!("{:?} {:?}\n", attempt(0, 1, 1), attempt(0, 1, 40));
        expect![[r#"
            0: node 1 after 0ns
            1: node 2 after 0ns
            2: node 0 after 0ns
            3: node 1 after 20ms
            4: node 2 after 0ns
            5: node 0 after 0ns
            6: node 1 after 40ms
            7: node 2 after 0ns
            8: node 0 after 0ns
            9: node 1 after 80ms
            10: node 2 after 0ns
            11: node 0 after 0ns
            (0, 20ms) (0, 1s)
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn only_a_confirmation_counts() {
        assert!(matches!(of_grpc_code(14, "no leader"), Outcome::Again(_)));
        assert!(matches!(of_grpc_code(3, "bad label"), Outcome::Refused(_)));
        assert_eq!(
            of_http_status(204, 7, ""),
            Outcome::Acked {
                samples: 7,
                refused: None
            }
        );
        assert!(matches!(of_http_status(400, 7, "too old\n"), Outcome::Refused(why) if why == "HTTP 400: too old"));
        assert!(matches!(of_http_status(503, 7, ""), Outcome::Again(_)));
    }
}
