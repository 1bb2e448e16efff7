//! `hindcast.v1.Alerts`.

use crate::alert::AlertRow;
use crate::event::IncidentState;
use crate::incident::IncidentRow;
use crate::outbox::EffectRow;
use crate::rows;
use crate::view;
use hindcast_model::codec::DecodeError;
use hindcast_model::{IncidentId, TimestampNs};
use hindcast_proto::edge::{status, tenant_of_metadata};
use hindcast_proto::v1;
use hindcast_proto::v1::alerts_server::{Alerts, AlertsServer};
use hindcast_raft::{Meta, MetaRead};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Incidents that one answer lists.
pub const INCIDENTS_LISTED_MAX: usize = 1_000;

/// The service, for the server's router.
pub fn alerts_service(meta: Arc<dyn Meta>) -> AlertsServer<AlertsGrpc> {
    AlertsServer::new(AlertsGrpc { meta })
}

pub struct AlertsGrpc {
    meta: Arc<dyn Meta>,
}

impl AlertsGrpc {
    async fn read(&self) -> Result<Arc<dyn MetaRead>, Status> {
        self.meta.read().await.map_err(|e| status(&e))
    }
}

fn damaged(error: DecodeError) -> Status {
    Status::internal(error.to_string())
}

/// `open`, `recovered`, `closed`; empty: all.
pub(super) fn incident_state(word: &str) -> Result<Option<IncidentState>, String> {
    match word {
        "" => Ok(None),
        "open" => Ok(Some(IncidentState::Open)),
        "recovered" => Ok(Some(IncidentState::Recovered)),
        "closed" => Ok(Some(IncidentState::Closed)),
        _ => Err(format!(
            "{word:?} is no state of an incident; use open, recovered or closed, or leave it out"
        )),
    }
}

#[tonic::async_trait]
impl Alerts for AlertsGrpc {
    async fn list_alerts(
        &self,
        request: Request<v1::ListAlertsRequest>,
    ) -> Result<Response<v1::ListAlertsResponse>, Status> {
        let tenant = tenant_of_metadata(request.metadata())?;
        let read = self.read().await?;
        let alerts = rows::alerts(read.as_ref(), &tenant).map_err(damaged)?;
        Ok(Response::new(v1::ListAlertsResponse {
            alerts: alerts.iter().map(alert_to_wire).collect(),
        }))
    }

    async fn list_incidents(
        &self,
        request: Request<v1::ListIncidentsRequest>,
    ) -> Result<Response<v1::ListIncidentsResponse>, Status> {
        let tenant = tenant_of_metadata(request.metadata())?;
        let state = incident_state(&request.get_ref().state).map_err(Status::invalid_argument)?;
        let read = self.read().await?;
        let found = rows::incidents(read.as_ref(), &tenant, state, INCIDENTS_LISTED_MAX).map_err(damaged)?;
        Ok(Response::new(v1::ListIncidentsResponse {
            incidents: found.iter().map(incident_to_wire).collect(),
        }))
    }

    async fn get_incident(&self, request: Request<v1::GetIncidentRequest>) -> Result<Response<v1::Incident>, Status> {
        let tenant = tenant_of_metadata(request.metadata())?;
        let id = incident_id(&request.get_ref().id)?;
        let read = self.read().await?;
        match rows::incident(read.as_ref(), Some(&tenant), id).map_err(damaged)? {
            Some(row) => Ok(Response::new(incident_to_wire(&row))),
            None => Err(Status::not_found(format!("there is no incident {id}"))),
        }
    }

    async fn list_deliveries(
        &self,
        request: Request<v1::ListDeliveriesRequest>,
    ) -> Result<Response<v1::ListDeliveriesResponse>, Status> {
        let tenant = tenant_of_metadata(request.metadata())?;
        let read = self.read().await?;
        let effects = match request.get_ref().incident.as_str() {
            "" => rows::all_effects(read.as_ref(), &tenant).map_err(damaged)?,
            text => {
                let found = rows::effects(read.as_ref(), incident_id(text)?).map_err(damaged)?;
                found.into_iter().filter(|e| e.tenant == tenant).collect()
            }
        };
        Ok(Response::new(v1::ListDeliveriesResponse {
            deliveries: effects.iter().map(effect_to_wire).collect(),
        }))
    }
}

fn incident_id(text: &str) -> Result<IncidentId, Status> {
    text.parse()
        .map_err(|e: hindcast_model::ids::BadId| Status::invalid_argument(e.to_string()))
}

fn word<T: serde::Serialize>(of: &T) -> String {
    view::word(of).as_str().unwrap_or_default().to_owned()
}

fn alert_to_wire(a: &AlertRow) -> v1::Alert {
    v1::Alert {
        id: a.id.clone(),
        rule: a.rule.clone(),
        labels: a.labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
        annotations: a.annotations.clone().into_iter().collect(),
        state: a.clock.state.as_str().to_owned(),
        severity: a.clock.severity.map_or(String::new(), |s| s.to_string()),
        generation: a.generation,
        since_ms: a.clock.since.as_ms(),
        value: Some(a.value),
        incident: a.incident.map_or(String::new(), |i| i.to_string()),
    }
}

fn incident_to_wire(i: &IncidentRow) -> v1::Incident {
    let ms = |at: Option<TimestampNs>| at.map_or(0, TimestampNs::as_ms);
    v1::Incident {
        id: i.id.to_string(),
        title: i.title.clone(),
        state: word(&i.state),
        severity: i.severity.to_string(),
        generation: i.generation,
        opened_ms: i.opened_at.as_ms(),
        recovered_ms: ms(i.recovered_at),
        closed_ms: ms(i.closed_at),
        alerts: i.members.iter().map(|m| m.alert.clone()).collect(),
        resources: i.resources.iter().map(ToString::to_string).collect(),
        ticket: i.ticket.map_or(String::new(), |t| t.to_string()),
        opened_cut: i.opened_cut.map_or(String::new(), |c| c.to_string()),
        sealed_cut: i.sealed_cut.map_or(String::new(), |c| c.to_string()),
    }
}

fn effect_to_wire(e: &EffectRow) -> v1::Delivery {
    v1::Delivery {
        key: e.key.0.clone(),
        incident: e.incident.to_string(),
        kind: e.kind.as_str().to_owned(),
        receiver: e.receiver.name.clone(),
        state: e.state.as_str().to_owned(),
        attempts: e.attempts,
        last_error: e.last_error.clone(),
    }
}
