//! The cluster's part of the meta machine: cuts, pins, and the nodes (`node_rows`).
//!
//! A cut is taken in four steps: `BeginCut` at index m; History delivered up to m; a cut entry
//! in every shard; `RecordCut` with the vector. Only a recorded cut can be named by a reader.
//!
//! Invariants
//! - Cut numbers rise and are never reused.
//! - A cut's positions never change once recorded.

use crate::node_rows::{self, Wish};
use bytes::Bytes;
use hindcast_model::{Class, CutId, GroupId, IncidentId, NodeId, Positions, SpanNs, TenantId, TimestampNs, codec};
use hindcast_proto::history::{HistoryKind, HistoryRecord};
use hindcast_raft::{ApplyContext, HistoryLine, MetaRead, MetaTx, Part, PartInput, PartOutput, Refusal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const CLUSTER_PART: &str = "cluster";

/// Who asks sooner after the last cut gets that one.
pub const CUT_SPAN_MIN: SpanNs = SpanNs::from_secs(10);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ClusterCommand {
    /// `fresh`: no older cut will do (an incident opened just now).
    BeginCut {
        reason: String,
        fresh: bool,
    },
    RecordCut {
        cut: CutId,
        positions: Positions,
    },
    /// The pin stands in every shard already.
    RecordPin {
        pin: PinRow,
    },
    DropPin {
        id: String,
    },
    /// Who founded the cluster, with peer addresses; noted once.
    FoundNodes {
        nodes: BTreeMap<NodeId, String>,
    },
    /// A new node asks for its id.
    JoinNode {
        token: [u8; 16],
        address: String,
    },
    WishNode {
        node: NodeId,
        wish: Wish,
    },
    /// A node that was to leave counts nowhere any more.
    NodeGone {
        node: NodeId,
    },
    /// Who is to lead a group; `None`: it is spread like the others.
    LeadGroup {
        group: GroupId,
        node: Option<NodeId>,
    },
}

/// The answer to `BeginCut`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutBegun {
    pub cut: CutRow,
    /// An older one that is recorded already: nothing is left to do.
    pub reused: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutRow {
    pub id: CutId,
    /// The command's index m: History up to here is within the cut.
    pub meta_index: u64,
    pub made_at: TimestampNs,
    pub reason: String,
    /// One per shard, and the meta group's m; `None` until recorded.
    pub positions: Option<Positions>,
}

/// A pin as people see it; what it protects stands in each shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PinRow {
    pub id: String,
    pub tenant: TenantId,
    pub incident: Option<IncidentId>,
    pub from: TimestampNs,
    pub to: TimestampNs,
    pub owner: String,
    pub reason: String,
    /// `pin-90d`, `pin-1y`, `pin-5y`, `pin-hold`.
    pub class: String,
    pub cuts: Vec<CutId>,
}

fn cut_key(cut: CutId) -> Vec<u8> {
    [b"cut/".as_slice(), &cut.0.to_be_bytes()].concat()
}

const LAST_CUT: &[u8] = b"last_cut";

/// The row of a cut, recorded or not.
pub fn cut(read: &dyn MetaRead, id: CutId) -> Option<CutRow> {
    codec::from_bytes(&read.get(CLUSTER_PART, &cut_key(id))?).ok()
}

/// The newest recorded cut made at or before `at`.
pub fn cut_before(read: &dyn MetaRead, at: TimestampNs) -> Option<CutRow> {
    let rows = read.scan(CLUSTER_PART, b"cut/", None, usize::MAX);
    let cuts = rows
        .iter()
        .rev()
        .filter_map(|(_, v)| codec::from_bytes::<CutRow>(v).ok());
    cuts.filter(|c| c.positions.is_some()).find(|c| c.made_at <= at)
}

pub fn pins(read: &dyn MetaRead) -> Vec<PinRow> {
    let rows = read.scan(CLUSTER_PART, b"pin/", None, usize::MAX);
    rows.iter().filter_map(|(_, v)| codec::from_bytes(v).ok()).collect()
}

#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterPart;

impl ClusterPart {
    fn last_cut(tx: &MetaTx<'_>) -> Result<Option<CutRow>, Refusal> {
        let Some(id) = tx.get(CLUSTER_PART, LAST_CUT) else {
            return Ok(None);
        };
        let row = tx.get(CLUSTER_PART, &id).map(|row| codec::from_bytes(&row)).transpose();
        row.map_err(|e| Refusal::new(Class::Internal, e.to_string()))
    }

    fn begin(ctx: ApplyContext, reason: String, fresh: bool, tx: &mut MetaTx<'_>) -> Result<Bytes, Refusal> {
        let last = Self::last_cut(tx)?;
        if let Some(last) = &last
            && !fresh
            && last.positions.is_some()
            && ctx.now.since(last.made_at) < CUT_SPAN_MIN
        {
            return Ok(codec::to_bytes(&CutBegun {
                cut: last.clone(),
                reused: true,
            })
            .into());
        }
        let id = CutId(last.map_or(1, |l| l.id.0 + 1));
        let cut = CutRow {
            id,
            meta_index: ctx.index,
            made_at: ctx.now,
            reason,
            positions: None,
        };
        tx.put(CLUSTER_PART, &cut_key(id), codec::to_bytes(&cut));
        tx.put(CLUSTER_PART, LAST_CUT, cut_key(id));
        Ok(codec::to_bytes(&CutBegun { cut, reused: false }).into())
    }

