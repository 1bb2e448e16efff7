//! Resident registration numbers, phone numbers, cards and passports: everything that is found by its digits.
//!
//! One walk over the runs of digits of a text; the length of a run says what may begin there. Most runs of a log line
//! (times, addresses, sizes) are none of these lengths and cost a branch.
//!
//! A check digit decides only where nothing else tells a number from a counter: a card without parts, and a
//! registration number without its hyphen that is also a time in milliseconds. In their usual forms both are masked
//! whatever the check digit says.

use crate::found::{Found, Kind};
use crate::text::{Gap, Runs, before, digits_at, exactly, gap, joined_after, joined_before, stands_alone, told_before};

/// Which kinds are looked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub rrn: bool,
    pub phone: bool,
    pub card: bool,
    pub passport: bool,
}

impl Wanted {
    pub const fn any(self) -> bool {
        self.rrn || self.phone || self.card || self.passport
    }
}

/// Finds them, in the order of their beginnings.
///
/// Which runs are looked at is decided 64 places at a time: those of six digits and more, those of four with four more
/// shortly behind them (cards), and shorter ones by the digits that they begin with (phones, passports). Times, sizes
/// and addresses, of which logs are full, end here.
pub(crate) fn find(text: &[u8], bits: &[u64], wanted: Wanted, out: &mut Vec<Found>) {
    // A match may take several runs: those are not looked at again.
    let mut done = 0;
    let mut carry = 0;
    for (n, word) in bits.iter().enumerate() {
        let window = u128::from(*word) | u128::from(bits.get(n + 1).copied().unwrap_or(0)) << 64;
        let twos = window & window >> 1;
        let fours = twos & twos >> 2;
        let begins = *word & !(*word << 1 | carry);
        carry = *word >> 63;
        // At most five bytes part two blocks: a dash of three between two blanks.
        let four_behind = (5..=9).fold(0, |all, n| all | fours >> n);
        let long = (fours & twos >> 4) as u64;
        let card = (fours & !(window >> 4) & four_behind) as u64;
        let threes = (twos & window >> 2) as u64;
        let mut left = begins & twos as u64;
        while left != 0 {
            let bit = left & left.wrapping_neg();
            left ^= bit;
            let start = n * 64 + bit.trailing_zeros() as usize;
            let is_long = (long | card) & bit != 0;
            if start >= done && (is_long || may_begin(text, start, threes & bit != 0)) {
                let end = Runs::new(bits).end(start);
                if let Some(found) = at_run(text, start, end, wanted) {
                    done = found.end;
                    out.push(found);
                }
            }
        }
    }
}

/// Whether a run of two digits, or of three and more, may begin a phone number in blocks or lie in a passport's.
#[inline]
fn may_begin(text: &[u8], start: usize, three: bool) -> bool {
    match text[start..] {
        [b'0', b'2', ..] | [b'8', b'2', ..] => true,
        [b'0', b'1' | b'3'..=b'7', ..] if three => true,
        _ => three && before(text, start).is_some_and(|b| b"MSRGDmsrgd".contains(&b)),
    }
}

fn at_run(text: &[u8], start: usize, end: usize, wanted: Wanted) -> Option<Found> {
    match end - start {
        2 | 7 | 9..=12 => of_phone(text, start, end, wanted),
        3 => of_phone(text, start, end, wanted).or_else(|| new_passport(text, start, end, wanted)),
        4 => of_phone(text, start, end, wanted).or_else(|| card_in_parts(text, start, end, wanted)),
        6 => rrn_in_parts(text, start, end, wanted),
        8 => old_passport(text, start, end, wanted),
        13 => rrn_bare(text, start, end, wanted)
            .or_else(|| card_bare(text, start, end, wanted))
            .or_else(|| of_phone(text, start, end, wanted)),
        14..=19 => card_bare(text, start, end, wanted),
        _ => None,
    }
}

fn digit(text: &[u8], at: usize) -> u8 {
    text.get(at).map_or(u8::MAX, |b| b.wrapping_sub(b'0'))
}

fn two(text: &[u8], at: usize) -> u8 {
    digit(text, at).wrapping_mul(10).wrapping_add(digit(text, at + 1))
}

// Resident registration numbers.

/// A birthday as `yymmdd`.
fn is_birthday(text: &[u8], at: usize) -> bool {
    let day_max = match two(text, at + 2) {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 29,
        _ => return false,
    };
    (1..=day_max).contains(&two(text, at + 4))
}

