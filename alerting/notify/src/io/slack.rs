//! Slack over its Web API: one message per incident and generation, edited in place as the incident goes on.

use super::secret;
use crate::message;
use hindcast_alerting::outbox::{EffectKey, Receipt, Sending};
use hindcast_alerting::route::{SlackTarget, Target};
use hindcast_alerting::{Channel, SendError};
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use slack_morphism::errors::SlackClientError;
use slack_morphism::prelude::{
    SlackApiChatPostMessageRequest, SlackApiChatUpdateRequest, SlackApiToken, SlackApiTokenValue, SlackChannelId,
    SlackClient, SlackClientHyperConnector, SlackMessageContent, SlackMessageMetadata, SlackTs,
};

/// Talks to Slack, or to whatever speaks its Web API at the target's base address.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlackChannel;

#[async_trait::async_trait]
impl Channel for SlackChannel {
    async fn send(&self, sending: &Sending) -> Result<Receipt, SendError> {
        let Target::Slack(target) = &sending.effect.target else {
            return Err(SendError::Rejected("this is no message for Slack".to_owned()));
        };
        let token = secret::read(&target.token).await?;
        let token = SlackApiToken::new(SlackApiTokenValue::new(token.reveal().to_owned()));
        if target.api_url.starts_with("http://") {
            let plain = SlackClientHyperConnector::with_connector(HttpConnector::new());
            return talk(plain.with_slack_api_url(&target.api_url), &token, target, sending).await;
        }
        // The process may hold several TLS providers; the first to say which one counts.
        let _already_there = rustls::crypto::ring::default_provider().install_default();
        let https = SlackClientHyperConnector::new()
            .map_err(|e| SendError::Busy(format!("the machine's root certificates cannot be read: {e}")))?;
        talk(https.with_slack_api_url(&target.api_url), &token, target, sending).await
    }
}

async fn talk<H>(
    connector: SlackClientHyperConnector<H>,
    token: &SlackApiToken,
    target: &SlackTarget,
    sending: &Sending,
) -> Result<Receipt, SendError>
where
    H: Connect + Clone + Send + Sync + 'static,
{
    let client = SlackClient::new(connector);
    let session = client.open_session(token);
    let effect = &sending.effect;
    let content = content(&message::slack_text(&effect.notification), &effect.key);
    if let Some((channel, ts)) = sending.thread_receipt.as_ref().and_then(posted) {
        let update = SlackApiChatUpdateRequest::new(channel, content.clone(), ts);
        match session.chat_update(&update).await {
            Ok(answer) => return Ok(receipt(&answer.channel, &answer.ts)),
            // Somebody removed it, or it is too old to be edited: the news goes into a new message.
            Err(SlackClientError::ApiError(e)) if is_gone(&e.code) => {}
            Err(error) => return Err(slack_error(&error)),
        }
    }
    let post = SlackApiChatPostMessageRequest::new(SlackChannelId::new(target.channel.clone()), content);
    match session.chat_post_message(&post).await {
        Ok(answer) => Ok(receipt(&answer.channel, &answer.ts)),
        Err(error) => Err(slack_error(&error)),
    }
}

fn content(text: &str, key: &EffectKey) -> SlackMessageContent {
    let payload = [("key".to_owned(), key.0.clone())].into();
    SlackMessageContent::new()
        .with_text(text.to_owned())
        .with_metadata(SlackMessageMetadata::new("hindcast_effect".to_owned()).with_event_payload(payload))
}

fn receipt(channel: &SlackChannelId, ts: &SlackTs) -> Receipt {
    Receipt {
        id: format!("{}/{}", channel.0, ts.0),
    }
}

/// The message that a receipt names.
fn posted(receipt: &Receipt) -> Option<(SlackChannelId, SlackTs)> {
    let (channel, ts) = receipt.id.split_once('/')?;
    Some((SlackChannelId::new(channel.to_owned()), SlackTs::new(ts.to_owned())))
}

fn is_gone(code: &str) -> bool {
    matches!(code, "message_not_found" | "cant_update_message" | "edit_window_closed")
}

fn slack_error(error: &SlackClientError) -> SendError {
    match error {
        // What is wrong with the message stays wrong. What is wrong with the token, the channel or Slack itself can
        // be mended while the delivery is tried again.
        SlackClientError::ApiError(e) => {
            let message_is_wrong = [
                "msg_too_long",
                "no_text",
                "invalid_blocks",
                "invalid_arguments",
                "invalid_metadata_format",
                "metadata_too_large",
                "restricted_action",
            ];
            if message_is_wrong.contains(&e.code.as_str()) {
                SendError::Rejected(format!("Slack says {}", e.code))
            } else {
                SendError::Busy(format!("Slack says {}", e.code))
            }
        }
        SlackClientError::RateLimitError(_) => SendError::Busy("Slack asks for fewer messages".to_owned()),
        SlackClientError::HttpError(e) => SendError::Busy(format!("Slack answers HTTP {}", e.status_code)),
        other => SendError::Busy(format!("Slack cannot be reached: {other}")),
    }
}
