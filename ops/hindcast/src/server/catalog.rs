//! What the meta group knows that a replay needs: incidents, their windows, cuts.

use hindcast_alerting::rows;
use hindcast_model::TenantId;
use hindcast_node::cluster_part::CutRow;
use hindcast_node::io::cuts::{CutError, Cuts};
use hindcast_query::replay::{
    AsOf, AskedAsOf, PlayAsk, ReplayCatalog, ReplayError, ReplaySpec, STEP_DEFAULT, default_window,
};

pub struct Catalog {
    pub cuts: Cuts,
}

fn as_of(cut: &CutRow) -> AsOf {
    AsOf::Cut {
        id: cut.id,
        positions: cut.positions.clone().unwrap_or_default(),
    }
}

fn cut_error(e: CutError) -> ReplayError {
    match e {
        CutError::Unknown(id) => ReplayError::NoSuchCut(id),
        other => ReplayError::Unavailable(other.to_string()),
    }
}

#[async_trait::async_trait]
impl ReplayCatalog for Catalog {
    async fn spec(&self, tenant: &TenantId, ask: PlayAsk) -> Result<ReplaySpec, ReplayError> {
        let unavailable = |e: &dyn std::fmt::Display| ReplayError::Unavailable(e.to_string());
        let read = self.cuts.meta.read().await.map_err(|e| unavailable(&e))?;
        let incident = match ask.incident {
            None => None,
            Some(id) => {
                let row = rows::incident(&*read, Some(tenant), id).map_err(|e| unavailable(&e))?;
                Some(row.ok_or(ReplayError::NoSuchIncident(id))?)
            }
        };
        let sealed = incident.as_ref().and_then(|i| i.sealed_cut);
        let cut = match (ask.as_of, sealed) {
            (AskedAsOf::Corrected, _) => None,
            (AskedAsOf::Cut(id), _) | (AskedAsOf::Default, Some(id)) => {
                Some(self.cuts.get(id).await.map_err(cut_error)?)
            }
            (AskedAsOf::Default, None) => Some(self.cuts.take("replay on request", false).await.map_err(cut_error)?),
        };
        let known = cut.as_ref().map_or_else(|| self.cuts.writer.now(), |c| c.made_at);
        let default = incident
            .as_ref()
            .map(|i| default_window(i.opened_at, i.closed_at, known));
        let window = match (ask.from, ask.to, default) {
            (Some(from), Some(to), _) => (from, to),
            (from, to, Some((start, end))) => (from.unwrap_or(start), to.unwrap_or(end)),
            (Some(from), None, None) => (from, known),
            (None, _, None) => {
                return Err(ReplayError::Ask(
                    "name an incident, or the window with --from and --to".to_owned(),
                ));
            }
        };
        // What happens after the cut is unknown to it: the window ends there.
        let window = (
            window.0,
            if cut.is_some() {
                window.1.min(known.floor_ms())
            } else {
                window.1
            },
        );
        let resources = incident.iter().flat_map(|i| i.resources.iter().copied()).collect();
        let seen = cut.as_ref().map_or(AsOf::Corrected, as_of);
        let step = ask.step.unwrap_or(STEP_DEFAULT);
        Ok(ReplaySpec::new(
            tenant.clone(),
            ask.incident,
            resources,
            window,
            step,
            ask.domains,
            seen,
        )?)
    }
}
