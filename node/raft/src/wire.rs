//! Raft messages between nodes: payloads apart from the rest, so that they cross protobuf once and are never copied.

use bytes::Bytes;
use hindcast_model::{GroupId, NodeId};
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

/// A raft message on its way: `data` holds the payloads of its entries, `head` everything else.
#[derive(Clone, Debug, PartialEq)]
pub struct WireMessage {
    pub group: GroupId,
    pub head: Bytes,
    pub data: Vec<Bytes>,
}

impl WireMessage {
    pub fn bytes(&self) -> usize {
        self.head.len() + self.data.iter().map(Bytes::len).sum::<usize>()
    }
}

/// Why a message of a peer is not taken.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the head of the message has {bytes} bytes, more than {HEAD_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("the message does not decode: {0}")]
    Malformed(String),
    #[error("the message has {entries} entries and {payloads} payloads")]
    PayloadCount { entries: usize, payloads: usize },
    #[error("node {from} sent a message of node {says} for node {to}")]
    Misdirected { from: NodeId, says: u64, to: u64 },
    #[error("a message of kind {0} does not travel between nodes this way")]
    Kind(&'static str),
}

/// Heads are small: per entry a few numbers and an id.
pub const HEAD_BYTES_MAX: usize = 8 << 20;

pub fn pack(group: GroupId, mut message: Message) -> WireMessage {
    let data = message
        .mut_entries()
        .iter_mut()
        .map(|e| std::mem::take(&mut e.data))
        .collect();
    let head = message.write_to_bytes().expect("raft's messages encode").into();
    WireMessage { group, head, data }
}

/// Puts a message back together. Parsing is bounded: rust-protobuf 2 has no limit of its own on nesting.
pub fn unpack(wire: WireMessage, from: NodeId, to: NodeId) -> Result<Message, WireError> {
    let mut message = parse(&wire.head)?;
    if message.from != from.0 || message.to != to.0 {
        return Err(WireError::Misdirected {
            from,
            says: message.from,
            to: message.to,
        });
    }
    match message.get_msg_type() {
        // Proposals go to the leader through its own door, where the proposer waits for the answer.
        MessageType::MsgPropose => return Err(WireError::Kind("proposal")),
        // Its files travel with it.
        MessageType::MsgSnapshot => return Err(WireError::Kind("snapshot")),
        _ => {}
    }
    let (entries, payloads) = (message.get_entries().len(), wire.data.len());
    if entries != payloads {
        return Err(WireError::PayloadCount { entries, payloads });
    }
    for (entry, data) in message.mut_entries().iter_mut().zip(wire.data) {
        entry.data = data;
    }
    Ok(message)
}

pub fn parse(head: &Bytes) -> Result<Message, WireError> {
    if head.len() > HEAD_BYTES_MAX {
        return Err(WireError::TooLarge { bytes: head.len() });
    }
    let mut message = Message::default();
    let mut stream = protobuf::CodedInputStream::from_carllerche_bytes(head);
    let merged = message.merge_from(&mut stream);
    merged.map_err(|e| WireError::Malformed(e.to_string()))?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::Entry;

    fn append() -> Message {
        let mut message = Message {
            from: 1,
            to: 2,
            term: 3,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgAppend);
        let entries = (1..=3).map(|index| Entry {
            index,
            term: 3,
            data: vec![index as u8; 100].into(),
            context: vec![9; 16].into(),
            ..Entry::default()
        });
        message.set_entries(entries.collect::<Vec<_>>().into());
        message
    }

    #[test]
    fn a_message_arrives_as_it_was_sent_with_its_payloads_outside_the_head() {
        let wire = pack(GroupId(4), append());
        assert!(wire.head.len() < 200, "{}", wire.head.len());
        assert_eq!(unpack(wire, NodeId(1), NodeId(2)).unwrap(), append());
    }

    #[test]
    fn a_peer_cannot_speak_for_another_nor_smuggle_proposals() {
        let wire = pack(GroupId(4), append());
        let err = unpack(wire.clone(), NodeId(3), NodeId(2)).unwrap_err();
        assert_eq!(err.to_string(), "node 3 sent a message of node 1 for node 2");
        let mut proposal = append();
        proposal.set_msg_type(MessageType::MsgPropose);
        assert!(unpack(pack(GroupId(4), proposal), NodeId(1), NodeId(2)).is_err());
        let short = WireMessage { data: vec![], ..wire };
        assert!(matches!(
            unpack(short, NodeId(1), NodeId(2)),
            Err(WireError::PayloadCount { .. })
        ));
        let noise = WireMessage {
            group: GroupId(0),
            head: Bytes::from_static(&[0xff; 40]),
            data: vec![],
        };
        assert!(matches!(
            unpack(noise, NodeId(1), NodeId(2)),
            Err(WireError::Malformed(_))
        ));
    }
}