/// Century and sex: 1 to 4 for citizens, 5 to 8 for foreigners.
fn is_sex(text: &[u8], at: usize) -> bool {
    (1..=8).contains(&digit(text, at))
}

fn rrn_in_parts(text: &[u8], start: usize, end: usize, wanted: Wanted) -> Option<Found> {
    if !wanted.rrn || !is_birthday(text, start) {
        return None;
    }
    let (_, second) = gap(text, end).filter(|(kind, _)| matches!(kind, Gap::Dash | Gap::Space))?;
    if !is_sex(text, second) || !exactly(text, second, 7) {
        return None;
    }
    Some(Found::new(Kind::Rrn, start..second + 7, second..second + 7))
}

fn rrn_bare(text: &[u8], start: usize, end: usize, wanted: Wanted) -> Option<Found> {
    let fits = wanted.rrn && is_birthday(text, start) && is_sex(text, start + 6) && stands_alone(text, start, end);
    if !fits || (could_be_millis(text, start) && !told_to_be_rrn(text, start)) {
        return None;
    }
    // Goods of Korean makers begin with 880, and a fifth of them would be born in 1988.
    if text[start..].starts_with(b"880") && told_before(text, start, &["barcode", "ean", "gtin", "바코드"]) {
        return None;
    }
    Some(Found::new(Kind::Rrn, start..end, start + 6..end))
}

/// Whether 13 digits are also a time of the years 2017 to 2033, in milliseconds.
fn could_be_millis(text: &[u8], start: usize) -> bool {
    (15..=19).contains(&two(text, start))
}

/// For those only: a child born from 2015 on, unless a key says that it is a time; or a word, or the check digit.
fn told_to_be_rrn(text: &[u8], start: usize) -> bool {
    const RRN: &[&str] = &["rrn", "jumin", "ssn", "resident", "주민", "등록번호"];
    const TIME: &[&str] = &[
        "time", "date", "epoch", "ts", "_at", "_ms", "millis", "since", "expir", "시각", "시간",
    ];
    let of_2000s = matches!(digit(text, start + 6), 3 | 4 | 7 | 8);
    told_before(text, start, RRN)
        || rrn_check_digit_holds(text, start)
        || (of_2000s && before(text, start).is_some_and(|b| !b"[{,:".contains(&b)) && !told_before(text, start, TIME))
}

fn rrn_check_digit_holds(text: &[u8], start: usize) -> bool {
    const WEIGHTS: [u32; 12] = [2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5];
    let sum: u32 = (start..).zip(WEIGHTS).map(|(i, w)| u32::from(digit(text, i)) * w).sum();
    // Numbers of foreigners count two more.
    let more = if digit(text, start + 6) >= 5 { 2 } else { 0 };
    (11 - sum % 11 + more) % 10 == u32::from(digit(text, start + 12))
}

// Phone numbers.

#[derive(Clone, Copy, PartialEq, Eq)]
enum Net {
    /// 010, 011, 016 to 019.
    Mobile,
    /// Areas, 070 and 050x.
    Other,
}

/// What a number begins with inside the country; `with_zero` tells whether its 0 is there.
fn net(digits: &[u8], with_zero: bool) -> Option<Net> {
    let rest = if with_zero { digits.strip_prefix(b"0")? } else { digits };
    match rest {
        [b'1', b'0' | b'1' | b'6'..=b'9'] => Some(Net::Mobile),
        [b'2'] | [b'7', b'0'] => Some(Net::Other),
        [b'3', b'1'..=b'3'] | [b'4', b'1'..=b'4'] | [b'5', b'1'..=b'5'] | [b'6', b'1'..=b'4'] => Some(Net::Other),
        [b'5', b'0', b'2'..=b'8'] => Some(Net::Other),
        _ => None,
    }
}

/// How many digits of a number without parts are its first block.
fn net_len(digits: &[u8]) -> Option<(Net, usize)> {
    [2, 3, 4].iter().find_map(|&n| Some((net(digits.get(..n)?, true)?, n)))
}

fn of_phone(text: &[u8], start: usize, end: usize, wanted: Wanted) -> Option<Found> {
    if !wanted.phone {
        return None;
    }
    let run = &text[start..end];
    match run {
        [b'0', ..] if run.len() <= 4 => phone_in_parts(text, start, start, end, net(run, true)?),
        // The middle block has run into the first: 0101234-5678.
        [b'0', b'1', ..] if run.len() == 7 => {
            let net = net(&run[..3], true).filter(|n| *n == Net::Mobile && !run.iter().all(|b| *b <= b'1'))?;
            let (_, last) = gap(text, end).filter(|(kind, _)| *kind == Gap::Dash)?;
            phone_ends(text, start, start, (start + 3, last), net)
        }
        [b'0', ..] => phone_bare(text, start, end),
        [b'8', b'2', ..] => phone_abroad(text, start, end),
        _ => None,
    }
}

