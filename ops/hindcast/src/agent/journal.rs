//! What one entry of the systemd journal says, as `journalctl -o json` prints it.
//!
//! Pure. An entry without a message or a time is no line. Messages that are not text come as arrays of bytes.

use super::batcher::Entry;
use hindcast_model::limits::LINE_BYTES_MAX;
use serde_json::Value;

/// The unit that wrote it (empty: the kernel, or none), and the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    pub unit: String,
    pub entry: Entry,
}

pub fn parse(line: &str) -> Option<JournalEntry> {
    let fields: serde_json::Map<String, Value> = serde_json::from_str(line).ok()?;
    let text = |name: &str| fields.get(name).and_then(Value::as_str).filter(|v| !v.is_empty());
    let mut message = match fields.get("MESSAGE")? {
        Value::String(s) => s.clone(),
        Value::Array(bytes) => {
            let bytes: Option<Vec<u8>> = bytes.iter().map(|b| u8::try_from(b.as_u64()?).ok()).collect();
            String::from_utf8_lossy(&bytes?).into_owned()
        }
        _ => return None,
    };
    if message.is_empty() {
        return None;
    }
    message.truncate(message.floor_char_boundary(LINE_BYTES_MAX));
    let at_us: i64 = text("__REALTIME_TIMESTAMP")?.parse().ok()?;
    let mut metadata: Vec<(String, String)> = vec![];
    if let Some(severity) = text("PRIORITY").and_then(severity) {
        metadata.push(("severity_text".to_owned(), severity.to_owned()));
    }
    for (field, name) in [
        ("SYSLOG_IDENTIFIER", "syslog_identifier"),
        ("_PID", "process_pid"),
        ("_TRANSPORT", "transport"),
    ] {
        metadata.extend(text(field).map(|v| (name.to_owned(), v.to_owned())));
    }
    metadata.sort();
    Some(JournalEntry {
        unit: text("_SYSTEMD_UNIT").unwrap_or_default().to_owned(),
        entry: Entry {
            at_ns: at_us.checked_mul(1_000)?,
            line: message,
            metadata,
        },
    })
}

/// Syslog's priorities by OpenTelemetry's short names.
fn severity(priority: &str) -> Option<&'static str> {
    Some(match priority {
        "0" | "1" | "2" => "FATAL",
        "3" => "ERROR",
        "4" => "WARN",
        "5" | "6" => "INFO",
        "7" => "DEBUG",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(line: &str, expect: Expect) {
        let shown = parse(line).map_or("no line".to_owned(), |j| {
            format!(
                "{:?} {} {:?} {:?}",
                j.unit, j.entry.at_ns, j.entry.line, j.entry.metadata
            )
        });
        expect.assert_eq(&shown);
    }

    #[test]
    fn an_entry_is_a_line_with_its_unit_and_severity() {
        check(
            r#"{"__REALTIME_TIMESTAMP":"1795360000000001","PRIORITY":"3","_SYSTEMD_UNIT":"ssh.service","MESSAGE":"no","_PID":"7"}"#,
            expect![[r#""ssh.service" 1795360000000001000 "no" [("process_pid", "7"), ("severity_text", "ERROR")]"#]],
        );
        check(
            r#"{"__REALTIME_TIMESTAMP":"1","MESSAGE":[104,105,255],"_TRANSPORT":"kernel"}"#,
            expect![[r#""" 1000 "hi�" [("transport", "kernel")]"#]],
        );
        check(r#"{"__REALTIME_TIMESTAMP":"1","MESSAGE":null}"#, expect!["no line"]);
        check(
            r#"{"__REALTIME_TIMESTAMP":"9223372036854775807","MESSAGE":"x"}"#,
            expect!["no line"],
        );
        check("-- No entries --", expect!["no line"]);
    }
}
