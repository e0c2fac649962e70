//! Queries: read strictly, and refused where nothing is read from one.

use axum::extract::{MatchedPath, Request};
use serde::de::DeserializeOwned;

use super::{
    access::{NEEDS, asked},
    error::ApiError,
};

/// The routes that read a query, and look through it themselves.
const READERS: [(&str, &str); 5] = [
    ("POST", "/v1/classify"),
    ("POST", "/v1/models/{model}/classify"),
    ("DELETE", "/admin/v1/models/{model}/heads/{head}"),
    ("POST", "/admin/v1/models/{model}/feature-sets"),
    ("GET", "/admin/v1/audit"),
];

/// Refuses a query that the API would not read: who sent one would take the answer for that to another question. Probes and
/// pages do not mind.
pub(super) fn refuse_unread(request: &Request) -> Result<(), ApiError> {
    let query = request.uri().query().unwrap_or_default();
    let Some(pair) = query.split('&').find(|pair| !pair.is_empty()) else { return Ok(()) };
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let method = asked(request.method());
    // A method that the route does not take is 405, with a query or without.
    let is_taken = || NEEDS.iter().any(|(of, path, _)| (*of, *path) == (method, route));
    let is_api = route.starts_with("/v1/") || route.starts_with("/admin/v1/");
    if READERS.contains(&(method, route)) || !is_api || !is_taken() {
        return Ok(());
    }
    let key = pair.split('=').next().unwrap_or_default();
    Err(ApiError::Query(format!("`{key}` is unknown: nothing is read from a query here")))
}

/// Parses a query; unknown, repeated and malformed values are refused, by name. No key may be required.
pub(super) fn parse_query<T: DeserializeOwned>(query: Option<&str>) -> Result<T, ApiError> {
    let query = query.unwrap_or_default();
    let error = match serde_urlencoded::from_str(query) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error.to_string(),
    };
    // The parser of a number knows no key: each pair is tried alone.
    let wrong = query.split('&').find(|pair| serde_urlencoded::from_str::<T>(pair).is_err());
    let key = wrong.and_then(|pair| pair.split('=').next()).filter(|key| !error.contains(&format!("`{key}`")));
    Err(ApiError::Query(key.map_or(error.clone(), |key| format!("`{key}`: {error}"))))
}