/// `first..first_end` is the block that names the net.
fn phone_in_parts(text: &[u8], start: usize, first: usize, first_end: usize, net: Net) -> Option<Found> {
    let (gap1, middle) = gap(text, first_end)?;
    let is_open = text.get(first_end) == Some(&b')');
    let middle_len = digits_at(text, middle);
    if matches!(middle_len, 7 | 8) {
        let end = middle + middle_len;
        let fits = match net {
            Net::Mobile => gap1 != Gap::Dot,
            // Between blanks it may as well be a day and a size, and behind a dot a fraction.
            Net::Other => {
                let told = gap1 == Gap::Space && told_before(text, start, PHONE);
                let is_whole = begins_clean(text, start) && !is_word(text, end);
                digit(text, middle) >= 1 && is_whole && (gap1 == Gap::Dash || is_open || told)
            }
        };
        return phone_ends(text, start, first, (middle, end - 4), net).filter(|_| fits);
    }
    if !matches!(middle_len, 3 | 4) {
        return None;
    }
    let (gap2, last) = gap(text, middle + middle_len)?;
    let fits = match net {
        Net::Mobile => gap1 == gap2 || (gap1 != Gap::Dot && gap2 != Gap::Dot),
        // Behind an area the next block never begins with 0. Between blanks alone much else looks like that.
        Net::Other => {
            let is_version = gap1 == Gap::Dot && matches!(before(text, start), Some(b'v' | b'V'));
            digit(text, middle) >= 1
                && (gap1 == gap2 || is_open || gap2 == Gap::Dash)
                && (gap1 != Gap::Other || is_open)
                && !is_version
                // With +82 before it, it is no row of other numbers.
                && !(gap1 == Gap::Space && start == first && is_row(text, (start, first_end), (middle, last), gap2))
        }
    };
    let dotted = gap1 == Gap::Dot && (joined_before(text, first, b".") || joined_after(text, last + 4, b"."));
    if !fits || dotted {
        return None;
    }
    phone_ends(text, start, first, (middle, last), net)
}

/// Words that tell a phone number.
const PHONE: &[&str] = &["tel", "phone", "fax", "mobile", "전화", "연락처", "팩스", "휴대폰"];

/// Whether blocks between blanks are a date, or numbers in a row with others.
fn is_row(text: &[u8], (start, first_end): (usize, usize), (middle, last): (usize, usize), gap2: Gap) -> bool {
    // Dec 02 1234 5678
    if first_end - start == 2 && month_before(text, start) {
        return true;
    }
    if gap2 != Gap::Space {
        return false;
    }
    let is_year = last - middle > 4 && matches!(&text[middle..middle + 2], b"19" | b"20");
    let end = last + 4;
    // No number that is given out has a 1 there: then a time before it, or a unit behind it, is enough.
    let is_unlikely = digit(text, middle) == 1;
    let is_after_digit = matches!(before(text, start), Some(b' ' | b'\t'))
        && before(text, start - 1).is_some_and(|b| b.is_ascii_digit());
    is_year
        || (is_unlikely && (is_after_digit || is_word(text, end)))
        || number_before(text, start)
        || number_after(text, end)
}

/// Whether a number and a blank stand before: a column of numbers.
fn number_before(text: &[u8], at: usize) -> bool {
    let [before @ .., b' ' | b'\t'] = &text[..at] else {
        return false;
    };
    let digits = before.iter().rev().take(20).take_while(|b| b.is_ascii_digit()).count();
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
    digits > 0 && before[..before.len() - digits].last().is_none_or(is_blank)
}

fn number_after(text: &[u8], at: usize) -> bool {
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
    let digits = if text.get(at).is_some_and(is_blank) {
        digits_at(text, at + 1)
    } else {
        0
    };
    digits > 0 && text.get(at + 1 + digits).is_none_or(is_blank)
}

