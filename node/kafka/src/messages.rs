//! The questions that a consumer asks, in one version each, and their answers.
//!
//! Each version is one that brokers from Kafka 2.3 to 4 know, and whose fields have plain lengths. What a broker knows is asked
//! first ([`missing`]). The layouts are those of the published message definitions; the tests hold frames that another implementation
//! wrote.

use crate::wire::{Put, Reader, WireError};
use bytes::{BufMut, Bytes};
use std::fmt;

/// Of an answer. A broker sends at least one batch of records, however large it is: 64 times what brokers take by default.
pub const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How this program calls itself to brokers.
pub const CLIENT_ID: &str = "hindcast";

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    Fetch,
    ListOffsets,
    Metadata,
    OffsetCommit,
    OffsetFetch,
    FindCoordinator,
    JoinGroup,
    Heartbeat,
    LeaveGroup,
    SyncGroup,
    SaslHandshake,
    ApiVersions,
    SaslAuthenticate,
}

impl Api {
    /// Those without which nothing can be consumed.
    pub const NEEDED: [Self; 10] = [
        Self::Fetch,
        Self::ListOffsets,
        Self::Metadata,
        Self::OffsetCommit,
        Self::OffsetFetch,
        Self::FindCoordinator,
        Self::JoinGroup,
        Self::Heartbeat,
        Self::LeaveGroup,
        Self::SyncGroup,
    ];

    pub const fn key(self) -> i16 {
        match self {
            Self::Fetch => 1,
            Self::ListOffsets => 2,
            Self::Metadata => 3,
            Self::OffsetCommit => 8,
            Self::OffsetFetch => 9,
            Self::FindCoordinator => 10,
            Self::JoinGroup => 11,
            Self::Heartbeat => 12,
            Self::LeaveGroup => 13,
            Self::SyncGroup => 14,
            Self::SaslHandshake => 17,
            Self::ApiVersions => 18,
            Self::SaslAuthenticate => 36,
        }
    }

    pub const fn version(self) -> i16 {
        match self {
            Self::Fetch => 11,
            Self::ListOffsets => 2,
            Self::Metadata => 4,
            Self::OffsetCommit => 7,
            Self::OffsetFetch => 5,
            Self::FindCoordinator => 1,
            Self::JoinGroup => 5,
            Self::Heartbeat => 3,
            Self::LeaveGroup => 3,
            Self::SyncGroup => 3,
            Self::SaslHandshake | Self::SaslAuthenticate => 1,
            Self::ApiVersions => 0,
        }
    }
}

/// What a broker says went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub i16);

impl Code {
    pub const OFFSET_OUT_OF_RANGE: Self = Self(1);
    pub const UNKNOWN_TOPIC: Self = Self(3);
    pub const NOT_LEADER: Self = Self(6);
    pub const MEMBER_ID_REQUIRED: Self = Self(79);
    pub const UNKNOWN_MEMBER: Self = Self(25);
    pub const ILLEGAL_GENERATION: Self = Self(22);
    pub const REBALANCING: Self = Self(27);

    pub const fn is_error(self) -> bool {
        self.0 != 0
    }

    /// Whether a partition's leader is to be asked for anew.
    pub const fn is_elsewhere(self) -> bool {
        // Unknown topic, no leader, not the leader, replica away, storage broken, fenced or unknown epoch, listener missing.
        matches!(self.0, 3 | 5 | 6 | 9 | 56 | 72 | 74 | 75)
    }

    /// Whether this member has no say any more: another generation of the group works.
    pub const fn is_fenced(self) -> bool {
        matches!(self.0, 22 | 25 | 27 | 82)
    }

    /// The same question may get another answer later.
    pub const fn is_passing(self) -> bool {
        // Loading, no coordinator, another coordinator, request timed out, and those above.
        matches!(self.0, 7 | 14 | 15 | 16) || self.is_elsewhere()
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0 {
            0 => "no error",
            1 => "the offset is not there: the log begins later or ends earlier",
            3 => "no such topic or partition (or this user may not see it)",
            5 => "the partition has no leader now",
            6 => "another broker leads the partition",
            7 => "the broker did not answer in time",
            12 => "the note beside the offset is too long (offset.metadata.max.bytes)",
            14 => "the group's coordinator still loads",
            15 => "the group has no coordinator now",
            16 => "another broker coordinates the group",
            22 => "the group is in another generation",
            23 => "other members of the group use another way to deal partitions out; give this one a group of its own",
            25 => "the group does not know this member any more",
            26 => {
                "the session timeout is outside of what the broker allows (group.min.session.timeout.ms, group.max.session.timeout.ms)"
            }
            27 => "the group deals partitions out anew",
            29 => "this user may not read the topic",
            30 => "this user may not use the group",
            31 => "this user may not use the cluster",
            33 => "the broker does not know this SASL mechanism",
            34 => "the order of SASL questions is wrong",
            35 => "the broker does not know this version of the question",
            58 => "user or password is wrong",
            72 => "the listener is not on the leader",
            74 | 75 => "the leader's epoch is another one",
            79 => "the broker wants a member id",
            81 => "the group is full (group.max.size)",
            87 => "a record is refused by the broker",
            _ => return write!(f, "error {} of the broker", self.0),
        };
        f.write_str(words)
    }
}

