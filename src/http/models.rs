//! `GET /v1/models`: what is loaded.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use serde::Serialize;

use super::{AppState, error::ApiError, generation::of_generation};
use crate::{
    heads::{HeadKind, Settings},
    preprocess::PreprocessConfig,
    registry::{HeadId, Measured, MeasuredAlone, Model, ModelState, PublishedHead, RegistryError},
};

#[derive(Serialize)]
pub(super) struct ModelList {
    default: String,
    models: Vec<ModelView>,
}

#[derive(Serialize)]
pub(super) struct ModelView {
    name: String,
    classes: usize,
    feature_dim: usize,
    default_head: String,
    default_version: u32,
    preprocess: PreprocessConfig,
    provider: String,
    sessions: usize,
    threads: usize,
    lone_threads: usize,
    max_batch_size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    tuning: Option<Vec<Measured>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tuning_alone: Option<Vec<MeasuredAlone>>,
    queue_capacity: usize,
    generation: u64,
    heads: Vec<HeadSummary>,
}

#[derive(Serialize)]
struct HeadSummary {
    head: String,
    version: u32,
    kind: HeadKind,
    default: bool,
    settings: Settings,
    versions: Vec<u32>,
}

impl ModelView {
    fn of(model: &Model) -> Self {
        let state = model.state();
        let summary = |(name, versions): (&str, &[Arc<PublishedHead>])| {
            let latest = versions.last()?;
            Some(HeadSummary {
                head: name.to_owned(),
                version: latest.id.version,
                kind: latest.head.kind(),
                default: latest.id == state.default,
                settings: latest.settings,
                versions: versions.iter().map(|head| head.id.version).collect(),
            })
        };
        Self {
            name: model.name().to_owned(),
            classes: model.labels().len(),
            feature_dim: model.feature_dim(),
            default_head: state.default.head.clone(),
            default_version: state.default.version,
            preprocess: model.batcher().preprocessor().config().clone(),
            provider: model.provider().to_string(),
            sessions: model.batcher().n_workers(),
            threads: model.threads(),
            lone_threads: model.lone_threads(),
            max_batch_size: model.batcher().limits().max_batch_size,
            tuning: model.tuning().map(|tuning| tuning.measured.clone()),
            tuning_alone: model.tuning().map(|tuning| tuning.measured_alone.clone()),
            queue_capacity: model.batcher().limits().queue_capacity,
            generation: state.generation,
            heads: state.series().filter_map(summary).collect(),
        }
    }
}

/// `GET /v1/models`
pub(super) async fn list(State(app): AppState) -> Result<Json<ModelList>, ApiError> {
    let default = app.registry.model(None)?.name().to_owned();
    Ok(Json(ModelList { default, models: app.registry.models().map(|model| ModelView::of(model)).collect() }))
}

/// `GET /v1/models/{model}`
pub(super) async fn show(State(app): AppState, Path(name): Path<String>) -> Result<Response, ApiError> {
    let view = ModelView::of(app.registry.model(Some(&name))?);
    Ok(of_generation(view.generation, Json(view)))
}

/// The head of an admin call's answer: the version that the name resolves to, and all that there are.
#[derive(Serialize)]
pub(super) struct HeadView {
    head: String,
    version: u32,
    kind: HeadKind,
    default: bool,
    settings: Settings,
    versions: Vec<VersionView>,
}

#[derive(Serialize)]
struct VersionView {
    version: u32,
    kind: HeadKind,
    default: bool,
    settings: Settings,
    train_prior: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<HeadId>,
    provenance: std::collections::BTreeMap<String, String>,
}

impl HeadView {
    /// The view of one version in a state.
    pub(super) fn of(state: &ModelState, name: &str, version: Option<u32>) -> Result<Self, RegistryError> {
        use crate::registry::HeadSource;
        let shown = state.head(name, version)?;
        let view = |head: &Arc<PublishedHead>| {
            let (digest, base) = match &head.source {
                HeadSource::File(digest) => (Some(format!("sha256:{digest}")), None),
                HeadSource::Derived(spec) => (None, Some(spec.base.clone())),
            };
            VersionView {
                version: head.id.version,
                kind: head.head.kind(),
                default: head.id == state.default,
                settings: head.settings,
                train_prior: head.head.train_prior().as_str(),
                digest,
                base,
                provenance: head.head.provenance().clone(),
            }
        };
        let versions = state.series().find(|(head, _)| *head == name).map_or(&[][..], |(_, versions)| versions);
        Ok(Self {
            head: name.to_owned(),
            version: shown.id.version,
            kind: shown.head.kind(),
            default: shown.id == state.default,
            settings: shown.settings,
            versions: versions.iter().map(view).collect(),
        })
    }
}
