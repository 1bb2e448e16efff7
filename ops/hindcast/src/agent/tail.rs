//! Where a followed log file stands: what to read next, and where lines end.
//!
//! Pure. A file is known by its inode. Another inode under the path is a rotation: the old file is read to its end,
//! then the new one from its start. Fewer bytes than were read before is a truncation: from the start again.

use hindcast_model::limits::LINE_BYTES_MAX;

/// What the path shows now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub inode: u64,
    pub len: u64,
}

/// The file that is open, and how far it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub inode: u64,
    pub offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// No file, none open: look again later.
    Wait,
    /// Nothing new.
    Rest,
    /// There is more to read where we are.
    Read,
    /// It became shorter: read it from its start.
    StartOver,
    /// Nothing open: open the file and read from its start.
    Open,
    /// Read what is left in the open file, then open the one under the path and read that from its start.
    FinishThenOpen,
    /// The path is gone: read what is left in the open file, then close it.
    FinishThenClose,
}

pub fn step(open: Option<Place>, seen: Option<Seen>) -> Step {
    match (open, seen) {
        (None, None) => Step::Wait,
        (None, Some(_)) => Step::Open,
        (Some(_), None) => Step::FinishThenClose,
        (Some(o), Some(s)) if o.inode != s.inode => Step::FinishThenOpen,
        (Some(o), Some(s)) if s.len < o.offset => Step::StartOver,
        (Some(o), Some(s)) if s.len == o.offset => Step::Rest,
        (Some(_), Some(_)) => Step::Read,
    }
}

/// Packed files bear these names: their bytes are no lines.
const PACKED: [&str; 11] = [
    ".gz", ".bz2", ".xz", ".zst", ".lz4", ".lzma", ".lz", ".br", ".z", ".zip", ".7z",
];

/// Whether a file beside a log may be an earlier part of it: `app.log.1`, `app.log-20261129`.
pub fn is_rotated(log: &str, name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    name.len() > log.len() && name.starts_with(log) && !PACKED.iter().any(|p| lower.ends_with(p))
}

/// Cuts bytes, as they come, into lines. A line ends with `\n` or `\r\n`; empty lines are left out; bytes that are not
/// UTF-8 are replaced. Of a line longer than `LINE_BYTES_MAX` the start is kept and the rest is counted as cut.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    /// The rest of an over-long line is on its way.
    skipping: bool,
    /// Bytes of the line that has not ended yet.
    pub unended: u64,
    /// Lines of which a part is missing.
    pub lines_cut: u64,
}

impl Lines {
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<String>) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.take(&bytes[..end]);
            self.end(out);
            bytes = &bytes[end + 1..];
        }
        self.take(bytes);
    }

    /// The file ended for good: what is left is a line without its end.
    pub fn end(&mut self, out: &mut Vec<String>) {
        let mut line = std::mem::take(&mut self.partial);
        self.skipping = false;
        self.unended = 0;
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if !line.is_empty() {
            let mut text = String::from_utf8_lossy(&line).into_owned();
            // Replaced bytes take more room than they had.
            text.truncate(text.floor_char_boundary(LINE_BYTES_MAX));
            out.push(text);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.unended += bytes.len() as u64;
        let room = LINE_BYTES_MAX - self.partial.len();
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room && !self.skipping {
            self.skipping = true;
            self.lines_cut += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use std::fmt::Write;

    /// Lines of `<inode>:<offset> <inode>:<len>`, `-` for none.
    fn check(script: &str, expect: Expect) {
        let pair = |t: &str| {
            let (a, b) = t.split_once(':')?;
            Some((a.parse().unwrap(), b.parse().unwrap()))
        };
        let mut out = String::new();
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let (open, seen) = line.split_once(' ').unwrap();
            let open = pair(open).map(|(inode, offset)| Place { inode, offset });
            let seen = pair(seen).map(|(inode, len)| Seen { inode, len });
            writeln!(out, "{line} -> {:?}", step(open, seen)).unwrap();
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn rotation_and_truncation_lose_nothing_that_was_there_to_read() {
        check(
            "
            - -
            - 1:10
            1:10 1:10
            1:10 1:25
            1:25 1:3
            1:25 2:100
            1:25 -
            ",
            expect![[r#"
                - - -> Wait
                - 1:10 -> Open
                1:10 1:10 -> Rest
                1:10 1:25 -> Read
                1:25 1:3 -> StartOver
                1:25 2:100 -> FinishThenOpen
                1:25 - -> FinishThenClose
            "#]],
        );
    }

    #[test]
    fn an_earlier_part_of_a_log_has_its_name_in_front_and_is_not_packed() {
        for name in ["app.log.1", "app.log-20261129", "app.log.old"] {
            assert!(is_rotated("app.log", name), "{name}");
        }
        for name in [
            "app.log",
            "app.lo",
            "other.log.1",
            "app.log.1.gz",
            "app.log.2.ZST",
            "app.log.zip",
        ] {
            assert!(!is_rotated("app.log", name), "{name}");
        }
    }

    #[test]
    fn an_endless_line_is_cut_and_counted_once() {
        let (mut lines, mut out) = (Lines::default(), vec![]);
        for _ in 0..3 {
            lines.feed(&vec![b'x'; LINE_BYTES_MAX], &mut out);
        }
        lines.feed(b"tail\nnext\r\n\n", &mut out);
        assert_eq!(out.iter().map(String::len).collect::<Vec<_>>(), [LINE_BYTES_MAX, 4]);
        assert_eq!((out[1].as_str(), lines.lines_cut), ("next", 1));
        out.clear();
        lines.feed(&vec![0xff; LINE_BYTES_MAX], &mut out);
        lines.feed(b"\n", &mut out);
        assert!(out[0].len() <= LINE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_came(text in "[a-c\n]{0,200}", at in proptest::collection::vec(0usize..200, 0..5)) {
            let whole = |parts: Vec<&[u8]>| {
                let (mut lines, mut out) = (Lines::default(), vec![]);
                parts.into_iter().for_each(|p| lines.feed(p, &mut out));
                lines.end(&mut out);
                out
            };
            let mut cuts: Vec<_> = at.into_iter().map(|a| a.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let parts = cuts.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]).collect();
            let expected: Vec<_> = text.split('\n').filter(|l| !l.is_empty()).map(str::to_owned).collect();
            prop_assert_eq!(whole(parts), expected);
        }
    }
}
