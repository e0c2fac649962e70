//! Generations in headers: which one an answer is of, which one a change is for, which one a request wants to see.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, RawPathParams, Request, State, rejection::RawPathParamsRejection},
    http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{App, AppState, Caller, classify::deadline, error::ApiError, layers::Arrived};
use crate::registry::{Edit, IfMatch, Model};

/// The generation of the state that an answer is of.
const GENERATION: HeaderName = HeaderName::from_static("x-equipoise-generation");
/// The generation that a request wants to see, or a later one.
const MIN_GENERATION: &str = "x-min-generation";

/// An answer of a state, said in a header.
pub(super) fn of_generation(generation: u64, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(GENERATION, HeaderValue::from(generation));
    response
}

/// An answer of a state, which a change can be made conditional on.
pub(super) fn tagged(generation: u64, answer: impl IntoResponse) -> Response {
    let mut response = of_generation(generation, answer);
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{generation}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Who asks for a change, and at which generation (`If-Match`).
pub(super) struct Conditional(pub(super) Edit);

impl<S: Sync> FromRequestParts<S> for Conditional {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        Ok(Self(Edit { author: caller.author(), if_match: if_match(&parts.headers)? }))
    }
}

/// Reads `If-Match`: `*`, or tags of generations. A tag that is none of ours matches nothing.
fn if_match(headers: &HeaderMap) -> Result<IfMatch, ApiError> {
    let malformed = || ApiError::Header {
        name: "if-match",
        problem: "it must be `*` or tags in quotes, as `ETag` has them".to_owned(),
    };
    let mut generations = None;
    for value in headers.get_all(header::IF_MATCH) {
        let value = value.to_str().map_err(|_| malformed())?;
        if value.trim() == "*" {
            return Ok(IfMatch::Any);
        }
        let generations = generations.get_or_insert_with(Vec::new);
        for tag in value.split(',').map(str::trim) {
            let (is_weak, tag) = tag.strip_prefix("W/").map_or((false, tag), |tag| (true, tag));
            let inner = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).ok_or_else(malformed)?;
            // Two states are never merely alike.
            generations.extend(inner.parse::<u64>().ok().filter(|_| !is_weak));
        }
    }
    Ok(generations.map_or(IfMatch::Any, IfMatch::Generations))
}

fn min_generation(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(MIN_GENERATION) else { return Ok(None) };
    let generation = value.to_str().ok().and_then(|text| text.parse().ok());
    generation.map(Some).ok_or_else(|| ApiError::Header {
        name: MIN_GENERATION,
        problem: "it must be a whole number, as `x-equipoise-generation` has it".to_owned(),
    })
}

/// Around every route of one model: waits for the generation that the request wants to see, and says in the answer which
/// one it is of.
pub(super) async fn of_one_model(State(app): AppState, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    // A route without a name is the default model's.
    let params = match RawPathParams::from_request_parts(&mut parts, &()).await {
        Ok(params) => Some(params),
        Err(RawPathParamsRejection::InvalidUtf8InPathParam(_)) => return ApiError::NotFound.into_response(),
        Err(_) => None,
    };
    let name = params.as_ref().and_then(|params| params.iter().find(|(key, _)| *key == "model"));
    let Ok(model) = app.registry.model(name.map(|(_, name)| name)).cloned() else {
        return next.run(Request::from_parts(parts, body)).await;
    };
    let mut response = match wait_for(&app, &model, &parts).await {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(error) => error.into_response(),
    };
    let generation = HeaderValue::from(model.generation());
    response.headers_mut().entry(GENERATION).or_insert(generation);
    response
}

async fn wait_for(app: &App, model: &Arc<Model>, request: &Parts) -> Result<(), ApiError> {
    let Some(wanted) = min_generation(&request.headers)? else { return Ok(()) };
    let start = request.extensions.get::<Arrived>().map_or_else(std::time::Instant::now, |arrived| arrived.0);
    match model.reaches(wanted, deadline(app, &request.headers, start)?).await {
        true => Ok(()),
        false => Err(ApiError::GenerationNotReached { wanted, generation: model.generation() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&'static str]) -> Option<IfMatch> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::IF_MATCH, HeaderValue::from_static(value));
        }
        if_match(&headers).ok()
    }

    #[test]
    fn if_match_is_a_star_or_tags() {
        let generations = |wanted: &[u64]| Some(IfMatch::Generations(wanted.to_vec()));
        assert_eq!(read(&[]), Some(IfMatch::Any));
        assert_eq!(read(&["*"]), Some(IfMatch::Any));
        assert_eq!(read(&["\"42\""]), generations(&[42]));
        assert_eq!(read(&["\"42\", \"43\"", "\"7\""]), generations(&[42, 43, 7]));
        assert_eq!(read(&["W/\"42\""]), generations(&[]));
        assert_eq!(read(&["\"an-other\""]), generations(&[]));
        for malformed in ["42", "\"42", "", "\"1\" \"2", "W/42"] {
            assert_eq!(read(&[malformed]), None, "{malformed}");
        }
    }
}
