//! How commands speak to a server with TLS: its authority, and what they show of themselves.

use hindcast_node::io::tls::{Dial, TlsError};
use std::path::PathBuf;

/// Files of a client, PEM. Flattened into the arguments of every client command.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct TlsArgs {
    /// Who signs the certificates of servers (PEM); without it, the authorities that browsers trust.
    #[arg(long, env = "HINDCAST_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The certificate that is shown to the server (PEM), made by `hindcast cert client`.
    #[arg(long, env = "HINDCAST_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "HINDCAST_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

/// Arguments that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadTls {
    #[error("--tls-cert and --tls-key belong together: name both")]
    Half,
    #[error(transparent)]
    Files(#[from] TlsError),
}

impl TlsArgs {
    /// Connections to `urls`; files are read only if one of them asks for TLS.
    pub fn dial<'a>(&self, urls: impl IntoIterator<Item = &'a str>) -> Result<Dial, BadTls> {
        let own = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some((cert.as_path(), key.as_path())),
            (None, None) => None,
            _ => return Err(BadTls::Half),
        };
        if !urls.into_iter().any(|u| u.starts_with("https://")) {
            return Ok(Dial::Command);
        }
        Ok(Dial::server(self.tls_ca.as_deref(), own)?)
    }
}

/// What a failed connection means, from the innermost error out: libraries wrap what the handshake said.
pub fn why(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = Some(error);
    let mut innermost = error.to_string();
    while let Some(e) = at {
        innermost = e.to_string();
        if let Some(io) = e.downcast_ref::<std::io::Error>()
            && io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
        {
            return hindcast_node::io::tls::words(io).1;
        }
        at = e.source();
    }
    innermost
}
