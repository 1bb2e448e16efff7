//! What a shard remembers beside its rows: which batches it has, and the world as last told. Layout: `FORMAT.md`,
//! "Auxiliary state of a shard".
//!
//! Invariant: the same entries give the same state and the same bytes on every replica.

use crate::codec::{Malformed, Reader, put_varint};
use crate::dedup::{self, Dedup};
use hindcast_model::resource::{Edge, EdgeKind};
use hindcast_model::{BatchId, Kind, Resource, ResourceId, TenantId, TimestampNs, WriterId, codec};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

/// The first byte. Version 1 was MessagePack as a whole, which begins with a map: 0x80 and more.
const VERSION: u8 = 2;
const VERSION_1_MIN: u8 = 0x80;
const ZSTD_LEVEL: i32 = 3;
/// Larger ones were not written by us.
const RAW_BYTES_MAX: u64 = 1 << 32;

/// What is flushed beside the segments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Aux {
    pub dedup: Dedup,
    /// As last recorded.
    pub resources: BTreeMap<(TenantId, ResourceId), Resource>,
    pub edges: BTreeSet<(TenantId, Edge)>,
    /// Rolling BLAKE3 over all applied entries (I3).
    pub digest: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct World<R, E> {
    resources: R,
    edges: E,
}

#[derive(Deserialize)]
struct Version1 {
    dedup: dedup::Version1,
    resources: BTreeMap<(TenantId, ResourceId), Resource>,
    edges: BTreeSet<(TenantId, Edge)>,
    digest: [u8; 32],
}

/// Why bytes are no auxiliary state.
#[derive(Debug, thiserror::Error)]
pub enum BadAux {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Row(#[from] codec::DecodeError),
    #[error("version {found} is unknown here, {VERSION} is the newest; start a newer hindcast")]
    Version { found: u8 },
    #[error("it does not decompress to the length that it names")]
    Packing,
}

impl Aux {
    pub fn encode(&self) -> Vec<u8> {
        let raw = self.body();
        let mut out = vec![VERSION];
        put_varint(&mut out, raw.len() as u64);
        out.extend(zstd::bulk::compress(&raw, ZSTD_LEVEL).expect("memory is all that packing needs"));
        out
    }

    fn body(&self) -> Vec<u8> {
        let mut raw = self.digest.to_vec();
        self.dedup.encode(&mut raw);
        raw.extend(codec::to_bytes(&World {
            resources: &self.resources,
            edges: &self.edges,
        }));
        raw
    }

    /// Nothing: the state of a shard that was never flushed.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadAux> {
        let mut r = Reader::new(bytes);
        match bytes.first() {
            None => return Ok(Self::default()),
            Some(&VERSION) => r.byte()?,
            Some(&old) if old >= VERSION_1_MIN => return version_1(bytes),
            Some(&found) => return Err(BadAux::Version { found }),
        };
        let len = r.varint()?;
        if len > RAW_BYTES_MAX {
            return Err(BadAux::Packing);
        }
        // Grows with what really comes out, whatever length is claimed.
        let mut raw = vec![];
        let unpacked = zstd::stream::read::Decoder::new(r.rest()).map_err(|_| BadAux::Packing)?;
        let read = unpacked.take(len + 1).read_to_end(&mut raw);
        if read.map_err(|_| BadAux::Packing)? as u64 != len {
            return Err(BadAux::Packing);
        }
        Self::decode_body(&raw)
    }

    pub(crate) fn decode_body(raw: &[u8]) -> Result<Self, BadAux> {
        let mut r = Reader::new(raw);
        let digest = r.array()?;
        let dedup = Dedup::decode(&mut r)?;
        let World { resources, edges } = codec::from_bytes(r.rest())?;
        Ok(Self {
            dedup,
            resources,
            edges,
            digest,
        })
    }

    /// What `decode` and `decode_body` read.
    pub(crate) fn seeds() -> [Vec<Vec<u8>>; 2] {
        let (full, empty) = (example(), Self::default());
        [vec![full.encode(), GOLDEN_1.to_vec()], vec![full.body(), empty.body()]]
    }
}

fn version_1(bytes: &[u8]) -> Result<Aux, BadAux> {
    let old: Version1 = codec::from_bytes(bytes)?;
    Ok(Aux {
        dedup: old.dedup.into(),
        resources: old.resources,
        edges: old.edges,
        digest: old.digest,
    })
}

/// As a node of version 1 wrote it.
const GOLDEN_1: &[u8] = include_bytes!("../tests/golden/aux-v1");

/// Batches of two tenants and of each kind of id, a host and what runs on it.
fn example() -> Aux {
    let mut aux = Aux {
        digest: [7; 32],
        ..Aux::default()
    };
    let tenants = [TenantId::default(), TenantId::new("other").expect("a name")];
    let writer = WriterId([5; 16]);
    let at = |s: i64| TimestampNs::from_secs(1_700_000_000 + s);
    for (tenant, i) in tenants.iter().cycle().zip(0..6u8) {
        let ids = [
            BatchId::Hashed([i; 16]),
            BatchId::Sequenced {
                writer,
                seq: u64::from(i),
            },
            BatchId::Ordered {
                writer,
                seq: u64::from(i),
            },
        ];
        for id in ids {
            aux.dedup.remember(tenant, Some(id), at(i64::from(i) * 150));
        }
    }
    // By now the first ones are forgotten.
    aux.dedup.verdict(&tenants[0], Some(BatchId::Hashed([99; 16])), at(800));
    let resource = |kind, name: &str| Resource {
        id: ResourceId([name.len() as u8; 16]),
        kind,
        name: name.to_owned(),
        attributes: BTreeMap::from([("host.name".to_owned(), name.to_owned())]),
    };
    let (host, service) = (resource(Kind::Host, "db-1"), resource(Kind::Service, "orders"));
    let edge = Edge {
        from: service.id,
        to: host.id,
        kind: EdgeKind::RunsOn,
    };
    aux.edges.insert((tenants[0].clone(), edge));
    for r in [host, service] {
        aux.resources.insert((tenants[0].clone(), r.id), r);
    }
    aux
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN_2: &[u8] = include_bytes!("../tests/golden/aux-v2");

    #[test]
    fn what_earlier_versions_wrote_is_read() {
        let old = Aux::decode(GOLDEN_1).unwrap();
        assert!(old.dedup != Dedup::default() && !old.resources.is_empty());
        assert_eq!(Aux::decode(&old.encode()).unwrap(), old);
        assert_eq!(Aux::decode(GOLDEN_2).unwrap(), example());
        // zstd may pack otherwise one day: the body is the format.
        assert_eq!(Aux::decode(&example().encode()).unwrap().body(), example().body());
        assert_eq!(Aux::decode(&[]).unwrap(), Aux::default());
    }

    #[test]
    fn damage_and_the_future_are_told() {
        let bytes = example().encode();
        for cut in 1..bytes.len() {
            assert!(Aux::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert_eq!(
            Aux::decode(&[3]).unwrap_err().to_string(),
            "version 3 is unknown here, 2 is the newest; start a newer hindcast"
        );
    }
}
