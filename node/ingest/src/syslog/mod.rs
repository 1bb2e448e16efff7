//! Syslog: RFC 5424, and RFC 3164 as it is really sent, over whatever carries it.
//!
//! Every message becomes a line, since no sender can be told that it did not: what cannot be read as syslog is kept whole
//! (`syslog_format="unknown"`), what is too long is cut, what cannot be a time gives way to when the message came. Each of
//! these says so in the line's metadata and is counted in [`Tally`].
//!
//! Labels of a stream: `syslog_format`, `host_name`, `app_name`, `facility`, `severity`; for devices of a network also
//! `syslog_device`, which makes the device own the stream and not a host of its name. Hosts and programs are bounded
//! ([`Names`]). Everything else is metadata: `detected_level`, `procid`, `msgid`, `syslog_peer` (the address from which it came, on
//! every line), `sd_<id>_<name>`.
//!
//! Lines are UTF-8. Bytes that are not are read in the listener's charset, where it has one, and say which; else they are
//! replaced as in other logs, and the line says how many.

pub mod frame;
pub mod listen;
mod names;
pub mod parse;
pub mod time;

pub use names::{APPS_PER_HOST_MAX, NAMES_MAX, Names};

use crate::otlp::names::label_name;
use crate::owners::{Named, Seen};
use crate::{Adapted, Bounds, LimitsContext, Rejections};
use bytes::Bytes;
use encoding_rs::Encoding;
use frame::Frame;
use hindcast_model::limits::LINE_BYTES_MAX;
use hindcast_model::{Batch, Labels, LogLine, StreamBlock, TenantId, TimestampNs};
use jiff::tz::TimeZone;
use parse::{Format, Parsed};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is kept of a time that cannot be: it may have any number of digits.
pub const STAMP_BYTES_MAX: usize = 64;
/// Patterns of one listener for hosts that are devices.
pub const DEVICE_PATTERNS_MAX: usize = 256;

/// What a listener is told about its senders.
#[derive(Clone, Debug)]
pub struct Settings {
    pub tenant: TenantId,
    /// Of times without a zone.
    pub zone: TimeZone,
    /// Of bytes that are not UTF-8.
    pub charset: Option<&'static Encoding>,
    pub devices: Devices,
}

/// Which senders are devices of a network (domain NMS) and not hosts (SMS).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// Names or addresses, with `*` for any characters.
    pub hosts: Vec<String>,
    /// A bit for each facility that only devices use.
    pub facilities: u32,
}

impl Devices {
    fn has(&self, host: &str, facility: Option<u8>) -> bool {
        facility.is_some_and(|f| self.facilities >> f & 1 == 1) || self.hosts.iter().any(|p| matches(p, host))
    }
}

/// Whether a pattern with `*` fits a whole name, letters in any case.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(before) = last.replace(part) {
            let Some(at) = rest.find(before) else { return false };
            rest = &rest[at + before.len()..];
        }
    }
    last.map_or(rest.is_empty(), |last: &str| rest.ends_with(last))
}

/// A message, from whom and when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub frame: Frame,
    pub peer: IpAddr,
    pub received: TimestampNs,
}

/// Messages that are kept with a mark, by mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Neither RFC 5424 nor RFC 3164.
    pub unknown: u64,
    /// Structured data that could not be read.
    pub data: u64,
    /// Cut, because they were too long or broke off.
    pub cut: u64,
    /// With bytes in no charset.
    pub replaced: u64,
    /// With a time that cannot be.
    pub retimed: u64,
    /// Of a host or program beyond the bound of names.
    pub unnamed: u64,
}

