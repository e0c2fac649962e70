//! Health, metrics, documentation, and what is not there.

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
};
use serde_json::json;

use super::{AppState, Phase, aside::blocking, error::ApiError};

/// `GET /livez`: the process is up.
pub(super) async fn livez() -> Json<serde_json::Value> {
    Json(json!({ "status": "live" }))
}

/// `GET /readyz`: 200 when requests may be sent, 503 while loading, while a model has no session that works, and once
/// draining.
pub(super) async fn readyz(State(app): AppState) -> Response {
    let text = match app.phase() {
        Phase::Ready if app.is_ready() => return Json(json!({ "status": "ready" })).into_response(),
        Phase::Ready => "failing",
        Phase::Loading => "loading",
        Phase::Draining => "draining",
    };
    let retry = [(header::RETRY_AFTER, "1")];
    (StatusCode::SERVICE_UNAVAILABLE, retry, Json(json!({ "status": text }))).into_response()
}

/// `GET /metrics`, in Prometheus's text format.
pub(super) async fn metrics(State(app): AppState) -> Result<Response, ApiError> {
    for model in app.registry.models() {
        model.batcher().observe_queue();
        model.observe_lag();
    }
    app.metrics.ready.set(i64::from(app.is_ready()));
    let render = move || app.metrics.render().map_err(|error| ApiError::Internal(error.to_string()));
    let text = blocking(render).await?;
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
