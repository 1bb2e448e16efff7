//! Where one message of a TCP connection ends and the next begins (RFC 6587): by a count of bytes before it, or by a
//! newline after it. Senders may mix both on one connection, so each frame is told apart on its own.
//!
//! A count is digits, a space, and then a message's `<`: a line of text that merely begins with a number is a line.
//!
//! Promises
//! - Every byte that came is in a frame, but for what parts frames and for the rest of a frame that was cut, because it is
//!   longer than [`FRAME_BYTES_MAX`] or its rest came late: it says so, and the next frame begins where it would have begun.
//! - No more than a frame's bytes wait here; however the bytes are cut into pieces on their way, the frames are the same.

use bytes::{Buf, Bytes, BytesMut};
use hindcast_model::limits::LINE_BYTES_MAX;

/// The longest message, header included; the rest is cut off. A line may not be longer.
pub const FRAME_BYTES_MAX: usize = LINE_BYTES_MAX;
/// Digits of a count. A number with more is a text.
const COUNT_DIGITS_MAX: usize = 9;

/// One message as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub bytes: Bytes,
    /// Its end is missing: it was too long, or came too late, or the connection ended within it.
    pub is_cut: bool,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Between,
    /// A message of so many bytes.
    Counted(usize),
    /// A message up to a newline. So many of its bytes were looked at.
    Line(usize),
    /// The rest of a message that was cut.
    SkipCounted(usize),
    SkipLine,
}

/// The bytes of one connection that are no frame yet.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: BytesMut,
    state: State,
}

impl Framer {
    /// Where the shell puts what it reads. It takes all frames out before it reads again.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Bytes that wait for the rest of their frame.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole frame; `None`: more bytes are needed.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            match self.state {
                State::Between => self.begin()?,
                State::Counted(len) if len > FRAME_BYTES_MAX => {
                    if self.buffer.len() < FRAME_BYTES_MAX {
                        return None;
                    }
                    let bytes = self.buffer.split_to(FRAME_BYTES_MAX).freeze();
                    self.state = State::SkipCounted(len - FRAME_BYTES_MAX);
                    return Some(Frame { bytes, is_cut: true });
                }
                State::Counted(len) => {
                    if self.buffer.len() < len {
                        return None;
                    }
                    self.state = State::Between;
                    if let Some(frame) = whole(self.buffer.split_to(len).freeze(), false) {
                        return Some(frame);
                    }
                }
                State::Line(seen) => {
                    let end = self.buffer.len().min(FRAME_BYTES_MAX + 1);
                    match memchr::memchr(b'\n', &self.buffer[seen.min(end)..end]) {
                        Some(at) => {
                            self.state = State::Between;
                            let bytes = self.buffer.split_to(seen + at).freeze();
                            self.buffer.advance(1);
                            if let Some(frame) = whole(bytes, false) {
                                return Some(frame);
                            }
                        }
                        None if end > FRAME_BYTES_MAX => {
                            let bytes = self.buffer.split_to(FRAME_BYTES_MAX).freeze();
                            self.state = State::SkipLine;
                            return Some(Frame { bytes, is_cut: true });
                        }
                        None => {
                            self.state = State::Line(end);
                            return None;
                        }
                    }
                }
                State::SkipCounted(left) => {
                    let here = left.min(self.buffer.len());
                    self.buffer.advance(here);
                    if here < left {
                        self.state = State::SkipCounted(left - here);
                        return None;
                    }
                    self.state = State::Between;
                }
                State::SkipLine => match memchr::memchr(b'\n', &self.buffer) {
                    Some(at) => {
                        self.buffer.advance(at + 1);
                        self.state = State::Between;
                    }
                    None => {
                        self.buffer.clear();
                        return None;
                    }
                },
            }
        }
    }

    /// Decides what begins at the buffer's start. `None`: that cannot be told yet.
    fn begin(&mut self) -> Option<()> {
        let empty = self.buffer.iter().take_while(|b| is_padding(**b)).count();
        self.buffer.advance(empty);
        let digits = self.buffer.iter().take(COUNT_DIGITS_MAX + 1);
        let digits = digits.take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 || digits > COUNT_DIGITS_MAX || self.buffer[0] == b'0' {
            return if self.buffer.is_empty() { None } else { self.line() };
        }
        match self.buffer[digits..] {
            [] | [b' '] => None,
            [b' ', b'<', ..] => {
                let count = std::str::from_utf8(&self.buffer[..digits]).ok()?.parse().ok()?;
                self.buffer.advance(digits + 1);
                self.state = State::Counted(count);
                Some(())
            }
            _ => self.line(),
        }
    }

    fn line(&mut self) -> Option<()> {
        self.state = State::Line(0);
        Some(())
    }

    /// Whether a message waits for its rest. A number that may be a count is none yet, and no reason to hurry.
    pub fn waits(&self) -> bool {
        matches!(self.state, State::Counted(_) | State::Line(_)) && !self.buffer.is_empty()
    }

    /// Waits no more for the rest of a message, when all whole frames were taken out: what came of it. The rest of a counted one is
    /// skipped when it comes, so that the count behind it is still found. A line has no such mark, so what comes next is another one.
    pub fn give_up(&mut self) -> Option<Frame> {
        if !self.waits() {
            return None;
        }
        let came = self.buffer.split().freeze();
        match std::mem::take(&mut self.state) {
            State::Counted(len) => {
                self.state = State::SkipCounted(len - came.len());
                whole(came, true)
            }
            _ => whole(came, false),
        }
    }

    /// What is left when the connection has ended. A line without its newline is whole: that is how some senders end.
    pub fn end(&mut self) -> Option<Frame> {
        let state = std::mem::take(&mut self.state);
        let rest = self.buffer.split().freeze();
        match state {
            State::SkipCounted(_) | State::SkipLine => None,
            State::Counted(_) => whole(rest, true),
            State::Between | State::Line(_) => whole(rest, false),
        }
    }
}

