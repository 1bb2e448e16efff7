//! Lines of OTLP resources on their way into a batch, by stream, with the resources and edges that their attributes tell.

use crate::identity;
use crate::owners::{Named, Seen};
use hindcast_model::resource::Edge;
use hindcast_model::{Batch, Labels, LogLine, Resource, StreamBlock, TenantId};
use std::collections::BTreeMap;

/// The stream of records whose resource says nothing that could name it.
const UNKNOWN: (&str, &str) = ("service_name", "unknown_service");

/// What a resource's streams are named by: never nothing.
pub fn stream_pairs(attrs: &[(String, String)]) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = identity::stream_pairs(attrs).collect();
    if pairs.is_empty() {
        pairs.push((UNKNOWN.0.to_owned(), UNKNOWN.1.to_owned()));
    }
    pairs
}

/// The lines of a request.
#[derive(Default)]
pub struct Streams {
    by_labels: BTreeMap<Labels, StreamBlock>,
    /// Of equal labels and another owner: each keeps its own part.
    others: Vec<StreamBlock>,
    edges: Vec<Edge>,
    seen: Seen,
}

impl Streams {
    /// Adds lines of the resource with these attributes. No lines say nothing, also not that there is such a resource.
    pub fn add(&mut self, tenant: &TenantId, attrs: &[(String, String)], named: Named, mut lines: Vec<LogLine>) {
        if lines.is_empty() {
            return;
        }
        self.seen.note(&named.resource);
        let (edges, ends) = identity::edges(tenant, attrs);
        self.know(ends, edges);
        let stream = self
            .by_labels
            .entry(named.labels.clone())
            .or_insert_with(|| StreamBlock {
                labels: named.labels,
                owner: named.owner,
                lines: vec![],
            });
        if stream.owner == named.owner {
            stream.lines.append(&mut lines);
        } else {
            self.others.push(StreamBlock {
                labels: stream.labels.clone(),
                owner: named.owner,
                lines,
            });
        }
    }

    /// What else is known of the world.
    pub fn know(&mut self, resources: impl IntoIterator<Item = Resource>, edges: impl IntoIterator<Item = Edge>) {
        resources.into_iter().for_each(|r| self.seen.note(&Some(r.into())));
        self.edges.extend(edges);
    }

    pub fn into_batch(mut self, batch: &mut Batch) {
        self.edges.sort();
        self.edges.dedup();
        batch.edges = self.edges;
        batch.streams.extend(self.by_labels.into_values());
        batch.streams.append(&mut self.others);
        self.seen.into_batch(batch);
    }
}
