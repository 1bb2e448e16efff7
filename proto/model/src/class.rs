//! Whose move is next after an error: the only thing an edge looks at.

use crate::time::SpanNs;
use serde::{Deserialize, Serialize};

/// The class of an error. `hindcast_proto::edge` spells out gRPC and HTTP codes, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Class {
    /// The request itself is wrong; sending it again gives the same answer.
    FixRequest,
    /// The request is larger than a limit allows.
    TooLarge,
    /// What the request names does not exist.
    NotFound,
    /// A limit is reached for now; the error carries a time after which to retry.
    RetryLater,
    /// It is not known whether the request took effect; retry with the same id.
    RetrySameId,
    /// No quorum, no leader, or not ready: nothing was changed.
    Unavailable,
    /// Another edit came first.
    Conflict,
    NotSignedIn,
    NotAllowed,
    /// Between nodes only: the caller forwards, no client ever sees it.
    AskAnotherNode,
    /// A broken promise of our own.
    Internal,
}

/// Errors that know their class.
pub trait Classify {
    fn class(&self) -> Class;

    /// After what time trying again may help, where that is known.
    fn retry_after(&self) -> Option<SpanNs> {
        None
    }
}
