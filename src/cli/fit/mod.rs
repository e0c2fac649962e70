//! `equipoise fit`.

mod params;
mod progress;

use std::{
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use clap::{
    ArgAction, Args,
    builder::{FalseyValueParser, PossibleValuesParser, TypedValueParser},
};
use serde::Serialize;

pub(super) use progress::FitProgress;

use super::{
    failure::WrongUsage,
    fit_files::{MemoryLimit, read_head, read_train_counts, shots_of},
    labelled_files::shown,
    model::DeviceOptions,
    reports,
    text::{Facts, count},
    whole_file::{check_place, is_standard_output, write_whole},
};
use crate::{
    dataset::FeatureSet,
    fit::{FitError, FitReport, FitTask, Fitted, Recipe, VALIDATION_SET, Validation, Watch, fit},
    heads::{Head, HeadKind, Settings},
    onnx::FitEngine,
};

/// Below the flags in the help.
pub(super) const NOTES: &str = "\
    Feature files are what `extract` writes: NumPy archives or safetensors with `features` (or `feats`) [N,D] and \
    `labels` [N]. The head file holds everything that the head depends on: the same features, parameters and seed on \
    the same device give the same bytes. It is what `serve` and `PUT /admin/v1/models/{model}/heads/{head}` take. It \
    is written whole or not at all; Ctrl-C ends the fit with nothing written.\n\n\
    Parameters, and what they are when not given:\n  \
    joint, crt, lws: sampler (instance_balanced for joint, else class_balanced; or square_root, \
    progressively_balanced, class_balanced_iid) or q (classes drawn by count^q), solver sgd (or lbfgs), epochs (90, 10, 5), \
    learning_rate (0.2 for a batch of 512, and in proportion), momentum 0.9, weight_decay 0.0005, batch_size 512, \
    seed 0\n  \
    lws also: init ones (or inverse_norm)\n  \
    tau_norm: tau, a list to choose from ([0, 0.1, ..., 2]), bias best (or drop, keep, scale), seed 0\n  \
    ncm: transform cl2n (or l2n, none), metric l2 (or cosine, dot), seed 0\n\n\
    With a validation set the report is of it, and the best epoch, tau and treatment of the bias are chosen on it by \
    macro accuracy. Its shots follow from --train-counts, else from the base's training counts, else from the rows \
    that are fitted; tau_norm fits none, and writes the base's counts, else --train-counts.\n\n\
    `--json` prints one line: `report` (null without validation), `timing_s` with `load`, `fit` and `write`, and \
    `warnings`. How far it is stands on standard error either way.";

/// Kept of LWS's scores without a limit.
const DEFAULT_CACHE_BYTES: u64 = 768 << 20;

/// What `equipoise fit` takes.
#[derive(Args, Debug)]
pub(super) struct FitOptions {
    /// Features and labels to fit, a feature file (.npz or .safetensors)
    #[arg(long, env = "EQUIPOISE_FEATURES", value_name = "FILE")]
    features: PathBuf,

    /// How the head is made
    #[arg(long, env = "EQUIPOISE_METHOD", value_name = "METHOD", value_parser = method())]
    method: HeadKind,

    /// Features and labels to choose and report on, another feature file
    #[arg(long, env = "EQUIPOISE_VALIDATION", value_name = "FILE", conflicts_with = "holdout")]
    validation: Option<PathBuf>,

    /// Hold out this share of the rows of each class to choose and report on, above 0 and below 1; they are not fitted
    #[arg(long, env = "EQUIPOISE_HOLDOUT", value_name = "SHARE", value_parser = share)]
    holdout: Option<f64>,

    /// Head file whose weights lws and tau_norm start from; the other methods take from it how many classes there are
    #[arg(long, env = "EQUIPOISE_BASE", value_name = "FILE")]
    base: Option<PathBuf>,

    /// A parameter of the method, named below; may be given several times, in the environment one a line. The value is read
    /// as JSON, else as text
    #[arg(
        long,
        env = "EQUIPOISE_PARAM",
        value_name = "KEY=VALUE",
        value_parser = params::param,
        value_delimiter = '\n',
        allow_hyphen_values = true
    )]
    param: Vec<params::Param>,

    /// Head file to write (.safetensors); one that is there is replaced, also behind a symbolic link. A pipe or a device is
    /// written to; /dev/stdout is standard output (what else is said then goes to standard error), and `-` is not taken
    #[arg(short, long, env = "EQUIPOISE_OUTPUT", value_name = "FILE")]
    output: PathBuf,

    /// Training samples of each class, a table with the header class,count: they make the shots of the report, and without a
    /// base say how many classes there are; tau_norm writes them where its base has none [default: those of the base, else of
    /// the rows that are fitted]
    #[arg(long, env = "EQUIPOISE_TRAIN_COUNTS", value_name = "FILE")]
    train_counts: Option<PathBuf>,

    /// Print one JSON line, for programs
    #[arg(long, env = "EQUIPOISE_JSON", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    json: bool,

    /// Most bytes of feature sets to hold in memory; what does not fit is mapped from a temporary file, where float32
    /// safetensors files are mapped anyway. lws keeps its scores in what is left if they fit there [default: no limit on
    /// the sets, and 805306368 for the scores]
    #[arg(long, env = "EQUIPOISE_MEMORY_LIMIT_BYTES", value_name = "BYTES")]
    memory_limit_bytes: Option<u64>,

    #[command(flatten)]
    device: DeviceOptions,
}