/// What stands around messages and is none.
const fn is_padding(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | 0)
}

/// A message without the newlines and zeros with which some senders end it, whatever else marks its end. Nothing is no
/// message.
fn whole(mut bytes: Bytes, is_cut: bool) -> Option<Frame> {
    let end = bytes.iter().rposition(|b| !is_padding(*b)).map_or(0, |at| at + 1);
    bytes.truncate(end);
    (!bytes.is_empty()).then_some(Frame { bytes, is_cut })
}

/// The one message of a datagram (RFC 5426). `None`: it is empty.
pub fn datagram(bytes: &[u8]) -> Option<Frame> {
    let is_cut = bytes.len() > FRAME_BYTES_MAX;
    whole(
        Bytes::copy_from_slice(&bytes[..bytes.len().min(FRAME_BYTES_MAX)]),
        is_cut,
    )
}

/// All frames of bytes that come in pieces of `step`.
#[doc(hidden)]
pub fn frames_in_steps(bytes: &[u8], step: usize) -> Vec<Frame> {
    let (mut framer, mut frames) = (Framer::default(), vec![]);
    for piece in bytes.chunks(step.max(1)) {
        framer.buffer().extend_from_slice(piece);
        while let Some(frame) = framer.next_frame() {
            frames.push(frame);
        }
        assert!(
            framer.pending() <= FRAME_BYTES_MAX + COUNT_DIGITS_MAX + 1,
            "what waits is bounded"
        );
    }
    frames.extend(framer.end());
    frames
}

