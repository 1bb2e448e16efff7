//! The shells: who evaluates, who delivers, who writes History; the faces over gRPC and HTTP.
//!
//! None of them decides anything: they read rows, do what is due, and propose what came of it.

pub mod deliverer;
pub mod evaluator;
pub mod grpc;
pub mod history;
pub mod http;

pub use deliverer::{Deliverer, Sends};
pub use evaluator::Evaluator;
pub use history::{HistoryPump, HistoryWriteError, HistoryWriter};

use crate::command::{GATEWAY_PART, GatewayCommand, GatewayReply};
use hindcast_model::{Class, Classify};
use hindcast_raft::{Meta, MetaError, Refusal};
use std::time::Duration;
use tokio::sync::watch;

/// Proposes a command and reads the answer.
async fn propose(meta: &dyn Meta, command: &GatewayCommand) -> Result<GatewayReply, MetaError> {
    let reply = meta.propose(GATEWAY_PART, command.encode()).await?;
    GatewayReply::decode(&reply).map_err(|e| Refusal::new(Class::Internal, e.to_string()).into())
}

/// Whether the group may answer differently in a moment: no leader, or no answer in time.
fn is_passing(error: &MetaError) -> bool {
    matches!(
        error.class(),
        Class::Unavailable | Class::RetrySameId | Class::RetryLater
    )
}

/// Sleeps, or ends early when it is time to stop. `false`: stop.
async fn pause(span: Duration, stop: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(span) => true,
        // The sender is gone: so is whoever could want us to go on.
        _ = stop.wait_for(|s| *s) => false,
    }
}
