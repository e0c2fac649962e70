//! Which heads a request asks for, and the answer that it gets.

use std::{sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use super::error::ApiError;
use crate::{
    batcher::{HeadRequest, Output, Outputs, Timing},
    dataset::Shot,
    heads::{HeadKind, Prediction, SettingsPatch},
    registry::{Model, ModelState, PublishedHead, RegistryError, parse_head_reference},
};

const DEFAULT_TOP_K: usize = 5;

/// The query of `classify`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeadChoice {
    /// `NAME` or `NAME@VERSION`, comma-separated; the default head without it.
    pub(crate) head: Option<String>,
    /// Classes to answer, from 1; 5 without it.
    pub(crate) top_k: Option<usize>,
    /// Tau of this request, for the tau-adjustable heads among those asked for.
    pub(crate) tau: Option<f64>,
}

/// A head that was asked for, with the tau that it is asked with.
#[derive(Clone, Debug)]
pub(crate) struct ChosenHead {
    published: Arc<PublishedHead>,
    tau: Option<f64>,
}

/// The heads that `choice` names in the present state of `model`, and what to ask the batcher for.
pub(crate) fn choose_heads(
    state: &ModelState,
    choice: &HeadChoice,
) -> Result<(Vec<ChosenHead>, Vec<HeadRequest>), ApiError> {
    let top_k = choice.top_k.unwrap_or(DEFAULT_TOP_K);
    if top_k == 0 {
        return Err(ApiError::Query("`top_k` must be at least 1".to_owned()));
    }
    let published: Vec<&Arc<PublishedHead>> = match &choice.head {
        None => vec![state.default_head()?],
        Some(references) => references
            .split(',')
            .map(|reference| match parse_head_reference(reference) {
                None if reference.is_empty() => Err(ApiError::Query("`head` has an empty name".to_owned())),
                None => Err(RegistryError::HeadNotFound { name: reference.to_owned() }.into()),
                Some((name, version)) => Ok(state.head(name, version)?),
            })
            .collect::<Result<_, _>>()?,
    };
    for (index, head) in published.iter().enumerate() {
        if published[..index].iter().any(|earlier| earlier.id == head.id) {
            let name = &head.id.head;
            return Err(ApiError::Query(format!("`head` names `{name}` version {} twice", head.id.version)));
        }
    }
    if choice.tau.is_some() && !published.iter().any(|head| head.head.kind() == HeadKind::TauNorm) {
        return Err(ApiError::Query("`tau` applies to none of the heads asked for".to_owned()));
    }
    let choose = |head: &&Arc<PublishedHead>| {
        let (mut tau, mut scoring) = (head.settings.tau, Arc::clone(&head.scoring));
        if let (Some(wanted), HeadKind::TauNorm) = (choice.tau, head.head.kind()) {
            let patch = SettingsPatch { tau: Some(wanted), ..SettingsPatch::default() };
            let settings =
                head.settings.with(patch, HeadKind::TauNorm).map_err(|error| ApiError::Query(error.to_string()))?;
            (tau, scoring) = (settings.tau, Arc::new(head.head.scoring(&settings)));
        }
        let request = HeadRequest { scorers: Arc::clone(&head.scorers), scoring, top_k };
        Ok((ChosenHead { published: Arc::clone(head), tau }, request))
    };
    let chosen: Vec<(ChosenHead, HeadRequest)> = published.iter().map(choose).collect::<Result<_, ApiError>>()?;
    Ok(chosen.into_iter().unzip())
}

/// The answer of `classify`.
#[derive(Debug, Serialize)]
pub(crate) struct ClassifyResponse<'a> {
    model: &'a str,
    pub(crate) images: Vec<ImageResults<'a>>,
    timing_ms: TimingMs,
}

/// The answers for one image, a head each.
#[derive(Debug, Serialize)]
pub(crate) struct ImageResults<'a> {
    pub(crate) results: Vec<HeadResult<'a>>,
}

/// The answer of one head for one image.
#[derive(Debug, Serialize)]
pub(crate) struct HeadResult<'a> {
    pub(crate) head: &'a str,
    version: u32,
    kind: HeadKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tau: Option<f64>,
    pub(crate) predictions: Vec<LabelledPrediction<'a>>,
}

/// One class of an answer.
#[derive(Debug, Serialize)]
pub(crate) struct LabelledPrediction<'a> {
    class: usize,
    pub(crate) label: &'a str,
    pub(crate) probability: f64,
    logit: f32,
    pub(crate) shot: Shot,
}

/// Milliseconds, to the microsecond.
#[derive(Debug, Serialize)]
pub(super) struct TimingMs {
    preprocess: f64,
    queue: f64,
    backbone: f64,
    head: f64,
    total: f64,
}

impl TimingMs {
    pub(super) fn new(timing: Timing, start: Instant) -> Self {
        let ms = |duration: std::time::Duration| duration.as_micros() as f64 / 1e3;
        Self {
            preprocess: ms(timing.preprocess),
            queue: ms(timing.queue),
            backbone: ms(timing.backbone),
            head: ms(timing.head),
            total: ms(start.elapsed()),
        }
    }
}

impl<'a> ClassifyResponse<'a> {
    /// Puts the answer together, and counts the predictions.
    pub(crate) fn new(model: &'a Model, heads: &'a [ChosenHead], outputs: Outputs, start: Instant) -> Self {
        let timing_ms = TimingMs::new(outputs.timing, start);
        let shot_of = |class: usize| model.shots().get(class).copied().unwrap_or(Shot::Unknown);
        let labelled = |prediction: Prediction| LabelledPrediction {
            class: prediction.class,
            label: model.labels().get(prediction.class).map_or("", String::as_str),
            probability: prediction.probability,
            logit: prediction.logit as f32,
            shot: shot_of(prediction.class),
        };
        let image = |output: Output| {
            let by_head = match output {
                Output::Predictions(by_head) => by_head,
                Output::Features(_) => Vec::new(),
            };
            let result = |(head, predictions): (&'a ChosenHead, Vec<Prediction>)| {
                if let Some(best) = predictions.first() {
                    head.published.metrics.predicted(shot_of(best.class), best.probability);
                }
                HeadResult {
                    head: &head.published.id.head,
                    version: head.published.id.version,
                    kind: head.published.head.kind(),
                    tau: head.tau,
                    predictions: predictions.into_iter().map(labelled).collect(),
                }
            };
            ImageResults { results: heads.iter().zip(by_head).map(result).collect() }
        };
        Self { model: model.name(), images: outputs.rows.into_iter().map(image).collect(), timing_ms }
    }
}
