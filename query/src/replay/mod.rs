//! Replays: what was known of each instant of a past window, as canonical frames with a chained digest.
//!
//! A replay is a pure function of (spec, data at the positions that the spec names). It reads through the seam
//! [`crate::shards::Shards`] only: samples by the bindings of the spec's revision, log lines, and what the gateway and
//! the desk did as History, topology as the shards recorded it.
//!
//! Promises
//! - The same spec over the same data gives the same bytes and digests: on every node, on every later day, after every
//!   compaction, whatever the order or the size in which data arrives here.
//! - What cannot be read is named in each frame that lacks it (`incomplete`), never filled. A bound that leaves
//!   something out says how much.
//! - A frame holds no wall-clock data, and nothing that became known after the cut.
//!
//! The layout of frames: `FORMAT.md` of this crate.

pub mod bindings;
pub mod encode;
pub mod frame;
mod lines;
mod logs;
mod pages;
mod past;
mod plan;
mod play;
pub mod spec;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod world;

pub use encode::{BadFrame, decode_frame, decode_spec, encode_frame, encode_spec};
pub use frame::Frame;
pub use play::{Digest, PlayedFrame, Player, Playing, chained};
pub use spec::{AsOf, BadSpec, EVALUATOR_VERSION, ReplaySpec, STEP_DEFAULT, default_window};

use crate::engine::QueryError;
use crate::shards::ShardsError;
use hindcast_model::{Class, Classify, CutId, Domain, IncidentId, SpanNs, TenantId, TimestampNs};

/// What somebody asks to see, before it is resolved into a spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlayAsk {
    /// `None`: a window and the whole tenant.
    pub incident: Option<IncidentId>,
    /// `None`: the default of the incident.
    pub from: Option<TimestampNs>,
    pub to: Option<TimestampNs>,
    /// `None`: [`STEP_DEFAULT`].
    pub step: Option<SpanNs>,
    pub as_of: AskedAsOf,
    /// Empty: all.
    pub domains: Vec<Domain>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AskedAsOf {
    /// The cut that sealed the incident, else one made now.
    #[default]
    Default,
    Cut(CutId),
    Corrected,
}

/// Knows incidents and cuts. `ops/hindcast` answers from the meta group.
#[async_trait::async_trait]
pub trait ReplayCatalog: Send + Sync {
    async fn spec(&self, tenant: &TenantId, ask: PlayAsk) -> Result<ReplaySpec, ReplayError>;
}

/// Why a replay cannot be played, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("this cannot be replayed: {0}")]
    Ask(String),
    #[error(transparent)]
    Spec(#[from] BadSpec),
    #[error("there is no {0} in this tenant")]
    NoSuchIncident(IncidentId),
    #[error("there is no {0}; name a cut that `hindcast incident show` lists, or `corrected`")]
    NoSuchCut(CutId),
    /// The cut that the replay needs cannot be made or read now.
    #[error("no cut can be had now: {0}")]
    Unavailable(String),
    #[error("the signal {signal} cannot be read: {source}")]
    Query {
        signal: &'static str,
        #[source]
        source: QueryError,
    },
    #[error(transparent)]
    Shards(#[from] ShardsError),
}

impl Classify for ReplayError {
    fn class(&self) -> Class {
        match self {
            Self::Ask(_) | Self::Spec(_) => Class::FixRequest,
            Self::NoSuchIncident(_) | Self::NoSuchCut(_) => Class::NotFound,
            Self::Unavailable(_) => Class::Unavailable,
            // The expressions are ours: that one does not parse or run is no fault of the one who asks.
            Self::Query { source, .. } => match source.class() {
                Class::FixRequest => Class::Internal,
                class => class,
            },
            Self::Shards(e) => e.class(),
        }
    }
}