/// A question with its head, and its length in front.
pub fn frame(api: Api, correlation: i32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 32);
    out.put_i32(0);
    out.put_i16(api.key());
    out.put_i16(api.version());
    out.put_i32(correlation);
    out.put_string(CLIENT_ID);
    out.extend_from_slice(body);
    let len = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}

/// An answer without its head; `None`: it answers another question.
pub fn unframe(correlation: i32, frame: Bytes) -> Result<Option<Reader>, WireError> {
    let mut r = Reader::new(frame);
    let is_ours = r.i32("the head of an answer")? == correlation;
    Ok(is_ours.then_some(r))
}

/// What of [`Api::NEEDED`] a broker does not know; `None`: it refused to say.
pub fn missing(mut r: Reader) -> Result<Option<Vec<Api>>, WireError> {
    if Code(r.i16("the code")?).is_error() {
        return Ok(None);
    }
    let known = r.list(6, "the versions", |r| {
        Ok((r.i16("a key")?, r.i16("a version")?, r.i16("a version")?))
    })?;
    let knows = |api: &Api| {
        let of = |(key, min, max): &(i16, i16, i16)| *key == api.key() && (*min..=*max).contains(&api.version());
        known.iter().any(of)
    };
    Ok(Some(Api::NEEDED.into_iter().filter(|a| !knows(a)).collect()))
}

/// A broker as it wants to be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    pub id: i32,
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMeta {
    pub code: Code,
    pub name: String,
    /// Partitions with their leaders; -1 is none.
    pub partitions: Vec<(i32, i32)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    pub brokers: Vec<Broker>,
    pub topics: Vec<TopicMeta>,
}

fn port(r: &mut Reader) -> Result<u16, WireError> {
    u16::try_from(r.i32("a port")?).map_err(|_| WireError::Length("a port"))
}

pub fn metadata(topics: &[&str]) -> Vec<u8> {
    let mut out = vec![];
    out.put_count(topics.len());
    topics.iter().for_each(|t| out.put_string(t));
    // A topic that is not there is not made by asking for it.
    out.put_i8(0);
    out
}

pub fn read_metadata(mut r: Reader) -> Result<Metadata, WireError> {
    r.i32("the throttle time")?;
    let brokers = r.list(12, "the brokers", |r| {
        let broker = Broker {
            id: r.i32("a broker")?,
            host: r.string("a host")?,
            port: port(r)?,
        };
        r.nullable_string("a rack")?;
        Ok(broker)
    })?;
    r.nullable_string("the cluster")?;
    r.i32("the controller")?;
    let topics = r.list(9, "the topics", |r| {
        let code = Code(r.i16("a code")?);
        let name = r.string("a topic")?;
        r.i8("whether it is internal")?;
        let partitions = r.list(18, "the partitions", |r| {
            r.i16("a code")?;
            let (partition, leader) = (r.i32("a partition")?, r.i32("a leader")?);
            r.list(4, "the replicas", |r| r.i32("a replica"))?;
            r.list(4, "the replicas in sync", |r| r.i32("a replica"))?;
            Ok((partition, leader))
        })?;
        Ok(TopicMeta { code, name, partitions })
    })?;
    Ok(Metadata { brokers, topics })
}

pub fn find_coordinator(group: &str) -> Vec<u8> {
    let mut out = vec![];
    out.put_string(group);
    out.put_i8(0);
    out
}

pub fn read_coordinator(mut r: Reader) -> Result<Result<Broker, Code>, WireError> {
    r.i32("the throttle time")?;
    let code = Code(r.i16("the code")?);
    r.nullable_string("the message")?;
    if code.is_error() {
        return Ok(Err(code));
    }
    let (id, host) = (r.i32("the coordinator")?, r.string("its host")?);
    Ok(Ok(Broker {
        id,
        host,
        port: port(&mut r)?,
    }))
}

pub struct Join<'a> {
    pub group: &'a str,
    /// "" until the broker gave one.
    pub member: &'a str,
    pub session_timeout_ms: i32,
    pub rebalance_timeout_ms: i32,
    /// The name of a way to deal out, and what it is told.
    pub protocol: (&'a str, &'a [u8]),
}

