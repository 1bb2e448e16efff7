//! Messages in, streams and lines out.

use super::frame::datagram;
use super::*;
use expect_test::{Expect, expect};
use hindcast_model::{Domain, Owner};
use proptest::prelude::*;

/// 2023-11-14T22:13:20Z.
const NOW: TimestampNs = TimestampNs(1_700_000_000_000_000_000);
const LIMITS: LimitsContext = LimitsContext {
    now: NOW,
    floor: Some(TimestampNs(1_690_000_000_000_000_000)),
    bounds: crate::check::Bounds::DEFAULT,
};

fn settings() -> Settings {
    Settings {
        tenant: TenantId::default(),
        zone: TimeZone::UTC,
        charset: None,
        devices: Devices::default(),
    }
}

fn message(bytes: &[u8]) -> Message {
    Message {
        frame: datagram(bytes).unwrap(),
        peer: "10.0.0.7".parse().unwrap(),
        received: NOW,
    }
}

fn adapted(settings: &Settings, messages: &[&[u8]]) -> (Adapted, Tally) {
    let messages: Vec<_> = messages.iter().map(|m| message(m)).collect();
    adapt(settings, &messages, &LIMITS, &mut Names::default())
}

fn check_with(settings: &Settings, messages: &[&[u8]], expect: Expect) {
    let (Adapted { batch, rejected }, tally) = adapted(settings, messages);
    let mut out = String::new();
    for stream in &batch.streams {
        let domain = stream.owner.domain().map_or("no domain", Domain::as_str);
        out += &format!("{} {domain}\n", stream.labels);
        for l in &stream.lines {
            out += &format!("  {} {:?}", l.at, std::str::from_utf8(&l.line).unwrap());
            l.metadata.iter().for_each(|(n, v)| out += &format!(" {n}={v:?}"));
            out += "\n";
        }
    }
    let marks = tally.list().into_iter().filter(|(_, n)| *n > 0);
    marks.for_each(|(mark, n)| out += &format!("{mark}: {n}\n"));
    rejected
        .by_code()
        .iter()
        .for_each(|(code, n)| out += &format!("refused, {code}: {n}\n"));
    expect.assert_eq(&out);
}

fn check(messages: &[&[u8]], expect: Expect) {
    check_with(&settings(), messages, expect);
}