fn month_before(text: &[u8], at: usize) -> bool {
    const MONTHS: &[u8] = b"janfebmaraprmayjunjulaugsepoctnovdec";
    let [before @ .., a, b, c, b' '] = &text[..at] else {
        return false;
    };
    let name = [a, b, c].map(u8::to_ascii_lowercase);
    let (months, _) = MONTHS.as_chunks::<3>();
    months.contains(&name) && before.last().is_none_or(|b| !b.is_ascii_alphabetic())
}

/// Whether a letter or digit stands at `at`.
fn is_word(text: &[u8], at: usize) -> bool {
    text.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
}

/// Whether nothing stands before that makes a number the end of an identifier.
fn begins_clean(text: &[u8], start: usize) -> bool {
    before(text, start).is_none_or(|b| !b.is_ascii_alphanumeric() && !b"-_./#".contains(&b))
}

/// The last block begins at `last`, what is hidden at `middle`.
fn phone_ends(text: &[u8], start: usize, first: usize, (middle, last): (usize, usize), net: Net) -> Option<Found> {
    if !exactly(text, last, 4) {
        return None;
    }
    let end = last + 4;
    // Longer chains of blocks are numbers of orders and the like. Those of mobile phones are told by their first block.
    let chained = joined_before(text, start, b"-/") || joined_after(text, end, b"-");
    if start == first && net == Net::Other && chained {
        return None;
    }
    // Inside of hexadecimal groups, as in a UUID.
    let hex = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_hexdigit());
    let goes_on = text.get(end) == Some(&b'-') && hex(text.get(end + 1).copied());
    if goes_on && hex(before(text, start)) {
        return None;
    }
    Some(Found::new(
        Kind::Phone,
        start..end,
        middle..hidden_end(text, middle, last),
    ))
}

/// The digits before the last block, without the gap that parts them.
fn hidden_end(text: &[u8], middle: usize, last: usize) -> usize {
    middle + digits_at(text, middle).min(last - middle)
}

fn phone_bare(text: &[u8], start: usize, end: usize) -> Option<Found> {
    let run = &text[start..end];
    let (net, first) = net_len(run)?;
    let rest = run.len() - first;
    let fits = match net {
        // Numbers of only 0 and 1 are bits.
        Net::Mobile => {
            let lens = if run[2] == b'0' { 8..=8 } else { 7..=8 };
            lens.contains(&rest) && !run.iter().all(|b| *b <= b'1')
        }
        Net::Other => {
            let clean = begins_clean(text, start) && !joined_after(text, end, b"-/:");
            // No area has numbers that begin with 1, but people write them; so do clocks.
            let begins = match run[first] {
                b'0' => false,
                b'1' => !(is_area(run) && could_be_time(run)) || told_before(text, start, PHONE),
                _ => true,
            };
            (7..=8).contains(&rest) && clean && begins
        }
    };
    if !fits || !stands_alone(text, start, end) {
        return None;
    }
    Some(Found::new(Kind::Phone, start..end, start + first..end - 4))
}

/// Whether a number begins with an area, and not with 070 or 050x.
fn is_area(run: &[u8]) -> bool {
    !matches!(run, [b'0', b'7', ..] | [b'0', b'5', b'0', ..])
}

/// Whether digits may be `HHMMSSmmm`, `MMDDHHMMSS` or `YYMMDDHHMM`.
fn could_be_time(run: &[u8]) -> bool {
    let clock = |at: usize| two(run, at) < 24 && two(run, at + 2) < 60;
    match run.len() {
        9 => clock(0) && two(run, 4) < 60,
        10 => {
            let month_first = (1..=12).contains(&two(run, 0)) && (1..=31).contains(&two(run, 2));
            (month_first && clock(4) && two(run, 8) < 60) || (is_birthday(run, 0) && clock(6))
        }
        _ => false,
    }
}

