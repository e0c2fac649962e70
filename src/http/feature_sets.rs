//! `/admin/v1/models/{model}/feature-sets`: uploads, and what became of them.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::{AppState, Caller, aside::blocking, body, error::ApiError, query::parse_query};
use crate::registry::{Author, Change, FeatureSetUpload, Kept, Model, RegistryError, StoredSet, is_valid_name};

/// What is collected before a thread is asked to write it: all the memory that an upload holds.
const BLOCK_BYTES: usize = 1 << 18;

#[derive(Serialize)]
pub(super) struct FeatureSetView {
    id: String,
    name: String,
    rows: usize,
    feature_dim: usize,
    classes: usize,
    digest: String,
    zero_rows: usize,
}

impl FeatureSetView {
    fn of(stored: &StoredSet) -> Self {
        let StoredSet { id, name, set, .. } = stored;
        Self {
            id: id.clone(),
            name: name.clone(),
            rows: set.num_rows(),
            feature_dim: set.feature_dim(),
            classes: set.num_classes(),
            digest: format!("sha256:{}", set.digest().to_hex()),
            zero_rows: set.num_zero_rows(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct FeatureSetList {
    feature_sets: Vec<FeatureSetView>,
}

/// `GET /admin/v1/models/{model}/feature-sets`
pub(super) async fn list(State(app): AppState, Path(model): Path<String>) -> Result<Json<FeatureSetList>, ApiError> {
    let sets = app.registry.model(Some(&model))?.feature_sets()?.list();
    Ok(Json(FeatureSetList { feature_sets: sets.iter().map(|stored| FeatureSetView::of(stored)).collect() }))
}

/// `GET /admin/v1/models/{model}/feature-sets/{id}`
pub(super) async fn show(
    State(app): AppState,
    Path((model, id)): Path<(String, String)>,
) -> Result<Json<FeatureSetView>, ApiError> {
    let stored = app.registry.model(Some(&model))?.feature_sets()?.get(&id);
    Ok(Json(FeatureSetView::of(&*stored.ok_or(RegistryError::FeatureSetNotFound { id })?)))
}

/// `DELETE /admin/v1/models/{model}/feature-sets/{id}`
pub(super) async fn delete(
    State(app): AppState,
    Path((model, id)): Path<(String, String)>,
    caller: Caller,
) -> Result<StatusCode, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let delete = move || {
        model.feature_sets()?.delete(&id)?;
        model.record(&caller.author(), Change::FeatureSetDeleted { id });
        Ok::<_, RegistryError>(())
    };
    blocking(delete).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UploadQuery {
    name: Option<String>,
}

/// `POST /admin/v1/models/{model}/feature-sets?name=N`
pub(super) async fn upload(
    State(app): AppState,
    Path(model): Path<String>,
    RawQuery(query): RawQuery,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let UploadQuery { name } = parse_query(query.as_deref())?;
    if let Some(name) = name.as_deref().filter(|name| !is_valid_name(name)) {
        return Err(ApiError::Query(format!("`name` is `{name}`, which is no name")));
    }
    match body::media_type(&headers).as_deref() {
        None | Some("application/octet-stream" | "application/zip" | "application/x-www-form-urlencoded") => {}
        Some(found) => {
            return Err(ApiError::UnsupportedMediaType {
                found: found.to_owned(),
                expected: "application/octet-stream or application/zip (a feature set)",
            });
        }
    }
    body::check_encoding(&headers)?;
    let mut received = Received::begin(Arc::clone(&model), body::declared_length(&headers)).await?;
    // However long it takes, as long as it goes on.
    let mut stream = body.into_data_stream();
    let mut block = BytesMut::new();
    loop {
        let next = tokio::time::timeout(app.max_request_time, stream.next()).await;
        let Some(chunk) = next.map_err(|_| ApiError::BodyTooSlow)? else { break };
        block.extend_from_slice(&chunk.map_err(|error| ApiError::BodyIncomplete(error.to_string()))?);
        received.check_limit(block.len())?;
        if block.len() >= BLOCK_BYTES {
            received.write(block.split().freeze()).await?;
        }
    }
    received.write(block.freeze()).await?;
    let (stored, is_new) = received.finish(Arc::clone(&model), caller.author(), name).await?;
    let view = Json(FeatureSetView::of(&stored));
    if !is_new {
        return Ok(view.into_response());
    }
    let location = format!("/admin/v1/models/{}/feature-sets/{}", model.name(), stored.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], view).into_response())
}

/// An upload that the async threads may hold, and do not work on.
struct Received {
    upload: Option<FeatureSetUpload>,
    n_bytes: u64,
    limit: u64,
}

impl Received {
    async fn begin(model: Arc<Model>, declared: Option<u64>) -> Result<Self, ApiError> {
        let limit = model.feature_sets()?.max_set_bytes();
        if declared.is_some_and(|length| length > limit) {
            return Err(too_large(limit));
        }
        let begin = move || {
            let upload = model.feature_sets()?.begin_upload()?;
            upload.announce(declared.unwrap_or(0))?;
            Ok::<_, RegistryError>(upload)
        };
        Ok(Self { upload: Some(blocking(begin).await?), n_bytes: 0, limit })
    }

    /// Whether `n_more` bytes still fit.
    fn check_limit(&self, n_more: usize) -> Result<(), ApiError> {
        let n_bytes = self.n_bytes + n_more as u64;
        if n_bytes > self.limit { Err(too_large(self.limit)) } else { Ok(()) }
    }

    async fn write(&mut self, block: Bytes) -> Result<(), ApiError> {
        self.n_bytes += block.len() as u64;
        let mut upload = self.take()?;
        let write = move || {
            upload.write(&block)?;
            Ok::<_, RegistryError>(upload)
        };
        self.upload = Some(blocking(write).await?);
        Ok(())
    }

    /// From here on it runs to its end even if the caller hangs up.
    async fn finish(
        mut self,
        model: Arc<Model>,
        author: Author,
        name: Option<String>,
    ) -> Result<(Arc<StoredSet>, bool), ApiError> {
        let upload = self.take()?;
        let finish = move || {
            let (stored, kept) = upload.finish(name.as_deref())?;
            if kept != Kept::Known {
                let (id, name, digest) = (stored.id.clone(), stored.name.clone(), stored.set.digest().to_hex());
                model.record(&author, Change::FeatureSetUploaded { id, name, digest });
            }
            Ok::<_, RegistryError>((stored, kept == Kept::New))
        };
        blocking(finish).await
    }

    fn take(&mut self) -> Result<FeatureSetUpload, ApiError> {
        self.upload.take().ok_or_else(|| ApiError::Internal("the upload has failed before".to_owned()))
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            // Its file is removed on a thread that may wait for the disk; it does not matter when.
            drop(tokio::task::spawn_blocking(move || drop(upload)));
        }
    }
}

fn too_large(limit: u64) -> ApiError {
    ApiError::BodyTooLarge { limit: usize::try_from(limit).unwrap_or(usize::MAX) }
}
