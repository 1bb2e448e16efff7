//! What a message says: RFC 5424, RFC 3164 as it is really sent, or neither.
//!
//! RFC 3164 describes habits and binds nobody. Beside its own form these are read: times with a year, a fraction, or as
//! RFC 3339 has them; a message without a host (its first word ends with a colon or has a pid); Cisco's number and `*`
//! before the time. A word is a tag only with a colon or a pid behind it: the first word of a free text is none.
//!
//! Hosts and tags become labels, which nobody masks. So what is only guessed to be one must look like one: a tag has a letter
//! of ASCII and no `@`, a host has a letter or is an address. Phone numbers, mail addresses and names in Hangul before a colon
//! stay in the text.
//!
//! Promise: what is not read as a header is text. No part of a message is left out.

use super::time::{self, Sent};
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

pub const HOST_BYTES_MAX: usize = 255;
/// RFC 5424 has 48 for names of programs and 128 for their ids; senders do not keep to it.
pub const NAME_BYTES_MAX: usize = 128;
/// Structured data of more entries or bytes stays text.
pub const DATA_MAX: usize = 64;
pub const DATA_BYTES_MAX: usize = 32 * 1024;

const PRIORITY_MAX: u8 = 23 * 8 + 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    Rfc5424,
    Rfc3164,
    Unknown,
}

impl Format {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rfc5424 => "rfc5424",
            Self::Rfc3164 => "rfc3164",
            Self::Unknown => "unknown",
        }
    }
}

/// Facility and severity in one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u8);

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

impl Priority {
    pub fn new(number: u16) -> Option<Self> {
        u8::try_from(number).ok().filter(|n| *n <= PRIORITY_MAX).map(Self)
    }

    pub const fn number(self) -> u8 {
        self.0
    }

    pub const fn facility_number(self) -> u8 {
        self.0 / 8
    }

    pub const fn facility(self) -> &'static str {
        FACILITIES[(self.0 / 8) as usize]
    }

    pub const fn severity(self) -> &'static str {
        SEVERITIES[(self.0 % 8) as usize]
    }

    /// The word that other logs have for it, by OpenTelemetry's table of severities.
    pub const fn level(self) -> &'static str {
        match self.0 % 8 {
            0 => "fatal",
            1..=3 => "error",
            4 => "warn",
            5 | 6 => "info",
            _ => "debug",
        }
    }
}

/// The number of a facility's name.
pub fn facility(name: &str) -> Option<u8> {
    FACILITIES.iter().position(|f| *f == name).map(|n| n as u8)
}

/// A message, taken apart. Texts are parts of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed<'m> {
    pub format: Format,
    pub priority: Option<Priority>,
    /// The time, and how it was written.
    pub sent: Option<(Sent, &'m str)>,
    pub host: Option<&'m str>,
    pub app: Option<&'m str>,
    pub procid: Option<&'m str>,
    pub msgid: Option<&'m str>,
    /// The number that Cisco's devices give to their messages.
    pub sequence: Option<&'m str>,
    /// Structured data: element, parameter, value.
    pub data: Vec<(&'m str, &'m str, Cow<'m, str>)>,
    /// Structured data that could not be read stands in the text.
    pub is_data_text: bool,
    pub text: &'m str,
}

impl<'m> Parsed<'m> {
    const fn new(format: Format, priority: Option<Priority>, text: &'m str) -> Self {
        Self {
            format,
            priority,
            sent: None,
            host: None,
            app: None,
            procid: None,
            msgid: None,
            sequence: None,
            data: vec![],
            is_data_text: false,
            text,
        }
    }
}

/// Reads a message.
pub fn parse(message: &str) -> Parsed<'_> {
    let Some((priority, rest)) = priority(message) else {
        return Parsed::new(Format::Unknown, None, message);
    };
    match rest.strip_prefix("1 ") {
        Some(header) => rfc5424(priority, header).unwrap_or_else(|| {
            // Its priority was read; the rest stays together.
            Parsed::new(Format::Unknown, Some(priority), message)
        }),
        None => rfc3164(priority, rest),
    }
}

