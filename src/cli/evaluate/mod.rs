//! `equipoise evaluate`.

mod taus;

use std::{
    io::{self, Write},
    ops::ControlFlow,
    path::PathBuf,
};

use anyhow::{Context, bail};
use clap::{ArgAction, Args, builder::FalseyValueParser};

use super::{
    failure::WrongUsage,
    fit::FitProgress,
    fit_files::{MemoryLimit, read_head, read_train_counts, shots_of},
    labelled_files::shown,
    model::DeviceOptions,
    reports,
    text::count,
};
use crate::{
    dataset::{FeatureSet, Shot},
    evaluate::{EvaluationAnswer, TauPoint, best_macro, warnings},
    fit::{Progress, Samples, Watch, measure},
    heads::{Head, Settings, SettingsPatch},
    onnx::FitEngine,
};
use taus::{Taus, taus};

/// Below the flags in the help.
pub(super) const NOTES: &str = "\
    Accuracy over all samples, then means of class accuracies: macro over the classes that occur, many, medium and \
    few over those with more than 100, 20 to 100 and fewer than 20 training samples. ECE is the expected calibration \
    error in 15 bins. Below it the ten pairs of classes that were confused most often. A class without a training \
    sample is never predicted.\n\n\
    `--json` prints what `POST /admin/v1/models/{model}/heads/{head}/evaluate` answers, but for `head` and `version`: a \
    report under the head's own `settings`, with `--tau` also a `curve` of them, and `warnings`. Several values of tau cost one matrix product. The best of them on the set that a head is judged \
    by is no fair choice: choose on a validation set, as `fit --method tau_norm` does.";

/// What `equipoise evaluate` takes.
#[derive(Args, Debug)]
pub(super) struct EvaluateOptions {
    /// Features and labels to judge by, a feature file (.npz or .safetensors)
    #[arg(long, env = "EQUIPOISE_FEATURES", value_name = "FILE")]
    features: PathBuf,

    /// Head file (.safetensors)
    #[arg(long, env = "EQUIPOISE_HEAD", value_name = "FILE")]
    head: PathBuf,

    /// Values of tau to go through, from 0 to 5, at most 1000: one, several with commas, or START:STOP:STEP with the stop
    /// included; only for a tau-normalised head [default: what the head has]
    #[arg(long, env = "EQUIPOISE_TAU", value_name = "TAU", value_parser = taus)]
    tau: Option<Taus>,

    /// Training samples of each class, a table with the header class,count: they make the shots
    /// [default: those in the head file]
    #[arg(long, env = "EQUIPOISE_TRAIN_COUNTS", value_name = "FILE")]
    train_counts: Option<PathBuf>,

    /// Print one JSON line, what the server's API answers
    #[arg(long, env = "EQUIPOISE_JSON", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    json: bool,

    /// Most bytes of features to hold in memory; what does not fit is mapped from a temporary file, where float32
    /// safetensors files are mapped anyway [default: no limit]
    #[arg(long, env = "EQUIPOISE_MEMORY_LIMIT_BYTES", value_name = "BYTES")]
    memory_limit_bytes: Option<u64>,

    #[command(flatten)]
    device: DeviceOptions,
}

pub(super) fn run(options: &EvaluateOptions) -> anyhow::Result<()> {
    let head = read_head(&options.head)?;
    let settings = options.settings(&head).map_err(WrongUsage)?;
    let counts =
        options.train_counts.as_deref().map(|path| read_train_counts(path, Some(head.num_classes()))).transpose()?;
    let shots = match counts.as_deref().or(head.train_counts()) {
        Some(counts) => shots_of(counts),
        None => vec![Shot::Unknown; head.num_classes()],
    };
    let set = options.read(&head)?;
    options.device.init()?;
    let mut engine = FitEngine::new(&options.device.session())?;

    let mut progress = FitProgress::of_short_work();
    let mut on_progress = |told: Option<Progress>| {
        if let Some(told) = &told {
            progress.tell(told);
        }
        ControlFlow::Continue(())
    };
    let mut watch = Watch::new(&mut on_progress);
    let evaluations = measure(&Samples::all(&set), &head, &settings, &shots, &mut engine, &mut watch)
        .with_context(|| shown(&options.features))?;
    drop(progress);
    let mut reports = evaluations.iter().map(|evaluation| evaluation.report());
    let report = reports.next().context("there is no report")?;
    let points = |Taus(taus): &Taus| taus.iter().zip(reports).map(|(&tau, report)| TauPoint { tau, report }).collect();
    let answer = EvaluationAnswer {
        settings: *head.initial_settings(),
        report,
        curve: options.tau.as_ref().map(points),
        warnings: options.warnings(&head, &set, &shots),
    };
    options.print(&answer, &head, &shots)?;
    for warning in &answer.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

impl EvaluateOptions {
    /// Those that the head is judged under: its own, then with each tau that was asked for.
    fn settings(&self, head: &Head) -> Result<Vec<Settings>, String> {
        let initial = head.initial_settings();
        let taus = self.tau.as_ref().map_or(&[][..], |Taus(taus)| taus);
        let with = |&tau: &f64| initial.with(SettingsPatch { tau: Some(tau), ..SettingsPatch::default() }, head.kind());
        std::iter::once(Ok(*initial)).chain(taus.iter().map(with)).collect::<Result<_, _>>().map_err(|error| {
            format!("--tau: {}: {error}; `equipoise fit --method tau_norm` makes one that has it", shown(&self.head))
        })
    }

    /// The feature set, which fits the head.
    fn read(&self, head: &Head) -> anyhow::Result<FeatureSet> {
        let set = MemoryLimit::new(self.memory_limit_bytes)
            .read(&self.features, Some(head.num_classes()))
            .with_context(|| format!("features for head {}", shown(&self.head)))?;
        if set.feature_dim() != head.feature_dim() {
            let (found, taken) = (count(set.feature_dim(), "feature"), head.feature_dim());
            bail!("{} has {found}, and head {} takes {taken}", shown(&self.features), shown(&self.head));
        }
        Ok(set)
    }

    fn print(&self, answer: &EvaluationAnswer, head: &Head, shots: &[Shot]) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, answer).map_err(io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        writeln!(out, "{}, kind {}, on {}", shown(&self.head), head.kind(), shown(&self.features))?;
        let mut report = &answer.report;
        if let Some(points) = &answer.curve {
            let best = best_macro(points.iter().map(|point| &point.report.accuracies));
            report = &points[best].report;
            writeln!(out, "\n{}\n\nat tau {}", reports::curve(points, best).trim_end(), points[best].tau)?;
        } else if let Some(tau) = answer.settings.tau {
            writeln!(out, "at tau {tau}")?;
        }
        writeln!(out, "\n{}", reports::table(report, shots).trim_end())?;
        let confusions = reports::confusions(report);
        if !confusions.is_empty() {
            writeln!(out, "\nmost often confused\n{}", confusions.trim_end())?;
        }
        Ok(out.flush()?)
    }

    fn warnings(&self, head: &Head, set: &FeatureSet, shots: &[Shot]) -> Vec<String> {
        let name = shown(&self.head);
        let mut warnings = warnings(head, &name, set);
        if shots.first() == Some(&Shot::Unknown) {
            warnings.push(format!("{name} has no training counts: --train-counts make shots"));
        }
        warnings
    }
}
