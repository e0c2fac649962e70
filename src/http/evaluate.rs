//! `POST /admin/v1/models/{model}/heads/{head}/evaluate`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::HeaderMap,
};
use serde::Deserialize;

use super::{
    AppState,
    admin::{json_body, reference},
    aside::blocking,
    error::ApiError,
    layers::Arrived,
};
use crate::{jobs::HeadEvaluation, json::present};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluateBody {
    feature_set: String,
    #[serde(default, deserialize_with = "present")]
    tau: Option<Vec<f64>>,
}

/// Tells the evaluation that nobody waits for it any more.
struct HungUp(Arc<AtomicBool>);

impl Drop for HungUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// `POST /admin/v1/models/{model}/heads/{head}/evaluate`
pub(super) async fn evaluate(
    State(app): AppState,
    Extension(arrived): Extension<Arrived>,
    Path((model, head)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<HeadEvaluation>, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let (name, version) = reference(&head)?;
    model.state().head(name, version)?;
    let EvaluateBody { feature_set, tau } = json_body(&app, arrived, &headers, body).await?;
    let name = name.to_owned();
    let hung_up = HungUp(Arc::default());
    let is_unwanted = Arc::clone(&hung_up.0);
    let work = move || app.jobs.evaluate(&model, (&name, version), &feature_set, tau.as_deref(), &is_unwanted);
    let answer = blocking(work).await;
    drop(hung_up);
    Ok(Json(answer?))
}