/// `+82 10-1234-5678` and its kin. Without the plus only with all blocks, or as one run.
fn phone_abroad(text: &[u8], run_start: usize, run_end: usize) -> Option<Found> {
    let plus = before(text, run_start) == Some(b'+');
    let start = run_start - usize::from(plus);
    let mut first = run_start + 2;
    let bare = |first: usize, net_digits: usize, net: Net| {
        let rest = run_end - first - net_digits;
        let alone = plus || stands_alone(text, run_start, run_end);
        let fits = (7..=8).contains(&rest) && alone && (plus || net == Net::Mobile && rest == 8);
        fits.then(|| Found::new(Kind::Phone, start..run_end, first + net_digits..run_end - 4))
    };
    if first == run_end {
        let (kind, after) = gap(text, run_end)?;
        if !plus && kind != Gap::Dash {
            return None;
        }
        first = after;
        // +82 (0)10
        if text[first..].starts_with(b"(0)") {
            first += 3;
        } else if text.get(first) == Some(&b'(') {
            first += 1;
        }
        let len = digits_at(text, first);
        let block = &text[first..first + len];
        if matches!(len, 8..=11) && plus {
            // +82 1012345678
            let zero = usize::from(block[0] == b'0');
            let (net_digits, net) = (1..=3).find_map(|n| Some((n, net(block.get(zero..zero + n)?, false)?)))?;
            let rest = len - zero - net_digits;
            let fits = (7..=8).contains(&rest) && (net == Net::Mobile || digit(text, first + zero + net_digits) >= 1);
            let end = first + len;
            return fits.then(|| Found::new(Kind::Phone, start..end, first + zero + net_digits..end - 4));
        }
        let net = net(block, false).or_else(|| net(block, true))?;
        return phone_in_parts(text, start, first, first + len, net).filter(|_| plus || net == Net::Mobile);
    }
    if text.get(first) == Some(&b'0') {
        first += 1;
    }
    let rest = &text[first..run_end];
    let (net_digits, found) = [1, 2, 3].iter().find_map(|&n| Some((n, net(rest.get(..n)?, false)?)))?;
    if first + net_digits == run_end {
        // +8210-1234-5678
        let found = phone_in_parts(text, start, first, run_end, found);
        return found.filter(|_| plus || rest.len() == 2);
    }
    bare(first, net_digits, found)
}

// Cards.

fn card_in_parts(text: &[u8], start: usize, end: usize, wanted: Wanted) -> Option<Found> {
    if !wanted.card {
        return None;
    }
    let (kind, second) = gap(text, end).filter(|(kind, _)| *kind != Gap::Other)?;
    if !matches!(digits_at(text, second), 4 | 6) {
        return None;
    }
    let next = |at: usize| gap(text, at).filter(|(k, _)| *k == kind).map(|(_, next)| next);
    let (sep, is_spaced) = match kind {
        Gap::Space => (b" ", true),
        Gap::Dot => (b".", true),
        _ => (b"-", false),
    };
    match digits_at(text, second) {
        4 => {
            let third = next(second + 4).filter(|at| exactly(text, *at, 4))?;
            let fourth = next(third + 4).filter(|at| exactly(text, *at, 4))?;
            let blocks = [start, second, third, fourth];
            let mut last = fourth + 4;
            // 16 digits, or up to 19 with a short last block.
            if let Some(fifth) = next(last)
                && (1..=3).contains(&digits_at(text, fifth))
                && !is_spaced
            {
                last = fifth + digits_at(text, fifth);
            }
            // Between blanks or dots more than four numbers of four digits are a list, and so are years; unless the check
            // digit says otherwise.
            if is_spaced {
                let years = blocks.iter().all(|at| matches!(&text[*at..at + 2], b"19" | b"20"));
                let dotted = kind == Gap::Dot;
                let before = joined_before(text, start, sep) && (dotted || ends_with_four(text, start - 1));
                let after = joined_after(text, last, sep) && (dotted || exactly(text, last + 1, 4));
                let digits: Vec<u8> = blocks.iter().flat_map(|at| text[*at..at + 4].to_vec()).collect();
                if (years || before || after) && !(luhn_holds(&digits) && is_of_an_issuer(&digits)) {
                    return None;
                }
            }
            Some(hide_card(text, start, last))
        }
        // American Express 4-6-5, Diners Club 4-6-4.
        6 if text[start] == b'3' => {
            let third = next(second + 6)?;
            let len = digits_at(text, third);
            matches!(len, 4 | 5).then(|| hide_card(text, start, third + len))
        }
        _ => None,
    }
}

/// Whether a run of exactly four digits ends at `end`.
fn ends_with_four(text: &[u8], end: usize) -> bool {
    let digits = text[..end].iter().rev().take(5).take_while(|b| b.is_ascii_digit());
    digits.count() == 4
}

/// The first six and the last four digits stay.
fn hide_card(text: &[u8], start: usize, end: usize) -> Found {
    let digits = |i: &usize| text[*i].is_ascii_digit();
    let from = (start..end).filter(digits).nth(6).unwrap_or(start);
    let to = (start..end).rev().filter(digits).nth(4).map_or(end, |i| i + 1);
    Found::new(Kind::Card, start..end, from..to)
}

