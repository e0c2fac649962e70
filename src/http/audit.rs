//! `GET /admin/v1/audit`: who changed what when.

use std::sync::Arc;

use axum::{
    Json,
    extract::{RawQuery, State},
};
use serde::{Deserialize, Serialize};

use super::{AppState, aside::blocking, error::ApiError, query::parse_query};
use crate::registry::{AuditCursor, AuditEntry, Model, audit};

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuditQuery {
    model: Option<String>,
    limit: Option<usize>,
    before: Option<String>,
}

#[derive(Serialize)]
pub(super) struct AuditAnswer {
    entries: Vec<AuditEntry>,
    /// What `before` is to be for the next page.
    next: Option<String>,
}

/// `GET /admin/v1/audit[?model=M&limit=N&before=CURSOR]`
pub(super) async fn show(State(app): AppState, RawQuery(query): RawQuery) -> Result<Json<AuditAnswer>, ApiError> {
    let AuditQuery { model, limit, before } = parse_query(query.as_deref())?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::Query(format!("`limit` must be from 1 to {MAX_LIMIT}, and is {limit}")));
    }
    let malformed = || ApiError::Query("`before` must be the `next` of an earlier answer".to_owned());
    let before = before.map(|text| AuditCursor::parse(&text).ok_or_else(malformed)).transpose()?;
    let models: Vec<Arc<Model>> = match model {
        Some(name) => vec![Arc::clone(app.registry.model(Some(&name))?)],
        // While they are loaded there is none to ask.
        None => app.registry.model(None).map(|_| app.registry.models().cloned().collect())?,
    };
    let page = blocking(move || audit(&models, before.as_ref(), limit)).await?;
    Ok(Json(AuditAnswer { entries: page.entries, next: page.next.map(|cursor| cursor.to_string()) }))
}