/// All frames of bytes that come in pieces of `step`, when nobody waits for the rest of a message in the next piece.
#[doc(hidden)]
pub fn frames_with_stalls(bytes: &[u8], step: usize) -> Vec<Frame> {
    let (mut framer, mut frames) = (Framer::default(), vec![]);
    for piece in bytes.chunks(step.max(1)) {
        framer.buffer().extend_from_slice(piece);
        while let Some(frame) = framer.next_frame() {
            frames.push(frame);
        }
        frames.extend(framer.give_up());
        assert!(
            !framer.waits() && framer.pending() <= COUNT_DIGITS_MAX + 1,
            "only what may be a count is left"
        );
    }
    frames.extend(framer.end());
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn check(bytes: &[u8], expect: Expect) {
        let shown = |f: &Frame| {
            let cut = if f.is_cut { " (cut)" } else { "" };
            format!("{:?}{cut}\n", String::from_utf8_lossy(&f.bytes))
        };
        let whole: String = frames_in_steps(bytes, bytes.len()).iter().map(shown).collect();
        expect.assert_eq(&whole);
        for step in 1..5 {
            let pieces: String = frames_in_steps(bytes, step).iter().map(shown).collect();
            assert_eq!(pieces, whole, "in pieces of {step}");
        }
    }

    #[test]
    fn counts_and_newlines_are_told_apart_per_frame() {
        check(
            b"8 <13>1 ab<14>a line\n10 <15>x\ny zz<16>last",
            expect![[r#"
                "<13>1 ab"
                "<14>a line"
                "<15>x\ny zz"
                "<16>last"
            "#]],
        );
    }

    #[test]
    fn a_text_that_begins_with_a_number_is_a_text() {
        check(
            b"12 monkeys\n0 <13>a\n1234567890 <13>b\n7\n7 \n",
            expect![[r#"
                "12 monkeys"
                "0 <13>a"
                "1234567890 <13>b"
                "7"
                "7 "
            "#]],
        );
    }

    #[test]
    fn what_ends_messages_is_no_part_of_them() {
        check(
            b"\n\n<13>a\r\n<13>b\0\n6 <13>c\n\n\r\n<13>d",
            expect![[r#"
                "<13>a"
                "<13>b"
                "<13>c"
                "<13>d"
            "#]],
        );
    }

    #[test]
    fn a_counted_message_that_breaks_off_says_so() {
        check(
            b"20 <13>half of it",
            expect![[r#"
                "<13>half of it" (cut)
            "#]],
        );
        check(
            b"20 ",
            expect![[r#"
            "20 "
        "#]],
        );
    }

    /// A sender stalled in the middle of a counted message, went on, and all that it sent from then on was one line: the rest of the
    /// message was taken for the beginning of a line that never ended.
    #[test]
    fn a_counted_message_that_stalls_is_cut_and_the_next_one_is_whole() {
        let mut framer = Framer::default();
        let mut come = |bytes: &[u8], stalls: bool| {
            framer.buffer().extend_from_slice(bytes);
            let mut frames: Vec<_> = std::iter::from_fn(|| framer.next_frame()).collect();
            if stalls {
                frames.extend(framer.give_up());
                assert!(!framer.waits());
            }
            let cut = |f: &Frame| if f.is_cut { " (cut)" } else { "" };
            let shown = frames
                .iter()
                .map(|f| format!(" {:?}{}", String::from_utf8_lossy(&f.bytes), cut(f)));
            shown.collect::<String>()
        };
        let mut out = String::new();
        for (bytes, stalls) in [
            (&b"16 <13>half"[..], true),
            (b" of ", true),
            (b"it7 <13>one7 <1", false),
            (b"3>two", true),
            (b"a line without", true),
            (b" its end\n20 ", true),
            (b"<13>a count that late", false),
            (b"\n", false),
        ] {
            out += &format!("{:?} ->{}\n", String::from_utf8_lossy(bytes), come(bytes, stalls));
        }
        expect![[r#"
            "16 <13>half" -> "<13>half" (cut)
            " of " ->
            "it7 <13>one7 <1" ->
            "3>two" -> "<13>one7 <13>two"
            "a line without" -> "a line without"
            " its end\n20 " -> " its end"
            "<13>a count that late" -> "<13>a count that lat"
            "\n" -> "e"
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn the_longest_message_is_whole_and_a_longer_one_cut() {
        for (extra, is_cut) in [(0, false), (1, true), (FRAME_BYTES_MAX * 2, true)] {
            let text = [b"<13>".to_vec(), vec![b'x'; FRAME_BYTES_MAX - 4 + extra]].concat();
            let counted = [
                format!("{} ", text.len()).into_bytes(),
                text.clone(),
                b"<13>next\n".to_vec(),
            ];
            let line = [text.clone(), b"\n<13>next\n".to_vec()].concat();
            for bytes in [counted.concat(), line] {
                for step in [bytes.len(), 1 << 16] {
                    let frames = frames_in_steps_unbounded(&bytes, step);
                    assert_eq!(frames.len(), 2, "{extra} {step}");
                    assert_eq!(frames[0].is_cut, is_cut);
                    assert_eq!(frames[0].bytes, text[..FRAME_BYTES_MAX]);
                    assert_eq!(&frames[1].bytes[..], b"<13>next");
                }
            }
        }
        let long = datagram(&vec![b'x'; FRAME_BYTES_MAX + 1]).unwrap();
        assert!(long.is_cut && long.bytes.len() == FRAME_BYTES_MAX);
        assert_eq!(datagram(b"\n"), None);
    }

    /// As above, for pieces that are larger than what may wait.
    fn frames_in_steps_unbounded(bytes: &[u8], step: usize) -> Vec<Frame> {
        let (mut framer, mut frames) = (Framer::default(), vec![]);
        for piece in bytes.chunks(step) {
            framer.buffer().extend_from_slice(piece);
            frames.extend(std::iter::from_fn(|| framer.next_frame()));
        }
        frames.extend(framer.end());
        frames
    }

    proptest! {
        /// What a sender frames comes out as it went in, whichever way each message was framed, in whatever pieces.
        #[test]
        fn messages_come_out_as_they_went_in(
            messages in proptest::collection::vec(("<[0-9]{1,3}>[a-z0-9 <가]{0,20}", any::<bool>()), 0..12),
            step in 1usize..40,
        ) {
            let mut bytes = vec![];
            for (text, counted) in &messages {
                if *counted {
                    bytes.extend_from_slice(format!("{} {text}", text.len()).as_bytes());
                } else {
                    bytes.extend_from_slice(format!("{text}\n").as_bytes());
                }
            }
            let frames = frames_in_steps(&bytes, step);
            let got: Vec<_> = frames.iter().map(|f| std::str::from_utf8(&f.bytes).unwrap()).collect();
            let want: Vec<_> = messages.iter().map(|(text, _)| text.as_str()).collect();
            prop_assert_eq!(got, want);
            prop_assert!(frames.iter().all(|f| !f.is_cut));
        }

        /// Wherever counted messages stall: each is there, whole or cut, and none is mixed with another.
        #[test]
        fn a_stall_cuts_one_message_and_no_more(
            texts in proptest::collection::vec("[a-z0-9 <\n가]{0,12}x", 1..8),
            stalls in proptest::collection::vec(1usize..40, 0..6),
        ) {
            let messages: Vec<_> = texts.iter().map(|t| format!("<13>{t}")).collect();
            let bytes: Vec<u8> = messages.iter().flat_map(|m| format!("{} {m}", m.len()).into_bytes()).collect();
            let (mut framer, mut frames, mut rest) = (Framer::default(), vec![], &bytes[..]);
            for stall in stalls.into_iter().chain([bytes.len()]) {
                let (now, later) = rest.split_at(stall.min(rest.len()));
                rest = later;
                framer.buffer().extend_from_slice(now);
                frames.extend(std::iter::from_fn(|| framer.next_frame()));
                frames.extend(framer.give_up());
            }
            prop_assert_eq!(framer.end(), None);
            prop_assert_eq!(frames.len(), messages.len());
            for (frame, message) in frames.iter().zip(&messages) {
                match frame.is_cut {
                    true => prop_assert!(message.as_bytes().starts_with(&frame.bytes)),
                    false => prop_assert_eq!(message.as_bytes(), &frame.bytes[..]),
                }
            }
        }

        #[test]
        fn any_bytes_in_any_pieces_are_the_same_frames(bytes in proptest::collection::vec(
            prop_oneof![Just(b'\n'), Just(b' '), Just(b'<'), Just(b'1'), any::<u8>()], 0..80), step in 1usize..20,
        ) {
            prop_assert_eq!(frames_in_steps(&bytes, step), frames_in_steps(&bytes, bytes.len()));
        }
    }
}