fn priority(message: &str) -> Option<(Priority, &str)> {
    let inner = message.strip_prefix('<')?;
    let end = inner.bytes().take(4).position(|b| b == b'>')?;
    let digits = &inner[..end];
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((Priority::new(digits.parse().ok()?)?, &inner[end + 1..]))
}

/// The next word of a header, `-` for none; the rest without the space between.
fn word(text: &str, bytes_max: usize) -> Option<(Option<&str>, &str)> {
    let (word, rest) = text.split_once(' ')?;
    let is_one = !word.is_empty() && word.len() <= bytes_max && !word.chars().any(char::is_control);
    is_one.then_some(((word != "-").then_some(word), rest))
}

fn rfc5424(priority: Priority, header: &str) -> Option<Parsed<'_>> {
    let (stamp, rest) = word(header, 64)?;
    let sent = match stamp {
        None => None,
        Some(stamp) => match time::iso(stamp)? {
            (sent, "") => Some((sent, stamp)),
            _ => return None,
        },
    };
    let (host, rest) = word(rest, HOST_BYTES_MAX)?;
    let (app, rest) = word(rest, NAME_BYTES_MAX)?;
    let (procid, rest) = word(rest, NAME_BYTES_MAX)?;
    // Where there is neither structured data nor a text, some senders leave out their `-`, too.
    let (msgid, rest) = word(rest, NAME_BYTES_MAX)?;
    let (data, is_data_text, text) = match structured_data(rest) {
        Some((data, text)) => (data, false, text),
        None => (vec![], true, rest),
    };
    Some(Parsed {
        sent,
        host,
        app,
        procid,
        msgid,
        data,
        is_data_text,
        text: text.strip_prefix('\u{feff}').unwrap_or(text),
        ..Parsed::new(Format::Rfc5424, Some(priority), text)
    })
}

type Data<'m> = Vec<(&'m str, &'m str, Cow<'m, str>)>;

/// `-` or `[id name="value" …][…]`, and the text behind it. `None`: it cannot be read, or holds too much.
fn structured_data(text: &str) -> Option<(Data<'_>, &str)> {
    let mut data = vec![];
    let mut rest = match text.strip_prefix('-') {
        Some(rest) => rest,
        None if text.starts_with('[') => {
            let mut rest = text;
            let mut bytes = 0;
            while let Some(element) = rest.strip_prefix('[') {
                rest = element_of(element, &mut data, &mut bytes)?;
            }
            rest
        }
        None => return None,
    };
    if !rest.is_empty() {
        rest = rest.strip_prefix(' ')?;
    }
    Some((data, rest))
}

/// Names of elements and parameters: printable ASCII but for what ends them.
fn name(text: &str) -> Option<(&str, &str)> {
    let ends = |b: u8| !b.is_ascii_graphic() || matches!(b, b'=' | b']' | b'"');
    let end = text.bytes().position(ends)?;
    (end > 0 && end <= NAME_BYTES_MAX).then(|| text.split_at(end))
}

/// One element, behind its `[`. What follows its `]`.
fn element_of<'m>(text: &'m str, data: &mut Data<'m>, bytes: &mut usize) -> Option<&'m str> {
    let (id, mut rest) = name(text)?;
    let first = data.len();
    loop {
        if let Some(rest) = rest.strip_prefix(']') {
            if data.len() == first {
                // That it is there is all that it says.
                data.push((id, "", Cow::Borrowed("true")));
            }
            return (data.len() <= DATA_MAX).then_some(rest);
        }
        let (param, after) = name(rest.strip_prefix(' ')?.trim_start_matches(' '))?;
        let (value, after) = value(after.strip_prefix("=\"")?)?;
        *bytes += id.len() + param.len() + value.len();
        if data.len() == DATA_MAX || *bytes > DATA_BYTES_MAX {
            return None;
        }
        data.push((id, param, value));
        rest = after;
    }
}

