//! `POST /v1/models/{model}/features`.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    AppState,
    access::Allowance,
    aside::computed,
    body::{self, InputsForm},
    classify::deadline,
    error::ApiError,
    layers::Arrived,
};
use crate::{
    batcher::{Output, Wanted},
    dataset::npy,
};

const NPY: &str = "application/x-npy";
/// Numbers that are written as JSON in a tenth of a millisecond or so.
const QUICKLY_WRITTEN: usize = 4096;

#[derive(Serialize)]
struct FeaturesResponse {
    feature_dim: usize,
    features: Vec<Vec<f32>>,
}

/// `POST /v1/models/{model}/features`: what the backbone makes of each image, as JSON or as a NumPy array.
pub(super) async fn features(
    State(app): AppState,
    Extension(Arrived(start)): Extension<Arrived>,
    Path(name): Path<String>,
    allowance: Allowance,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let model = app.registry.model(Some(&name))?;
    let form = InputsForm::of(&headers)?;
    let deadline = deadline(&app, &headers, start)?;
    allowance.look()?;
    let mut room = app.bodies.room();
    let body = body::read_in(Some(&mut room), &headers, body, app.max_body_bytes, deadline).await?;
    let inputs = allowance.count(form.parse(&headers, (body, room), model, deadline).await)?;
    let outputs = model.batcher().run(inputs, Wanted::Features, deadline).await?;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let as_npy = accept.split(',').any(|range| range.split(';').next().is_some_and(|kind| kind.trim() == NPY));
    let feature_dim = model.feature_dim();
    let is_long = outputs.rows.len() * feature_dim > QUICKLY_WRITTEN;
    computed(is_long, deadline, move || {
        let rows = outputs.rows.into_iter().filter_map(|output| match output {
            Output::Features(row) => Some(row),
            Output::Predictions(_) => None,
        });
        if as_npy {
            let values: Vec<f32> = rows.flatten().collect();
            let file = npy::f32_file(&values, &[values.len() / feature_dim.max(1), feature_dim]);
            return Ok(([(header::CONTENT_TYPE, NPY)], file).into_response());
        }
        Ok(Json(FeaturesResponse { feature_dim, features: rows.collect() }).into_response())
    })
    .await
}
