//! Times in Go's layouts (`2006-01-02T15:04:05Z07:00`), in UTC or at a fixed distance from it.

use jiff::civil;
use jiff::tz::TimeZone;

/// The elements of a layout, longest first where one begins with another.
const ELEMENTS: [&str; 28] = [
    "January", "Jan", "Monday", "Mon", "MST", "2006", "Z07:00", "Z0700", "-07:00", "-0700", "-07", "002", "01", "02",
    "03", "04", "05", "06", "_2", "15", "PM", "pm", "1", "2", "3", "4", "5", "Z07",
];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// The element at the beginning of a layout. A fraction of a second (`.000`, `,999`) is an element too.
fn element(layout: &str) -> Option<&str> {
    if layout.starts_with(['.', ',']) {
        let digits = &layout[1..];
        for zero in ['0', '9'] {
            let len = digits.len() - digits.trim_start_matches(zero).len();
            if (1..=9).contains(&len) && !digits[len..].starts_with(|c: char| c.is_ascii_digit()) {
                return Some(&layout[..=len]);
            }
        }
    }
    ELEMENTS
        .into_iter()
        .find(|e| layout.starts_with(e))
        .map(|e| &layout[..e.len()])
}

pub fn format(layout: &str, ns: i64) -> String {
    let stamp = jiff::Timestamp::from_nanosecond(i128::from(ns)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let t = stamp.to_zoned(TimeZone::UTC).datetime();
    let hour12 = match t.hour() % 12 {
        0 => 12,
        h => h,
    };
    let month = MONTHS[(t.month() as usize).clamp(1, 12) - 1];
    let day = DAYS[t.weekday().to_sunday_zero_offset().rem_euclid(7) as usize];
    let (mut out, mut rest) = (String::new(), layout);
    while let Some(c) = rest.chars().next() {
        let Some(e) = element(rest) else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        rest = &rest[e.len()..];
        let shown = match e {
            "January" => month.to_owned(),
            "Jan" => month[..3].to_owned(),
            "Monday" => day.to_owned(),
            "Mon" => day[..3].to_owned(),
            "2006" => format!("{:04}", t.year()),
            "06" => format!("{:02}", t.year().rem_euclid(100)),
            "01" => format!("{:02}", t.month()),
            "1" => t.month().to_string(),
            "02" => format!("{:02}", t.day()),
            "_2" => format!("{:>2}", t.day()),
            "2" => t.day().to_string(),
            "002" => format!("{:03}", t.day_of_year()),
            "15" => format!("{:02}", t.hour()),
            "03" => format!("{hour12:02}"),
            "3" => hour12.to_string(),
            "04" => format!("{:02}", t.minute()),
            "4" => t.minute().to_string(),
            "05" => format!("{:02}", t.second()),
            "5" => t.second().to_string(),
            "PM" => if t.hour() >= 12 { "PM" } else { "AM" }.to_owned(),
            "pm" => if t.hour() >= 12 { "pm" } else { "am" }.to_owned(),
            "MST" => "UTC".to_owned(),
            "Z07:00" | "Z0700" | "Z07" => "Z".to_owned(),
            "-07:00" => "+00:00".to_owned(),
            "-0700" => "+0000".to_owned(),
            "-07" => "+00".to_owned(),
            fraction => {
                let digits = format!("{:09}", t.subsec_nanosecond());
                let digits = &digits[..fraction.len() - 1];
                if fraction.ends_with('9') {
                    let digits = digits.trim_end_matches('0');
                    if digits.is_empty() {
                        String::new()
                    } else {
                        format!("{}{digits}", &fraction[..1])
                    }
                } else {
                    format!("{}{digits}", &fraction[..1])
                }
            }
        };
        out.push_str(&shown);
    }
    out
}

/// Reads `text` by a layout. `None`: it does not fit.
pub fn parse(layout: &str, text: &str) -> Option<i64> {
    let (mut year, mut month, mut day, mut day_of_year) = (0i16, 1i8, 1i8, None);
    let (mut hour, mut minute, mut second, mut nanos) = (0i8, 0i8, 0i8, 0i32);
    let (mut afternoon, mut offset_s) = (None, 0i64);
    let (mut rest, mut text) = (layout, text);
    while let Some(c) = rest.chars().next() {
        let Some(e) = element(rest) else {
            text = text.strip_prefix(c)?;
            rest = &rest[c.len_utf8()..];
            continue;
        };
        rest = &rest[e.len()..];
        match e {
            "January" | "Jan" => {
                let len = if e == "Jan" { 3 } else { usize::MAX };
                let is = |m: &str| text.starts_with(&m[..len.min(m.len())]);
                let i = MONTHS.iter().position(|m| is(m))?;
                month = i as i8 + 1;
                text = &text[len.min(MONTHS[i].len())..];
            }
            "Monday" | "Mon" => {
                let len = if e == "Mon" { 3 } else { usize::MAX };
                let day = DAYS.iter().find(|d| text.starts_with(&d[..len.min(d.len())]))?;
                text = &text[len.min(day.len())..];
            }
            "2006" => year = digits(&mut text, 4, 4)? as i16,
            "06" => {
                let y = digits(&mut text, 2, 2)? as i16;
                year = if y >= 69 { 1900 + y } else { 2000 + y };
            }
            "01" => month = digits(&mut text, 2, 2)? as i8,
            "1" => month = digits(&mut text, 1, 2)? as i8,
            "02" => day = digits(&mut text, 2, 2)? as i8,
            "_2" => {
                text = text.trim_start_matches(' ');
                day = digits(&mut text, 1, 2)? as i8;
            }
            "2" => day = digits(&mut text, 1, 2)? as i8,
            "002" => day_of_year = Some(digits(&mut text, 3, 3)? as i16),
            "15" | "03" => hour = digits(&mut text, 2, 2)? as i8,
            "3" => hour = digits(&mut text, 1, 2)? as i8,
            "04" => minute = digits(&mut text, 2, 2)? as i8,
            "4" => minute = digits(&mut text, 1, 2)? as i8,
            "05" | "5" => {
                second = digits(&mut text, e.len(), 2)? as i8;
                // A fraction may follow that the layout does not name.
                if element(rest).is_none_or(|e| !e.starts_with(['.', ','])) && text.starts_with('.') {
                    nanos = fraction(&mut text)?;
                }
            }
            "PM" | "pm" => {
                let half = text.get(..2)?;
                afternoon = Some(match half.to_ascii_uppercase().as_str() {
                    "AM" => false,
                    "PM" => true,
                    _ => return None,
                });
                text = &text[2..];
            }
            "MST" => {
                let len = text.find(|c: char| !c.is_ascii_uppercase()).unwrap_or(text.len());
                if !matches!(&text[..len], "UTC" | "GMT") {
                    return None;
                }
                text = &text[len..];
            }
            zone @ ("Z07:00" | "Z0700" | "Z07" | "-07:00" | "-0700" | "-07") => {
                if zone.starts_with('Z') && text.starts_with('Z') {
                    text = &text[1..];
                    continue;
                }
                let sign = match text.chars().next()? {
                    '+' => 1,
                    '-' => -1,
                    _ => return None,
                };
                text = &text[1..];
                let hours = digits(&mut text, 2, 2)?;
                text = text.strip_prefix(':').unwrap_or(text);
                let minutes = if zone.ends_with("00") {
                    digits(&mut text, 2, 2)?
                } else {
                    0
                };
                offset_s = sign * (hours * 3600 + minutes * 60);
            }
            _ => {
                // Nines may be missing as a whole.
                if text.starts_with(['.', ',']) {
                    nanos = fraction(&mut text)?;
                } else if !e.ends_with('9') {
                    return None;
                }
            }
        }
    }
    if !text.is_empty() {
        return None;
    }
    match afternoon {
        Some(true) if hour < 12 => hour += 12,
        Some(false) if hour == 12 => hour = 0,
        _ => {}
    }
    let date = match day_of_year {
        Some(n) => civil::Date::new(year, 1, 1)
            .ok()?
            .checked_add(jiff::Span::new().try_days(i64::from(n) - 1).ok()?)
            .ok()?,
        None => civil::Date::new(year, month, day).ok()?,
    };
    let time = civil::Time::new(hour, minute, second, nanos).ok()?;
    let stamp = date.to_datetime(time).to_zoned(TimeZone::UTC).ok()?.timestamp();
    i64::try_from(stamp.as_nanosecond() - i128::from(offset_s) * 1_000_000_000).ok()
}

fn digits(text: &mut &str, least: usize, most: usize) -> Option<i64> {
    let len = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    if len < least {
        return None;
    }
    let number = text[..len].parse().ok()?;
    *text = &text[len..];
    Some(number)
}

fn fraction(text: &mut &str) -> Option<i32> {
    let digits = &text[1..];
    let len = digits.bytes().take_while(u8::is_ascii_digit).count();
    if len == 0 || len > 9 {
        return None;
    }
    let nanos = digits[..len].parse::<i32>().ok()? * 10i32.pow(9 - len as u32);
    *text = &digits[len..];
    Some(nanos)
}
