//! What there is to say of a model directory.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::{SampleCounts, ShotCounts, head::HeadReport, shown};
use crate::{
    cli::{
        model::{DeviceOptions, ModelOptions},
        text::Facts,
    },
    heads::Digest,
    onnx::CudaOptions,
    preprocess::{Crop, Decode, ExifOrientation, PreprocessConfig, Resize},
    registry::ModelDirectory,
};

#[derive(Debug, Serialize)]
pub(super) struct ModelReport {
    name: String,
    path: String,
    classes: usize,
    feature_dim: usize,
    /// Height and width of what the backbone is given, if every image becomes equally large.
    image_size: Option<(usize, usize)>,
    preprocess: PreprocessConfig,
    /// How it runs on an NVIDIA device, if `[cuda]` says anything of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cuda: Option<String>,
    /// The execution provider that it ran on here.
    provider: String,
    backbone: BackboneReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    shots: Option<ShotCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<SampleCounts>,
    default_head: String,
    heads: Vec<HeadReport>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct BackboneReport {
    file: String,
    bytes: u64,
    /// SHA-256 of the file; weights that it keeps in other files are not in it.
    digest: String,
}

impl ModelReport {
    pub(super) fn of(path: &Path, device: &DeviceOptions) -> anyhow::Result<Self> {
        let directory = ModelDirectory::read(path).with_context(|| format!("model directory {}", shown(path)))?;
        let model = ModelOptions::of_directory(path.to_owned(), device.clone()).load(1)?;
        let file = std::fs::read(&directory.backbone).with_context(|| shown(&directory.backbone))?;
        let state = model.state();
        let train_counts = directory.train_counts.as_deref();
        let mut warnings = Vec::new();
        if train_counts.is_none() {
            warnings.push("no training counts: every class's shot is unknown".to_owned());
        }
        let preprocessor = model.batcher().preprocessor();
        Ok(Self {
            name: model.name().to_owned(),
            path: path.display().to_string(),
            classes: model.labels().len(),
            feature_dim: model.feature_dim(),
            image_size: preprocessor.output_size(),
            preprocess: preprocessor.config().clone(),
            cuda: (directory.cuda != CudaOptions::default()).then(|| directory.cuda.to_string()),
            provider: model.provider().to_string(),
            backbone: BackboneReport {
                file: directory.backbone.display().to_string(),
                bytes: file.len() as u64,
                digest: Digest::of(&file).to_hex(),
            },
            shots: train_counts.map(ShotCounts::of),
            samples: train_counts.map(SampleCounts::of),
            default_head: state.default.head.clone(),
            heads: state.versions().map(|head| HeadReport::of_published(head, model.labels(), train_counts)).collect(),
            warnings,
        })
    }

    /// Lines for people.
    pub(super) fn text(&self) -> String {
        let mut facts = Facts::default();
        facts.add("classes", self.classes.to_string());
        if let (Some(shots), Some(samples)) = (self.shots, self.samples) {
            facts.add("shots", shots.shown());
            facts.add("train samples", samples.shown());
        }
        facts.add("feature dim", self.feature_dim.to_string());
        if let Some((height, width)) = self.image_size {
            facts.add("image size", format!("{height} x {width}"));
        }
        facts.add("preprocessing", preprocess_shown(&self.preprocess));
        facts.add("backbone", format!("{}, {} bytes", self.backbone.file, self.backbone.bytes));
        facts.add("sha256", self.backbone.digest.clone());
        if let Some(cuda) = &self.cuda {
            facts.add("on a GPU", cuda.clone());
        }
        facts.add("runs on", self.provider.clone());
        for warning in &self.warnings {
            facts.add("warning", warning.clone());
        }
        let mut text =
            format!("{}: model `{}`\n{}", crate::cli::text::printable(&self.path), self.name, facts.lines(2));
        for head in &self.heads {
            let name = head.head.as_deref().unwrap_or_default();
            let default = if name == self.default_head { ", the default" } else { "" };
            text.push_str(&format!("\nhead `{name}`{default}\n{}", head.text()));
        }
        text
    }
}

/// The steps in the order that they are done in.
fn preprocess_shown(config: &PreprocessConfig) -> String {
    let mut steps = Vec::new();
    if config.decode == Decode::Scaled {
        steps.push("large JPEGs decoded smaller".to_owned());
    }
    if config.exif_orientation == ExifOrientation::Apply {
        steps.push("turned by the EXIF orientation".to_owned());
    }
    if let Some(share) = config.pre_crop {
        steps.push(format!("pre-crop {share}"));
    }
    let filter = serde_json::json!(config.interpolation);
    let filter = filter.as_str().unwrap_or_default();
    match config.resize {
        Some(Resize::ShorterSide(side)) => steps.push(format!("shorter side to {side} ({filter})")),
        Some(Resize::Exact { height, width }) => steps.push(format!("resize to {height} x {width} ({filter})")),
        None => {}
    }
    if let Some((height, width)) = config.crop.map(Crop::size) {
        steps.push(format!("crop {height} x {width}"));
    }
    steps.push(format!("mean {:?}", config.mean));
    steps.push(format!("std {:?}", config.std));
    steps.join(", ")
}
