//! `/admin/v1/models/{model}/fits`: heads that are fitted in the background.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};
use tokio::sync::watch;

use super::{
    AppState, Caller,
    admin::json_body,
    aside::blocking,
    error::ApiError,
    generation::{Conditional, tagged},
    layers::Arrived,
};
use crate::{
    access::Role,
    heads::HeadKind,
    jobs::{
        FitJob, FitProgress, FitRecord, FitRequest, FitState, FitTiming, JobError, PublishPolicy, ReportSummary,
        ValidationChoice,
    },
    json::{self, name, present},
    registry::{Change, Changed, HeadId, Model},
};

/// A fit in an answer.
#[derive(Serialize)]
struct FitView<'a, R> {
    id: &'a str,
    state: FitState,
    method: HeadKind,
    publish_as: &'a str,
    base: Option<&'a HeadId>,
    feature_set: &'a str,
    validation: Option<&'a ValidationChoice>,
    publish: PublishPolicy,
    params: &'a Map<String, Value>,
    progress: Option<FitProgress>,
    report: Option<R>,
    warnings: &'a [String],
    error: Option<&'a str>,
    digest: Option<String>,
    head: Option<&'a HeadId>,
    publish_reason: Option<&'a str>,
    timing: FitTiming,
}

impl<'a, R> FitView<'a, R> {
    fn of(record: &'a FitRecord, progress: Option<FitProgress>, report: Option<R>) -> Self {
        Self {
            id: &record.id,
            state: record.state,
            method: record.method,
            publish_as: &record.publish_as,
            base: record.base.as_ref(),
            feature_set: &record.feature_set,
            validation: record.validation.as_ref(),
            publish: record.publish,
            params: &record.params,
            progress: record.progress.or(progress),
            report,
            warnings: &record.warnings,
            error: record.error.as_deref(),
            digest: record.digest.as_ref().map(|digest| format!("sha256:{digest}")),
            head: record.head.as_ref(),
            publish_reason: record.publish_reason.as_deref(),
            timing: record.timing,
        }
    }
}

/// The whole fit, in a form that does not borrow from it.
fn whole(job: &FitJob) -> Result<Json<Box<RawValue>>, ApiError> {
    // In this order: a progress that is newer than its record belongs to it all the same.
    let record = job.record();
    let view = FitView::of(&record, job.progress(), record.report.as_deref());
    serde_json::value::to_raw_value(&view).map(Json).map_err(|error| ApiError::Internal(error.to_string()))
}

/// `GET /admin/v1/models/{model}/fits`
pub(super) async fn list(State(app): AppState, Path(model): Path<String>) -> Result<Json<Value>, ApiError> {
    let jobs = app.jobs.list(app.registry.model(Some(&model))?);
    let brief = |job: &Arc<FitJob>| {
        let record = job.record();
        let view: FitView<'_, ReportSummary> = FitView::of(&record, job.progress(), record.summary);
        serde_json::to_value(view).map_err(|error| ApiError::Internal(error.to_string()))
    };
    Ok(Json(json!({ "fits": jobs.iter().map(brief).collect::<Result<Vec<_>, _>>()? })))
}

/// `GET /admin/v1/models/{model}/fits/{id}`
pub(super) async fn show(
    State(app): AppState,
    Path((model, id)): Path<(String, String)>,
) -> Result<Json<Box<RawValue>>, ApiError> {
    whole(&*app.jobs.get(app.registry.model(Some(&model))?, &id)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FitBody {
    #[serde(deserialize_with = "name")]
    method: HeadKind,
    feature_set: String,
    head: String,
    #[serde(default, deserialize_with = "present")]
    base: Option<String>,
    #[serde(default, deserialize_with = "present")]
    validation: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "name")]
    publish: PublishPolicy,
    #[serde(default)]
    params: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ValidationBody {
    #[serde(default, deserialize_with = "present")]
    feature_set: Option<String>,
    #[serde(default, deserialize_with = "present")]
    holdout: Option<f64>,
}

impl ValidationBody {
    fn choice(body: &Map<String, Value>) -> Result<ValidationChoice, ApiError> {
        let invalid = |problem| ApiError::Invalid(format!("`validation`: {problem}"));
        let Self { feature_set, holdout } = json::fields(body).map_err(invalid)?;
        match (feature_set, holdout) {
            (Some(id), None) => Ok(ValidationChoice::FeatureSet(id)),
            (None, Some(share)) => Ok(ValidationChoice::Holdout(share)),
            _ => Err(ApiError::Invalid("`validation` takes one of `feature_set` and `holdout`".to_owned())),
        }
    }
}

/// `POST /admin/v1/models/{model}/fits`
pub(super) async fn submit(
    State(app): AppState,
    Extension(arrived): Extension<Arrived>,
    caller: Caller,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let FitBody { method, feature_set, head, base, validation, publish, params } =
        json_body(&app, arrived, &headers, body).await?;
    if publish != PublishPolicy::Never {
        caller.needs(Role::Admin)?;
    }
    let validation = validation.as_ref().map(ValidationBody::choice).transpose()?;
    let request = FitRequest { method, feature_set, head, base, validation, publish, params };
    let name = model.name().to_owned();
    let submit = move || {
        let record = app.jobs.submit(&model, &caller.author(), &request)?;
        let (id, method) = (record.id.clone(), record.method);
        let (feature_set, head) = (record.feature_set.clone(), record.publish_as.clone());
        model.record(&caller.author(), Change::FitCreated { id, method, feature_set, head });
        Ok::<_, JobError>(record)
    };
    let record = blocking(submit).await?;
    let location = format!("/admin/v1/models/{name}/fits/{}", record.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(json!({ "id": record.id }))).into_response())
}

