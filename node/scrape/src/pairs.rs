//! Labels while they are worked on.
//!
//! Unlike `hindcast_model::Labels` it may hold empty values: a scraped page that names an empty `instance` says that it wants
//! none.

use hindcast_model::Labels;
use std::collections::BTreeMap;

/// Few names with their values, in no order, each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs(Vec<(String, String)>);

impl Pairs {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// As relabeling sees it: a label that is not there is empty.
    pub fn value(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, v)) => *v = value.into(),
            None => self.0.push((name.to_owned(), value.into())),
        }
    }

    pub fn set_absent(&mut self, name: &str, value: impl Into<String>) {
        if !self.has(name) {
            self.0.push((name.to_owned(), value.into()));
        }
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }

    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|(n, _)| keep(n));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sorted, without empty values.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        let present = self.0.iter().filter(|(_, v)| !v.is_empty());
        present.cloned().collect()
    }

    pub fn into_labels(self) -> Labels {
        Labels::new(self.0)
    }
}

/// The caller has made sure that names are unique.
impl From<Vec<(String, String)>> for Pairs {
    fn from(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }
}

impl FromIterator<(String, String)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        let mut all = Self::default();
        for (name, value) in pairs {
            all.set(&name, value);
        }
        all
    }
}
