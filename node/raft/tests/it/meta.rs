//! The meta machine over both stores: the same tests, a map and sled.

#![allow(
    clippy::disallowed_methods,
    reason = "sled needs a real folder, and one test damages it"
)]

use bytes::Bytes;
use hindcast_env::disk::write_new_file;
use hindcast_env::{Disk, SeededRng, SimDisk};
use hindcast_model::{Class, Labels, TenantId, TimestampNs, codec};
use hindcast_raft::meta::{META_PART, history_key};
use hindcast_raft::{
    ApplyContext, Entry, HistoryLine, Machine, MachineCommand, MachineError, MemStores, MetaCommand, MetaMachine,
    MetaMachineConfig, MetaTx, Part, PartInput, PartOutput, Refusal, SledConfig, SledStores, StoreFactory,
    decode_reply, history_rows, leftward_rows,
};
use std::path::Path;
use std::sync::Arc;

/// Keeps every text under its index; `right:`, `left:` and `refuse` do what they say. Upstream texts are kept too.
struct Keeper {
    name: &'static str,
    left: &'static str,
}

impl Part for Keeper {
    fn name(&self) -> &'static str {
        self.name
    }
    fn apply(&self, ctx: ApplyContext, input: PartInput<'_>, tx: &mut MetaTx<'_>) -> Result<PartOutput, Refusal> {
        let (from, body) = match input {
            PartInput::Command(body) => ("", body),
            PartInput::Upstream { part, body } => (part, body),
        };
        let text = String::from_utf8_lossy(body).into_owned();
        let rows = tx.scan(self.name, b"", None, usize::MAX).len();
        let key = format!("{:08} {from}", ctx.index);
        tx.put(self.name, key.as_bytes(), format!("{text} at {}", ctx.now.0).into());
        let mut output = PartOutput {
            reply: Bytes::from(format!("{} has {}", self.name, rows + 1)),
            ..PartOutput::default()
        };
        if let Some(on) = text.strip_prefix("right:") {
            output.rightward.push(on.into());
        } else if let Some(back) = text.strip_prefix("left:") {
            output.leftward.push((self.left.to_owned(), back.into()));
        } else if text == "refuse" {
            return Err(Refusal::new(Class::Conflict, format!("{} refuses", self.name)));
        } else if text == "forget" {
            for (key, _) in tx.scan(self.name, b"", None, usize::MAX) {
                tx.delete(self.name, &key);
            }
        } else if text == "tell" {
            output.history.push(HistoryLine {
                tenant: TenantId::default(),
                labels: Labels::default(),
                at: ctx.now,
                line: format!("told at {}", ctx.index),
            });
        }
        Ok(output)
    }
}

fn parts() -> Vec<Box<dyn Part>> {
    vec![
        Box::new(Keeper {
            name: "cluster",
            left: "",
        }),
        Box::new(Keeper {
            name: "gateway",
            left: "cluster",
        }),
        Box::new(Keeper {
            name: "desk",
            left: "gateway",
        }),
    ]
}

/// One node's machine, its disk and its store, as they are opened again and again.
struct Node<F: StoreFactory> {
    disk: SimDisk,
    machine: Option<MetaMachine<F::Store>>,
    stores: Box<dyn Fn() -> F>,
    config: MetaMachineConfig,
    log: Vec<Entry>,
}

impl<F: StoreFactory> Node<F> {
    fn new(stores: impl Fn() -> F + 'static) -> Self {
        let config = MetaMachineConfig {
            snapshot_every_commands: u64::MAX,
            verify_rows: true,
            export_rows_per_step_max: 3,
            ..MetaMachineConfig::new("meta")
        };
        let mut node = Self {
            disk: SimDisk::new(),
            machine: None,
            stores: Box::new(stores),
            config,
            log: vec![],
        };
        node.reopen().unwrap();
        node
    }

    /// Opens the machine and replays the log from where its state ends. Returns how many entries that were.
    fn reopen(&mut self) -> Result<usize, MachineError> {
        self.machine = None;
        let disk = Arc::new(self.disk.clone());
        let mut machine = MetaMachine::open(disk, (self.stores)(), parts(), self.config.clone())?;
        let from = machine.applied();
        let rest: Vec<_> = self.log.iter().filter(|e| e.index > from).cloned().collect();
        for entry in &rest {
            machine.apply(entry)?;
        }
        self.machine = Some(machine);
        Ok(rest.len())
    }