pub fn join_group(join: &Join<'_>) -> Vec<u8> {
    let mut out = vec![];
    out.put_string(join.group);
    out.put_i32(join.session_timeout_ms);
    out.put_i32(join.rebalance_timeout_ms);
    out.put_string(join.member);
    out.put_nullable_string(None);
    out.put_string("consumer");
    out.put_count(1);
    out.put_string(join.protocol.0);
    out.put_blob(join.protocol.1);
    out
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub code: Code,
    pub generation: i32,
    pub leader: String,
    pub member: String,
    /// Told to the leader alone: members, and what each said.
    pub members: Vec<(String, Bytes)>,
}

pub fn read_join_group(mut r: Reader) -> Result<Joined, WireError> {
    r.i32("the throttle time")?;
    let code = Code(r.i16("the code")?);
    let generation = r.i32("the generation")?;
    r.nullable_string("the protocol")?;
    let leader = r.nullable_string("the leader")?.unwrap_or_default();
    let member = r.nullable_string("the member")?.unwrap_or_default();
    let members = r.list(8, "the members", |r| {
        let member = r.string("a member")?;
        r.nullable_string("an instance")?;
        Ok((member, r.blob("what a member says")?))
    })?;
    Ok(Joined {
        code,
        generation,
        leader,
        member,
        members,
    })
}

/// Who asks, as the group knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub group: String,
    pub generation: i32,
    pub id: String,
}

impl Member {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_string(&self.group);
        out.put_i32(self.generation);
        out.put_string(&self.id);
        out.put_nullable_string(None);
    }
}

pub fn sync_group(member: &Member, assignments: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![];
    member.put(&mut out);
    out.put_count(assignments.len());
    for (member, assignment) in assignments {
        out.put_string(member);
        out.put_blob(assignment);
    }
    out
}

pub fn read_sync_group(mut r: Reader) -> Result<(Code, Bytes), WireError> {
    r.i32("the throttle time")?;
    Ok((Code(r.i16("the code")?), r.blob("the assignment")?))
}

pub fn heartbeat(member: &Member) -> Vec<u8> {
    let mut out = vec![];
    member.put(&mut out);
    out
}

/// Of heartbeats and of leaving.
pub fn read_code(mut r: Reader) -> Result<Code, WireError> {
    r.i32("the throttle time")?;
    Ok(Code(r.i16("the code")?))
}

pub fn leave_group(member: &Member) -> Vec<u8> {
    let mut out = vec![];
    out.put_string(&member.group);
    out.put_count(1);
    out.put_string(&member.id);
    out.put_nullable_string(None);
    out
}

/// Things of partitions, by topic.
pub type ByTopic<T> = Vec<(String, Vec<T>)>;

pub fn offset_fetch(group: &str, of: &ByTopic<i32>) -> Vec<u8> {
    let mut out = vec![];
    out.put_string(group);
    out.put_count(of.len());
    for (topic, partitions) in of {
        out.put_string(topic);
        out.put_count(partitions.len());
        partitions.iter().for_each(|p| out.put_i32(*p));
    }
    out
}

/// What a group committed. An offset of -1 is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub partition: i32,
    pub offset: i64,
    pub note: String,
    pub code: Code,
}

pub fn read_offset_fetch(mut r: Reader) -> Result<(ByTopic<Committed>, Code), WireError> {
    r.i32("the throttle time")?;
    let topics = r.list(6, "the topics", |r| {
        let topic = r.string("a topic")?;
        let partitions = r.list(20, "the partitions", |r| {
            let (partition, offset) = (r.i32("a partition")?, r.i64("an offset")?);
            r.i32("an epoch")?;
            let note = r.nullable_string("a note")?.unwrap_or_default();
            Ok(Committed {
                partition,
                offset,
                note,
                code: Code(r.i16("a code")?),
            })
        })?;
        Ok((topic, partitions))
    })?;
    Ok((topics, Code(r.i16("the code")?)))
}

/// Partition, offset and note.
pub type Commit = (i32, i64, String);

pub fn offset_commit(member: &Member, of: &ByTopic<Commit>) -> Vec<u8> {
    let mut out = vec![];
    member.put(&mut out);
    out.put_count(of.len());
    for (topic, partitions) in of {
        out.put_string(topic);
        out.put_count(partitions.len());
        for (partition, offset, note) in partitions {
            out.put_i32(*partition);
            out.put_i64(*offset);
            out.put_i32(-1);
            out.put_nullable_string(Some(note));
        }
    }
    out
}