fn method() -> impl TypedValueParser<Value = HeadKind> {
    PossibleValuesParser::new(["joint", "crt", "lws", "ncm", "tau_norm"]).try_map(|name| name.parse::<HeadKind>())
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("a share is a number above 0 and below 1".to_owned()),
    }
}

/// What there is to fit.
struct Inputs {
    base: Option<Head>,
    features: FeatureSet,
    validation: Option<FeatureSet>,
    /// `None` is what the rows that are fitted make of it.
    train_counts: Option<Vec<u64>>,
    cache_bytes: u64,
}

/// How long it took, in seconds.
#[derive(Debug, Serialize)]
struct Timing {
    load: f64,
    fit: f64,
    write: f64,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    report: Option<&'a FitReport>,
    timing_s: Timing,
    warnings: &'a [String],
}

pub(super) fn run(options: &FitOptions) -> anyhow::Result<()> {
    let recipe = options.recipe().map_err(WrongUsage)?;
    check_place(&options.output)?;
    let start = Instant::now();
    let inputs = options.read()?;
    options.device.init()?;
    let mut engine = FitEngine::new(&options.device.session())?;
    let load = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let task = FitTask {
        recipe: &recipe,
        features: &inputs.features,
        validation: match (&inputs.validation, options.holdout) {
            (Some(set), _) => Validation::Set(set),
            (None, Some(share)) => Validation::Holdout(share),
            (None, None) => Validation::None,
        },
        base: inputs.base.as_ref(),
        train_counts: inputs.train_counts.as_deref(),
        cache_bytes: inputs.cache_bytes,
    };
    let mut progress = FitProgress::new();
    let mut on_progress = |told: Option<crate::fit::Progress>| {
        if let Some(told) = &told {
            progress.tell(told);
        }
        ControlFlow::Continue(())
    };
    let fitted = fit(&task, &mut engine, &mut Watch::new(&mut on_progress)).map_err(|error| {
        let of_validation = matches!(error, FitError::LogitsNotFinite { set: VALIDATION_SET, .. });
        let file = options.validation.as_ref().filter(|_| of_validation).unwrap_or(&options.features);
        anyhow::Error::from(error).context(shown(file))
    })?;
    drop(progress);
    let fit = start.elapsed().as_secs_f64();

    let start = Instant::now();
    write_whole(&options.output, |file| file.write_all(&fitted.file))?;
    let timing_s = Timing { load, fit, write: start.elapsed().as_secs_f64() };

    // The head may have gone to standard output.
    let mut out: Box<dyn Write> = match is_standard_output(&options.output) {
        true => Box::new(io::stderr().lock()),
        false => Box::new(io::stdout().lock()),
    };
    if options.json {
        let answer = Answer { report: fitted.report.as_ref(), timing_s, warnings: &fitted.warnings };
        serde_json::to_writer(&mut out, &answer).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    out.write_all(options.text(&recipe, &inputs, &fitted).as_bytes())?;
    out.flush()?;
    for warning in &fitted.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

impl FitOptions {
    /// The recipe; an error is wrong usage, and seen before any file is opened.
    fn recipe(&self) -> Result<Recipe, String> {
        let params = params::object(&self.param)?;
        let recipe = Recipe::new(self.method, params).map_err(|error| format!("--param: {error}"))?;
        let method = recipe.method();
        if recipe.needs_base() && self.base.is_none() {
            return Err(format!("--method {method} starts from another head: give --base head.safetensors"));
        }
        if recipe.needs_validation() && self.validation.is_none() && self.holdout.is_none() {
            return Err(format!(
                "--method {method} chooses between settings: give --validation or --holdout, or one tau and one bias \
                 (--param tau=[0.5] --param bias=drop)"
            ));
        }
        let inputs = [Some(&self.features), self.validation.as_ref(), self.train_counts.as_ref()];
        match inputs.into_iter().flatten().find(|input| is_same(input, &self.output)) {
            Some(input) => Err(format!("--output: {} is read, and would be replaced", shown(input))),
            None => Ok(recipe),
        }
    }

    fn read(&self) -> anyhow::Result<Inputs> {
        let base = self.base.as_deref().map(read_head).transpose()?;
        let num_classes = base.as_ref().map(Head::num_classes);
        let counts = self.train_counts.as_deref().map(|path| read_train_counts(path, num_classes)).transpose()?;
        let num_classes = num_classes.or(counts.as_ref().map(Vec::len));
        let mut memory = MemoryLimit::new(self.memory_limit_bytes);
        let read = match &self.validation {
            Some(path) => memory.read_two(&self.features, path, num_classes).map(|(a, b)| (a, Some((path, b)))),
            None => memory.read(&self.features, num_classes).map(|features| (features, None)),
        };
        let (features, validation) = match (&self.base, &self.train_counts) {
            (Some(path), _) => read.with_context(|| format!("features for the base {}", shown(path)))?,
            (None, Some(path)) => read.with_context(|| format!("features for the counts {}", shown(path)))?,
            (None, None) => read?,
        };
        let dims = |set: &FeatureSet| format!("has {}", count(set.feature_dim(), "feature"));
        if let (Some(path), Some(base)) = (&self.base, &base)
            && base.feature_dim() != features.feature_dim()
        {
            let (file, base) = (shown(&self.features), base.feature_dim());
            bail!("{file} {}, and the base {} takes {base}", dims(&features), shown(path));
        }
        if let Some((path, validation)) = &validation {
            let (of_fit, of_validation) = (shown(&self.features), shown(path));
            if validation.feature_dim() != features.feature_dim() {
                bail!("{of_validation} {}, and {of_fit} {}", dims(validation), dims(&features));
            }
            if validation.digest() == features.digest() {
                bail!("{of_validation} has the same content as {of_fit}: what is fitted cannot be what is reported");
            }
        }
        let train_counts = counts.or_else(|| base.as_ref().and_then(Head::train_counts).map(<[u64]>::to_vec));
        Ok(Inputs {
            base,
            features,
            validation: validation.map(|(_, set)| set),
            train_counts,
            cache_bytes: memory.left().unwrap_or(DEFAULT_CACHE_BYTES),
        })
    }

    /// For people: what was made of what, what was chosen, and how good it is.
    fn text(&self, recipe: &Recipe, inputs: &Inputs, fitted: &Fitted) -> String {
        let Fitted { head, report, .. } = fitted;
        let mut facts = Facts::default();
        facts.add("classes", head.num_classes().to_string());
        facts.add("feature dim", head.feature_dim().to_string());
        if let (Some(path), true) = (&self.base, recipe.needs_base()) {
            facts.add("base", shown(path));
        }
        let n_validated = report.as_ref().map_or(0, |report| report.report.n);
        if recipe.method() != HeadKind::TauNorm {
            let n_held_out = if self.holdout.is_some() { n_validated } else { 0 };
            let n_rows = inputs.features.num_rows() - usize::try_from(n_held_out).unwrap_or_default();
            facts.add("fitted on", format!("{}, {}", shown(&self.features), count(n_rows, "row")));
        }
        let validated = match (&self.validation, self.holdout) {
            (Some(path), _) => format!("{}, {n_validated} rows", shown(path)),
            (None, Some(share)) => {
                format!("{n_validated} rows of {}, {share} of each class held out", shown(&self.features))
            }
            (None, None) => "nothing: --validation or --holdout make a report".to_owned(),
        };
        facts.add("validated on", validated);
        let chosen = report.as_ref().map_or(&[][..], |report| report.chosen_on_this_set.as_slice());
        let settings = head.initial_settings();
        let values: Vec<String> =
            chosen.iter().filter_map(|name| chosen_value(name, settings, report.as_ref()?.epoch)).collect();
        if !values.is_empty() {
            facts.add("chosen on that", values.join(", "));
        }
        let mut text = format!("{}: head of kind {}\n{}", shown(&self.output), head.kind(), facts.lines(2));
        if let Some(report) = report {
            let counts = inputs.train_counts.as_deref().or(head.train_counts());
            text.push('\n');
            text.push_str(&reports::table(&report.report, &counts.map(shots_of).unwrap_or_default()));
        }
        text
    }
}

fn chosen_value(name: &str, settings: &Settings, epoch: Option<usize>) -> Option<String> {
    match name {
        "tau" => Some(format!("tau {}", settings.tau?)),
        // By the name it has in files.
        "bias" => Some(format!("bias {}", serde_json::json!(settings.bias?).as_str()?)),
        "epoch" => Some(format!("epoch {}", epoch?)),
        name => Some(name.to_owned()),
    }
}

/// Whether both are one file that is there.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
