//! `hindcast.v1.Query/Rows` on the wire: windows of rows in pieces that fit in a message.

use crate::engine::Engine;
use crate::rows::{Rows, RowsQuery, RowsReader};
use futures::stream::BoxStream;
use futures::{SinkExt, StreamExt};
use hindcast_model::{LogLine, Owner, Sample};
use hindcast_proto::{edge, v1};
use hindcast_storage::read::{SeriesData, StreamData};
use std::sync::Arc;
use tonic::Status;

/// A message is closed once it holds this much; one row more may exceed it. gRPC clients take 4 MiB by default.
const MESSAGE_BYTES_FULL: usize = 1 << 20;
/// Messages that wait for a slow reader; the next window waits with them.
const MESSAGES_MAX: usize = 2;
const SAMPLE_BYTES: usize = 16;
/// Lengths and tags of a line and of each label.
const FRAME_BYTES: usize = 16;

pub type RowsStream = BoxStream<'static, Result<v1::RowsResponse, Status>>;

/// Streams a range. The work ends when nobody listens any more.
pub fn stream(engine: Arc<Engine>, query: RowsQuery) -> RowsStream {
    let (mut tell, told) = futures::channel::mpsc::channel(MESSAGES_MAX);
    tokio::spawn(async move {
        if let Err(status) = send(&engine, query, &mut tell).await {
            // Nobody may listen any more: then there is nobody to tell.
            let _ = tell.send(Err(status)).await;
        }
    });
    told.boxed()
}

async fn send(
    engine: &Engine,
    query: RowsQuery,
    tell: &mut futures::channel::mpsc::Sender<Result<v1::RowsResponse, Status>>,
) -> Result<(), Status> {
    let mut reader = RowsReader::new(engine, query).map_err(|e| edge::status(&e))?;
    while let Some(rows) = reader.next().await.map_err(|e| edge::status(&e))? {
        let mut pieces = Pieces::default();
        let (samples, lines) = match rows {
            Rows::Samples(all) => (all, vec![]),
            Rows::Lines(all) => (vec![], all),
        };
        for series in samples {
            if !tell_all(tell, pieces.series(series)).await {
                return Ok(());
            }
        }
        for stream in lines {
            if !tell_all(tell, pieces.stream(stream)).await {
                return Ok(());
            }
        }
        if !tell_all(tell, pieces.rest()).await {
            return Ok(());
        }
    }
    let last = v1::RowsResponse {
        completeness: Some(super::grpc::completeness(&reader.completeness)),
        ..v1::RowsResponse::default()
    };
    let _ = tell.send(Ok(last)).await;
    Ok(())
}

/// False when nobody listens any more.
async fn tell_all(
    tell: &mut futures::channel::mpsc::Sender<Result<v1::RowsResponse, Status>>,
    messages: impl IntoIterator<Item = v1::RowsResponse>,
) -> bool {
    for message in messages {
        if tell.send(Ok(message)).await.is_err() {
            return false;
        }
    }
    true
}

/// Fills messages.
#[derive(Default)]
struct Pieces {
    message: v1::RowsResponse,
    bytes: usize,
}

impl Pieces {
    /// Messages that became full.
    fn series(&mut self, data: SeriesData) -> Vec<v1::RowsResponse> {
        let labels = edge::labels_to_wire(&data.labels);
        let head = labels_bytes(&labels);
        let mut full = vec![];
        let mut rest = &data.samples[..];
        while !rest.is_empty() {
            let room = (MESSAGE_BYTES_FULL.saturating_sub(self.bytes + head) / SAMPLE_BYTES).max(1);
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.message.series.push(v1::SampleRows {
                labels: labels.clone(),
                owner: owner(&data.owner),
                at_ns: now.iter().map(|s: &Sample| s.at.0).collect(),
                values: now.iter().map(|s| s.value).collect(),
            });
            self.bytes += head + now.len() * SAMPLE_BYTES;
            full.extend(self.if_full());
            rest = later;
        }
        full
    }

    fn stream(&mut self, data: StreamData) -> Vec<v1::RowsResponse> {
        let labels = edge::labels_to_wire(&data.labels);
        let head = labels_bytes(&labels);
        let mut full = vec![];
        let mut rest = data.lines.into_iter().peekable();
        while rest.peek().is_some() {
            let mut rows = v1::LineRows {
                labels: labels.clone(),
                owner: owner(&data.owner),
                lines: vec![],
            };
            self.bytes += head;
            while self.bytes < MESSAGE_BYTES_FULL || rows.lines.is_empty() {
                let Some(line) = rest.next() else { break };
                let entry = entry(line);
                self.bytes += FRAME_BYTES + entry.line.len() + labels_bytes(&entry.metadata);
                rows.lines.push(entry);
            }
            self.message.streams.push(rows);
            full.extend(self.if_full());
        }
        full
    }

    fn if_full(&mut self) -> Option<v1::RowsResponse> {
        (self.bytes >= MESSAGE_BYTES_FULL).then(|| {
            self.bytes = 0;
            std::mem::take(&mut self.message)
        })
    }

    fn rest(self) -> Option<v1::RowsResponse> {
        (self.bytes > 0).then_some(self.message)
    }
}

fn labels_bytes(labels: &[v1::Label]) -> usize {
    labels.iter().map(|l| l.name.len() + l.value.len() + FRAME_BYTES).sum()
}

fn owner(owner: &Owner) -> Option<v1::RowsOwner> {
    match owner {
        Owner::None => None,
        Owner::Resource { id, kind } => Some(v1::RowsOwner {
            id: id.to_string(),
            kind: kind.as_str().to_owned(),
            domain: kind.domain().as_str().to_owned(),
        }),
    }
}

fn entry(line: LogLine) -> v1::LogEntry {
    v1::LogEntry {
        at_ns: line.at.0,
        line: String::from_utf8_lossy(&line.line).into_owned(),
        metadata: line
            .metadata
            .into_iter()
            .map(|(name, value)| v1::Label { name, value })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::{Labels, Slot, TimestampNs};
    use prost::Message;

    #[test]
    fn pieces_stay_small_and_together_are_the_whole() {
        let samples: Vec<Sample> = (0..200_000)
            .map(|i| Sample {
                at: TimestampNs(i),
                value: i as f64,
            })
            .collect();
        let mut pieces = Pieces::default();
        let mut messages = pieces.series(SeriesData {
            labels: Labels::from_pairs([("__name__", "m")]),
            owner: Owner::None,
            slot: Slot(1),
            samples,
            has_lasts: false,
        });
        let lines = (0..3000).map(|i| LogLine {
            at: TimestampNs(i),
            line: "x".repeat(1000).into(),
            metadata: vec![("a".into(), "b".into())],
        });
        messages.extend(pieces.stream(StreamData {
            labels: Labels::from_pairs([("job", "j")]),
            owner: Owner::None,
            slot: Slot(1),
            lines: lines.collect(),
        }));
        messages.extend(pieces.rest());
        assert!(messages.len() > 5);
        assert!(messages.iter().all(|m| m.encoded_len() < 2 * MESSAGE_BYTES_FULL));
        let times = messages
            .iter()
            .flat_map(|m| m.series.iter().flat_map(|s| s.at_ns.clone()));
        assert!(times.eq(0..200_000));
        let lines = messages.iter().flat_map(|m| m.streams.iter().map(|s| s.lines.len()));
        assert_eq!(lines.sum::<usize>(), 3000);
    }
}
