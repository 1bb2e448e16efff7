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
            cut => AskedAsOf::Cut(
                cut.parse()
                    .map_err(|e| refuse(format!("as_of: {e}, or \"corrected\"")))?,
            ),
        },
        domains: request.domains.iter().map(domain).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::{CutId, IncidentId};

    use crate::engine::{Engine, Limits};
    use crate::replay::{AsOf, Playing, ReplayError, ReplaySpec};
    use crate::testing::OneShard;
    use hindcast_model::TenantId;

    struct OneIncident;

    #[tonic::async_trait]
    impl ReplayCatalog for OneIncident {
        async fn spec(&self, tenant: &TenantId, ask: PlayAsk) -> Result<ReplaySpec, ReplayError> {
            let incident = ask
                .incident
                .ok_or_else(|| ReplayError::Ask("name an incident".into()))?;
            if incident != IncidentId(1) {
                return Err(ReplayError::NoSuchIncident(incident));
            }
            let window = (TimestampNs(0), TimestampNs::from_secs(20));
            let step = ask.step.unwrap_or(crate::replay::STEP_DEFAULT);
            let domains = ask.domains;
            Ok(ReplaySpec::new(
                tenant.clone(),
                Some(incident),
                vec![],
                window,
                step,
                domains,
                AsOf::Corrected,
            )?)
        }
    }

    fn service() -> Service {
        let shards = Arc::new(OneShard::new());
        let engine = Arc::new(Engine::new(shards.clone(), Limits::default()));
        Service {
            player: Arc::new(Player::new(engine, shards)),
            catalog: Arc::new(OneIncident),
        }
    }

    async fn played(request: PlayRequest) -> Result<Vec<PlayResponse>, Status> {
        let frames = service().play(Request::new(request)).await?.into_inner();
        frames.collect::<Vec<_>>().await.into_iter().collect()
    }

    #[tokio::test]
    async fn frames_are_streamed_and_digests_alone_are_the_same() {
        let request = PlayRequest {
            incident: "INC-1".into(),
            ..PlayRequest::default()
        };
        let frames = played(request.clone()).await.unwrap();
        let numbers: Vec<(u64, bool)> = frames.iter().map(|f| (f.number, f.last)).collect();
        assert_eq!(numbers, [(0, false), (1, false), (2, false), (3, true)]);
        let digests = played(PlayRequest {
            digest_only: true,
            ..request
        });
        let digests = digests.await.unwrap();
        assert!(digests.iter().all(|f| f.frame.is_empty()));
        assert!(digests.iter().map(|f| &f.digest).eq(frames.iter().map(|f| &f.digest)));
    }

    #[tokio::test]
    async fn an_error_has_the_code_of_its_class() {
        let code = |request| async { played(request).await.unwrap_err().code() };
        let unknown = PlayRequest {
            incident: "INC-9".into(),
            ..PlayRequest::default()
        };
        assert_eq!(code(unknown).await, tonic::Code::NotFound);
        assert_eq!(code(PlayRequest::default()).await, tonic::Code::InvalidArgument);
        let endless = PlayRequest {
            incident: "INC-1".into(),
            step_ms: 1 << 40,
            ..PlayRequest::default()
        };
        // A step beyond the window is one frame, not an overflow.
        assert_eq!(played(endless).await.unwrap().len(), 2);
    }

    #[test]
    fn a_replay_can_move_between_tasks() {
        fn can<T: Send + 'static>() {}
        can::<Playing>();
    }

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