    fn machine(&mut self) -> &mut MetaMachine<F::Store> {
        self.machine.as_mut().unwrap()
    }

    fn apply(&mut self, part: &str, at: i64, body: Vec<u8>) -> Result<String, Refusal> {
        let command = MetaCommand {
            part: part.to_owned(),
            at: TimestampNs(at),
            body,
        };
        self.raw(codec::to_bytes(&command))
    }

    fn raw(&mut self, data: Vec<u8>) -> Result<String, Refusal> {
        let index = self.log.last().map_or(1, |e| e.index + 1);
        let entry = Entry {
            index,
            term: 1,
            data: data.into(),
        };
        self.log.push(entry.clone());
        let reply = self.machine().apply(&entry).unwrap();
        decode_reply(&reply).map(|b| String::from_utf8(b.to_vec()).unwrap())
    }

    fn say(&mut self, part: &str, text: &str) -> Result<String, Refusal> {
        self.apply(part, 10, text.into())
    }

    fn meta(&mut self, command: MachineCommand) -> Result<String, Refusal> {
        self.apply(META_PART, 10, codec::to_bytes(&command))
    }

    fn rows(&mut self, tree: &str) -> Vec<String> {
        let rows = self.machine().reader().scan(tree, b"", None, usize::MAX);
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        rows.into_iter()
            .map(|(k, v)| format!("{}: {}", text(k), text(v)))
            .collect()
    }

    fn save(&mut self) {
        self.machine().request_snapshot();
        for _ in 0..1000 {
            self.machine().maintain(&mut |_| {}).unwrap();
        }
        let applied = self.machine().applied();
        assert_eq!(self.machine().durable(), applied);
    }
}

/// Runs a test over each store.
fn on_both(test: impl Fn(&mut dyn FnMut() -> Box<dyn AnyNode>)) {
    let folder = tempfile::tempdir().unwrap();
    let mut made = 0;
    test(&mut || {
        let stores = MemStores::default();
        Box::new(Node::new(move || stores.clone()))
    });
    test(&mut || {
        made += 1;
        let dir = folder.path().join(made.to_string());
        Box::new(Node::new(move || SledStores::new(SledConfig::new(&dir))))
    });
}

/// A node whatever its store.
trait AnyNode {
    fn say(&mut self, part: &str, text: &str) -> Result<String, Refusal>;
    fn at(&mut self, part: &str, at: i64, text: &str) -> Result<String, Refusal>;
    fn raw(&mut self, data: &[u8]) -> Result<String, Refusal>;
    fn meta(&mut self, command: MachineCommand) -> Result<String, Refusal>;
    fn rows(&mut self, tree: &str) -> Vec<String>;
    fn machine(&mut self) -> &mut dyn Machine;
    fn waiting(&mut self) -> (usize, Vec<String>);
    fn save(&mut self);
    fn reopen(&mut self) -> Result<usize, MachineError>;
    fn disk(&self) -> SimDisk;
}

impl<F: StoreFactory> AnyNode for Node<F> {
    fn say(&mut self, part: &str, text: &str) -> Result<String, Refusal> {
        Node::say(self, part, text)
    }
    fn at(&mut self, part: &str, at: i64, text: &str) -> Result<String, Refusal> {
        self.apply(part, at, text.into())
    }
    fn raw(&mut self, data: &[u8]) -> Result<String, Refusal> {
        Node::raw(self, data.to_vec())
    }
    fn meta(&mut self, command: MachineCommand) -> Result<String, Refusal> {
        Node::meta(self, command)
    }
    fn rows(&mut self, tree: &str) -> Vec<String> {
        Node::rows(self, tree)
    }
    fn machine(&mut self) -> &mut dyn Machine {
        Node::machine(self)
    }
    fn waiting(&mut self) -> (usize, Vec<String>) {
        let reader = Node::machine(self).reader();
        let history = history_rows(reader.as_ref(), 100);
        let left = leftward_rows(reader.as_ref(), 100).len();
        (left, history.into_iter().map(|(_, _, line)| line.line).collect())
    }
    fn save(&mut self) {
        Node::save(self);
    }
    fn reopen(&mut self) -> Result<usize, MachineError> {
        Node::reopen(self)
    }
    fn disk(&self) -> SimDisk {
        self.disk.clone()
    }
}

