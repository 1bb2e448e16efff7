//! A connection to a broker: encrypted and signed in where the file says so, one question at a time.

use bytes::Bytes;
use hindcast_env::Rng;
use hindcast_env::io::os_rng;
use hindcast_kafka::config::Sasl;
use hindcast_kafka::messages::{
    self, Api, Code, FRAME_BYTES_MAX, frame, read_sasl_authenticate, read_sasl_handshake, sasl_authenticate,
    sasl_handshake,
};
use hindcast_kafka::scram::{Mechanism, Scram, plain};
use hindcast_kafka::wire::{Reader, WireError};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a connection may take until it can be used, and an answer to a question that waits for nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Room is made for an answer piece by piece: a length may lie.
const PIECE_BYTES: usize = 1024 * 1024;

/// How brokers of one source are reached.
#[derive(Clone)]
pub struct Reach {
    pub tls: Option<Arc<ClientConfig>>,
    /// Instead of the name of the host.
    pub server_name: Option<ServerName<'static>>,
    pub sasl: Option<Sasl>,
    /// Of the files of certificates as they were read.
    pub files: u64,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection. One on which a question was given up must not be used again: its answer would come for another one.
pub struct Conn {
    stream: Box<dyn Stream>,
    correlation: i32,
    pub address: String,
}

impl Reach {
    pub async fn connect(&self, host: &str, port: u16) -> Result<Conn, String> {
        let address = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let connecting = self.connect_now(host, port, address.clone());
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|why| format!("broker {address}: {why}")),
            Err(_) => Err(format!("broker {address} did not answer within {CONNECT_TIMEOUT:?}")),
        }
    }

    async fn connect_now(&self, host: &str, port: u16, address: String) -> Result<Conn, String> {
        let tcp = TcpStream::connect((host, port))
            .await
            .map_err(|e| format!("it cannot be reached: {e}"))?;
        let _ = tcp.set_nodelay(true);
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some(tls) => {
                let name = match &self.server_name {
                    Some(name) => name.clone(),
                    None => ServerName::try_from(host.to_owned())
                        .map_err(|_| format!("{host:?} is no name of a certificate; set tls.server_name"))?,
                };
                let encrypted = tokio_rustls::TlsConnector::from(tls.clone()).connect(name, tcp).await;
                Box::new(encrypted.map_err(|e| format!("TLS: {e}"))?)
            }
        };
        let mut conn = Conn {
            stream,
            correlation: 0,
            address,
        };
        let known = conn
            .call(Api::ApiVersions, &[], ANSWER_TIMEOUT)
            .await
            .map_err(|e| match self.tls.is_none() {
                true => format!("{e}; if its port speaks TLS, write tls: {{}} in the file"),
                false => e,
            })?;
        match messages::missing(known).map_err(|e| malformed(&e))? {
            None => return Err("it does not say what it knows; Kafka 2.3 or later is needed".to_owned()),
            Some(missing) if !missing.is_empty() => {
                let missing: Vec<_> = missing
                    .iter()
                    .map(|a| format!("{a:?} version {}", a.version()))
                    .collect();
                return Err(format!(
                    "it does not know {}; Kafka 2.3 or later is needed",
                    missing.join(", ")
                ));
            }
            Some(_) => {}
        }
        if let Some(sasl) = &self.sasl {
            conn.sign_in(sasl).await?;
        }
        Ok(conn)
    }
}

fn malformed(why: &WireError) -> String {
    format!("its answer cannot be read: {why}")
}

impl Conn {
    /// Asks, and waits for the answer.
    pub async fn call(&mut self, api: Api, body: &[u8], timeout: Duration) -> Result<Reader, String> {
        match tokio::time::timeout(timeout, self.call_now(api, body)).await {
            Ok(answer) => answer.map_err(|why| format!("{api:?}: {why}")),
            Err(_) => Err(format!("{api:?}: no answer within {timeout:?}")),
        }
    }

    /// As [`Conn::call`], and the answer is read.
    pub async fn ask<T>(
        &mut self,
        api: Api,
        body: &[u8],
        read: impl FnOnce(Reader) -> Result<T, WireError>,
    ) -> Result<T, String> {
        self.ask_within(api, body, ANSWER_TIMEOUT, read).await
    }

    pub async fn ask_within<T>(
        &mut self,
        api: Api,
        body: &[u8],
        timeout: Duration,
        read: impl FnOnce(Reader) -> Result<T, WireError>,
    ) -> Result<T, String> {
        let answer = self.call(api, body, timeout).await?;
        read(answer).map_err(|e| format!("{api:?} of {}: {}", self.address, malformed(&e)))
    }

    async fn call_now(&mut self, api: Api, body: &[u8]) -> Result<Reader, String> {
        self.correlation = self.correlation.wrapping_add(1);
        let question = frame(api, self.correlation, body);
        let broken = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => format!("{} closed the connection", self.address),
            _ => format!("the connection to {} broke: {e}", self.address),
        };
        self.stream.write_all(&question).await.map_err(broken)?;
        self.stream.flush().await.map_err(broken)?;
        let mut len = [0; 4];
        self.stream.read_exact(&mut len).await.map_err(broken)?;
        let len = u32::from_be_bytes(len) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(format!(
                "{} answers with {len} bytes, more than {FRAME_BYTES_MAX}: no broker of Kafka, or max.message.bytes of a topic is larger than that",
                self.address
            ));
        }
        let mut answer = vec![];
        while answer.len() < len {
            let (at, piece) = (answer.len(), PIECE_BYTES.min(len - answer.len()));
            answer.resize(at + piece, 0);
            self.stream.read_exact(&mut answer[at..]).await.map_err(broken)?;
        }
        let answer = messages::unframe(self.correlation, Bytes::from(answer)).map_err(|e| malformed(&e))?;
        answer.ok_or_else(|| format!("{} answers another question", self.address))
    }

    async fn sign_in(&mut self, sasl: &Sasl) -> Result<(), String> {
        let mechanism = sasl.mechanism.as_str();
        let (code, known) = self
            .ask(Api::SaslHandshake, &sasl_handshake(mechanism), read_sasl_handshake)
            .await?;
        if code.is_error() {
            let known: Vec<String> = known.into_iter().take(8).collect();
            return Err(format!("{mechanism}: {code}; it knows {}", known.join(", ")));
        }
        let (user, password) = (&sasl.user, &sasl.password.0);
        if sasl.mechanism == Mechanism::Plain {
            return self.prove(plain(user, password)).await.map(|_| ());
        }
        let mut rng = os_rng().map_err(|e| format!("the machine gives no random numbers: {e}"))?;
        let nonce = format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64());
        let mut scram = Scram::new(sasl.mechanism, user, password, &nonce);
        let challenge = self.prove(scram.first()).await?;
        let last = scram.last(&challenge).map_err(|e| e.to_string())?;
        let verdict = self.prove(last).await?;
        scram.verify(&verdict).map_err(|e| e.to_string())
    }

    async fn prove(&mut self, bytes: Vec<u8>) -> Result<Bytes, String> {
        let answer = self
            .ask(
                Api::SaslAuthenticate,
                &sasl_authenticate(&bytes),
                read_sasl_authenticate,
            )
            .await?;
        answer.map_err(|(code, words)| {
            let words: String = words.chars().take(200).collect();
            format!("signing in is refused: {code} ({words})")
        })
    }
}

/// A code as an error, where it is one.
pub fn checked(what: &str, code: Code) -> Result<(), String> {
    match code.is_error() {
        true => Err(format!("{what}: {code}")),
        false => Ok(()),
    }
}
