//! A broker of our own for the tests of the normal run: logs, committed offsets and one coordinator of groups, in memory. It reads every
//! question field by field as the protocol lays it out, and complains of whatever is not so: a wrong version, bytes left over, a value
//! that cannot be. Real brokers are in `chaos-tests/tests/process_kafka.rs`.

use super::super::tests::NOW_SECS;
use bytes::{BufMut, Bytes};
use hindcast_kafka::messages::{Api, CLIENT_ID};
use hindcast_kafka::records::encode::{Batch, record};
use hindcast_kafka::wire::{Put, Reader, WireError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

const ALL: [Api; 13] = [
    Api::Fetch,
    Api::ListOffsets,
    Api::Metadata,
    Api::OffsetCommit,
    Api::OffsetFetch,
    Api::FindCoordinator,
    Api::JoinGroup,
    Api::Heartbeat,
    Api::LeaveGroup,
    Api::SyncGroup,
    Api::SaslHandshake,
    Api::ApiVersions,
    Api::SaslAuthenticate,
];
/// How long members are waited for when a group deals anew: longer than they are silent.
const ROUND_SPAN: Duration = Duration::from_secs(4);

#[derive(Default)]
pub struct Log {
    pub start: i64,
    pub end: i64,
    batches: Vec<(i64, Bytes)>,
}

#[derive(Default)]
struct Group {
    generation: i32,
    members: BTreeMap<String, (Bytes, Instant)>,
    /// Those who joined the round that is under way, since when.
    round: Option<(BTreeMap<String, Bytes>, Instant)>,
    assignments: BTreeMap<String, Bytes>,
    is_dealt: bool,
}

#[derive(Default)]
pub struct State {
    pub logs: BTreeMap<(String, i32), Log>,
    /// By topic and partition: offset and note.
    pub committed: BTreeMap<(String, i32), (i64, String)>,
    /// All commits, in their order.
    pub commits: Vec<(String, i32, i64, String)>,
    pub complaints: Vec<String>,
    /// Answers that a partition's fetches get first.
    pub fetch_codes: Vec<i16>,
    pub commit_codes: Vec<i16>,
    pub joins: usize,
    /// User and password, where they are needed.
    pub user: Option<(String, String)>,
    /// It keeps offsets alone.
    pub forgets_notes: bool,
    /// What the broker says it does not know.
    pub knows_not: Option<i16>,
    group: Group,
    members: usize,
    session: Duration,
}

#[derive(Clone)]
pub struct FakeBroker {
    pub state: Arc<Mutex<State>>,
    pub address: SocketAddr,
}

/// Why a question is none.
struct Complaint(String);

fn complain(why: impl Into<String>) -> Complaint {
    Complaint(why.into())
}

impl From<WireError> for Complaint {
    fn from(e: WireError) -> Self {
        Self(e.to_string())
    }
}

fn is(what: &str, given: impl Into<i64>, wanted: i64) -> Result<(), Complaint> {
    let given = given.into();
    match given == wanted {
        true => Ok(()),
        false => Err(complain(format!("{what} is {given} and not {wanted}"))),
    }
}

impl FakeBroker {
    /// A broker with these topics and so many partitions of each.
    pub async fn start(topics: &[(&str, i32)]) -> Self {
        Self::start_with(topics, None).await
    }

    pub async fn start_with(topics: &[(&str, i32)], tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker = Self {
            state: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        for (topic, partitions) in topics {
            broker.add_partitions(topic, 0..*partitions);
        }
        let this = broker.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (this, tls) = (this.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => this.serve(socket).await,
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                this.serve(socket).await;
                            }
                        }
                    }
                });
            }
        });
        broker
    }

    pub fn add_partitions(&self, topic: &str, partitions: std::ops::Range<i32>) {
        let mut state = self.state.lock();
        partitions.for_each(|p| _ = state.logs.insert((topic.to_owned(), p), Log::default()));
    }

    /// Adds records of one batch, with a compression by its number.
    pub fn produce(&self, topic: &str, partition: i32, kind: i16, values: &[&str]) {
        let values: Vec<_> = values.iter().map(|v| Some(v.as_bytes())).collect();
        self.produce_bytes(topic, partition, kind, &values);
    }

    pub fn produce_bytes(&self, topic: &str, partition: i32, kind: i16, values: &[Option<&[u8]>]) {
        let mut state = self.state.lock();
        let log = state.logs.get_mut(&(topic.to_owned(), partition)).unwrap();
        let records = values
            .iter()
            .enumerate()
            .map(|(i, v)| record(i as i64, 0, None, *v))
            .collect();
        let batch = Batch {
            attributes: kind,
            time_ms: NOW_SECS * 1_000 - 10_000,
            ..Batch::new(log.end, records)
        };
        log.batches.push((log.end, batch.bytes().into()));
        log.end += values.len() as i64;
    }

    pub fn produce_raw(&self, topic: &str, partition: i32, batch: Vec<u8>, records: i64) {
        let mut state = self.state.lock();
        let log = state.logs.get_mut(&(topic.to_owned(), partition)).unwrap();
        log.batches.push((log.end, batch.into()));
        log.end += records;
    }

    pub fn committed(&self, topic: &str, partition: i32) -> i64 {
        let state = self.state.lock();
        state
            .committed
            .get(&(topic.to_owned(), partition))
            .map_or(-1, |(o, _)| *o)
    }

    async fn serve(self, mut socket: impl AsyncRead + AsyncWrite + Unpin) {
        let mut signed_in = None;
        while let Ok(len) = socket.read_u32().await {
            let mut frame = vec![0; len as usize];
            if socket.read_exact(&mut frame).await.is_err() {
                return;
            }
            let mut body = vec![];
            match self.answer(frame.into(), &mut body, &mut signed_in).await {
                Ok(correlation) => {
                    let mut answer = vec![];
                    answer.put_u32(body.len() as u32 + 4);
                    answer.put_i32(correlation);
                    answer.extend(body);
                    if socket.write_all(&answer).await.is_err() {
                        return;
                    }
                }
                Err(Complaint(why)) => return self.state.lock().complaints.push(why),
            }
        }
    }

    async fn answer(&self, frame: Bytes, out: &mut Vec<u8>, signed_in: &mut Option<bool>) -> Result<i32, Complaint> {
        let mut r = Reader::new(frame);
        let (key, version, correlation) = (r.i16("key")?, r.i16("version")?, r.i32("correlation")?);
        if r.string("client")? != CLIENT_ID {
            return Err(complain("another client"));
        }
        let api = ALL.into_iter().find(|a| a.key() == key);
        let api = api.ok_or_else(|| complain(format!("question {key}")))?;
        is("version", version, api.version().into())?;
        let is_open = matches!(api, Api::ApiVersions | Api::SaslHandshake | Api::SaslAuthenticate);
        if !is_open && self.state.lock().user.is_some() && *signed_in != Some(true) {
            return Err(complain("a question before signing in"));
        }
        match api {
            Api::ApiVersions => {
                let without = self.state.lock().knows_not;
                let known: Vec<_> = ALL.iter().filter(|a| Some(a.key()) != without).collect();
                out.put_i16(0);
                out.put_count(known.len());
                for a in known {
                    out.put_i16(a.key());
                    out.put_i16(0);
                    out.put_i16(a.version());
                }
            }
            Api::SaslHandshake => {
                let known = r.string("mechanism")? == "PLAIN";
                *signed_in = known.then_some(false);
                out.put_i16(if known { 0 } else { 33 });
                out.put_count(1);
                out.put_string("PLAIN");
            }
            Api::SaslAuthenticate => {
                let given = r.blob("proof")?;
                let wanted = self.state.lock().user.clone();
                let is_right = wanted.is_some_and(|(u, p)| given == format!("\0{u}\0{p}"));
                *signed_in = Some(is_right && *signed_in == Some(false));
                out.put_i16(if is_right { 0 } else { 58 });
                out.put_nullable_string((!is_right).then_some("Authentication failed"));
                out.put_blob(b"");
                out.put_i64(0);
            }
            Api::Metadata => self.metadata(&mut r, out)?,
            Api::FindCoordinator => {
                r.string("group")?;
                is("kind", r.i8("kind")?, 0)?;
                out.put_i32(0);
                out.put_i16(0);
                out.put_nullable_string(None);
                self.put_self(out);
            }
            Api::JoinGroup => self.join(&mut r, out).await?,
            Api::SyncGroup => self.sync(&mut r, out).await?,
            Api::Heartbeat => {
                let code = self.member(&mut r)?;
                let mut state = self.state.lock();
                let session = state.session;
                let group = &mut state.group;
                let now = Instant::now();
                let before = group.members.len();
                group.members.retain(|_, (_, seen)| now.duration_since(*seen) < session);
                if group.members.len() < before && group.round.is_none() {
                    group.round = Some((BTreeMap::new(), now));
                }
                out.put_i32(0);
                out.put_i16(if code == 0 && group.round.is_some() { 27 } else { code });
            }
            Api::LeaveGroup => {
                r.string("group")?;
                let members = r.list(4, "members", |r| {
                    Ok((r.string("member")?, r.nullable_string("instance")?))
                })?;
                let mut state = self.state.lock();
                for (member, _) in members {
                    state.group.members.remove(&member);
                }
                state.group.round.get_or_insert((BTreeMap::new(), Instant::now()));
                out.put_i32(0);
                out.put_i16(0);
                out.put_count(0);
            }
            Api::OffsetFetch => {
                r.string("group")?;
                let topics = r.list(6, "topics", |r| {
                    Ok((r.string("topic")?, r.list(4, "partitions", |r| r.i32("partition"))?))
                })?;
                let state = self.state.lock();
                out.put_i32(0);
                out.put_count(topics.len());
                for (topic, partitions) in topics {
                    out.put_string(&topic);
                    out.put_count(partitions.len());
                    for partition in partitions {
                        let known = state.committed.get(&(topic.clone(), partition));
                        out.put_i32(partition);
                        out.put_i64(known.map_or(-1, |(o, _)| *o));
                        out.put_i32(-1);
                        out.put_nullable_string(Some(known.map_or("", |(_, n)| n)));
                        out.put_i16(0);
                    }
                }
                out.put_i16(0);
            }
            Api::OffsetCommit => self.commit(&mut r, out)?,
            Api::ListOffsets => self.list(&mut r, out)?,
            Api::Fetch => self.fetch(&mut r, out).await?,
        }
        match r.rest().is_empty() {
            true => Ok(correlation),
            false => Err(complain(format!("{} bytes behind {api:?}", r.rest().len()))),
        }
    }

    fn put_self(&self, out: &mut Vec<u8>) {
        out.put_i32(1);
        out.put_string("127.0.0.1");
        out.put_i32(self.address.port().into());
    }

    fn metadata(&self, r: &mut Reader, out: &mut Vec<u8>) -> Result<(), Complaint> {
        let topics = r.list(2, "topics", |r| r.string("topic"))?;
        is("whether topics are made", r.i8("making")?, 0)?;
        out.put_i32(0);
        out.put_count(1);
        self.put_self(out);
        out.put_nullable_string(None);
        out.put_nullable_string(Some("cluster"));
        out.put_i32(1);
        out.put_count(topics.len());
        let state = self.state.lock();
        for topic in topics {
            let partitions: Vec<i32> = state
                .logs
                .keys()
                .filter(|(t, _)| *t == topic)
                .map(|(_, p)| *p)
                .collect();
            out.put_i16(if partitions.is_empty() { 3 } else { 0 });
            out.put_string(&topic);
            out.put_i8(0);
            out.put_count(partitions.len());
            for partition in partitions {
                out.put_i16(0);
                out.put_i32(partition);
                out.put_i32(1);
                out.put_count(1);
                out.put_i32(1);
                out.put_count(1);
                out.put_i32(1);
            }
        }
        Ok(())
    }

    async fn join(&self, r: &mut Reader, out: &mut Vec<u8>) -> Result<(), Complaint> {
        r.string("group")?;
        let (session, rebalance) = (r.i32("session")?, r.i32("rebalance")?);
        if session < 6_000 || rebalance < session {
            return Err(complain(format!("timeouts {session} and {rebalance}")));
        }
        let mut member = r.string("member")?;
        r.nullable_string("instance")?;
        if r.string("kind")? != "consumer" {
            return Err(complain("another kind of group"));
        }
        let protocols = r.list(6, "protocols", |r| Ok((r.string("protocol")?, r.blob("metadata")?)))?;
        let [(protocol, said)] = &protocols[..] else {
            return Err(complain("not one protocol"));
        };
        let mut put = |code: i16, generation: i32, leader: &str, member: &str, members: &[(String, Bytes)]| {
            out.put_i32(0);
            out.put_i16(code);
            out.put_i32(generation);
            out.put_nullable_string(Some(protocol));
            out.put_string(leader);
            out.put_string(member);
            out.put_count(members.len());
            for (member, said) in members {
                out.put_string(member);
                out.put_nullable_string(None);
                out.put_blob(said);
            }
        };
        let before = {
            let mut state = self.state.lock();
            state.joins += 1;
            state.session = Duration::from_millis(session as u64);
            if member.is_empty() {
                state.members += 1;
                member = format!("member-{}", state.members);
                let now = Instant::now();
                state.group.members.insert(member.clone(), (Bytes::new(), now));
                put(79, -1, "", &member, &[]);
                return Ok(());
            }
            if !state.group.members.contains_key(&member) {
                put(25, -1, "", &member, &[]);
                return Ok(());
            }
            let round = state.group.round.get_or_insert((BTreeMap::new(), Instant::now()));
            round.0.insert(member.clone(), said.clone());
            state.group.generation
        };
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let mut state = self.state.lock();
            let group = &mut state.group;
            if group.generation == before
                && let Some((joined, since)) = &group.round
                && (group.members.keys().all(|m| joined.contains_key(m)) || since.elapsed() > ROUND_SPAN)
            {
                let now = Instant::now();
                group.members = joined.iter().map(|(m, s)| (m.clone(), (s.clone(), now))).collect();
                (group.round, group.is_dealt) = (None, false);
                group.generation += 1;
            }
            if group.generation == before {
                continue;
            }
            if !group.members.contains_key(&member) {
                put(25, -1, "", &member, &[]);
                return Ok(());
            }
            let members: Vec<_> = group.members.iter().map(|(m, (s, _))| (m.clone(), s.clone())).collect();
            let leader = members[0].0.clone();
            let told = if leader == member { members } else { vec![] };
            put(0, group.generation, &leader, &member, &told);
            return Ok(());
        }
    }

    /// Who asks, and whether it has a say.
    fn member(&self, r: &mut Reader) -> Result<i16, Complaint> {
        r.string("group")?;
        let (generation, member) = (r.i32("generation")?, r.string("member")?);
        if r.nullable_string("instance")?.is_some() {
            return Err(complain("an instance"));
        }
        let mut state = self.state.lock();
        let group = &mut state.group;
        Ok(match group.members.get_mut(&member) {
            None => 25,
            Some(_) if generation != group.generation => 22,
            Some((_, seen)) => {
                *seen = Instant::now();
                0
            }
        })
    }

    async fn sync(&self, r: &mut Reader, out: &mut Vec<u8>) -> Result<(), Complaint> {
        let mut probe = r.clone();
        probe.string("group")?;
        let (generation, member) = (probe.i32("generation")?, probe.string("member")?);
        let mut code = self.member(r)?;
        let dealt = r.list(6, "assignments", |r| Ok((r.string("member")?, r.blob("assignment")?)))?;
        if code == 0 && !dealt.is_empty() {
            let mut state = self.state.lock();
            state.group.assignments = dealt.into_iter().collect();
            state.group.is_dealt = true;
        }
        let mut assignment = Bytes::new();
        while code == 0 {
            {
                let state = self.state.lock();
                if state.group.generation != generation || state.group.round.is_some() {
                    code = 27;
                } else if state.group.is_dealt {
                    assignment = state.group.assignments.get(&member).cloned().unwrap_or_default();
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        out.put_i32(0);
        out.put_i16(code);
        out.put_blob(&assignment);
        Ok(())
    }

    fn commit(&self, r: &mut Reader, out: &mut Vec<u8>) -> Result<(), Complaint> {
        let code = self.member(r)?;
        let topics = r.list(6, "topics", |r| {
            let topic = r.string("topic")?;
            let partitions = r.list(18, "partitions", |r| {
                let (partition, offset) = (r.i32("partition")?, r.i64("offset")?);
                let epoch = r.i32("epoch")?;
                Ok((partition, offset, epoch, r.string("note")?))
            })?;
            Ok((topic, partitions))
        })?;
        let mut state = self.state.lock();
        let code = state.commit_codes.pop().unwrap_or(code);
        out.put_i32(0);
        out.put_count(topics.len());
        for (topic, partitions) in topics {
            out.put_string(&topic);
            out.put_count(partitions.len());
            for (partition, offset, epoch, note) in partitions {
                is("epoch", epoch, -1)?;
                let end = state.logs.get(&(topic.clone(), partition)).map_or(0, |l| l.end);
                if offset < 0 || offset > end {
                    return Err(complain(format!("{offset} is committed, and the log ends at {end}")));
                }
                out.put_i32(partition);
                out.put_i16(code);
                if code == 0 {
                    state.commits.push((topic.clone(), partition, offset, note.clone()));
                    let kept = if state.forgets_notes { String::new() } else { note };
                    state.committed.insert((topic.clone(), partition), (offset, kept));
                }
            }
        }
        Ok(())
    }

    fn list(&self, r: &mut Reader, out: &mut Vec<u8>) -> Result<(), Complaint> {
        is("replica", r.i32("replica")?, -1)?;
        is("isolation", r.i8("isolation")?, 1)?;
        let topics = r.list(6, "topics", |r| {
            let topic = r.string("topic")?;
            Ok((
                topic,
                r.list(12, "partitions", |r| Ok((r.i32("partition")?, r.i64("time")?)))?,
            ))
        })?;
        let state = self.state.lock();
        out.put_i32(0);
        out.put_count(topics.len());
        for (topic, partitions) in topics {
            out.put_string(&topic);
            out.put_count(partitions.len());
            for (partition, time) in partitions {
                let log = state.logs.get(&(topic.clone(), partition));
                let offset = match time {
                    -2 => log.map(|l| l.start),
                    -1 => log.map(|l| l.end),
                    other => return Err(complain(format!("time {other}"))),
                };
                out.put_i32(partition);
                out.put_i16(if offset.is_some() { 0 } else { 3 });
                out.put_i64(-1);
                out.put_i64(offset.unwrap_or(-1));
            }
        }
        Ok(())
    }

    async fn fetch(&self, r: &mut Reader, out: &mut Vec<u8>) -> Result<(), Complaint> {
        is("replica", r.i32("replica")?, -1)?;
        let wait = r.i32("wait")?;
        is("least bytes", r.i32("least")?, 1)?;
        let most = r.i32("most")?;
        is("isolation", r.i8("isolation")?, 1)?;
        is("session", r.i32("session")?, 0)?;
        is("session's epoch", r.i32("epoch")?, -1)?;
        let topics = r.list(6, "topics", |r| {
            let topic = r.string("topic")?;
            let partitions = r.list(28, "partitions", |r| {
                let (partition, epoch) = (r.i32("partition")?, r.i32("epoch")?);
                let (from, start, bytes) = (r.i64("from")?, r.i64("start")?, r.i32("bytes")?);
                Ok((partition, epoch, from, start, bytes))
            })?;
            Ok((topic, partitions))
        })?;
        is("forgotten", r.i32("forgotten")?, 0)?;
        r.string("rack")?;
        let is_odd = topics
            .iter()
            .flat_map(|(_, p)| p)
            .any(|(_, e, _, s, b)| (*e, *s) != (-1, -1) || *b < 1);
        if is_odd || most < 1 || topics.is_empty() {
            return Err(complain("a fetch of nothing"));
        }
        let until = Instant::now() + Duration::from_millis(wait as u64);
        loop {
            let mut any = false;
            let mut parts = vec![];
            {
                let mut state = self.state.lock();
                for (topic, partitions) in &topics {
                    for (partition, _, from, _, bytes) in partitions {
                        let fault = state.fetch_codes.pop();
                        let log = state.logs.get(&(topic.clone(), *partition));
                        let Some(log) = log else {
                            parts.push((topic, *partition, 3, -1, -1, vec![]));
                            any = true;
                            continue;
                        };
                        let is_there = (log.start..=log.end).contains(from);
                        let code = fault.unwrap_or(if is_there { 0 } else { 1 });
                        let mut records = vec![];
                        if code == 0 {
                            // The batch in which the offset lies, and those behind it.
                            let at = log
                                .batches
                                .partition_point(|(first, _)| first <= from)
                                .saturating_sub(1);
                            for (_, batch) in log.batches.iter().skip(at).filter(|_| *from < log.end) {
                                if !records.is_empty() && records.len() + batch.len() > *bytes as usize {
                                    break;
                                }
                                records.extend_from_slice(batch);
                            }
                        }
                        any |= code != 0 || !records.is_empty();
                        parts.push((topic, *partition, code, log.end, log.start, records));
                    }
                }
            }
            if !any && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            out.put_i32(0);
            out.put_i16(0);
            out.put_i32(0);
            out.put_count(parts.len());
            for (topic, partition, code, end, start, records) in parts {
                out.put_string(topic);
                out.put_count(1);
                out.put_i32(partition);
                out.put_i16(code);
                out.put_i64(end);
                out.put_i64(end);
                out.put_i64(start);
                out.put_count(0);
                out.put_i32(-1);
                out.put_blob(&records);
            }
            return Ok(());
        }
    }
}
