//! The one table of error codes, and what else every edge does alike.

use hindcast_model::ids::BadTenant;
use hindcast_model::{Class, Classify, Labels, Positions, SpanNs, TenantId};

use crate::v1;

/// The header and metadata key that names the tenant.
pub const TENANT_KEY: &str = "x-scope-orgid";
/// The header and metadata key that names who acts at the desk, until users exist.
pub const ACTOR_KEY: &str = "x-hindcast-actor";
/// The metadata key of a query that may be answered by any replica at once: `stale-ok`, or `linearizable`.
pub const CONSISTENCY_KEY: &str = "x-hindcast-consistency";
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

/// After how many seconds a client may try again, where trying again helps: `Retry-After` of HTTP.
pub fn retry_after_secs<E: Classify>(error: &E) -> Option<u64> {
    let helps = matches!(http_status(error.class()), 429 | 503);
    // Rounded up: who comes earlier is refused again.
    helps.then(|| retry_span(error).0.div_ceil(1_000_000_000).max(1))
}

fn retry_span<E: Classify>(error: &E) -> SpanNs {
    error.retry_after().unwrap_or(SpanNs::from_secs(RETRY_SECS_DEFAULT))
}

/// A gRPC status from any classified error. `RESOURCE_EXHAUSTED` carries `google.rpc.RetryInfo`, without which OTLP clients drop
/// the data, and `retry-after` (seconds) in its metadata.
pub fn status<E: Classify + std::fmt::Display>(error: &E) -> tonic::Status {
    use prost::Message;
    let class = error.class();
    let plain = tonic::Status::new(grpc_code(class), error.to_string());
    if class != Class::RetryLater {
        return plain;
    }
    let details = rpc_status(error).encode_to_vec();
    let mut status = tonic::Status::with_details(plain.code(), plain.message(), details.into());
    let secs = retry_after_secs(error).unwrap_or(RETRY_SECS_DEFAULT);
    status.metadata_mut().insert("retry-after", secs.into());
    status
}

/// `google.rpc.Status`: what a gRPC status carries as its details, and what OTLP over HTTP answers with.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<RpcDetail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcDetail {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// `google.rpc.RetryInfo`; its only field is a `google.protobuf.Duration`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    pub retry_delay: Option<Delay>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Delay {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

pub const RETRY_INFO_TYPE: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// `google.rpc.Status` of any classified error.
pub fn rpc_status<E: Classify + std::fmt::Display>(error: &E) -> RpcStatus {
    use prost::Message;
    let class = error.class();
    let span = retry_span(error).0;
    let retry = RetryInfo {
        retry_delay: Some(Delay {
            seconds: (span / 1_000_000_000) as i64,
            nanos: (span % 1_000_000_000) as i32,
        }),
    };
    let detail = RpcDetail {
        type_url: RETRY_INFO_TYPE.to_owned(),
        value: retry.encode_to_vec(),
    };
    RpcStatus {
        code: grpc_code(class) as i32,
        message: error.to_string(),
        details: if class == Class::RetryLater {
            vec![detail]
        } else {
            vec![]
        },
    }
}

/// The delay of a status that carries `google.rpc.RetryInfo`.
pub fn retry_info_of(status: &tonic::Status) -> Option<std::time::Duration> {
    use prost::Message;
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let detail = details.into_iter().find(|d| d.type_url == RETRY_INFO_TYPE)?;
    let delay = RetryInfo::decode(detail.value.as_slice()).ok()?.retry_delay?;
    let seconds = u64::try_from(delay.seconds).ok()?;
    Some(std::time::Duration::new(
        seconds,
        u32::try_from(delay.nanos).ok()?.min(999_999_999),
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Of(Class);

    impl std::fmt::Display for Of {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{:?}", self.0)
        }
    }

    impl Classify for Of {
        fn class(&self) -> Class {
            self.0
        }
    }

    /// To be tried again after a time that is known.
    #[derive(Debug)]
    struct Soon(SpanNs);

    impl std::fmt::Display for Soon {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("soon")
        }
    }

    impl Classify for Soon {
        fn class(&self) -> Class {
            Class::RetryLater
        }
        fn retry_after(&self) -> Option<SpanNs> {
            Some(self.0)
        }
    }

    #[test]
    fn who_may_try_again_is_told_when_in_every_protocol() {
        for class in [
            Class::FixRequest,
            Class::TooLarge,
            Class::NotFound,
            Class::RetryLater,
            Class::RetrySameId,
            Class::Unavailable,
            Class::AskAnotherNode,
            Class::Conflict,
            Class::NotSignedIn,
            Class::NotAllowed,
            Class::Internal,
        ] {
            let is_busy = matches!(http_status(class), 429 | 503);
            assert_eq!(retry_after_secs(&Of(class)).is_some(), is_busy, "{class:?}");
            let status = status(&Of(class));
            let is_exhausted = status.code() == tonic::Code::ResourceExhausted;
            let told = retry_info_of(&status);
            assert_eq!(told.is_some(), is_exhausted, "{class:?}");
            assert!(told.is_none_or(|t| t.as_secs() == RETRY_SECS_DEFAULT));
        }
        let soon = Soon(SpanNs::from_ms(1_250));
        assert_eq!(retry_after_secs(&soon), Some(2), "in whole seconds, and not too early");
        let told = status(&soon);
        assert_eq!(retry_info_of(&told), Some(std::time::Duration::from_millis(1_250)));
        assert_eq!(told.metadata().get("retry-after").unwrap(), "2");
        let noise = tonic::Status::with_details(tonic::Code::ResourceExhausted, "", vec![0xff; 9].into());
        assert_eq!(retry_info_of(&noise), None);
    }
}
