//! `hindcast.v1.Replay` over gRPC: resolves what is asked into a spec, and streams its frames.

use crate::replay::{AskedAsOf, PlayAsk, Player, ReplayCatalog};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use hindcast_model::{Domain, SpanNs, TimestampNs};
use hindcast_proto::edge::{status, tenant_of_metadata};
use hindcast_proto::v1::replay_server::{Replay, ReplayServer};
use hindcast_proto::v1::{PlayRequest, PlayResponse};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// One encoded frame on the wire: bounded by the maxima of `replay`, generously.
pub const FRAME_WIRE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The service, for a tonic router.
pub fn replay_service(player: Arc<Player>, catalog: Arc<dyn ReplayCatalog>) -> ReplayServer<impl Replay> {
    ReplayServer::new(Service { player, catalog }).max_encoding_message_size(FRAME_WIRE_BYTES_MAX)
}

struct Service {
    player: Arc<Player>,
    catalog: Arc<dyn ReplayCatalog>,
}

#[tonic::async_trait]
impl Replay for Service {
    type PlayStream = BoxStream<'static, Result<PlayResponse, Status>>;

    async fn play(&self, request: Request<PlayRequest>) -> Result<Response<Self::PlayStream>, Status> {
        let tenant = tenant_of_metadata(request.metadata())?;
        let request = request.into_inner();
        let digest_only = request.digest_only;
        let ask = ask_of(request)?;
        let spec = self.catalog.spec(&tenant, ask).await.map_err(|e| status(&e))?;
        let playing = self
            .player
            .play(spec)
            .map_err(|e| status(&crate::replay::ReplayError::from(e)))?;
        let frames = playing.stream().map(move |frame| {
            let frame = frame.map_err(|e| {
                tracing::warn!(error = %e, "a replay ended early");
                status(&e)
            })?;
            Ok(PlayResponse {
                number: frame.number,
                frame: if digest_only { Bytes::new() } else { frame.bytes },
                digest: Bytes::copy_from_slice(&frame.digest.0),
                last: frame.last,
            })
        });
        Ok(Response::new(frames.boxed()))
    }
}

/// What the wire says, as a question. An unknown word is refused, never taken for a default.
fn ask_of(request: PlayRequest) -> Result<PlayAsk, Status> {
    let refuse = |what: String| Status::invalid_argument(what);
    let at = |ms: i64| (ms != 0).then(|| TimestampNs::from_ms(ms));
    let domain = |name: &String| {
        Domain::parse(name).ok_or_else(|| refuse(format!("{name:?} is no domain: use SMS, DBMS, APM or NMS")))
    };
    let incident = match request.incident.as_str() {
        "" => None,
        id => Some(id.parse().map_err(|e| refuse(format!("incident: {e}")))?),
    };
    Ok(PlayAsk {
        incident,
        from: at(request.from_ms),
        to: at(request.to_ms),
        step: (request.step_ms != 0).then(|| SpanNs::from_ms(request.step_ms)),
        as_of: match request.as_of.as_str() {
            "" => AskedAsOf::Default,
            "corrected" => AskedAsOf::Corrected,
            cut => AskedAsOf::Cut(cut.parse().map_err(|e| refuse(format!("as_of: {e}, or \"corrected\"")))?),
        },
        domains: request.domains.iter().map(domain).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::{CutId, IncidentId};

    #[test]
    fn a_request_is_read_as_it_is_meant() {
        let ask = ask_of(PlayRequest {
            incident: "inc-3".into(),
            from_ms: 5,
            as_of: "CUT-2".into(),
            domains: vec!["dbms".into()],
            ..PlayRequest::default()
        });
        let expected = PlayAsk {
            incident: Some(IncidentId(3)),
            from: Some(TimestampNs::from_ms(5)),
            as_of: AskedAsOf::Cut(CutId(2)),
            domains: vec![Domain::Dbms],
            ..PlayAsk::default()
        };
        assert_eq!(ask.unwrap(), expected);
        assert_eq!(ask_of(PlayRequest::default()).unwrap(), PlayAsk::default());
    }

    #[test]
    fn a_word_that_nobody_knows_is_refused() {
        let refused = |request: PlayRequest| ask_of(request).unwrap_err().message().to_owned();
        assert_eq!(
            refused(PlayRequest {
                domains: vec!["web".into()],
                ..PlayRequest::default()
            }),
            "\"web\" is no domain: use SMS, DBMS, APM or NMS"
        );
        assert_eq!(
            refused(PlayRequest {
                as_of: "yesterday".into(),
                ..PlayRequest::default()
            }),
            "as_of: \"yesterday\" is not an id of this kind; write it like \"CUT-1\", or \"corrected\""
        );
        assert!(
            refused(PlayRequest {
                incident: "x".into(),
                ..PlayRequest::default()
            })
            .starts_with("incident: ")
        );
    }
}
