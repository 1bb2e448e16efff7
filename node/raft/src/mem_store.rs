//! The meta store as an ordered map in memory: the simulator's and the tests' implementation of `MetaStore`.
//!
//! Forgets everything with the process, so what it holds must be rebuilt from the snapshot file and the Raft log,
//! like a sled folder that does not open.

use crate::meta::{Changes, MetaRead, MetaStore, MetaStoreError, Rows};
use crate::meta_machine::StoreFactory;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Default)]
struct State {
    trees: BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>,
    applied: u64,
}

/// Clones share the rows.
#[derive(Clone, Default)]
pub struct MemStore(Arc<RwLock<State>>);

impl MemStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes a row behind the machine's back, as damage would. For tests of verification.
    pub fn damage(&self, tree: &str, key: &[u8], value: &[u8]) {
        let mut s = self.0.write();
        let rows = s.trees.entry(tree.to_owned()).or_default();
        rows.insert(key.to_vec(), value.to_vec());
    }
}

impl MetaRead for MemStore {
    fn get(&self, tree: &str, key: &[u8]) -> Option<Vec<u8>> {
        self.0.read().trees.get(tree)?.get(key).cloned()
    }

    fn scan(&self, tree: &str, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Rows {
        let s = self.0.read();
        let Some(rows) = s.trees.get(tree) else {
            return Rows::new();
        };
        let start = from.unwrap_or(prefix).max(prefix);
        rows.range::<[u8], _>((std::ops::Bound::Included(start), std::ops::Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    fn applied(&self) -> u64 {
        self.0.read().applied
    }
}

impl MetaStore for MemStore {
    fn commit(&self, changes: &Changes, applied: u64) -> Result<(), MetaStoreError> {
        let mut s = self.0.write();
        for ((tree, key), value) in changes {
            match value {
                Some(value) => {
                    let rows = s.trees.entry(tree.clone()).or_default();
                    rows.insert(key.clone(), value.clone());
                }
                None => {
                    if let Some(rows) = s.trees.get_mut(tree) {
                        rows.remove(key);
                    }
                }
            }
        }
        s.applied = applied;
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), MetaStoreError> {
        Ok(())
    }
}

/// Opens one shared `MemStore`. Keep a clone to reopen the same rows; take a new one to have lost them.
#[derive(Clone, Default)]
pub struct MemStores(Arc<Mutex<MemStore>>);

impl MemStores {
    pub fn current(&self) -> MemStore {
        self.0.lock().clone()
    }
}

impl StoreFactory for MemStores {
    type Store = MemStore;

    fn open(&self) -> Result<MemStore, MetaStoreError> {
        Ok(self.current())
    }

    fn move_aside(&self) -> Result<(), MetaStoreError> {
        *self.0.lock() = MemStore::new();
        Ok(())
    }
}