#[test]
fn one_command_changes_the_addressed_part_and_those_to_its_right_together() {
    on_both(|node| {
        let mut n = node();
        assert_eq!(n.say("cluster", "right:right:end").unwrap(), "cluster has 1");
        assert_eq!(n.rows("cluster"), ["00000001 : right:right:end at 10"]);
        assert_eq!(n.rows("gateway"), ["00000001 cluster: right:end at 10"]);
        // The desk hears both, in the order in which they were put out.
        assert_eq!(
            n.rows("desk"),
            ["00000001 cluster: right:end at 10", "00000001 gateway: end at 10"]
        );
    });
}

#[test]
fn a_refusal_anywhere_undoes_the_whole_command_but_it_counts() {
    on_both(|node| {
        let mut n = node();
        n.say("gateway", "kept").unwrap();
        let digest_rows = n.rows("gateway");
        let refused = n.say("cluster", "right:refuse").unwrap_err();
        assert_eq!(refused, Refusal::new(Class::Conflict, "gateway refuses"));
        assert_eq!((n.rows("cluster").len(), n.rows("gateway")), (0, digest_rows));
        assert_eq!(n.machine().applied(), 2);
        assert_eq!(n.raw(b"\xc1 not a command").unwrap_err().class, Class::FixRequest);
        assert_eq!(n.say("nobody", "x").unwrap_err().class, Class::FixRequest);
        assert_eq!(n.machine().applied(), 4);
    });
}

#[test]
fn cluster_time_never_goes_back_not_even_over_a_restart() {
    on_both(|node| {
        let mut n = node();
        n.at("desk", 50, "a").unwrap();
        n.at("desk", 20, "b").unwrap();
        n.reopen().unwrap();
        n.at("desk", 30, "c").unwrap();
        n.at("desk", 60, "d").unwrap();
        let rows = n.rows("desk");
        assert!(
            rows[1].ends_with("b at 50") && rows[2].ends_with("c at 50") && rows[3].ends_with("d at 60"),
            "{rows:?}"
        );
    });
}

#[test]
fn what_goes_left_comes_back_exactly_once() {
    on_both(|node| {
        let mut n = node();
        n.say("desk", "left:hello").unwrap();
        assert_eq!(n.waiting().0, 1);
        assert_eq!(n.rows("gateway").len(), 0);
        let back = MachineCommand::Leftward { index: 1, seq: 0 };
        assert_eq!(n.meta(back.clone()).unwrap(), "gateway has 1");
        assert_eq!(n.meta(back).unwrap(), "already done");
        assert_eq!(
            (n.waiting().0, n.rows("gateway")),
            (0, vec!["00000002 : hello at 10".to_owned()])
        );
        // A refused one leaves too, or it would come back for ever.
        n.say("desk", "left:refuse").unwrap();
        assert!(n.meta(MachineCommand::Leftward { index: 4, seq: 0 }).is_err());
        assert_eq!((n.waiting().0, n.rows("gateway").len()), (0, 1));
    });
}

#[test]
fn history_stays_until_it_is_known_to_be_written() {
    on_both(|node| {
        let mut n = node();
        for _ in 0..3 {
            n.say("gateway", "tell").unwrap();
        }
        assert_eq!(n.waiting().1, ["told at 1", "told at 2", "told at 3"]);
        n.meta(MachineCommand::HistoryWritten { up_to: 2 }).unwrap();
        assert_eq!(n.waiting().1, ["told at 3"]);
        assert!(n.machine().applied() == 4 && !history_key(3, 0).is_empty());
    });
}

#[test]
fn the_digest_depends_on_the_rows_and_on_nothing_else() {
    on_both(|node| {
        let (mut a, mut b) = (node(), node());
        for n in [&mut a, &mut b] {
            for text in ["x", "right:y", "forget", "z", "tell", "left:q"] {
                n.say("gateway", text).unwrap();
            }
        }
        assert_eq!(a.machine().digest(), b.machine().digest());
        a.save();
        a.reopen().unwrap();
        assert_eq!(a.machine().digest(), b.machine().digest());
        b.say("desk", "more").unwrap();
        a.say("desk", "less").unwrap();
        assert_ne!(a.machine().digest(), b.machine().digest());
    });
    let digests = std::cell::RefCell::new(vec![]);
    on_both(|node| {
        let mut n = node();
        n.say("desk", "same").unwrap();
        digests.borrow_mut().push(n.machine().digest());
    });
    let digests = digests.into_inner();
    assert_eq!(digests[0], digests[1], "a map and sled hold the same state");
}

