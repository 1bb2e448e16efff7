//! The directory against scripts, a naive list, bytes of any kind and bytes of earlier releases.

use super::Directory;
use expect_test::{Expect, expect};
use hindcast_model::matcher::matches_all;
use hindcast_model::{Kind, Labels, MatchOp, Matcher, Owner, ResourceId, TenantId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn owner(n: u8) -> Owner {
    match n {
        0 => Owner::None,
        n => Owner::Resource {
            id: ResourceId::new(&TenantId::default(), Kind::Host, &[&n.to_string()]),
            kind: Kind::ALL[usize::from(n) % Kind::ALL.len()],
        },
    }
}

fn directory() -> Directory {
    let mut d = Directory::default();
    for (name, job) in [("up", "a"), ("up", "b"), ("down", "a"), ("load", "")] {
        let labels = Labels::from_pairs([("__name__", name), ("job", job)]);
        d.find_or_add(&TenantId::default(), false, &labels, &Owner::None);
    }
    d
}

fn set(matchers: &[(&str, MatchOp, &str)]) -> Vec<Matcher> {
    let one = |(n, op, v): &(&str, MatchOp, &str)| Matcher::new(n, *op, v).unwrap();
    matchers.iter().map(one).collect()
}

fn check(d: &Directory, matchers: &[(&str, MatchOp, &str)], expect: Expect) {
    let found = d.select(&TenantId::default(), false, &[set(matchers)]);
    let mut found: Vec<String> = found
        .iter()
        .map(|id| d.get(*id).unwrap().labels().to_string())
        .collect();
    found.sort();
    expect.assert_eq(&found.join(" "));
}

#[test]
fn matchers_find_series_by_any_operator() {
    use MatchOp::{Equal, NotEqual, NotRegex, Regex};
    let d = directory();
    check(
        &d,
        &[("__name__", Equal, "up")],
        expect![[r#"up{job="a"} up{job="b"}"#]],
    );
    check(
        &d,
        &[("__name__", Equal, "up"), ("job", NotEqual, "a")],
        expect![[r#"up{job="b"}"#]],
    );
    check(&d, &[("job", Equal, "")], expect!["load"]);
    check(
        &d,
        &[("job", NotEqual, "")],
        expect![[r#"down{job="a"} up{job="a"} up{job="b"}"#]],
    );
    check(&d, &[("job", Regex, "a|c")], expect![[r#"down{job="a"} up{job="a"}"#]]);
    check(&d, &[("job", Regex, "b|")], expect![[r#"load up{job="b"}"#]]);
    check(&d, &[("job", NotRegex, "a")], expect![[r#"load up{job="b"}"#]]);
    check(&d, &[("job", NotRegex, "a|")], expect![[r#"up{job="b"}"#]]);
    check(&d, &[("job", NotRegex, ".+")], expect!["load"]);
    check(&d, &[("gone", Regex, ".+")], expect![""]);
    check(
        &d,
        &[("gone", NotEqual, "x"), ("__name__", Regex, ".*o.*")],
        expect![[r#"down{job="a"} load"#]],
    );
    check(&d, &[], expect![[r#"down{job="a"} load up{job="a"} up{job="b"}"#]]);
    let t = TenantId::default();
    assert!(d.select(&t, false, &[]).is_empty() && d.select(&t, true, &[vec![]]).is_empty());
}

#[test]
fn owners_and_tenants_keep_equal_label_sets_apart() {
    let mut d = Directory::default();
    let labels = Labels::from_pairs([("a", "b")]);
    let (t, u) = (TenantId::default(), TenantId::new("u").unwrap());
    let mut add = |t: &TenantId, streams, o| d.find_or_add(t, streams, &labels, &o);
    let ids = [
        add(&t, false, Owner::None),
        add(&t, true, Owner::None),
        add(&u, false, Owner::None),
        add(&t, false, owner(1)),
        add(&t, false, owner(2)),
    ];
    assert_eq!(ids, [0, 1, 2, 3, 4]);
    assert_eq!(add(&t, false, owner(1)), 3);
    assert_eq!(d.find(&t, true, &labels, &Owner::None), Some(1));
    assert_eq!(d.find(&u, true, &labels, &Owner::None), None);
    let s = d.get(3).unwrap();
    assert_eq!((s.owner, s.slot), (owner(1), owner(1).slot(&labels)));
    assert_eq!(d.get(0).unwrap().slot, Owner::None.slot(&labels));
    assert_eq!(d.select(&t, false, &[vec![]]).len(), 3);
}

/// Texts that series have which match, with all of these.
fn texts<'a>(
    d: &'a Directory,
    tenant: &TenantId,
    streams: bool,
    values_of: Option<&str>,
    any_of: &[Vec<Matcher>],
) -> Vec<(&'a str, Vec<u32>)> {
    let mut texts = vec![];
    let visit = |text, ids: &mut dyn Iterator<Item = u32>| {
        texts.push((text, ids.collect()));
        Ok::<(), std::convert::Infallible>(())
    };
    let Ok(()) = d.visit_label_texts(tenant, streams, values_of, any_of, visit);
    texts.retain(|(_, ids): &(_, Vec<u32>)| !ids.is_empty());
    texts
}

#[test]
fn a_forgotten_series_is_gone_and_its_id_is_not_given_again() {
    let mut d = directory();
    d.forget(&[0, 1, 2, 99]);
    d.forget(&[0]);
    assert_eq!((d.len(), d.next_id(), d.epoch()), (1, 4, 3));
    check(&d, &[], expect!["load"]);
    let t = TenantId::default();
    assert!(d.get(0).is_none() && texts(&d, &t, false, Some("job"), &[vec![]]).is_empty());
    assert_eq!(texts(&d, &t, false, None, &[vec![]]), [("__name__", vec![3])]);
    let labels = Labels::from_pairs([("__name__", "up"), ("job", "a")]);
    assert_eq!(d.find(&t, false, &labels, &Owner::None), None);
    assert_eq!(d.find_or_add(&t, false, &labels, &Owner::None), 4);
    assert_eq!(
        texts(
            &d,
            &t,
            false,
            Some("job"),
            &[set(&[("__name__", MatchOp::Equal, "up")])]
        ),
        [("a", vec![4])]
    );
}

/// What the directory must do, done slowly.
#[derive(Default)]
struct Naive(Vec<Option<(TenantId, bool, Labels, Owner)>>);

impl Naive {
    fn find_or_add(&mut self, tenant: &TenantId, streams: bool, labels: &Labels, owner: &Owner) -> u32 {
        let name = Some((tenant.clone(), streams, labels.clone(), *owner));
        let at = self.0.iter().position(|s| *s == name).unwrap_or_else(|| {
            self.0.push(name);
            self.0.len() - 1
        });
        at as u32
    }

    fn select(&self, tenant: &TenantId, streams: bool, any_of: &[Vec<Matcher>]) -> Vec<u32> {
        let mut found = vec![];
        for (s, id) in self.0.iter().zip(0..) {
            let Some((t, st, labels, owner)) = s else { continue };
            if t == tenant && *st == streams && any_of.iter().any(|m| matches_all(m, labels)) {
                found.push((owner.slot(labels), labels.fingerprint(), labels.clone(), *owner, id));
            }
        }
        found.sort();
        found.into_iter().map(|f| f.4).collect()
    }

    fn agrees(&self, d: &Directory, tenant: &TenantId, streams: bool, any_of: &[Vec<Matcher>]) {
        let found = self.select(tenant, streams, any_of);
        assert_eq!(d.select(tenant, streams, any_of), found, "{any_of:?}");
        let (mut names, mut values) = (BTreeMap::<&str, Vec<u32>>::new(), BTreeMap::<_, Vec<u32>>::new());
        for id in found.into_iter().collect::<BTreeSet<u32>>() {
            for (name, value) in self.0[id as usize].as_ref().unwrap().2.iter() {
                names.entry(name).or_default().push(id);
                values.entry((name, value)).or_default().push(id);
            }
        }
        for name in names.keys().copied().chain(["gone"]) {
            let values = values.iter().filter(|(p, _)| p.0 == name);
            let values: Vec<(&str, Vec<u32>)> = values.map(|(p, ids)| (p.1, ids.clone())).collect();
            assert_eq!(texts(d, tenant, streams, Some(name), any_of), values);
        }
        assert_eq!(
            texts(d, tenant, streams, None, any_of),
            names.into_iter().collect::<Vec<_>>()
        );
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(bool, bool, Vec<(String, String)>, u8),
    Forget(Vec<u32>),
    /// Write the definitions in two files, cut at a part of all ids, and go on with what they give.
    Reload(u32),
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]{0,3}", "web-[0-3]", "(é|è)x?"]
}

fn any_step() -> impl Strategy<Value = Step> {
    let pairs = prop::collection::vec(("[a-d]", any_value()), 0..5);
    prop_oneof![
        12 => (any::<bool>(), any::<bool>(), pairs, 0u8..4).prop_map(|(t, s, p, o)| Step::Add(t, s, p, o)),
        1 => prop::collection::vec(0u32..60, 0..20).prop_map(Step::Forget),
        1 => (0u32..100).prop_map(Step::Reload),
    ]
}

fn any_matcher() -> impl Strategy<Value = Matcher> {
    use MatchOp::{Equal, NotEqual, NotRegex, Regex};
    let pattern = prop_oneof![
        any_value(),
        "[ab]{1,2}\\|[ab]{0,2}",
        "[abw]{1,2}\\.[*+]",
        "\\.[*+?][abe]{0,1}(\\.\\*)?",
        "\\(a\\|web-\\)\\.\\*[0-2]?",
        "\\(\\?i\\)A\\|B[.*]?",
        "\\[ab\\]\\?b\\*",
        "é\\.?",
    ];
    (
        "[a-e]",
        prop_oneof![Just(Equal), Just(NotEqual), Just(Regex), Just(NotRegex)],
        pattern,
    )
        .prop_filter_map("a regex", |(n, op, v)| Matcher::new(&n, op, &v).ok())
}

fn reload(d: &Directory, part: u32) -> Directory {
    let cut = d.next_id() * part / 100;
    let all = d.encode_from(0);
    let mut whole = Directory::default();
    whole.load(&all).unwrap();
    assert_eq!((whole.len(), whole.next_id()), (d.len(), d.next_id()));
    assert_eq!(whole.encode_from(0), all, "what was read is written the same");
    // The first part as it was written when there was no more.
    let mut first = Directory::default();
    for id in 0..cut {
        match d.get(id) {
            Some(s) => {
                first.find_or_add(s.tenant(), s.streams, s.labels(), &s.owner);
            }
            None => first.skip(1).unwrap(),
        }
    }
    let mut parts = Directory::default();
    parts.load(&first.encode_from(0)).unwrap();
    parts.load(&d.encode_from(cut)).unwrap();
    assert!(parts.load(&d.encode_from(cut)).is_err() || cut == d.next_id());
    if part.is_multiple_of(2) { whole } else { parts }
}

proptest! {
    #[test]
    fn the_directory_does_what_a_list_does(
        steps in prop::collection::vec(any_step(), 0..80),
        any_of in prop::collection::vec(prop::collection::vec(any_matcher(), 0..4), 0..4),
    ) {
        let (mut d, mut naive) = (Directory::default(), Naive::default());
        let tenants = [TenantId::default(), TenantId::new("u").unwrap()];
        for step in steps {
            match step {
                Step::Add(t, streams, pairs, o) => {
                    let (t, labels) = (&tenants[usize::from(t)], Labels::new(pairs));
                    let id = naive.find_or_add(t, streams, &labels, &owner(o));
                    prop_assert_eq!(d.find_or_add(t, streams, &labels, &owner(o)), id);
                    prop_assert_eq!(d.find(t, streams, &labels, &owner(o)), Some(id));
                    prop_assert_eq!(d.get(id).unwrap().labels(), &labels);
                }
                Step::Forget(ids) => {
                    d.forget(&ids);
                    for id in ids {
                        if let Some(s) = naive.0.get_mut(id as usize) {
                            *s = None;
                        }
                    }
                }
                Step::Reload(part) => d = reload(&d, part),
            }
        }
        prop_assert_eq!(d.len(), naive.0.iter().flatten().count());
        for t in &tenants {
            naive.agrees(&d, t, false, &any_of);
            naive.agrees(&d, t, true, &any_of);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let _ = Directory::default().load(&bytes);
        let _ = Directory::default().load_body(&bytes);
        let mut body = some_body();
        let whole = body.clone();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let mut d = Directory::default();
        if d.load_body(&body).is_ok() {
            // Whatever it means now, it is a directory.
            let again = d.encode_from(0);
            let mut back = Directory::default();
            back.load(&again).unwrap();
            prop_assert_eq!(back.len(), d.len());
        } else {
            prop_assert_ne!(body, whole);
        }
    }
}

/// Definitions as they are before they are packed.
fn some_body() -> Vec<u8> {
    let mut d = directory();
    d.find_or_add(
        &TenantId::default(),
        true,
        &Labels::from_pairs([("a", "é1"), ("b", "é2")]),
        &owner(3),
    );
    d.forget(&[1]);
    super::file::body_of(&d, 0)
}

#[test]
fn definitions_that_are_cut_or_changed_are_refused() {
    let bytes = directory().encode_from(0);
    for len in 0..bytes.len() {
        assert!(Directory::default().load(&bytes[..len]).is_err());
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(Directory::default().load(&changed).is_err(), "byte {at}");
    }
    assert!(directory().load(&bytes).is_err(), "the ids were given already");
    let twice = [&bytes[..], &bytes[..]].concat();
    assert!(Directory::default().load(&twice).is_err());
}

#[test]
fn a_series_that_is_defined_twice_is_refused_and_one_that_is_new_is_found() {
    let tenant = TenantId::default();
    let labels = |name| Labels::from_pairs([("__name__", name), ("job", "a")]);
    let later = |name| {
        let mut d = directory();
        let id = d.find_or_add(&tenant, false, &Labels::from_pairs([("only", "here")]), &Owner::None);
        d.find_or_add(&tenant, false, &labels(name), &Owner::None);
        d.forget(&[id]);
        d
    };
    let mut there = directory();
    there.find_or_add(&tenant, false, &labels("other"), &Owner::None);
    // Defined as id 5 behind a gap; here it is id 4 already.
    let bytes = later("other").encode_from(there.next_id());
    assert_eq!(there.load(&bytes), Err("a series is defined twice"));
    let mut there = directory();
    there.load(&later("other").encode_from(there.next_id())).unwrap();
    assert_eq!(there.find(&tenant, false, &labels("other"), &Owner::None), Some(5));
    assert_eq!(there.find(&tenant, false, &labels("up"), &Owner::None), Some(0));
}

/// Enough series that every form of posting, the order of values, and its unsorted rest are used.
fn many(n: u32) -> (Directory, Naive) {
    let (mut d, mut naive) = (Directory::default(), Naive::default());
    for i in 0..n {
        let labels = Labels::from_pairs([
            ("__name__", ["up", "load", "cpu"][i as usize % 3]),
            ("pod", &format!("svc-{}-{:x}", i % 50, i.wrapping_mul(0x9e37_79b9))),
            ("node", &format!("node-{}", i / 40)),
            ("odd", if i % 2 == 1 { "yes" } else { "" }),
        ]);
        let id = d.find_or_add(&TenantId::default(), false, &labels, &owner(1));
        // Not searched: all are new.
        naive.0.push(Some((TenantId::default(), false, labels, owner(1))));
        assert_eq!(id, i);
        if i == n / 3 {
            // Makes the order of values, to which others come.
            d.select(
                &TenantId::default(),
                false,
                &[set(&[("pod", MatchOp::Regex, "svc-1-.*")])],
            );
        }
    }
    (d, naive)
}

#[test]
fn a_large_index_agrees_with_a_list() {
    use MatchOp::{Equal, NotEqual, NotRegex, Regex};
    let (mut d, mut naive) = many(6000);
    let sets: &[&[(&str, MatchOp, &str)]] = &[
        &[("__name__", Equal, "up"), ("node", Equal, "node-7")],
        &[("pod", Regex, "svc-1-.*")],
        &[("pod", Regex, "svc-(1|12)-.*[0-7]")],
        &[("pod", Regex, ".*77.*")],
        &[("node", Equal, "node-3"), ("pod", Regex, ".*7.*")],
        &[("pod", NotRegex, "svc-1.*"), ("odd", Equal, "")],
        &[("pod", NotRegex, ".*[0-9a-f]"), ("node", NotEqual, "node-1")],
        &[("odd", NotEqual, ""), ("node", Regex, "node-1|node-2|node-3|x")],
        &[("odd", Regex, "|no"), ("__name__", NotEqual, "up")],
        &[("odd", Regex, ".+"), ("pod", Regex, "svc-4.-[^f]*")],
    ];
    for round in 0..3 {
        for m in sets {
            naive.agrees(&d, &TenantId::default(), false, &[set(m)]);
        }
        match round {
            0 => {
                // A whole piece of the table, and most of all values.
                let gone: Vec<u32> = (1000..5200).filter(|i| *i < 3100 || i % 7 != 0).collect();
                d.forget(&gone);
                gone.iter().for_each(|id| naive.0[*id as usize] = None);
            }
            _ => d = reload(&d, 70 + round),
        }
    }
}

#[test]
fn memory_is_what_its_parts_add_up_to() {
    let n = 20_000;
    let (d, naive) = many(n);
    let sets: Vec<&Labels> = naive.0.iter().flatten().map(|s| &s.2).collect();
    let text = |l: &&Labels| l.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
    // Per set: its text, a length per text, the number of pairs, two counts; then a row of 48 bytes, and a place in
    // the hash table of which at most 7 of 8 and at least 7 of 16 are taken.
    let labels: usize = sets.iter().map(|l| text(l) + 2 * l.len() + 17).sum();
    let rows = 48 * n as usize;
    let table = 5 * (n as usize).next_power_of_two();
    // Per value: its text, end, posting, place in a hash table; as many bytes again for vectors that grow by doubling.
    let values: BTreeSet<(&str, &str)> = sets.iter().flat_map(|l| l.iter()).collect();
    let value_bytes: usize = values.iter().map(|(_, v)| v.len() + 8 + 24 + 10).sum();
    let pairs: usize = sets.iter().map(|l| l.len()).sum();
    let least = labels + rows + table + value_bytes;
    let most = least + value_bytes + 4 * pairs + 100_000;
    let told = d.memory_bytes();
    assert!((least..=most).contains(&told), "{told} is not in {least}..={most}");
    let loaded = {
        let mut l = Directory::default();
        l.load(&d.encode_from(0)).unwrap();
        l.memory_bytes()
    };
    assert!(
        loaded <= told && loaded >= least * 95 / 100,
        "{loaded} after {told}, at least {least}"
    );
    assert!(loaded / (n as usize) < 320, "{} bytes a series", loaded / n as usize);
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v2/series-0000000000000001");

/// Samples and lines, two tenants, owners, a gap, values that share a beginning.
fn golden() -> Directory {
    let mut d = Directory::default();
    let (t, u) = (TenantId::new("golden").unwrap(), TenantId::new("other").unwrap());
    for i in 0..40u8 {
        let (host, cpu) = (format!("host-{}", i / 8), (i % 8).to_string());
        let labels = Labels::from_pairs([
            ("__name__", "node_cpu_seconds_total"),
            ("instance", &host),
            ("cpu", &cpu),
        ]);
        d.find_or_add(&t, false, &labels, &owner(1 + i / 8));
    }
    d.find_or_add(
        &u,
        true,
        &Labels::from_pairs([("app", "결제"), ("level", "error")]),
        &Owner::None,
    );
    d.find_or_add(&u, true, &Labels::from_pairs([("app", "결재")]), &owner(9));
    d.find_or_add(&t, true, &Labels::empty(), &Owner::None);
    d.forget(&(10..20).collect::<Vec<_>>());
    d
}

#[test]
#[allow(clippy::disallowed_methods, reason = "golden files lie beside the tests")]
fn todays_writer_gives_the_golden_bytes_and_they_are_read() {
    let today = golden().encode_from(0);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(std::path::Path::new(GOLDEN).parent().unwrap()).unwrap();
        std::fs::write(GOLDEN, &today).unwrap();
    }
    let golden = std::fs::read(GOLDEN).unwrap();
    assert!(
        today == golden,
        "written differently today: raise the version and keep the old reader"
    );
    let mut d = Directory::default();
    d.load(&golden).unwrap();
    let t = TenantId::new("other").unwrap();
    let mut out = format!("{} of {}\n", d.len(), d.next_id());
    for id in [0, 9, 10, 19, 20, 39, 40, 41, 42, 43] {
        let shown = d.get(id).map(|s| {
            let owner = s.owner.id().map_or("none".to_owned(), |id| id.to_string());
            format!("{} streams={} {} {owner}", s.tenant(), s.streams, s.labels())
        });
        out += &format!("{id} {}\n", shown.unwrap_or("nothing".to_owned()));
    }
    out += &format!("{:?}\n", texts(&d, &t, true, Some("app"), &[vec![]]));
    expect![[r#"
        33 of 43
        0 golden streams=false node_cpu_seconds_total{cpu="0", instance="host-0"} a63a77607fb62d467ce5ee699ec8f998
        9 golden streams=false node_cpu_seconds_total{cpu="1", instance="host-1"} 23163622ecf60621e487600e1eb876a1
        10 nothing
        19 nothing
        20 golden streams=false node_cpu_seconds_total{cpu="4", instance="host-2"} f285a5e4000c76009902056f0eef058f
        39 golden streams=false node_cpu_seconds_total{cpu="7", instance="host-4"} c829aa33097f2adaed7445b4db6422e2
        40 other streams=true {app="결제", level="error"} none
        41 other streams=true {app="결재"} b9e89b155f838ba79378a7345421b719
        42 golden streams=true {} none
        43 nothing
        [("결재", [41]), ("결제", [40])]
    "#]]
    .assert_eq(&out);
}