impl Tally {
    /// Every mark, for counters.
    pub const MARKS: [&'static str; 6] = ["unknown_format", "structured_data", "cut", "charset", "time", "names"];

    /// Marks and counts.
    pub fn list(&self) -> [(&'static str, u64); 6] {
        let counts = [
            self.unknown,
            self.data,
            self.cut,
            self.replaced,
            self.retimed,
            self.unnamed,
        ];
        std::array::from_fn(|i| (Self::MARKS[i], counts[i]))
    }

    fn add(&mut self, other: &Self) {
        self.unknown += other.unknown;
        self.data += other.data;
        self.cut += other.cut;
        self.replaced += other.replaced;
        self.retimed += other.retimed;
        self.unnamed += other.unnamed;
    }
}

/// A message's bytes as text.
struct Text<'m> {
    text: Cow<'m, str>,
    /// Read in another charset than UTF-8.
    charset: Option<&'static str>,
    /// Places whose bytes no charset has.
    replaced: usize,
}

fn text_of<'m>(bytes: &'m [u8], charset: Option<&'static Encoding>) -> Text<'m> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Text {
            text: Cow::Borrowed(text),
            charset: None,
            replaced: 0,
        };
    }
    if let Some(encoding) = charset
        && let Some(text) = encoding.decode_without_bom_handling_and_without_replacement(bytes)
    {
        return Text {
            text,
            charset: Some(encoding.name()),
            replaced: 0,
        };
    }
    Text {
        text: String::from_utf8_lossy(bytes),
        charset: None,
        replaced: bytes.utf8_chunks().filter(|c| !c.invalid().is_empty()).count(),
    }
}

/// What names a stream, in a form in which streams are told apart.
fn stream_key(key: &mut Vec<u8>, host: &str, parsed: &Parsed<'_>) {
    key.clear();
    let priority = parsed.priority.map_or(u8::MAX, parse::Priority::number);
    key.extend_from_slice(&[parsed.format as u8, priority]);
    key.extend_from_slice(host.as_bytes());
    key.push(0);
    if let Some(app) = parsed.app {
        key.push(1);
        key.extend_from_slice(app.as_bytes());
    }
}

/// A stream of this batch.
struct Stream {
    block: StreamBlock,
    /// Which of its names stand in its labels.
    named: names::Named,
}

/// Turns messages into a batch without an id, and says what had to be marked.
pub fn adapt(settings: &Settings, messages: &[Message], limits: &LimitsContext, names: &mut Names) -> (Adapted, Tally) {
    let mut of_key: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    let mut streams: Vec<Stream> = vec![];
    let (mut rejected, mut tally, mut seen, mut key) =
        (Rejections::default(), Tally::default(), Seen::default(), vec![]);
    // A message is not sent again: what is too long of it goes, and not all of it.
    let limits = &LimitsContext {
        bounds: Bounds {
            cuts_lines: true,
            ..limits.bounds
        },
        ..*limits
    };
    for message in messages {
        let text = text_of(&message.frame.bytes, settings.charset);
        let parsed = parse::parse(&text.text);
        let peer = message.peer.to_canonical().to_string();
        let host = parsed.host.unwrap_or(&peer);
        stream_key(&mut key, host, &parsed);
        let at = match of_key.get(&key) {
            Some(at) => *at,
            None => match begin(settings, host, &parsed, limits, names, &mut seen) {
                Ok(stream) => {
                    streams.push(stream);
                    of_key.insert(key.clone(), streams.len() - 1);
                    streams.len() - 1
                }
                Err(why) => {
                    rejected.add(1, &why, || host.to_owned());
                    continue;
                }
            },
        };
        let stream = &mut streams[at];
        let mut marks = Tally::default();
        let line = line(
            settings,
            message,
            &text,
            &parsed,
            (host, &peer),
            stream.named,
            limits,
            &mut marks,
        );
        let fits = limits
            .time(line.at)
            .and_then(|()| limits.line(line.line.len(), &line.metadata));
        match fits {
            Ok(()) => {
                tally.add(&marks);
                stream.block.lines.push(line);
            }
            Err(why) => rejected.add(1, &why, || stream.block.labels.to_string()),
        }
    }
    let mut batch = Batch::new(settings.tenant.clone());
    let blocks = streams.into_iter().map(|s| s.block);
    batch.streams = blocks.filter(|b| !b.lines.is_empty()).collect();
    seen.into_batch(&mut batch);
    (Adapted { batch, rejected }, tally)
}