/// `DELETE /admin/v1/models/{model}/fits/{id}`
pub(super) async fn cancel(
    State(app): AppState,
    Path((model, id)): Path<(String, String)>,
    caller: Caller,
) -> Result<Response, ApiError> {
    let model = Arc::clone(app.registry.model(Some(&model))?);
    let job = app.jobs.get(&model, &id)?;
    let cancelled = Arc::clone(&job);
    let cancel = move || {
        app.jobs.cancel(&cancelled)?;
        model.record(&caller.author(), Change::FitCancelled { id });
        Ok::<_, JobError>(())
    };
    blocking(cancel).await?;
    Ok((StatusCode::ACCEPTED, whole(&job)?).into_response())
}

/// `POST /admin/v1/models/{model}/fits/{id}/publish`
pub(super) async fn publish(
    State(app): AppState,
    Path((model, id)): Path<(String, String)>,
    Conditional(edit): Conditional,
) -> Result<Response, ApiError> {
    let model: &Arc<Model> = app.registry.model(Some(&model))?;
    let job = app.jobs.get(model, &id)?;
    let Changed { made, state } = blocking(move || job.publish(&edit)).await?;
    let location = format!("/admin/v1/models/{}/heads/{}", model.name(), made.head);
    Ok(tagged(state.generation, (StatusCode::CREATED, [(header::LOCATION, location)], Json(made))))
}

/// `GET /admin/v1/models/{model}/fits/{id}/events`
pub(super) async fn events(
    State(app): AppState,
    Path((model, id)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let job = app.jobs.get(app.registry.model(Some(&model))?, &id)?;
    Ok(Sse::new(story(&job)).keep_alive(KeepAlive::default()).into_response())
}

/// What a reader of events still has to hear.
struct Story {
    record: watch::Receiver<Arc<FitRecord>>,
    progress: watch::Receiver<Option<FitProgress>>,
    has_ended: bool,
}

/// The progress of a fit, then its end. Whoever reads slowly misses what was overtaken, and nobody waits for him.
fn story(job: &FitJob) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
    let (record, mut progress) = job.subscribe();
    // Where it is now comes first.
    progress.mark_changed();
    stream::unfold(Story { record, progress, has_ended: false }, |mut story| async move {
        if story.has_ended {
            return None;
        }
        loop {
            let end = end_of(&story.record.borrow_and_update());
            if let Some(end) = end {
                story.has_ended = true;
                return Some((Ok(event("end", &end)), story));
            }
            tokio::select! {
                changed = story.record.changed() => changed.ok()?,
                changed = story.progress.changed() => {
                    changed.ok()?;
                    let progress = *story.progress.borrow_and_update();
                    if let Some(progress) = progress {
                        return Some((Ok(event("progress", &json!(progress))), story));
                    }
                }
            }
        }
    })
}

/// What the last event says, if it is time for it.
fn end_of(record: &FitRecord) -> Option<Value> {
    let end = || json!({ "state": record.state, "error": record.error, "head": record.head });
    record.state.is_finished().then(end)
}

fn event(name: &str, data: &Value) -> Event {
    Event::default().event(name).data(data.to_string())
}
