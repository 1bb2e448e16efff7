//! Names of objects: `1.3.6.1.2.1.1.3.0`.

use std::fmt;
use std::str::FromStr;

/// Parts of one name, as SMIv2 has it.
pub const SUB_IDS_MAX: usize = 128;

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid(Vec<u32>);

impl Oid {
    pub fn ids(&self) -> &[u32] {
        &self.0
    }

    /// What stands behind `prefix`, which `self` begins with.
    pub fn below(&self, prefix: &[u32]) -> Option<&[u32]> {
        self.0.strip_prefix(prefix)
    }
}

impl From<Vec<u32>> for Oid {
    fn from(ids: Vec<u32>) -> Self {
        Self(ids)
    }
}

impl From<&[u32]> for Oid {
    fn from(ids: &[u32]) -> Self {
        Self(ids.to_vec())
    }
}

impl FromStr for Oid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ids = text.strip_prefix('.').unwrap_or(text).split('.').map(str::parse);
        match ids.collect::<Result<Vec<u32>, _>>() {
            Ok(ids) if ids.len() <= SUB_IDS_MAX => Ok(Self(ids)),
            _ => Err(format!(
                "{text:?} is no OID; write numbers with dots, like 1.3.6.1.2.1.1.3.0"
            )),
        }
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, id) in self.0.iter().enumerate() {
            let dot = if i == 0 { "" } else { "." };
            write!(f, "{dot}{id}")?;
        }
        Ok(())
    }
}
