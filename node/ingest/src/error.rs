//! Why a whole request was refused.

use hindcast_model::{Class, Classify};
use std::fmt;

/// Which adapter read a request. The order is the order in lists of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Own,
    OtlpMetrics,
    OtlpLogs,
    OtlpTraces,
    RemoteWrite,
    Loki,
    Influx,
    Syslog,
    Scrape,
    Snmp,
    Kafka,
}

impl Protocol {
    pub const ALL: [Self; 11] = [
        Self::Own,
        Self::OtlpMetrics,
        Self::OtlpLogs,
        Self::OtlpTraces,
        Self::RemoteWrite,
        Self::Loki,
        Self::Influx,
        Self::Syslog,
        Self::Scrape,
        Self::Snmp,
        Self::Kafka,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::OtlpMetrics => "otlp_metrics",
            Self::OtlpLogs => "otlp_logs",
            Self::OtlpTraces => "otlp_traces",
            Self::RemoteWrite => "remote_write",
            Self::Loki => "loki",
            Self::Influx => "influx",
            Self::Syslog => "syslog",
            Self::Scrape => "scrape",
            Self::Snmp => "snmp",
            Self::Kafka => "kafka",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why nothing of a request was taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdaptError {
    #[error("the body is not a readable {protocol} request: {why}")]
    Malformed { protocol: Protocol, why: String },
    #[error("the body does not decompress as {encoding}: {why}")]
    Compression { encoding: &'static str, why: String },
    #[error("the request takes more than {bytes_max} bytes on the wire; send smaller requests")]
    WireTooLarge { bytes_max: usize },
    #[error("the request takes more than {bytes_max} bytes decompressed; send smaller requests")]
    DecodedTooLarge { bytes_max: usize },
    #[error("content encoding {given:?} is not understood here; use {wanted}")]
    UnknownEncoding { given: String, wanted: &'static str },
    #[error("content type {given:?} is not understood here; use {wanted}")]
    UnknownType { given: String, wanted: &'static str },
}

impl AdaptError {
    /// A short, stable name of the reason, for counters.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::Compression { .. } => "compression",
            Self::WireTooLarge { .. } => "wire_too_large",
            Self::DecodedTooLarge { .. } => "decoded_too_large",
            Self::UnknownEncoding { .. } => "unknown_encoding",
            Self::UnknownType { .. } => "unknown_type",
        }
    }

    /// Whether HTTP has the code 415 for it.
    pub const fn is_unsupported_media(&self) -> bool {
        matches!(self, Self::UnknownEncoding { .. } | Self::UnknownType { .. })
    }
}

impl Classify for AdaptError {
    fn class(&self) -> Class {
        match self {
            Self::WireTooLarge { .. } | Self::DecodedTooLarge { .. } => Class::TooLarge,
            _ => Class::FixRequest,
        }
    }
}