/// The stream of a message.
fn begin(
    settings: &Settings,
    host: &str,
    parsed: &Parsed<'_>,
    limits: &LimitsContext,
    names: &mut Names,
    seen: &mut Seen,
) -> Result<Stream, crate::Refusal> {
    let named = names.admit(host, parsed.app);
    let mut pairs = vec![("syslog_format".to_owned(), parsed.format.as_str().to_owned())];
    let mut attrs = vec![];
    let mut add = |name: &str, value: &str| pairs.push((name.to_owned(), value.to_owned()));
    if named.host {
        add("host_name", host);
        attrs.push(("host.name".to_owned(), host.to_owned()));
        if settings.devices.has(host, parsed.priority.map(|p| p.facility_number())) {
            add("syslog_device", host);
            attrs.push(("syslog.device".to_owned(), host.to_owned()));
        }
    }
    if let Some(app) = parsed.app.filter(|_| named.app) {
        add("app_name", app);
    }
    if let Some(priority) = parsed.priority {
        add("facility", priority.facility());
        add("severity", priority.severity());
    }
    limits.labels(&pairs, false)?;
    let owned = Named::new(&settings.tenant, Labels::new(pairs), &attrs);
    seen.note(&owned.resource);
    Ok(Stream {
        block: StreamBlock {
            labels: owned.labels,
            owner: owned.owner,
            lines: vec![],
        },
        named,
    })
}

#[allow(clippy::too_many_arguments, reason = "one line, from all that is known of it")]
fn line(
    settings: &Settings,
    message: &Message,
    text: &Text<'_>,
    parsed: &Parsed<'_>,
    (host, peer): (&str, &str),
    named: names::Named,
    limits: &LimitsContext,
    marks: &mut Tally,
) -> LogLine {
    let mut metadata: Vec<(String, String)> = Vec::with_capacity(6 + parsed.data.len());
    let mut add = |name: &str, value: &str| {
        if !value.is_empty() {
            metadata.push((name.to_owned(), value.to_owned()));
        }
    };
    if let Some(priority) = parsed.priority {
        add("detected_level", priority.level());
    }
    add("procid", parsed.procid.unwrap_or_default());
    add("msgid", parsed.msgid.unwrap_or_default());
    add("syslog_sequence", parsed.sequence.unwrap_or_default());
    add("syslog_peer", peer);
    if !named.host || !named.app {
        marks.unnamed += 1;
        add("syslog_host", if named.host { "" } else { host });
        add("syslog_app", parsed.app.unwrap_or_default());
    }
    if parsed.format == Format::Unknown {
        marks.unknown += 1;
    }
    if parsed.is_data_text {
        marks.data += 1;
        add("syslog_structured_data", "unreadable");
    }
    if let Some(charset) = text.charset {
        add("syslog_charset", charset);
    }
    if text.replaced > 0 {
        marks.replaced += 1;
        add("syslog_bytes_replaced", &text.replaced.to_string());
    }
    let at = match parsed.sent {
        None => message.received,
        Some((sent, written)) => match sent.instant(message.received, &settings.zone) {
            Some(at) if limits.time(at).is_ok() => at,
            _ => {
                // Better a line at another time than none: a device's clock may never have been set.
                marks.retimed += 1;
                add("syslog_time", &written[..written.floor_char_boundary(STAMP_BYTES_MAX)]);
                message.received
            }
        },
    };
    // Other charsets' text may take more room than it had.
    let shown = &parsed.text[..parsed.text.floor_char_boundary(LINE_BYTES_MAX)];
    if message.frame.is_cut || shown.len() < parsed.text.len() {
        marks.cut += 1;
        add("syslog_cut", "true");
    }
    for (id, param, value) in &parsed.data {
        let name = match *param {
            "" => format!("sd_{id}"),
            param => format!("sd_{id}_{param}"),
        };
        add(&label_name(&name), value);
    }
    metadata.sort_by(|a, b| a.0.cmp(&b.0));
    // RFC 5424 lets a parameter come again: its values stand together.
    metadata.dedup_by(|again, first| {
        let is_same = again.0 == first.0;
        if is_same {
            first.1.push(',');
            first.1.push_str(&again.1);
        }
        is_same
    });
    let line = match &text.text {
        Cow::Borrowed(_) => message.frame.bytes.slice_ref(shown.as_bytes()),
        Cow::Owned(_) => Bytes::copy_from_slice(shown.as_bytes()),
    };
    LogLine { at, line, metadata }
}

#[cfg(test)]
mod tests;
