//! `/admin/v1`: heads and which of them is the default. Every change is the registry's; here it is only spelt out.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{
    App, AppState,
    body::{self, present},
    classify::{deadline, parse_query},
    error::ApiError,
    layers::Arrived,
    models::HeadView,
};
use crate::{
    heads::{BiasMode, HeadKind, SettingsPatch},
    registry::{HeadId, Model, RegistryError, is_valid_name, parse_head_reference},
};

#[derive(Serialize)]
pub(super) struct HeadList {
    model: String,
    default: HeadId,
    heads: Vec<HeadView>,
}

/// `GET /admin/v1/models/{model}/heads`
pub(super) async fn list_heads(State(app): AppState, Path(model): Path<String>) -> Result<Json<HeadList>, ApiError> {
    let model = app.registry.model(Some(&model))?;
    let state = model.state();
    let heads = state.series().map(|(name, _)| HeadView::of(model, name, None)).collect::<Result<_, _>>()?;
    Ok(Json(HeadList { model: model.name().to_owned(), default: state.default.clone(), heads }))
}

/// `GET /admin/v1/models/{model}/heads/{head}`
pub(super) async fn get_head(
    State(app): AppState,
    Path((model, head)): Path<(String, String)>,
) -> Result<Json<HeadView>, ApiError> {
    let (name, version) = reference(&head)?;
    Ok(Json(HeadView::of(app.registry.model(Some(&model))?, name, version)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsBody {
    #[serde(default, deserialize_with = "present")]
    tau: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    bias: Option<BiasMode>,
    #[serde(default, deserialize_with = "present")]
    temperature: Option<f64>,
}

/// `PATCH /admin/v1/models/{model}/heads/{head}`
pub(super) async fn patch_head(
    State(app): AppState,
    Extension(arrived): Extension<Arrived>,
    Path((model, head)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<HeadView>, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let (name, version) = reference(&head)?;
    model.state().head(name, version)?;
    let SettingsBody { tau, bias, temperature } = json_body(&app, arrived, &headers, body).await?;
    let name = name.to_owned();
    let view = blocking(move || {
        model.patch(&name, version, SettingsPatch { tau, bias, temperature })?;
        HeadView::of(&model, &name, version)
    });
    Ok(Json(view.await?))
}

/// What a PUT asks the registry for: the version that came of it.
type Publish = Box<dyn FnOnce(&Model, &str) -> Result<u32, RegistryError> + Send>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DerivedBody {
    kind: HeadKind,
    base: String,
    #[serde(default, deserialize_with = "present")]
    tau: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    bias: Option<BiasMode>,
    #[serde(default, deserialize_with = "present")]
    temperature: Option<f64>,
}

/// `PUT /admin/v1/models/{model}/heads/{head}`: a head file, or JSON for a head derived from another.
pub(super) async fn put_head(
    State(app): AppState,
    Extension(arrived): Extension<Arrived>,
    Path((model, head)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    if !is_valid_name(&head) {
        return Err(ApiError::NameInPath(head));
    }
    let location = format!("/admin/v1/models/{}/heads/{head}", model.name());
    let publish: Publish = match body::media_type(&headers).as_deref() {
        Some("application/json") => {
            let DerivedBody { kind, base, tau, bias, temperature } = json_body(&app, arrived, &headers, body).await?;
            let Some((base_name, version)) = parse_head_reference(&base) else {
                return Err(ApiError::Invalid(format!("`base` is `{base}`, which is no name of a head")));
            };
            let base_name = base_name.to_owned();
            let patch = SettingsPatch { tau, bias, temperature };
            Box::new(move |model, name| Ok(model.publish_derived(name, kind, (&base_name, version), patch)?.id.version))
        }
        None | Some("application/octet-stream") => {
            let deadline = deadline(&app, &headers, arrived.0)?;
            let file = body::read(&headers, body, app.max_body_bytes, deadline).await?;
            Box::new(move |model, name| Ok(model.publish_file(name, &file)?.id.version))
        }
        Some(found) => {
            return Err(ApiError::UnsupportedMediaType {
                found: found.to_owned(),
                expected: "application/octet-stream (a head file) or application/json (a derived head)",
            });
        }
    };
    let view = blocking(move || {
        let version = publish(&model, &head)?;
        HeadView::of(&model, &head, Some(version))
    });
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(view.await?)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteQuery {
    version: Option<u32>,
}

/// `DELETE /admin/v1/models/{model}/heads/{head}[?version=V]`
pub(super) async fn delete_head(
    State(app): AppState,
    Path((model, head)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<StatusCode, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let (name, in_path) = reference(&head)?;
    let DeleteQuery { version } = parse_query(query.as_deref())?;
    if version.is_some() && in_path.is_some() && version != in_path {
        return Err(ApiError::Query("the path names another version".to_owned()));
    }
    let name = name.to_owned();
    blocking(move || model.delete(&name, version.or(in_path))).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DefaultBody {
    head: String,
    #[serde(default, deserialize_with = "present")]
    version: Option<u32>,
}

/// `PUT /admin/v1/models/{model}/default-head`
pub(super) async fn put_default_head(
    State(app): AppState,
    Extension(arrived): Extension<Arrived>,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<HeadView>, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let DefaultBody { head, version } = json_body(&app, arrived, &headers, body).await?;
    if !is_valid_name(&head) {
        return Err(ApiError::Invalid(format!("`head` is `{head}`, which is no name of a head")));
    }
    let view = blocking(move || {
        let activated = model.activate(&head, version)?;
        HeadView::of(&model, &head, Some(activated.id.version))
    });
    Ok(Json(view.await?))
}

/// Reads a JSON body, which must say that it is one.
pub(super) async fn json_body<T: serde::de::DeserializeOwned>(
    app: &App,
    Arrived(start): Arrived,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    match body::media_type(headers) {
        None => {}
        Some(media_type) if media_type == "application/json" || media_type.ends_with("+json") => {}
        Some(found) => return Err(ApiError::UnsupportedMediaType { found, expected: "application/json" }),
    }
    let deadline = deadline(app, headers, start)?;
    body::json(&body::read(headers, body, app.max_body_bytes, deadline).await?)
}

pub(super) fn reference(head: &str) -> Result<(&str, Option<u32>), ApiError> {
    parse_head_reference(head).ok_or_else(|| ApiError::NameInPath(head.to_owned()))
}

/// Runs what writes to the disk or builds sessions off the async threads. It runs to its end even if the caller hangs up.
pub(super) async fn blocking<T: Send + 'static, E: Into<ApiError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError> {
    // What is logged there is this request's, and says who asked.
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(done) => done.map_err(Into::into),
        Err(error) => Err(ApiError::Internal(error.to_string())),
    }
}