#[test]
fn an_exported_state_replaces_that_of_a_peer() {
    on_both(|node| {
        let (mut n, mut other) = (node(), node());
        for i in 0..20 {
            n.say("desk", &format!("row {i}")).unwrap();
        }
        let want = n.machine().digest();
        n.disk().create_dir_all("out").unwrap();
        n.machine().export("out").unwrap();
        let bytes = n.disk().read("out/meta.snapshot").unwrap();
        hindcast_env::disk::write_new_file(&other.disk(), "in/meta.snapshot", &bytes).unwrap();
        other.say("gateway", "to be replaced").unwrap();
        other.machine().install("in", 20).unwrap();
        assert_eq!(
            (
                other.machine().digest(),
                other.machine().applied(),
                other.machine().durable()
            ),
            (want, 20, 20)
        );
        assert_eq!((other.rows("desk"), other.rows("gateway").len()), (n.rows("desk"), 0));
    });
}

#[test]
fn commands_during_a_snapshot_are_not_in_it() {
    let stores = MemStores::default();
    let inner = stores.clone();
    let mut n = Node::new(move || inner.clone());
    for i in 0..20 {
        n.say("desk", &format!("row {i}")).unwrap();
    }
    let want = n.machine().digest();
    n.machine().request_snapshot();
    n.machine().maintain(&mut |_| {}).unwrap();
    // The walk stands within the desk's rows: everything goes, and new rows come.
    n.say("desk", "forget").unwrap();
    n.say("desk", "new").unwrap();
    n.say("gateway", "new tree").unwrap();
    n.save_rest();
    assert_eq!(n.machine().durable(), 20);
    // The store is lost; the file alone gives the state at its index, the log the rest.
    let (after, log) = (n.machine().digest(), std::mem::take(&mut n.log));
    n.stores = Box::new(MemStores::default);
    assert_eq!(n.reopen().unwrap(), 0);
    assert_eq!((n.machine().applied(), n.machine().digest()), (20, want));
    n.log = log;
    n.stores = Box::new(MemStores::default);
    assert_eq!(n.reopen().unwrap(), 3);
    assert_eq!(n.machine().digest(), after);
}

impl<F: StoreFactory> Node<F> {
    fn save_rest(&mut self) {
        for _ in 0..1000 {
            self.machine().maintain(&mut |_| {}).unwrap();
        }
    }
}

#[test]
fn a_damaged_snapshot_file_is_never_loaded() {
    let mut n = Node::new(MemStores::default);
    for i in 0..10 {
        n.say("desk", &format!("row {i}")).unwrap();
    }
    n.save();
    let bytes = n.disk.read("meta/meta.snapshot").unwrap();
    for byte in 0..bytes.len() {
        n.disk.flip_bit("meta/meta.snapshot", byte, (byte % 8) as u8).unwrap();
        let err = n.reopen().expect_err("damage must be found");
        assert!(err.to_string().contains("meta/meta.snapshot"), "{err}");
        n.disk.flip_bit("meta/meta.snapshot", byte, (byte % 8) as u8).unwrap();
    }
    n.reopen().unwrap();
}

/// Seed 28903051490229 of the simulator, as it drew then: the file was read again after its check, and what came was sealed anew.
#[test]
fn a_snapshot_that_the_disk_reads_wrongly_is_refused_or_is_what_was_sent_never_a_third_thing() {
    let mut n = Node::new(MemStores::default);
    for i in 0..20 {
        n.say("desk", &format!("row {i}")).unwrap();
    }
    let want = n.rows("desk");
    n.machine().export("out").unwrap();
    let sent = n.disk.read("out/meta.snapshot").unwrap();
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..60 {
        let mut other = Node::new(MemStores::default);
        write_new_file(&other.disk, "in/meta.snapshot", &sent).unwrap();
        let rng = SeededRng::new(seed);
        other.disk.read_badly(rng, 3, |path| path.ends_with("meta.snapshot"));
        let done = other.machine().install("in", 20);
        other.disk.read_well();
        match done {
            Ok(()) => {
                taken += 1;
                assert_eq!(other.rows("desk"), want);
            }
            Err(e) => {
                refused += 1;
                assert!(e.to_string().contains("meta.snapshot"), "{e}");
            }
        }
        // The bytes on the platter are right, or not there yet.
        other.reopen().unwrap();
        let rows = other.rows("desk");
        assert!(
            rows == want || (rows.is_empty() && other.machine().applied() == 0),
            "{rows:?}"
        );
    }
    assert!(taken > 0 && refused > 0, "{taken} {refused}");
}