#[test]
fn messages_become_lines_of_the_host_that_sent_them() {
    check(
        &[
            b"<86>Nov 14 22:13:19 web-1 sshd[4242]: Accepted publickey for kim",
            b"<86>1 2023-11-14T22:13:19.5Z web-1 sshd 4243 AUTH [a@1 user=\"lee\" user=\"kim\"] Accepted",
            b"<86>Nov 14 22:13:20 web-1 sshd[4242]: Closed",
            b"<3>kernel: no header",
            b"no syslog at all",
        ],
        expect![[r#"
            {app_name="sshd", facility="authpriv", host_name="web-1", severity="info", syslog_format="rfc3164"} SMS
              1699999999.000 "Accepted publickey for kim" detected_level="info" procid="4242" syslog_peer="10.0.0.7"
              1700000000.000 "Closed" detected_level="info" procid="4242" syslog_peer="10.0.0.7"
            {app_name="sshd", facility="authpriv", host_name="web-1", severity="info", syslog_format="rfc5424"} SMS
              1699999999.500 "Accepted" detected_level="info" msgid="AUTH" procid="4243" sd_a_1_user="lee,kim" syslog_peer="10.0.0.7"
            {app_name="kernel", facility="kern", host_name="10.0.0.7", severity="err", syslog_format="rfc3164"} SMS
              1700000000.000 "no header" detected_level="error" syslog_peer="10.0.0.7"
            {host_name="10.0.0.7", syslog_format="unknown"} SMS
              1700000000.000 "no syslog at all" syslog_peer="10.0.0.7"
            unknown_format: 1
        "#]],
    );
}

#[test]
fn a_hosts_lines_are_owned_by_the_resource_of_its_metrics() {
    let (Adapted { batch, .. }, _) = adapted(&settings(), &[b"<86>Nov 14 22:13:19 web-1 a: b"]);
    let scrape = hindcast_model::resource::metric("node_load1", &[("instance", "web-1:9100"), ("job", "node")]);
    let owner = hindcast_model::resource::owner(&TenantId::default(), &scrape, &[]);
    assert_eq!(batch.streams[0].owner, owner);
    assert_eq!(batch.resources.len(), 1);
    assert_eq!((batch.resources[0].name.as_str(), batch.id), ("web-1", None));
}

#[test]
fn devices_are_told_by_name_or_facility_and_own_what_snmp_says_of_them() {
    let settings = Settings {
        devices: Devices {
            hosts: vec!["SW-*".into(), "10.*.7".into()],
            facilities: 1 << parse::facility("local7").unwrap(),
        },
        ..settings()
    };
    check_with(
        &settings,
        &[
            b"<13>Nov 14 22:13:19 sw-3 a: by its name",
            b"<189>Nov 14 22:13:19 r1 a: by its facility",
            b"<13>by its address",
            b"<13>Nov 14 22:13:19 web-1 a: a host",
        ],
        expect![[r#"
            {app_name="a", facility="user", host_name="sw-3", severity="notice", syslog_device="sw-3", syslog_format="rfc3164"} NMS
              1699999999.000 "by its name" detected_level="info" syslog_peer="10.0.0.7"
            {app_name="a", facility="local7", host_name="r1", severity="notice", syslog_device="r1", syslog_format="rfc3164"} NMS
              1699999999.000 "by its facility" detected_level="info" syslog_peer="10.0.0.7"
            {facility="user", host_name="10.0.0.7", severity="notice", syslog_device="10.0.0.7", syslog_format="rfc3164"} NMS
              1700000000.000 "by its address" detected_level="info" syslog_peer="10.0.0.7"
            {app_name="a", facility="user", host_name="web-1", severity="notice", syslog_format="rfc3164"} SMS
              1699999999.000 "a host" detected_level="info" syslog_peer="10.0.0.7"
        "#]],
    );
    let (Adapted { batch, .. }, _) = adapted(&settings, &[b"<13>Nov 14 22:13:19 sw-3 a: b"]);
    let snmp = hindcast_model::resource::metric("sysUpTime", &[("instance", "sw-3")]);
    let owner = hindcast_model::resource::owner(&TenantId::default(), &snmp, &[]);
    assert_eq!(batch.streams[0].owner, owner);
    // What is stored says it itself, whatever the listener is told later.
    let again = hindcast_model::resource::owner(&TenantId::default(), &batch.streams[0].labels, &[]);
    assert_eq!(again, owner);
    for (pattern, name, fits) in [
        ("*", "x", true),
        ("a*c*e", "abcde", true),
        ("a*c*e", "abde", false),
        ("ab", "abc", false),
        ("*bc", "abcbc", true),
        ("a*a", "a", false),
        ("", "", true),
    ] {
        assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
    }
}

#[test]
fn korean_text_is_kept_in_utf_8_and_read_from_cp949() {
    let plain = "<13>Nov 14 22:13:19 서버1 앱: 디스크가 가득 찼습니다 똠".as_bytes();
    let (cp949, _, _) = encoding_rs::EUC_KR.encode("<13>Nov 14 22:13:19 web-1 app: 디스크가 가득 찼습니다 똠");
    check(
        &[plain, &cp949],
        expect![[r#"
            {facility="user", host_name="서버1", severity="notice", syslog_format="rfc3164"} SMS
              1699999999.000 "앱: 디스크가 가득 찼습니다 똠" detected_level="info" syslog_peer="10.0.0.7"
            {app_name="app", facility="user", host_name="web-1", severity="notice", syslog_format="rfc3164"} SMS
              1699999999.000 "��ũ�� ���� á���ϴ� �c" detected_level="info" syslog_bytes_replaced="13" syslog_peer="10.0.0.7"
            charset: 1
        "#]],
    );
    let korean = Settings {
        charset: Some(encoding_rs::EUC_KR),
        ..settings()
    };
    check_with(
        &korean,
        &[plain, &cp949, b"<13>app: neither \xff nor \xfe"],
        expect![[r#"
            {facility="user", host_name="서버1", severity="notice", syslog_format="rfc3164"} SMS
              1699999999.000 "앱: 디스크가 가득 찼습니다 똠" detected_level="info" syslog_peer="10.0.0.7"
            {app_name="app", facility="user", host_name="web-1", severity="notice", syslog_format="rfc3164"} SMS
              1699999999.000 "디스크가 가득 찼습니다 똠" detected_level="info" syslog_charset="EUC-KR" syslog_peer="10.0.0.7"
            {app_name="app", facility="user", host_name="10.0.0.7", severity="notice", syslog_format="rfc3164"} SMS
              1700000000.000 "neither � nor �" detected_level="info" syslog_bytes_replaced="2" syslog_peer="10.0.0.7"
            charset: 1
        "#]],
    );
}

#[test]
fn a_time_that_cannot_be_gives_way_and_stays_readable() {
    check(
        &[
            b"<13>Nov 15 07:13:19 web-1 a: of a clock nine hours ahead",
            b"<13>1 2010-01-01T00:00:00Z web-1 a - - - of a clock that was never set",
            b"<13>Feb 30 00:00:00 web-1 a: of no day",
        ],
        expect![[r#"
            {app_name="a", facility="user", host_name="web-1", severity="notice", syslog_format="rfc3164"} SMS
              1700000000.000 "of a clock nine hours ahead" detected_level="info" syslog_peer="10.0.0.7" syslog_time="Nov 15 07:13:19"
              1700000000.000 "of no day" detected_level="info" syslog_peer="10.0.0.7" syslog_time="Feb 30 00:00:00"
            {app_name="a", facility="user", host_name="web-1", severity="notice", syslog_format="rfc5424"} SMS
              1700000000.000 "of a clock that was never set" detected_level="info" syslog_peer="10.0.0.7" syslog_time="2010-01-01T00:00:00Z"
            time: 3
        "#]],
    );
    let seoul = Settings {
        zone: TimeZone::get("Asia/Seoul").unwrap(),
        ..settings()
    };
    let (Adapted { batch, .. }, _) = adapted(&seoul, &[b"<13>Nov 15 07:13:19 web-1 a: b"]);
    assert_eq!(batch.streams[0].lines[0].at, TimestampNs::from_secs(1_699_999_999));
}

/// The stamp of a line was longer than metadata may be, and with it the line was refused.
#[test]
fn a_time_of_70_000_digits_costs_its_digits_and_not_the_line() {
    let digits = "9".repeat(70_000);
    for stamp in ["Feb 30 00:00:00.", "2010-01-01T00:00:00."] {
        let (Adapted { batch, rejected }, tally) =
            adapted(&settings(), &[format!("<13>{stamp}{digits} web-1 a: b").as_bytes()]);
        assert_eq!((rejected.items(), tally.retimed), (0, 1));
        let line = &batch.streams[0].lines[0];
        assert_eq!((line.at, &line.line[..]), (NOW, &b"b"[..]));
        let (_, kept) = line.metadata.iter().find(|(n, _)| n == "syslog_time").unwrap();
        assert!(kept.starts_with(stamp) && kept.len() == STAMP_BYTES_MAX, "{kept}");
    }
}

#[test]
fn what_is_too_long_is_cut_and_says_so() {
    let long = [b"<13>a: ".to_vec(), vec![b'x'; LINE_BYTES_MAX]].concat();
    let (Adapted { batch, rejected }, tally) = adapted(&settings(), &[&long]);
    let line = &batch.streams[0].lines[0];
    assert_eq!(line.line.len(), LINE_BYTES_MAX - b"<13>a: ".len());
    assert!(line.metadata.contains(&("syslog_cut".into(), "true".into())));
    assert_eq!((tally.cut, rejected.items()), (1, 0));
    // Replaced bytes take more room than they had.
    let wide = vec![0xff; LINE_BYTES_MAX];
    let (Adapted { batch, rejected }, tally) = adapted(&settings(), &[&wide]);
    assert_eq!((tally.cut, tally.replaced, rejected.items()), (1, 1, 0));
    assert_eq!(
        batch.streams[0].lines[0].line.len(),
        LINE_BYTES_MAX - LINE_BYTES_MAX % 3
    );
}

#[test]
fn names_beyond_the_bound_go_with_their_lines() {
    let mut names = Names::with_max(2);
    let messages: Vec<_> = ["a x", "a y", "b x"]
        .map(|n| {
            let (host, app) = n.split_once(' ').unwrap();
            message(format!("<13>Nov 14 22:13:19 {host} {app}: t").as_bytes())
        })
        .into();
    let (Adapted { batch, .. }, tally) = adapt(&settings(), &messages, &LIMITS, &mut names);
    let shown: Vec<_> = batch
        .streams
        .iter()
        .map(|s| format!("{} {:?} {:?}", s.labels, s.owner == Owner::None, s.lines[0].metadata))
        .collect();
    expect![[r#"
        {app_name="x", facility="user", host_name="a", severity="notice", syslog_format="rfc3164"} false [("detected_level", "info"), ("syslog_peer", "10.0.0.7")]
        {facility="user", host_name="a", severity="notice", syslog_format="rfc3164"} false [("detected_level", "info"), ("syslog_app", "y"), ("syslog_peer", "10.0.0.7")]
        {facility="user", severity="notice", syslog_format="rfc3164"} true [("detected_level", "info"), ("syslog_app", "x"), ("syslog_host", "b"), ("syslog_peer", "10.0.0.7")]"#]]
    .assert_eq(&shown.join("\n"));
    assert_eq!(tally.unnamed, 2);
}

proptest! {
    /// Whatever comes: each message is one line, in time, within all limits.
    #[test]
    fn every_message_is_a_line(
        messages in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 1..60),
                "<[0-9]{1,3}>(1 |[A-Z][a-z]{2} [0-9 ]{2} 22:13:19 |2023-11-14T22:13:19Z )?[ -~가\n]{0,60}".prop_map(String::into_bytes),
                r#"<13>1 - h a - - (\[[a-z]{1,3}( [a-z]{1,2}="[ -~]{0,5}"){0,3}\]){1,3} t"#.prop_map(String::into_bytes),
            ],
            1..12,
        ),
        korean in any::<bool>(),
    ) {
        let messages: Vec<Message> = messages.iter().filter_map(|m| {
            let frame = datagram(m)?;
            Some(Message { frame, peer: "::ffff:10.0.0.7".parse().unwrap(), received: NOW })
        }).collect();
        let settings = Settings { charset: korean.then_some(encoding_rs::EUC_KR), ..settings() };
        let (Adapted { batch, rejected }, tally) = adapt(&settings, &messages, &LIMITS, &mut Names::default());
        prop_assert_eq!((batch.lines(), rejected.items()), (messages.len() as u64, 0));
        for line in batch.streams.iter().flat_map(|s| &s.lines) {
            prop_assert!(std::str::from_utf8(&line.line).is_ok());
            prop_assert!(LIMITS.time(line.at).is_ok());
            prop_assert!(line.metadata.windows(2).all(|w| w[0].0 < w[1].0), "{:?}", line.metadata);
        }
        prop_assert!(tally.list().iter().all(|(_, n)| *n <= messages.len() as u64));
    }
}
