//! Plain HTTP/1.1 requests with a body in and a body out.

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 30;

#[derive(Clone)]
pub struct Http(Client<HttpConnector, Full<Bytes>>);

impl Http {
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }

    pub async fn post(&self, uri: &Uri, headers: &[(&str, &str)], body: Bytes) -> anyhow::Result<(u16, Bytes)> {
        let mut request = Request::post(uri.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self
            .0
            .request(request.body(Full::new(body))?)
            .await
            .with_context(|| format!("no answer from {uri}"))?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("{uri} broke off its answer: {e}"))?;
        Ok((status, body.to_bytes()))
    }
}

/// An endpoint's address with a path. There is no TLS here: the tool measures servers on machines of its own.
pub fn uri(endpoint: &str, path: &str) -> anyhow::Result<Uri> {
    let uri: Uri = format!("{}{path}", endpoint.trim_end_matches('/'))
        .parse()
        .with_context(|| format!("{endpoint:?} is not an address like http://127.0.0.1:7400"))?;
    match uri.scheme_str() {
        Some("http") => Ok(uri),
        _ => bail!("{endpoint:?} is not an address like http://127.0.0.1:7400"),
    }
}
