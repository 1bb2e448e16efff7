//! What the kernel says about a process: processor time and memory.
//!
//! Pure: reads the text of `/proc/PID/stat` and `/proc/PID/status`.

/// Parts of a second that the kernel counts in. 100 on every Linux but Alpha and Itanium.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time, of all threads, since the process began.
    pub cpu_seconds: f64,
    pub rss_kib: u64,
    /// The most since the process began.
    pub rss_kib_max: u64,
}

/// `None` when the text is not what the kernel writes.
pub fn usage(stat: &str, status: &str) -> Option<Usage> {
    // The name is in parentheses and may hold anything, parentheses too.
    let (_, rest) = stat.rsplit_once(')')?;
    let field = |number: usize| rest.split_whitespace().nth(number - 3)?.parse::<u64>().ok();
    let kib = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key))?;
        line.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some(Usage {
        cpu_seconds: (field(14)? + field(15)?) as f64 / TICKS_PER_SECOND,
        rss_kib: kib("VmRSS")?,
        rss_kib_max: kib("VmHWM")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "41 (a) b (c) S 1 41 41 0 -1 4194560 900 0 3 0 250 75 8 9 20 0 12 0 5000 123 456 789";
    const STATUS: &str = "Name:\ta\nVmHWM:\t   20480 kB\nVmRSS:\t   10240 kB\nThreads:\t12\n";

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let want = Usage {
            cpu_seconds: 3.25,
            rss_kib: 10_240,
            rss_kib_max: 20_480,
        };
        assert_eq!(usage(STAT, STATUS), Some(want));
    }

    #[test]
    fn what_is_cut_off_is_not_guessed() {
        assert_eq!(usage("41 (a) S 1 2", STATUS), None);
        assert_eq!(usage(STAT, "Name:\ta\n"), None);
    }
}