#[test]
fn a_changed_row_is_noticed_and_the_store_built_again() {
    let stores = MemStores::default();
    let inner = stores.clone();
    let mut n = Node::new(move || inner.clone());
    for i in 0..10 {
        n.say("desk", &format!("row {i}")).unwrap();
    }
    n.save();
    n.say("desk", "after the file").unwrap();
    let (rows, digest) = (n.rows("desk"), n.machine().digest());
    stores.current().damage("desk", b"00000003 ", b"forged");
    assert_eq!(
        n.reopen().unwrap(),
        1,
        "rebuilt from the file, the last command from the log"
    );
    assert_eq!((n.rows("desk"), n.machine().digest()), (rows, digest));
}

fn damage_folder(dir: &Path, how: u8) {
    match how {
        0 => std::fs::remove_dir_all(dir).unwrap(),
        1 => {
            // sled may open this, with some of the rows gone.
            let db = std::fs::OpenOptions::new().write(true).open(dir.join("db")).unwrap();
            db.set_len(db.metadata().unwrap().len() / 2).unwrap();
        }
        _ => {
            let mut bytes = std::fs::read(dir.join("db")).unwrap();
            for byte in bytes.iter_mut().skip(100) {
                *byte = !*byte;
            }
            std::fs::write(dir.join("db"), bytes).unwrap();
        }
    }
}

#[test]
fn a_sled_folder_that_does_not_open_or_verify_is_built_again_from_file_and_log() {
    for how in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("sled");
        let config = SledConfig::new(&dir);
        let mut n = Node::new(move || SledStores::new(config.clone()));
        for i in 0..50 {
            n.say("desk", &format!("right:row {i}")).unwrap();
        }
        n.save();
        for i in 0..5 {
            n.say("gateway", &format!("later {i}")).unwrap();
        }
        let (rows, digest) = (n.rows("gateway"), n.machine().digest());
        n.machine = None;
        damage_folder(&dir, how);
        assert!(n.reopen().unwrap() > 0 || how == 1, "damage {how} was not noticed");
        assert_eq!(
            (n.rows("gateway"), n.machine().digest()),
            (rows, digest),
            "damage {how}"
        );
        // And it is a store like any other from here on.
        n.say("gateway", "on").unwrap();
        assert_eq!(n.reopen().unwrap(), 0);
    }
}

#[test]
fn the_golden_snapshot_file_still_reads() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/meta-v1.snapshot");
    let mut n = Node::new(MemStores::default);
    n.say("gateway", "right:to the desk").unwrap();
    n.say("gateway", "tell").unwrap();
    n.say("desk", "left:back").unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        n.save();
        std::fs::write(path, n.disk.read("meta/meta.snapshot").unwrap()).unwrap();
    }
    let disk = SimDisk::new();
    hindcast_env::disk::write_new_file(&disk, "meta/meta.snapshot", &std::fs::read(path).unwrap()).unwrap();
    let old = MetaMachine::open(
        Arc::new(disk),
        MemStores::default(),
        parts(),
        MetaMachineConfig::new("meta"),
    )
    .unwrap();
    assert_eq!((old.applied(), old.durable()), (3, 3));
    assert_eq!(old.digest(), n.machine().digest());
}

#[test]
fn a_damaged_snapshot_file_is_written_anew_before_a_restart_needs_it() {
    let mut n = Node::new(MemStores::default);
    for i in 0..20 {
        n.say("desk", &format!("row {i}")).unwrap();
    }
    n.machine().request_snapshot();
    n.save_rest();
    let file = n.machine().file();
    file.check().unwrap();
    n.disk().flip_bit("meta/meta.snapshot", 40, 2).unwrap();
    let why = file.check().unwrap_err().to_string();
    assert!(why.contains("meta/meta.snapshot"), "{why}");
    file.renew();
    n.save_rest();
    file.check().unwrap();
    assert_eq!(n.machine().durable(), 20);
}
