//! `POST /v1/models/{model}/classify`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, RawQuery, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};

use super::{
    App, AppState,
    access::Allowance,
    aside::computed,
    body::{self, InputsForm},
    error::ApiError,
    generation::of_generation,
    layers::Arrived,
    predictions::{ClassifyResponse, HeadChoice, choose_heads},
    query::parse_query,
};
use crate::{batcher::Wanted, registry::Model};

/// Predictions that are written in a tenth of a millisecond or so.
const QUICKLY_WRITTEN: usize = 512;
/// Classes for which another tau is worked out in a tenth of a millisecond or so.
const QUICKLY_SCALED: usize = 4096;

/// `POST /v1/models/{model}/classify`
pub(super) async fn classify(
    State(app): AppState,
    Extension(arrived): Extension<Arrived>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    allowance: Allowance,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let model = app.registry.model(Some(&name))?;
    answer(&app, Arc::clone(model), Question { arrived, query, allowance, headers, body }).await
}

/// `POST /v1/classify`: the same on the default model.
pub(super) async fn classify_default(
    State(app): AppState,
    Extension(arrived): Extension<Arrived>,
    RawQuery(query): RawQuery,
    allowance: Allowance,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&app, Arc::clone(app.registry.model(None)?), Question { arrived, query, allowance, headers, body }).await
}

struct Question {
    arrived: Arrived,
    query: Option<String>,
    allowance: Allowance,
    headers: HeaderMap,
    body: Body,
}

async fn answer(app: &App, model: Arc<Model>, question: Question) -> Result<Response, ApiError> {
    let Question { arrived: Arrived(start), query, allowance, headers, body } = question;
    let choice: HeadChoice = parse_query(query.as_deref())?;
    let deadline = deadline(app, &headers, start)?;
    let state = model.state();
    let is_scaled = choice.tau.is_some() && model.labels().len() > QUICKLY_SCALED;
    let generation = state.generation;
    let (heads, requests) = computed(is_scaled, deadline, move || choose_heads(&state, &choice)).await?;
    let form = InputsForm::of(&headers)?;
    allowance.look()?;
    let mut room = app.bodies.room();
    let body = body::read_in(Some(&mut room), &headers, body, app.max_body_bytes, deadline).await?;
    let inputs = allowance.count(form.parse(&headers, (body, room), &model, deadline).await)?;
    let outputs = model.batcher().run(inputs, Wanted::Predictions(requests), deadline).await?;
    let is_long = outputs.n_predictions() > QUICKLY_WRITTEN;
    let write = move || Ok(Json(ClassifyResponse::new(&model, &heads, outputs, start)).into_response());
    Ok(of_generation(generation, computed(is_long, deadline, write).await?))
}

/// When a request must be answered: the server's limit, or what `x-request-timeout-ms` asks for if that is sooner.
pub(super) fn deadline(app: &App, headers: &HeaderMap, start: Instant) -> Result<Instant, ApiError> {
    const NAME: &str = "x-request-timeout-ms";
    let Some(value) = headers.get(NAME) else { return Ok(start + app.max_request_time) };
    let milliseconds = value.to_str().ok().and_then(|text| text.parse::<u64>().ok()).filter(|&value| value > 0);
    let milliseconds = milliseconds.ok_or_else(|| ApiError::Header {
        name: NAME,
        problem: "it must be a whole number of milliseconds above 0".to_owned(),
    })?;
    Ok(start + app.max_request_time.min(Duration::from_millis(milliseconds)))
}