    fn record(id: CutId, positions: Positions, tx: &mut MetaTx<'_>) -> Result<Bytes, Refusal> {
        let row = tx.get(CLUSTER_PART, &cut_key(id));
        let row = row.ok_or_else(|| Refusal::new(Class::NotFound, format!("{id} was never begun")))?;
        let mut cut: CutRow = codec::from_bytes(&row).map_err(|e| Refusal::new(Class::Internal, e.to_string()))?;
        if cut.positions.is_none() {
            let mut positions = positions;
            positions.insert(GroupId::META, cut.meta_index);
            cut.positions = Some(positions);
            tx.put(CLUSTER_PART, &cut_key(id), codec::to_bytes(&cut));
        }
        // A second recorder lost the race: the first vector stands, and is what it gets.
        Ok(codec::to_bytes(&cut).into())
    }
}

impl Part for ClusterPart {
    fn name(&self) -> &'static str {
        CLUSTER_PART
    }

    fn apply(&self, ctx: ApplyContext, input: PartInput<'_>, tx: &mut MetaTx<'_>) -> Result<PartOutput, Refusal> {
        let PartInput::Command(body) = input else {
            return Ok(PartOutput::default());
        };
        let command = codec::from_bytes(body).map_err(|e| Refusal::new(Class::FixRequest, e.to_string()))?;
        let mut out = PartOutput::default();
        match command {
            ClusterCommand::BeginCut { reason, fresh } => out.reply = Self::begin(ctx, reason, fresh, tx)?,
            ClusterCommand::RecordCut { cut, positions } => out.reply = Self::record(cut, positions, tx)?,
            ClusterCommand::RecordPin { pin } => {
                tx.put(
                    CLUSTER_PART,
                    format!("pin/{}", pin.id).as_bytes(),
                    codec::to_bytes(&pin),
                );
                out.history.push(pin_history(ctx, &pin, "pinned"));
            }
            ClusterCommand::FoundNodes { nodes } => out.reply = node_rows::found(tx, nodes)?,
            ClusterCommand::JoinNode { token, address } => out.reply = node_rows::join(tx, token, address)?,
            ClusterCommand::WishNode { node, wish } => out.reply = node_rows::wish(tx, node, wish)?,
            ClusterCommand::NodeGone { node } => out.reply = node_rows::gone(tx, node)?,
            ClusterCommand::LeadGroup { group, node } => out.reply = node_rows::lead(tx, group, node)?,
            ClusterCommand::DropPin { id } => {
                let key = format!("pin/{id}");
                let row = tx.get(CLUSTER_PART, key.as_bytes());
                let row = row.ok_or_else(|| Refusal::new(Class::NotFound, format!("there is no pin {id:?}")))?;
                let pin: PinRow = codec::from_bytes(&row).map_err(|e| Refusal::new(Class::Internal, e.to_string()))?;
                tx.delete(CLUSTER_PART, key.as_bytes());
                out.history.push(pin_history(ctx, &pin, "unpinned"));
            }
        }
        Ok(out)
    }
}

fn pin_history(ctx: ApplyContext, pin: &PinRow, change: &str) -> HistoryLine {
    let record = HistoryRecord {
        kind: HistoryKind::Pin,
        tenant: pin.tenant.clone(),
        object: pin.id.clone(),
        at: ctx.now,
        index: ctx.index,
        seq: 0,
        change: change.to_owned(),
        state: serde_json::json!({
            "incident": pin.incident.map(|i| i.to_string()),
            "from_ms": pin.from.as_ms(),
            "to_ms": pin.to.as_ms(),
            "class": pin.class,
            "reason": pin.reason,
        }),
    };
    HistoryLine {
        tenant: pin.tenant.clone(),
        labels: HistoryKind::Pin.stream(),
        at: ctx.now,
        line: record.to_line(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_raft::{LocalMeta, Meta, MetaError};

    async fn begin(meta: &LocalMeta, fresh: bool) -> CutBegun {
        let body = codec::to_bytes(&ClusterCommand::BeginCut {
            reason: "test".into(),
            fresh,
        });
        codec::from_bytes(&meta.propose(CLUSTER_PART, body).await.unwrap()).unwrap()
    }

    async fn record(meta: &LocalMeta, cut: CutId, index: u64) -> Result<CutRow, MetaError> {
        let positions = Positions::from([(GroupId(1), index)]);
        let body = codec::to_bytes(&ClusterCommand::RecordCut { cut, positions });
        Ok(codec::from_bytes(&meta.propose(CLUSTER_PART, body).await?).unwrap())
    }

    #[tokio::test]
    async fn who_asks_within_ten_seconds_gets_the_last_recorded_cut() {
        let meta = LocalMeta::new(vec![Box::new(ClusterPart)]);
        meta.set_now(TimestampNs::from_secs(100));
        let first = begin(&meta, false).await;
        assert!(!first.reused);
        assert!(
            !begin(&meta, false).await.reused,
            "the first is not recorded yet: nobody can use it"
        );
        record(&meta, CutId(2), 7).await.unwrap();
        let again = begin(&meta, false).await;
        assert_eq!((again.reused, again.cut.id), (true, CutId(2)));
        assert_eq!(
            begin(&meta, true).await.cut.id,
            CutId(3),
            "an incident that opens gets its own"
        );
        meta.set_now(TimestampNs::from_secs(200));
        assert_eq!(begin(&meta, false).await.cut.id, CutId(4));
    }

    #[tokio::test]
    async fn the_first_vector_of_a_cut_stands() {
        let meta = LocalMeta::new(vec![Box::new(ClusterPart)]);
        let cut = begin(&meta, false).await.cut;
        let first = record(&meta, cut.id, 7).await.unwrap();
        assert_eq!(first.positions.as_ref().unwrap()[&GroupId(1)], 7);
        assert_eq!(first.positions.as_ref().unwrap()[&GroupId::META], cut.meta_index);
        assert_eq!(record(&meta, cut.id, 9).await.unwrap(), first);
        assert!(record(&meta, CutId(99), 9).await.is_err());
    }
}
