//! Health, metrics, documentation, and what is not there.

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
};
use serde_json::json;

use super::{AppState, Phase, error::ApiError};

/// `GET /livez`: the process is up.
pub(super) async fn livez() -> Json<serde_json::Value> {
    Json(json!({ "status": "live" }))
}

/// `GET /readyz`: 200 when requests may be sent, 503 while loading and once draining.
pub(super) async fn readyz(State(app): AppState) -> Response {
    let (status, text) = match app.phase() {
        Phase::Ready => return Json(json!({ "status": "ready" })).into_response(),
        Phase::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    (status, [(header::RETRY_AFTER, "1")], Json(json!({ "status": text }))).into_response()
}

/// `GET /metrics`, in Prometheus's text format.
pub(super) async fn metrics(State(app): AppState) -> Result<Response, ApiError> {
    for model in app.registry.models() {
        model.batcher().observe_queue();
        model.observe_lag();
    }
    let text = app.metrics.render().map_err(|error| ApiError::Internal(error.to_string()))?;
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

/// `GET /docs`: a page to try the API.
pub(super) async fn docs() -> Html<&'static str> {
    Html(include_str!("docs.html"))
}

/// `GET /`: to the page.
pub(super) async fn root() -> Redirect {
    Redirect::temporary("/docs")
}

/// Whatever has no route.
pub(super) async fn not_found() -> ApiError {
    ApiError::NotFound
}

/// A route, and not its method.
pub(super) async fn method_not_allowed() -> ApiError {
    ApiError::MethodNotAllowed
}
