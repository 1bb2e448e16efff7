//! The one table of error codes, and what else every edge does alike.

use hindcast_model::ids::BadTenant;
use hindcast_model::{Class, Classify, Labels, Positions, TenantId};

use crate::v1;

/// The header and metadata key that names the tenant.
pub const TENANT_KEY: &str = "x-scope-orgid";
/// The header and metadata key that names who acts at the desk, until users exist.
pub const ACTOR_KEY: &str = "x-hindcast-actor";
/// How long a client is told to wait where no better time is known.
pub const RETRY_SECS_DEFAULT: u64 = 1;

/// gRPC code of an error class.
pub fn grpc_code(class: Class) -> tonic::Code {
    use tonic::Code;
    match class {
        Class::FixRequest => Code::InvalidArgument,
        // gRPC has no code for "too large"; a client that resends the same bytes gets the same answer.
        Class::TooLarge => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::RetryLater => Code::ResourceExhausted,
        Class::RetrySameId | Class::Unavailable | Class::AskAnotherNode => Code::Unavailable,
        Class::Conflict => Code::Aborted,
        Class::NotSignedIn => Code::Unauthenticated,
        Class::NotAllowed => Code::PermissionDenied,
        Class::Internal => Code::Internal,
    }
}

/// HTTP status of an error class.
pub fn http_status(class: Class) -> u16 {
    match class {
        Class::FixRequest => 400,
        Class::TooLarge => 413,
        Class::NotFound => 404,
        Class::RetryLater => 429,
        Class::RetrySameId | Class::Unavailable | Class::AskAnotherNode => 503,
        Class::Conflict => 409,
        Class::NotSignedIn => 401,
        Class::NotAllowed => 403,
        Class::Internal => 500,
    }
}

/// A gRPC status from any classified error. `RESOURCE_EXHAUSTED` carries `retry-after` (seconds) in its metadata.
pub fn status<E: Classify + std::fmt::Display>(error: &E) -> tonic::Status {
    let class = error.class();
    let mut status = tonic::Status::new(grpc_code(class), error.to_string());
    if class == Class::RetryLater {
        status.metadata_mut().insert("retry-after", RETRY_SECS_DEFAULT.into());
    }
    status
}

/// The tenant that a gRPC request names, or the default one.
pub fn tenant_of_metadata(metadata: &tonic::metadata::MetadataMap) -> Result<TenantId, tonic::Status> {
    match metadata.get(TENANT_KEY) {
        None => Ok(TenantId::default()),
        Some(v) => {
            let name = v
                .to_str()
                .map_err(|_| tonic::Status::invalid_argument("x-scope-orgid is not plain ASCII"))?;
            tenant_of_header(Some(name)).map_err(|e| tonic::Status::invalid_argument(e.to_string()))
        }
    }
}

/// The tenant that an HTTP header names, or the default one.
pub fn tenant_of_header(value: Option<&str>) -> Result<TenantId, BadTenant> {
    value
        .filter(|v| !v.is_empty())
        .map_or_else(|| Ok(TenantId::default()), TenantId::new)
}

pub fn labels_to_wire(labels: &Labels) -> Vec<v1::Label> {
    labels
        .iter()
        .map(|(n, v)| v1::Label {
            name: n.to_owned(),
            value: v.to_owned(),
        })
        .collect()
}

pub fn labels_from_wire(labels: Vec<v1::Label>) -> Labels {
    labels.into_iter().map(|l| (l.name, l.value)).collect()
}

pub fn positions_to_wire(positions: &Positions) -> Vec<v1::Position> {
    positions
        .iter()
        .map(|(g, i)| v1::Position { group: g.0, index: *i })
        .collect()
}