/// A value behind its quote: `\"`, `\\` and `\]` stand for what they escape; any other backslash is one.
fn value(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let end = memchr::memchr2(b'"', b'\\', text.as_bytes())?;
    if text.as_bytes()[end] == b'"' {
        return Some((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut value = text[..end].to_owned();
    let mut rest = &text[end..];
    loop {
        let at = memchr::memchr2(b'"', b'\\', rest.as_bytes())?;
        value.push_str(&rest[..at]);
        if rest.as_bytes()[at] == b'"' {
            return Some((Cow::Owned(value), &rest[at + 1..]));
        }
        match rest.as_bytes().get(at + 1) {
            Some(b @ (b'"' | b'\\' | b']')) => {
                value.push(*b as char);
                rest = &rest[at + 2..];
            }
            _ => {
                value.push('\\');
                rest = &rest[at + 1..];
            }
        }
        if value.len() > DATA_BYTES_MAX {
            return None;
        }
    }
}

fn rfc3164(priority: Priority, message: &str) -> Parsed<'_> {
    let (sequence, numbered) = sequence(message);
    let marked = numbered.strip_prefix(['*', '.']).unwrap_or(numbered);
    let read = time::bsd(marked).or_else(|| time::iso(marked));
    let Some((sent, behind)) = read else {
        // RFC 3164 §4.3.2: all behind the priority is text. There may still be a tag.
        let mut parsed = Parsed::new(Format::Rfc3164, Some(priority), message);
        tag(message, &mut parsed);
        return parsed;
    };
    let stamp = &marked[..marked.len() - behind.len()];
    let (sent, behind) = zone_word(sent, behind);
    let mut parsed = Parsed {
        sent: Some((sent, stamp)),
        sequence,
        ..Parsed::new(Format::Rfc3164, Some(priority), "")
    };
    // A colon ends the header of devices that do not name themselves.
    if let Some(text) = behind.strip_prefix(':') {
        tag(text.strip_prefix(' ').unwrap_or(text), &mut parsed);
        return parsed;
    }
    let behind = behind.strip_prefix(' ').unwrap_or(behind);
    let first = behind.split(' ').next().unwrap_or_default();
    if !is_host(first) {
        tag(behind, &mut parsed);
        return parsed;
    }
    parsed.host = (first != "-").then_some(first);
    let text = &behind[first.len()..];
    let text = text.strip_prefix(' ').unwrap_or(text);
    // `host : %ASA-…`
    tag(text.strip_prefix(": ").unwrap_or(text), &mut parsed);
    parsed
}

fn is_host(word: &str) -> bool {
    let is_address = || word.parse::<IpAddr>().is_ok() || word.parse::<SocketAddr>().is_ok();
    word.len() <= HOST_BYTES_MAX
        && !word.ends_with(':')
        && word.chars().all(|c| c.is_alphanumeric() || "._-:%".contains(c))
        && (word == "-" || word.chars().any(char::is_alphabetic) || is_address())
}

/// `45: ` before the time.
fn sequence(text: &str) -> (Option<&str>, &str) {
    let digits = text.bytes().take(20).take_while(u8::is_ascii_digit).count();
    match text[digits..].strip_prefix(": ") {
        Some(rest) if digits > 0 => (Some(&text[..digits]), rest),
        _ => (None, text),
    }
}

/// `UTC` behind a time on the wall counts; the names of other zones stand for several each.
fn zone_word(sent: Sent, behind: &str) -> (Sent, &str) {
    let is_end = |rest: &&str| rest.starts_with([':', ' ']);
    for zone in [" UTC", " GMT"] {
        if let Some(rest) = behind.strip_prefix(zone).filter(is_end) {
            return (sent.in_utc(), rest);
        }
    }
    (sent, behind)
}

/// `sshd[42]: text` or `sshd: text`; else all of it is text.
fn tag<'m>(text: &'m str, parsed: &mut Parsed<'m>) {
    parsed.text = text;
    let is_of_tag = |b: u8| {
        (b.is_ascii_graphic() || !b.is_ascii())
            && !matches!(b, b'[' | b']' | b':' | b'"' | b'{' | b'<' | b'=' | b',' | b'@')
    };
    let end = text.bytes().take(NAME_BYTES_MAX + 1).position(|b| !is_of_tag(b));
    let Some(end) = end else { return };
    let (app, mut rest) = text.split_at(end);
    if !app.bytes().any(|b| b.is_ascii_alphabetic()) {
        return;
    }
    let mut procid = None;
    if let Some(inner) = rest.strip_prefix('[') {
        let pid = inner.split(']').next().unwrap_or_default();
        let is_pid = !pid.is_empty() && pid.len() < inner.len() && pid.len() <= NAME_BYTES_MAX;
        if !is_pid || !pid.bytes().all(|b| b.is_ascii_graphic()) {
            return;
        }
        procid = Some(pid);
        rest = &inner[pid.len() + 1..];
    }
    let rest = match rest.strip_prefix(':') {
        Some(rest) => rest,
        None if procid.is_some() && (rest.is_empty() || rest.starts_with(' ')) => rest,
        None => return,
    };
    // `http://…` and `12:30` are no tags.
    if !rest.is_empty() && !rest.starts_with(' ') {
        return;
    }
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    (parsed.app, parsed.procid) = (Some(app), procid);
    parsed.text = rest.strip_prefix('\u{feff}').unwrap_or(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_model::TimestampNs;
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    fn check(message: &str, expect: Expect) {
        let p = parse(message);
        let received = TimestampNs::from_secs(1_700_000_000);
        let mut out = p.format.as_str().to_owned();
        if let Some(priority) = p.priority {
            out += &format!(" {}.{}", priority.facility(), priority.severity());
        }
        if let Some((sent, _)) = p.sent {
            let at = sent.instant(received, &TimeZone::UTC);
            out += &at.map_or(" at no day".to_owned(), |at| format!(" at {at}"));
        }
        let texts = [
            ("host", p.host),
            ("app", p.app),
            ("procid", p.procid),
            ("msgid", p.msgid),
            ("sequence", p.sequence),
        ];
        for (name, text) in texts {
            out += &text.map_or(String::new(), |t| format!(" {name}={t:?}"));
        }
        for (id, param, value) in &p.data {
            out += &format!("\n  [{id} {param}={value:?}]");
        }
        if p.is_data_text {
            out += "\n  structured data is text";
        }
        expect.assert_eq(&format!("{out}\n  {:?}", p.text));
    }

    #[test]
    fn rfc_5424_is_read_whole() {
        check(
            "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \u{feff}'su root' failed for lonvick",
            expect![[r#"
                rfc5424 auth.crit at 1065910455.003 host="mymachine.example.com" app="su" msgid="ID47"
                  "'su root' failed for lonvick""#]],
        );
        check(
            r#"<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - [exampleSDID@32473 iut="3" eventSource="App\"li\]c\\\n"][empty@1] An event"#,
            expect![[r#"
                rfc5424 local4.notice at 1061727255.000 host="192.0.2.1" app="myproc" procid="8710"
                  [exampleSDID@32473 iut="3"]
                  [exampleSDID@32473 eventSource="App\"li]c\\\\n"]
                  [empty@1 ="true"]
                  "An event""#]],
        );
        check(
            "<0>1 - - - - - -",
            expect![[r#"
            rfc5424 kern.emerg
              """#]],
        );
        check(
            "<14>1 2023-11-14T22:13:20+09:00 서버1 결제 - - - 주문이 접수됨",
            expect![[r#"
                rfc5424 user.info at 1699967600.000 host="서버1" app="결제"
                  "주문이 접수됨""#]],
        );
    }

    #[test]
    fn a_broken_header_leaves_the_message_whole() {
        check(
            "<14>1 yesterday h a - - - text",
            expect![[r#"
            unknown user.info
              "<14>1 yesterday h a - - - text""#]],
        );
        check(
            "<14>1 - h a -",
            expect![[r#"
            unknown user.info
              "<14>1 - h a -""#]],
        );
        check(
            r#"<14>1 - h a - - [x y="unfinished text"#,
            expect![[r#"
                rfc5424 user.info host="h" app="a"
                  structured data is text
                  "[x y=\"unfinished text""#]],
        );
        check(
            "<14>1 - h a - - no data",
            expect![[r#"
            rfc5424 user.info host="h" app="a"
              structured data is text
              "no data""#]],
        );
        for text in ["<192>x", "<>x", "<1x>y", "<0000>x", "plain", "", "<13"] {
            assert_eq!(parse(text), Parsed::new(Format::Unknown, None, text));
        }
    }

    #[test]
    fn rfc_3164_is_read_as_it_is_sent() {
        check(
            "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
            expect![[r#"
                rfc3164 auth.crit at 1697062455.000 host="mymachine" app="su"
                  "'su root' failed for lonvick on /dev/pts/8""#]],
        );
        check(
            "<86>Nov 14 22:13:19 web-1 sshd[4242]: Accepted publickey",
            expect![[r#"
                rfc3164 authpriv.info at 1699999999.000 host="web-1" app="sshd" procid="4242"
                  "Accepted publickey""#]],
        );
        check(
            "<30>2023-11-14T22:13:19.5+00:00 web-1 postfix/smtpd[7]: connect from x[1.2.3.4]",
            expect![[r#"
                rfc3164 daemon.info at 1699999999.500 host="web-1" app="postfix/smtpd" procid="7"
                  "connect from x[1.2.3.4]""#]],
        );
        check(
            "<13>Nov 14 22:13:19 logger[12]: no host",
            expect![[r#"
            rfc3164 user.notice at 1699999999.000 app="logger" procid="12"
              "no host""#]],
        );
        check(
            "<13>Nov 14 22:13:19 web-1 free text: here",
            expect![[r#"
            rfc3164 user.notice at 1699999999.000 host="web-1"
              "free text: here""#]],
        );
        check(
            "<13>only a text",
            expect![[r#"
            rfc3164 user.notice
              "only a text""#]],
        );
        check(
            "<13>app[3]: only a tag",
            expect![[r#"
            rfc3164 user.notice app="app" procid="3"
              "only a tag""#]],
        );
        check(
            "<13>http://example.org/ 12:30",
            expect![[r#"
            rfc3164 user.notice
              "http://example.org/ 12:30""#]],
        );
        check(
            "<6>Nov 14 22:13:19 web-1 kernel: [ 12.5] eth0: up",
            expect![[r#"
            rfc3164 kern.info at 1699999999.000 host="web-1" app="kernel"
              "[ 12.5] eth0: up""#]],
        );
        check(
            "<13>Feb 30 22:13:19 web-1 a: b",
            expect![[r#"
            rfc3164 user.notice at no day host="web-1" app="a"
              "b""#]],
        );
    }

    /// Somebody's phone number and mail address stood in the list of labels, where nothing masks them.
    #[test]
    fn personal_data_before_a_colon_is_text_and_no_label() {
        let mut out = String::new();
        for text in [
            "hong@example.com: hello",
            "010-1234-5678: call me",
            "홍길동: 문의합니다",
            "961219-1234567[1]: x",
            "Nov 14 22:13:19 hong@example.com: hello",
            "Nov 14 22:13:19 010-1234-5678 called",
            "Nov 14 22:13:19 web-1 hong@example.com: hello",
            "Nov 14 22:13:19 web-1 01012345678: call me",
            "Nov 14 22:13:19 10.0.0.7 a: of an address",
            "Nov 14 22:13:19 10.0.0.7:514 a: of an address with a port",
            "Nov 14 22:13:19 ::1 a: of another",
            "Nov 14 22:13:19 - a: of nobody",
        ] {
            let message = format!("<13>{text}");
            let p = parse(&message);
            out += &format!("{:?} {:?} {:?}\n", p.host, p.app, p.text);
        }
        expect![[r#"
            None None "hong@example.com: hello"
            None None "010-1234-5678: call me"
            None None "홍길동: 문의합니다"
            None None "961219-1234567[1]: x"
            None None "hong@example.com: hello"
            None None "010-1234-5678 called"
            Some("web-1") None "hong@example.com: hello"
            Some("web-1") None "01012345678: call me"
            Some("10.0.0.7") Some("a") "of an address"
            Some("10.0.0.7:514") Some("a") "of an address with a port"
            Some("::1") Some("a") "of another"
            None Some("a") "of nobody"
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn devices_write_their_own() {
        check(
            "<189>45: *Mar  1 18:46:11.123 UTC: %SYS-5-CONFIG_I: Configured from console",
            expect![[r#"
                rfc3164 local7.notice at 1677696371.123 app="%SYS-5-CONFIG_I" sequence="45"
                  "Configured from console""#]],
        );
        check(
            "<166>Nov 14 2023 10:00:00 fw1 : %ASA-6-302013: Built outbound",
            expect![[r#"
                rfc3164 local4.info at 1699956000.000 host="fw1" app="%ASA-6-302013"
                  "Built outbound""#]],
        );
        check(
            "<166>Nov 14 2023 10:00:00: %ASA-6-302013: Built",
            expect![[r#"
            rfc3164 local4.info at 1699956000.000 app="%ASA-6-302013"
              "Built""#]],
        );
        check(
            "<134>Nov 14 22:13:19 fe80::1%eth0 snmpd: link",
            expect![[r#"
                rfc3164 local0.info at 1699999999.000 host="fe80::1%eth0" app="snmpd"
                  "link""#]],
        );
    }

    #[test]
    fn structured_data_beyond_its_bounds_is_text() {
        let params = |n: usize| -> String { (0..n).map(|i| format!(" p{i}=\"v\"")).collect() };
        let of = |data: &str| format!("<14>1 - h a - - {data} text");
        let most = of(&format!("[x{}]", params(DATA_MAX)));
        assert_eq!(parse(&most).data.len(), DATA_MAX);
        let more = of(&format!("[x{}]", params(DATA_MAX + 1)));
        assert!(parse(&more).is_data_text && parse(&more).text.ends_with(" text"));
        let one_by_one = of(&"[x]".repeat(DATA_MAX + 1));
        assert!(parse(&one_by_one).is_data_text);
        for filler in ["v", "\\\\"] {
            let long = of(&format!("[x p=\"{}\"]", filler.repeat(DATA_BYTES_MAX)));
            assert!(parse(&long).is_data_text, "{filler}");
        }
        let name = "n".repeat(NAME_BYTES_MAX + 1);
        assert_eq!(parse(&format!("<14>1 - h {name} - - - t")).format, Format::Unknown);
        assert_eq!(parse(&format!("<14>{name}: t")).app, None);
        let host = "h".repeat(HOST_BYTES_MAX + 1);
        assert_eq!(parse(&format!("<14>1 - {host} a - - - t")).format, Format::Unknown);
        assert_eq!(parse(&format!("<14>Nov 14 22:13:19 {host} a: t")).host, None);
    }

    fn some_word() -> impl Strategy<Value = Option<String>> {
        proptest::option::of("[a-zA-Z0-9._/가-힣]{1,20}")
    }

    proptest! {
        /// A message that is written as RFC 5424 says comes apart as it was put together.
        #[test]
        fn what_is_put_together_comes_apart(
            number in 0u16..=191,
            (host, app, procid, msgid) in (some_word(), some_word(), some_word(), some_word()),
            data in proptest::collection::vec(("[a-z@0-9]{1,9}", "[a-z]{1,9}", "[ -~가]{0,12}"), 0..5),
            text in "[^\u{feff}]{0,40}",
        ) {
            let or = |w: &Option<String>| w.clone().unwrap_or_else(|| "-".to_owned());
            let escaped = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]");
            let elements: String = data.iter().map(|(id, p, v)| format!("[{id} {p}=\"{}\"]", escaped(v))).collect();
            let elements = if data.is_empty() { "-".to_owned() } else { elements };
            let message = format!(
                "<{number}>1 2023-11-14T22:13:20Z {} {} {} {} {elements} {text}", or(&host), or(&app), or(&procid), or(&msgid)
            );
            let p = parse(&message);
            prop_assert_eq!(p.format, Format::Rfc5424);
            prop_assert_eq!(p.priority.map(|p| u16::from(p.number())), Some(number));
            prop_assert_eq!((p.host, p.app, p.procid, p.msgid), (host.as_deref(), app.as_deref(), procid.as_deref(), msgid.as_deref()));
            prop_assert_eq!(p.text, text.as_str());
            let got: Vec<_> = p.data.iter().map(|(i, n, v)| ((*i).to_owned(), (*n).to_owned(), v.to_string())).collect();
            prop_assert_eq!(got, data);
        }

        /// Whatever comes, its end is the text, and nothing panics.
        #[test]
        fn the_text_is_the_end_of_the_message(message in "(<[0-9]{1,3}>)?(1 |Nov 14 22:13:19 )?[ -~가\u{feff}\n]{0,60}") {
            prop_assert!(message.ends_with(parse(&message).text));
        }
    }
}
