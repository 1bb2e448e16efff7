//! Masking as a fuzz target.

use crate::{Counts, Masking, Settings, TypeSettings};
use hindcast_env::fuzz::Target;

pub const TARGETS: &[Target] = &[Target {
    name: "masking",
    run: mask,
    seeds,
}];

/// # Panics
/// When a promise of this crate does not hold for the text.
pub(crate) fn check(masking: &Masking, text: &[u8]) {
    let masker = masking.all();
    let first = masker.preview(text);
    assert!(first.text.len() <= text.len(), "a line grew");
    assert_eq!(
        first.found.is_empty(),
        first.text == text,
        "found and not hidden, or hidden and not found"
    );
    if std::str::from_utf8(text).is_ok() {
        assert!(std::str::from_utf8(&first.text).is_ok(), "UTF-8 was torn");
    }
    let again = masker.preview(&first.text);
    assert!(
        again.found.is_empty(),
        "{:?} became {:?}, in which there is {:?}",
        String::from_utf8_lossy(text),
        String::from_utf8_lossy(&first.text),
        again.found
    );
    let mut session = masker.session();
    assert_eq!(session.mask(text).unwrap_or(text), first.text);
}

fn mask(bytes: &[u8]) {
    thread_local! {
        static SHIPPED: Masking = Masking::new(Settings::default(), &Counts::default()).expect("default settings");
        static MORE: Masking = Masking::new(
            Settings {
                types: [
                    ("employee", r"EMP-(\d{6})", Some(2)),
                    ("login", r"user=(\S+) pass=(\S+)", None),
                    ("slow", r".*[^\x00-\x7f]x|[A-Z]\b", None),
                ]
                .map(|(name, pattern, keep_last)| TypeSettings {
                    name: name.into(),
                    pattern: Some(pattern.into()),
                    keep_last,
                    ..TypeSettings::default()
                })
                .into(),
                ..Settings::default()
            },
            &Counts::default(),
        )
        .expect("good settings");
    }
    SHIPPED.with(|m| check(m, bytes));
    MORE.with(|m| {
        let masked = m.all().preview(bytes);
        assert!(masked.text.len() <= bytes.len(), "a line grew");
        if std::str::from_utf8(bytes).is_ok() {
            assert!(std::str::from_utf8(&masked.text).is_ok(), "UTF-8 was torn");
        }
    });
}

fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "961219-1234567 9612191234567 rrn=961219%2D1234567",
        "010-1234-5678 +82 10-1234-5678 02)123-4567 01012345678 031.123.4567",
        r#"{"mail":"gildong.hong@example.co.kr","to":"\u0022kim\u0040example.org"}"#,
        "4111-1111-1111-1111 4111111111111111 3782-822463-10005",
        "서울시 성동구 성수이로 22길 37 (성수동2가, 아크밸리) 301호",
        "경기도 양평군 양서면 양수리 123-4, EMP-123456",
        "addr=%EC%84%9C%EC%9A%B8%EC%8B%9C+%EC%84%B1%EB%8F%99%EA%B5%AC+%EC%84%B1%EC%88%98%EC%9D%B4%EB%A1%9C",
        r"\uc11c\uc6b8\uc2dc \uc131\ub3d9\uad6c \uc131\uc218\uc774\ub85c",
        "user=kim pass=hunter2 EMP-123456, user=이 pass=가x",
        r#"{"msg":"to\n서울시 성동구 성수이로 22\tM12345678\r\n(02) 123-4567 02.1234.5678"}"#,
        "M12345678 M123A4567 5678-1234-5678-1234-010-1234-5678",
    ];
    texts.map(|t| t.as_bytes().to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::TARGETS;
    use hindcast_env::io::SystemClock;
    use hindcast_model::SpanNs;

    #[test]
    fn nothing_panics_grows_or_is_found_twice() {
        hindcast_env::fuzz::check_targets(TARGETS, &SystemClock::new(), SpanNs::from_ms(1500));
    }
}
