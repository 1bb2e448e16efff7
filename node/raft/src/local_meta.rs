//! The meta group as one machine in memory: for tests of parts and of what calls them.
//!
//! A command is applied at once, at the next index, at the time that the test set. Leftward rows stay until
//! `settle` brings them back, as the leader of a real cluster does by itself.

use crate::machine::{Entry, Machine};
use crate::mem_store::{MemStore, MemStores};
use crate::meta::{META_PART, MachineCommand, Meta, MetaCommand, MetaError, MetaRead, Part};
use crate::meta_machine::{MetaMachine, MetaMachineConfig, decode_reply, leftward_rows};
use bytes::Bytes;
use hindcast_env::SimDisk;
use hindcast_model::{TimestampNs, codec};
use parking_lot::Mutex;
use std::sync::Arc;

pub struct LocalMeta {
    machine: Mutex<MetaMachine<MemStore>>,
    reader: Arc<dyn MetaRead>,
    now: Mutex<TimestampNs>,
}

impl LocalMeta {
    /// Parts from left to right. Cluster time starts at the epoch.
    ///
    /// # Panics
    /// When two parts share a name.
    pub fn new(parts: Vec<Box<dyn Part>>) -> Self {
        let config = MetaMachineConfig {
            snapshot_every_commands: u64::MAX,
            ..MetaMachineConfig::new("meta")
        };
        let machine = MetaMachine::open(Arc::new(SimDisk::new()), MemStores::default(), parts, config)
            .expect("an empty store in memory opens");
        let reader = machine.reader();
        Self {
            machine: Mutex::new(machine),
            reader,
            now: Mutex::new(TimestampNs::EPOCH),
        }
    }

    /// The time of the next commands. Setting it back has no effect on cluster time, which never goes back.
    pub fn set_now(&self, now: TimestampNs) {
        *self.now.lock() = now;
    }

    pub fn now(&self) -> TimestampNs {
        *self.now.lock()
    }

    /// `Meta::propose` without waiting: what the machine answers.
    pub fn apply(&self, part: &str, body: Vec<u8>) -> Result<Bytes, MetaError> {
        let command = MetaCommand {
            part: part.to_owned(),
            at: self.now(),
            body,
        };
        let mut machine = self.machine.lock();
        let entry = Entry {
            index: machine.applied() + 1,
            term: 1,
            data: codec::to_bytes(&command).into(),
        };
        let reply = machine.apply(&entry).expect("a store in memory does not fail");
        Ok(decode_reply(&reply)?)
    }

    /// Brings leftward rows back as commands until none is left; returns how many. Refused ones count too.
    ///
    /// # Panics
    /// When parts keep answering each other: more than `rounds_max` commands came of it.
    pub fn settle(&self) -> usize {
        let rounds_max = 100_000;
        for done in 0..rounds_max {
            let Some(row) = leftward_rows(self.reader.as_ref(), 1).pop() else {
                return done;
            };
            let command = MachineCommand::Leftward {
                index: row.index,
                seq: row.seq,
            };
            // A refusal is the addressed part's answer; the row is gone either way.
            let _refused = self.apply(META_PART, codec::to_bytes(&command));
        }
        panic!("leftward commands do not come to an end");
    }

    /// Digest of the whole state (I3).
    pub fn digest(&self) -> [u8; 32] {
        self.machine.lock().digest()
    }
}

#[async_trait::async_trait]
impl Meta for LocalMeta {
    async fn propose(&self, part: &'static str, body: Vec<u8>) -> Result<Bytes, MetaError> {
        self.apply(part, body)
    }

    async fn read(&self) -> Result<Arc<dyn MetaRead>, MetaError> {
        Ok(self.reader.clone())
    }

    fn stale(&self) -> Arc<dyn MetaRead> {
        self.reader.clone()
    }

    fn is_leader(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{ApplyContext, MetaTx, PartInput, PartOutput, Refusal};

    struct Counter;

    impl Part for Counter {
        fn name(&self) -> &'static str {
            "counter"
        }
        fn apply(&self, ctx: ApplyContext, _: PartInput<'_>, tx: &mut MetaTx<'_>) -> Result<PartOutput, Refusal> {
            tx.put("counter", b"at", ctx.now.0.to_be_bytes().to_vec());
            let reply = Bytes::from(format!("{} at {}", ctx.index, ctx.now.0));
            Ok(PartOutput {
                reply,
                ..PartOutput::default()
            })
        }
    }

    #[test]
    fn commands_are_applied_at_the_time_that_was_set_and_time_never_goes_back() {
        let meta = LocalMeta::new(vec![Box::new(Counter)]);
        meta.set_now(TimestampNs(70));
        assert_eq!(meta.apply("counter", vec![]).unwrap(), "1 at 70");
        meta.set_now(TimestampNs(60));
        assert_eq!(meta.apply("counter", vec![]).unwrap(), "2 at 70");
        assert_eq!(meta.stale().get("counter", b"at"), Some(70i64.to_be_bytes().to_vec()));
        assert_eq!(meta.stale().applied(), 2);
    }
}
