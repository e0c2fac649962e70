//! `/admin/v1`: heads and which of them is the default. Every change is the registry's; here it is only spelt out.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use serde::{Deserialize, Serialize};

use super::{
    App, AppState,
    aside::{blocking, computed},
    body,
    classify::deadline,
    error::ApiError,
    generation::{Conditional, tagged},
    layers::Arrived,
    models::HeadView,
    query::parse_query,
};
use crate::{
    heads::{BiasMode, HeadKind, SettingsPatch},
    json::{name, present, present_name},
    registry::{Changed, Edit, HeadId, Model, PublishedHead, RegistryError, is_valid_name, parse_head_reference},
};

/// Of JSON below `/admin`. It is read as a tree of values, which takes a hundred times what its text does.
const MAX_JSON_BYTES: usize = 1 << 20;

#[derive(Serialize)]
pub(super) struct HeadList {
    model: String,
    default: HeadId,
    heads: Vec<HeadView>,
}

/// `GET /admin/v1/models/{model}/heads`
pub(super) async fn list_heads(State(app): AppState, Path(model): Path<String>) -> Result<Response, ApiError> {
    let model = app.registry.model(Some(&model))?;
    let state = model.state();
    let heads = state.series().map(|(name, _)| HeadView::of(&state, name, None)).collect::<Result<_, _>>()?;
    let list = HeadList { model: model.name().to_owned(), default: state.default.clone(), heads };
    Ok(tagged(state.generation, Json(list)))
}

/// `GET /admin/v1/models/{model}/heads/{head}`
pub(super) async fn get_head(
    State(app): AppState,
    Path((model, head)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let (name, version) = reference(&head)?;
    let state = app.registry.model(Some(&model))?.state();
    let view = HeadView::of(&state, name, version)?;
    Ok(tagged(state.generation, Json(view)))
}

/// A head as a change left it: in the state of that change, whatever has come after.
fn changed_head(
    Changed { made, state }: Changed<Arc<PublishedHead>>,
    version: Option<u32>,
) -> Result<(u64, Json<HeadView>), RegistryError> {
    Ok((state.generation, Json(HeadView::of(&state, &made.id.head, version)?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsBody {
    #[serde(default, deserialize_with = "present")]
    tau: Option<f64>,
    #[serde(default, deserialize_with = "present_name")]
    bias: Option<BiasMode>,
    #[serde(default, deserialize_with = "present")]
    temperature: Option<f64>,
}

/// `PATCH /admin/v1/models/{model}/heads/{head}`
pub(super) async fn patch_head(
    State(app): AppState,
    Extension(arrived): Extension<Arrived>,
    Path((model, head)): Path<(String, String)>,
    Conditional(edit): Conditional,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let (name, version) = reference(&head)?;
    // Of a head that another server has published, this one may not know yet.
    if !model.is_shared() {
        model.state().head(name, version)?;
    }
    let SettingsBody { tau, bias, temperature } = json_body(&app, arrived, &headers, body).await?;
    let name = name.to_owned();
    let changed = blocking(move || {
        let patch = SettingsPatch { tau, bias, temperature };
        changed_head(model.patch(&edit, &name, version, patch)?, version)
    });
    let (generation, view) = changed.await?;
    Ok(tagged(generation, view))
}

/// What a PUT asks the registry for.
type Publish = Box<dyn FnOnce(&Model, &Edit, &str) -> Result<Changed<Arc<PublishedHead>>, RegistryError> + Send>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DerivedBody {
    #[serde(deserialize_with = "name")]
    kind: HeadKind,
    base: String,
    #[serde(default, deserialize_with = "present")]
    tau: Option<f64>,
    #[serde(default, deserialize_with = "present_name")]
    bias: Option<BiasMode>,
    #[serde(default, deserialize_with = "present")]
    temperature: Option<f64>,
}

/// `PUT /admin/v1/models/{model}/heads/{head}`: a head file, or JSON for a head derived from another.
pub(super) async fn put_head(
    State(app): AppState,
    Extension(arrived): Extension<Arrived>,
    Path((model, head)): Path<(String, String)>,
    Conditional(edit): Conditional,
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
            Box::new(move |model, edit, name| model.publish_derived(edit, name, kind, (&base_name, version), patch))
        }
        None | Some("application/octet-stream") => {
            let deadline = deadline(&app, &headers, arrived.0)?;
            let mut room = app.bodies.room();
            let file = body::read_in(Some(&mut room), &headers, body, app.max_head_bytes, deadline).await?;
            let file = Arc::new(room).hold(file);
            Box::new(move |model, edit, name| model.publish_file(edit, name, &file))
        }
        Some(found) => {
            return Err(ApiError::UnsupportedMediaType {
                found: found.to_owned(),
                expected: "application/octet-stream (a head file) or application/json (a derived head)",
            });
        }
    };
    let changed = blocking(move || {
        let published = publish(&model, &edit, &head)?;
        let version = published.made.id.version;
        changed_head(published, Some(version))
    });
    let (generation, view) = changed.await?;
    Ok(tagged(generation, (StatusCode::CREATED, [(header::LOCATION, location)], view)))
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
    Conditional(edit): Conditional,
) -> Result<Response, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let (name, in_path) = reference(&head)?;
    let DeleteQuery { version } = parse_query(query.as_deref())?;
    if version.is_some() && in_path.is_some() && version != in_path {
        return Err(ApiError::Query("the path names another version".to_owned()));
    }
    let name = name.to_owned();
    let deleted = blocking(move || model.delete(&edit, &name, version.or(in_path))).await?;
    Ok(tagged(deleted.state.generation, StatusCode::NO_CONTENT))
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
    Conditional(edit): Conditional,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let DefaultBody { head, version } = json_body(&app, arrived, &headers, body).await?;
    if !is_valid_name(&head) {
        return Err(ApiError::Invalid(format!("`head` is `{head}`, which is no name of a head")));
    }
    let changed = blocking(move || {
        let activated = model.activate(&edit, &head, version)?;
        let version = activated.made.id.version;
        changed_head(activated, Some(version))
    });
    let (generation, view) = changed.await?;
    Ok(tagged(generation, view))
}

/// `POST /admin/v1/models/{model}/rollback`: back to the default before the present one, and its settings of then.
pub(super) async fn roll_back(
    State(app): AppState,
    Path(model): Path<String>,
    Conditional(edit): Conditional,
) -> Result<Response, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let changed = blocking(move || {
        let restored = model.roll_back(&edit)?;
        let version = restored.made.id.version;
        changed_head(restored, Some(version))
    });
    let (generation, view) = changed.await?;
    Ok(tagged(generation, view))
}

/// Reads a JSON body, which must say that it is one.
pub(super) async fn json_body<T: serde::de::DeserializeOwned + Send + 'static>(
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
    let limit = app.max_body_bytes.min(MAX_JSON_BYTES);
    let body = body::read(headers, body, limit, deadline).await?;
    computed(body.len() > body::QUICKLY_PARSED, deadline, move || body::json(&body)).await
}

pub(super) fn reference(head: &str) -> Result<(&str, Option<u32>), ApiError> {
    parse_head_reference(head).ok_or_else(|| ApiError::NameInPath(head.to_owned()))
}
