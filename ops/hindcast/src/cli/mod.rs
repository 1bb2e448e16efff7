//! One module per command: its arguments, and what it prints. Talks to a server over gRPC and HTTP only.

pub mod agent;
pub mod cardinality;
pub mod cert;
pub mod cluster;
pub mod export;
pub mod import;
pub mod incident;
pub mod kafka;
pub mod limits;
pub mod masking;
pub mod query;
pub mod replay;
pub mod rules;
pub mod scrape;
pub mod snmp;
pub mod storage;
pub mod ticket;

use std::process::ExitCode;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON document, or one per line as things happen.
    Json,
}

/// Where the server is, and as whom to speak. Flattened into the arguments of every client command.
#[derive(Clone, Debug, clap::Args)]
pub struct Client {
    /// The server's client address.
    #[arg(long, env = "HINDCAST_ENDPOINT", default_value = "http://127.0.0.1:7400")]
    pub endpoint: String,
    /// Whose data.
    #[arg(long, env = "HINDCAST_TENANT", default_value = "default")]
    pub tenant: String,
    #[command(flatten)]
    pub tls: crate::tls::TlsArgs,
}

/// A gRPC channel that adds the tenant (and the actor, for the desk) to each call.
pub type Channel = tonic::service::interceptor::InterceptedService<tonic::transport::Channel, Identity>;

/// Adds who speaks to each request.
#[derive(Clone)]
pub struct Identity {
    tenant: tonic::metadata::AsciiMetadataValue,
    actor: Option<tonic::metadata::AsciiMetadataValue>,
}

impl tonic::service::Interceptor for Identity {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let m = request.metadata_mut();
        m.insert(hindcast_proto::edge::TENANT_KEY, self.tenant.clone());
        if let Some(actor) = &self.actor {
            m.insert(hindcast_proto::edge::ACTOR_KEY, actor.clone());
        }
        Ok(request)
    }
}

impl Client {
    /// Connects; an unreachable server is exit code 3.
    pub async fn connect(&self) -> Result<Channel, Failure> {
        self.connect_as(None).await
    }

    pub async fn connect_as(&self, actor: Option<&str>) -> Result<Channel, Failure> {
        let ascii = |what: &str, v: &str| {
            v.parse()
                .map_err(|_| Failure::usage(format!("{what} {v:?} is not plain ASCII")))
        };
        let identity = Identity {
            tenant: ascii("the tenant", &self.tenant)?,
            actor: actor.map(|a| ascii("the actor", a)).transpose()?,
        };
        let endpoint = tonic::transport::Endpoint::from_shared(self.endpoint.clone())
            .map_err(|e| {
                Failure::usage(format!(
                    "{:?} is not an address like http://127.0.0.1:7400: {e}",
                    self.endpoint
                ))
            })?
            .connect_timeout(std::time::Duration::from_secs(5));
        let dial = self.tls.dial([self.endpoint.as_str()]);
        let dial = dial.map_err(|e| Failure::usage(e.to_string()))?;
        let channel = endpoint.connect_with_connector(dial).await.map_err(|e| {
            let why = crate::tls::why(&e);
            Failure::unreachable(format!(
                "cannot reach {}: {why}; is `hindcast server` running there?",
                self.endpoint
            ))
        })?;
        Ok(tonic::service::interceptor::InterceptedService::new(channel, identity))
    }
}

/// A command that ends with something other than success: words for the person, code for the shell
/// (1 the answer is no, 2 wrong usage or configuration, 3 the cluster could not be reached or lost quorum).
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

impl Failure {
    pub fn no(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            message: message.into(),
        }
    }
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: 2,
            message: message.into(),
        }
    }
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self {
            code: 3,
            message: message.into(),
        }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        if let Some(below) = std::error::Error::source(&status) {
            // Below gRPC: the connection. A server that does not take a certificate says so after the connection stood, and what
            // is heard of that may only be its end.
            return Self::unreachable(format!(
                "{}: {}; a server that asks for a certificate ends connections without a good one: see --tls-cert, and its log",
                status.message(),
                crate::tls::why(below)
            ));
        }
        let message = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => Self::usage(message),
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => Self::unreachable(message),
            _ => Self::no(message),
        }
    }
}

/// What a command ends with.
pub type Done = Result<ExitCode, Failure>;

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::no(format!("{error:#}"))
    }
}

/// A line of log or name from outside, without what would move the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