/// Partitions with their codes, by topic.
pub fn read_offset_commit(mut r: Reader) -> Result<ByTopic<(i32, Code)>, WireError> {
    r.i32("the throttle time")?;
    r.list(6, "the topics", |r| {
        let topic = r.string("a topic")?;
        let partitions = r.list(6, "the partitions", |r| {
            Ok((r.i32("a partition")?, Code(r.i16("a code")?)))
        })?;
        Ok((topic, partitions))
    })
}

/// Where a log ends or begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Earliest,
    Latest,
}

pub fn list_offsets(of: &ByTopic<(i32, Place)>) -> Vec<u8> {
    let mut out = vec![];
    out.put_i32(-1);
    // Of transactions, only those that ended well.
    out.put_i8(1);
    out.put_count(of.len());
    for (topic, partitions) in of {
        out.put_string(topic);
        out.put_count(partitions.len());
        for (partition, place) in partitions {
            out.put_i32(*partition);
            out.put_i64(match place {
                Place::Earliest => -2,
                Place::Latest => -1,
            });
        }
    }
    out
}

/// Partitions with code and offset, by topic.
pub fn read_list_offsets(mut r: Reader) -> Result<ByTopic<(i32, Code, i64)>, WireError> {
    r.i32("the throttle time")?;
    r.list(6, "the topics", |r| {
        let topic = r.string("a topic")?;
        let partitions = r.list(22, "the partitions", |r| {
            let (partition, code) = (r.i32("a partition")?, Code(r.i16("a code")?));
            r.i64("a time")?;
            Ok((partition, code, r.i64("an offset")?))
        })?;
        Ok((topic, partitions))
    })
}

/// A part of a log that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub partition: i32,
    pub from: i64,
    pub bytes_max: i32,
}

pub fn fetch(of: &ByTopic<Wanted>, wait_ms: i32, bytes_max: i32) -> Vec<u8> {
    let mut out = vec![];
    out.put_i32(-1);
    out.put_i32(wait_ms);
    out.put_i32(1);
    out.put_i32(bytes_max);
    out.put_i8(1);
    // No session: every question says all that it wants.
    out.put_i32(0);
    out.put_i32(-1);
    out.put_count(of.len());
    for (topic, partitions) in of {
        out.put_string(topic);
        out.put_count(partitions.len());
        for wanted in partitions {
            out.put_i32(wanted.partition);
            out.put_i32(-1);
            out.put_i64(wanted.from);
            out.put_i64(-1);
            out.put_i32(wanted.bytes_max);
        }
    }
    out.put_count(0);
    out.put_string("");
    out
}

/// What came of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedPart {
    pub partition: i32,
    pub code: Code,
    /// Records from here on may still be undone by their transaction, or are not replicated.
    pub stable_end: i64,
    pub log_start: i64,
    /// Producers and first offsets of transactions that were undone.
    pub aborted: Vec<(i64, i64)>,
    pub records: Bytes,
}

pub fn read_fetch(mut r: Reader) -> Result<(Code, ByTopic<FetchedPart>), WireError> {
    r.i32("the throttle time")?;
    let code = Code(r.i16("the code")?);
    r.i32("the session")?;
    let topics = r.list(6, "the topics", |r| {
        let topic = r.string("a topic")?;
        let partitions = r.list(42, "the partitions", |r| {
            let (partition, code) = (r.i32("a partition")?, Code(r.i16("a code")?));
            let (high, stable) = (r.i64("the high watermark")?, r.i64("the last stable offset")?);
            let log_start = r.i64("the log's start")?;
            let aborted = r.list(16, "the undone transactions", |r| {
                Ok((r.i64("a producer")?, r.i64("an offset")?))
            })?;
            r.i32("a replica")?;
            Ok(FetchedPart {
                partition,
                code,
                stable_end: if stable < 0 { high } else { stable },
                log_start,
                aborted,
                records: r.blob("the records")?,
            })
        })?;
        Ok((topic, partitions))
    })?;
    Ok((code, topics))
}

pub fn sasl_handshake(mechanism: &str) -> Vec<u8> {
    let mut out = vec![];
    out.put_string(mechanism);
    out
}

/// The code, and the mechanisms that the broker knows.
pub fn read_sasl_handshake(mut r: Reader) -> Result<(Code, Vec<String>), WireError> {
    let code = Code(r.i16("the code")?);
    Ok((code, r.list(2, "the mechanisms", |r| r.string("a mechanism"))?))
}

pub fn sasl_authenticate(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    out.put_blob(bytes);
    out
}

/// What the broker answers, or its code and words.
pub fn read_sasl_authenticate(mut r: Reader) -> Result<Result<Bytes, (Code, String)>, WireError> {
    let code = Code(r.i16("the code")?);
    let words = r.nullable_string("the message")?.unwrap_or_default();
    let bytes = r.blob("the answer")?;
    Ok(if code.is_error() { Err((code, words)) } else { Ok(bytes) })
}
