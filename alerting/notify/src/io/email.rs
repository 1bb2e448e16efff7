//! Email over SMTP. The `Message-ID` comes from the effect's key, `References` from the first mail of the incident.

use super::{STEP_TIMEOUT, secret};
use crate::message;
use hindcast_alerting::outbox::{Receipt, Sending};
use hindcast_alerting::route::{EmailTarget, Target, is_loopback_host};
use hindcast_alerting::{Channel, SendError};
use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::{Error as SmtpError, PoolConfig};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use std::error::Error;

/// Sends mail. It keeps no connection: incidents are rare, and a mail server forgets.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmailChannel;

#[async_trait::async_trait]
impl Channel for EmailChannel {
    async fn send(&self, sending: &Sending) -> Result<Receipt, SendError> {
        let Target::Email(target) = &sending.effect.target else {
            return Err(SendError::Rejected("this is no message for a mail server".to_owned()));
        };
        let mail = compose(target, sending)?;
        let transport = transport(target).await?;
        let answer = transport
            .send(mail)
            .await
            .map_err(|e| smtp_error(&target.smarthost, &e))?;
        let words: Vec<&str> = answer.message().collect();
        Ok(Receipt {
            id: format!("{} {}", answer.code(), words.join(" ")),
        })
    }
}

/// Names the effect once more, for receivers that rewrite `Message-ID`.
#[derive(Clone)]
struct KeyHeader(String);

impl Header for KeyHeader {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("X-Hindcast-Key")
    }
    fn parse(text: &str) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self(text.to_owned()))
    }
    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), self.0.clone())
    }
}

fn compose(target: &EmailTarget, sending: &Sending) -> Result<Message, SendError> {
    let effect = &sending.effect;
    let mailbox = |address: &String| -> Result<Mailbox, SendError> {
        address
            .parse()
            .map_err(|e| SendError::Rejected(format!("{address:?} is no mail address: {e}")))
    };
    let mut mail = Message::builder()
        .from(mailbox(&target.from)?)
        .subject(message::subject(&effect.notification))
        .message_id(Some(message::message_id(&effect.key)))
        .header(KeyHeader(effect.key.0.clone()));
    for address in &target.to {
        mail = mail.to(mailbox(address)?);
    }
    if sending.thread_root != effect.key {
        let root = message::message_id(&sending.thread_root);
        mail = mail.in_reply_to(root.clone()).references(root);
    }
    mail.header(ContentType::TEXT_PLAIN)
        .body(message::mail_text(&effect.notification))
        .map_err(|e| SendError::Rejected(format!("the mail cannot be written: {e}")))
}

async fn transport(target: &EmailTarget) -> Result<AsyncSmtpTransport<Tokio1Executor>, SendError> {
    let wrong = || SendError::Rejected(format!("the mail server {:?} is not like host:port", target.smarthost));
    let (host, port) = target.smarthost.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let tls = if target.require_tls || !is_loopback_host(host) {
        let parameters = TlsParameters::new(host.to_owned())
            .map_err(|e| SendError::Rejected(format!("TLS with {host:?} cannot be set up: {e}")))?;
        match (target.require_tls, port) {
            // The port whose connections begin with TLS.
            (_, 465) => Tls::Wrapper(parameters),
            (true, _) => Tls::Required(parameters),
            (false, _) => Tls::Opportunistic(parameters),
        }
    } else {
        Tls::None
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
        .port(port)
        .tls(tls)
        .timeout(Some(STEP_TIMEOUT))
        .pool_config(PoolConfig::new().min_idle(0).max_size(1));
    if let Some(hello) = &target.hello {
        builder = builder.hello_name(ClientId::Domain(hello.clone()));
    }
    if let Some(auth) = &target.auth {
        let password = secret::read(&auth.password).await?;
        builder = builder.credentials(Credentials::new(auth.username.clone(), password.reveal().to_owned()));
    }
    Ok(builder.build())
}

fn smtp_error(server: &str, error: &SmtpError) -> SendError {
    let mut words = format!("mail server {server}: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !words.contains(&text) {
            words.push_str(&format!(": {text}"));
        }
        cause = inner.source();
    }
    if error.is_permanent() {
        SendError::Rejected(words)
    } else {
        SendError::Busy(words)
    }
}
