//! `equipoise inspect`.

mod features;
mod head;
mod model;

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{ArgAction, Args, builder::FalseyValueParser};
use serde::Serialize;

use super::{labelled_files::shown, model::DeviceOptions};
use crate::{
    dataset::{FeatureSet, Shot},
    heads::HeadFile,
};
use features::FeaturesReport;
use head::HeadReport;
use model::ModelReport;

/// Below the flags in the help.
pub(super) const NOTES: &str = "\
    A model directory is loaded once, as `serve` would, and so needs ONNX Runtime; head files and feature files do \
    not. Of linear heads it says how the norms of the class weights vary and whether they follow the training \
    counts, which is what tau-normalisation lives on.";

/// What `equipoise inspect` takes.
#[derive(Args, Debug)]
pub(super) struct InspectOptions {
    /// Model directory, head file (.safetensors) or feature file (.npz or .safetensors)
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Print one JSON object, for programs
    #[arg(long, env = "EQUIPOISE_JSON", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    json: bool,

    /// Most bytes that the arrays of a feature file may unpack to; a larger file is refused by what it declares
    #[arg(long, env = "EQUIPOISE_MAX_FEATURE_SET_BYTES", value_name = "BYTES", default_value = "8589934592")]
    max_feature_set_bytes: u64,

    #[command(flatten)]
    device: DeviceOptions,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Report {
    Model(ModelReport),
    Head(HeadReport),
    Features(FeaturesReport),
}

/// How many classes are of each shot.
#[derive(Clone, Copy, Debug, Serialize)]
struct ShotCounts {
    many: usize,
    medium: usize,
    few: usize,
}

impl ShotCounts {
    fn of(train_counts: &[u64]) -> Self {
        let of = |shot| train_counts.iter().filter(|&&count| Shot::of(count) == shot).count();
        Self { many: of(Shot::Many), medium: of(Shot::Medium), few: of(Shot::Few) }
    }

    fn shown(self) -> String {
        format!("{} many, {} medium, {} few shot", self.many, self.medium, self.few)
    }
}

/// How many samples the classes have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct SampleCounts {
    total: u64,
    min: u64,
    median: f64,
    max: u64,
    classes_without: usize,
}

impl SampleCounts {
    fn of(counts: &[u64]) -> Self {
        let mut sorted = counts.to_vec();
        sorted.sort_unstable();
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let (low, high) = (at(sorted.len().saturating_sub(1) / 2), at(sorted.len() / 2));
        Self {
            total: sorted.iter().fold(0, |sum: u64, &count| sum.saturating_add(count)),
            min: at(0),
            median: (low as f64 + high as f64) / 2.0,
            max: at(sorted.len().saturating_sub(1)),
            classes_without: sorted.iter().take_while(|&&count| count == 0).count(),
        }
    }

    fn shown(self) -> String {
        format!("{}; {} to {} a class, median {}", self.total, self.min, self.max, self.median)
    }
}

pub(super) fn run(options: &InspectOptions) -> anyhow::Result<()> {
    let path = &options.path;
    let report = if path.is_dir() {
        Report::Model(ModelReport::of(path, &options.device)?)
    } else if is_feature_file(path).with_context(|| shown(path))? {
        let set = FeatureSet::read(path, None, options.max_feature_set_bytes).with_context(|| shown(path))?;
        Report::Features(FeaturesReport::of(&set))
    } else {
        let bytes = std::fs::read(path).with_context(|| shown(path))?;
        let file = HeadFile::parse(&bytes).with_context(|| match std::str::from_utf8(&bytes) {
            // Somebody's labels, or the model.toml.
            Ok(_) => format!("{}: neither a head file nor a feature file, but text", shown(path)),
            Err(_) => shown(path),
        })?;
        Report::Head(HeadReport::of(&file.head, None, None).with_digest(&file))
    };
    let mut out = io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    let text = match &report {
        Report::Model(model) => model.text(),
        Report::Head(head) => format!("{}: head\n{}", shown(path), head.text()),
        Report::Features(features) => format!("{}: features\n{}", shown(path), features.text()),
    };
    Ok(out.write_all(text.as_bytes())?)
}

/// Whether a file holds features: a NumPy file, or safetensors with a tensor of that name. Everything else is taken for a
/// head file, whose reader says what is wrong with it.
fn is_feature_file(path: &Path) -> io::Result<bool> {
    const MAX_HEADER_BYTES: u64 = 1 << 20;
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    (&mut file).take(8).read_to_end(&mut start)?;
    if start.starts_with(b"PK") || start.starts_with(b"\x93NUMPY") {
        return Ok(true);
    }
    let Ok(length) = <[u8; 8]>::try_from(start).map(u64::from_le_bytes) else { return Ok(false) };
    if length > MAX_HEADER_BYTES {
        return Ok(false);
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&header).unwrap_or_default();
    Ok(["features", "feats"].iter().any(|name| header.contains_key(*name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        let counts = SampleCounts::of(&[9, 0, 2, 5]);
        assert_eq!(counts, SampleCounts { total: 16, min: 0, median: 3.5, max: 9, classes_without: 1 });
        assert_eq!(SampleCounts::of(&[3, 1, 2]).median, 2.0);
    }
}