fn card_bare(text: &[u8], start: usize, end: usize, wanted: Wanted) -> Option<Found> {
    let run = &text[start..end];
    // Identifiers of blocks and the like hang on a word: blk_4568…
    let hangs = || before(text, start) == Some(b'_') && !told_before(text, start, &["card", "카드"]);
    let fits = wanted.card && is_of_an_issuer(run) && luhn_holds(run) && stands_alone(text, start, end) && !hangs();
    fits.then(|| hide_card(text, start, end))
}

/// Whether numbers of this length and beginning are given out; 9 is for cards of Korean use alone.
fn is_of_an_issuer(run: &[u8]) -> bool {
    matches!(
        (run, run.len()),
        ([b'4', ..], 13 | 16 | 19)
            | ([b'5', ..] | [b'2', b'2'..=b'7', ..] | [b'9', ..], 16)
            | ([b'3', b'4' | b'7', ..], 15)
            | ([b'3', b'0' | b'6' | b'8' | b'9', ..], 14 | 16)
            | ([b'3', b'5', ..] | [b'6', b'0' | b'2' | b'4' | b'5', ..], 16..=19)
    )
}

fn luhn_holds(run: &[u8]) -> bool {
    let sum: u32 = run.iter().rev().enumerate().fold(0, |sum, (i, b)| {
        let d = u32::from(b - b'0');
        sum + match i % 2 {
            0 => d,
            _ if d > 4 => 2 * d - 9,
            _ => 2 * d,
        }
    });
    sum.is_multiple_of(10)
}

// Passports.

/// The letter of a passport before `at`: of several journeys, one, residents, official, diplomatic.
fn passport_letter(text: &[u8], at: usize) -> bool {
    let Some(letter) = before(text, at) else { return false };
    let told = || told_before(text, at - 1, &["passport", "여권"]);
    let fits = b"MSRGD".contains(&letter) || (b"msrgd".contains(&letter) && told());
    fits && match before(text, at - 1) {
        None => true,
        Some(b'-' | b'_' | b'.' | b'/' | b'#' | b'@') => told(),
        Some(b) => !b.is_ascii_alphanumeric(),
    }
}

fn ends_like_a_word(text: &[u8], end: usize) -> bool {
    !text.get(end).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
}

/// `M12345678`.
fn old_passport(text: &[u8], start: usize, end: usize, wanted: Wanted) -> Option<Found> {
    if !wanted.passport || !passport_letter(text, start) || !ends_like_a_word(text, end) {
        return None;
    }
    // A letter and a day name reports and files.
    let is_day = matches!(&text[start..start + 2], b"19" | b"20") && is_birthday(text, start + 2);
    if is_day && !told_before(text, start - 1, &["passport", "여권"]) {
        return None;
    }
    Some(Found::new(Kind::Passport, start - 1..end, start..end))
}

/// `M123A4567`, given out since December 2021.
fn new_passport(text: &[u8], start: usize, end: usize, wanted: Wanted) -> Option<Found> {
    if !wanted.passport || end - start != 3 || !text.get(end).is_some_and(u8::is_ascii_alphabetic) {
        return None;
    }
    if !exactly(text, end + 1, 4) || !ends_like_a_word(text, end + 5) || !passport_letter(text, start) {
        return None;
    }
    Some(Found::new(Kind::Passport, start - 1..end + 5, start..end + 5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::digit_bits;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// What is left out 64 places at a time is nothing that a walk over all runs would find.
        #[test]
        fn no_run_is_left_out(
            pieces in prop::collection::vec(prop_oneof![
                3 => "0[1-8]?[0-9]?|82|\\+82|010|[0-9]{4}|[0-9]{7}|961219|1234567|4111-1111-1111-1111|[MSRGD][0-9]{3}[A-Z][0-9]{4}|[MSRGD][0-9]{8}",
                2 => "[-. )–a-z]|\\(0\\)| - ",
                1 => "[a-z ]{0,70}",
            ], 0..25),
        ) {
            let text = pieces.concat().into_bytes();
            let wanted = Wanted { rrn: true, phone: true, card: true, passport: true };
            let (mut bits, mut found, mut all) = (vec![], vec![], vec![]);
            digit_bits(&text, &mut bits);
            find(&text, &bits, wanted, &mut found);
            let mut done = 0;
            for (start, end) in Runs::new(&bits) {
                if start >= done && let Some(f) = at_run(&text, start, end, wanted) {
                    done = f.end;
                    all.push(f);
                }
            }
            prop_assert_eq!(found, all, "{}", String::from_utf8_lossy(&text));
        }
    }
}
