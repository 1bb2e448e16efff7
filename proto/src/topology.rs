//! Resources and edges as log lines of the shard that sees them change, so that cuts, pins and replays treat them
//! like any other data. Exempt from retention: a resource outlives the window in which it was first seen.

use hindcast_model::resource::Edge;
use hindcast_model::{Labels, Resource};
use serde::{Deserialize, Serialize};

/// The label that marks topology streams.
pub const TOPOLOGY_LABEL: &str = "hindcast_topology";

/// One change of the topology. The line's time is the event time of the batch that showed it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopologyRecord {
    /// First seen, or its attributes changed: from here on it looks like this.
    Resource(Resource),
    /// First seen: from here on it holds.
    Edge(Edge),
}

impl TopologyRecord {
    /// Labels of the stream that holds it; the stream's owner is the resource, or the edge's `from`.
    pub fn stream(&self) -> Labels {
        let kind = match self {
            Self::Resource(_) => "resource",
            Self::Edge(_) => "edge",
        };
        Labels::from_pairs([(TOPOLOGY_LABEL, kind)])
    }

    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("a record is plain data")
    }

    pub fn from_line(line: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }
}
