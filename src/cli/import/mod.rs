//! `equipoise import`.

mod directory;
mod preprocess;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{ArgAction, Args, builder::FalseyValueParser};

use super::{
    labelled_files::shown,
    model::{DeviceOptions, ModelOptions},
    text::{Facts, count, printable},
};
use crate::{
    dataset::parse_train_counts,
    files::read_text,
    onnx::{self, CutProof, cut_classifier, prove_cut},
    preprocess::{DecodeLimits, Preprocessor},
    registry::{classifier_head_file, is_valid_name, read_labels},
};
use directory::{Parts, Place};
use preprocess::PreprocessOptions;

/// The settings that the derived head `tau` begins with; the default head stays `joint`.
///
/// # Why these?
/// At tau 1 every class has a weight vector of length 1, which is the paper's plainest case; which tau is best only a
/// validation set can say. The bias is scaled and not dropped, because then tau 0 is the imported classifier itself, and
/// what is seen on the way from 0 to 1 is the work of tau alone.
const TAU: &str = "tau = 1.0\nbias = \"scale\"";

/// Below the flags in the help.
pub(super) const NOTES: &str = "\
    Finds the last linear layer of an exported classifier, cuts it off, and proves on random images that backbone \
    and head together give the original's logits. Then writes a model directory with the heads `joint`, the layer \
    itself, and `tau`, derived from it with tau 1 and a scaled bias, and loads it once as `serve` would. What no \
    flag says is assumed, and listed.";

/// What `equipoise import` takes.
#[derive(Args, Debug)]
pub(super) struct ImportOptions {
    /// ONNX file of a whole classifier: images float32 [N,3,H,W] to logits [N,C] (or their softmax)
    #[arg(value_name = "CLASSIFIER")]
    classifier: PathBuf,

    /// Model directory to write; it must be new or empty
    #[arg(short, long, env = "EQUIPOISE_OUTPUT", value_name = "DIR")]
    output: PathBuf,

    /// Write into a directory that is not empty; of what is there only the files that import itself writes are replaced
    #[arg(long, env = "EQUIPOISE_FORCE", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    force: bool,

    /// Name of the model, at most 64 of letters, digits, `.`, `_` and `-` [default: the directory's name]
    #[arg(long, env = "EQUIPOISE_NAME", value_name = "NAME", value_parser = name)]
    name: Option<String>,

    /// Text file with the name of each class, line i for class i; it must have as many lines as there are classes
    /// [default: class_0, class_1, ...]
    #[arg(long, env = "EQUIPOISE_LABELS", value_name = "FILE")]
    labels: Option<PathBuf>,

    /// Table of the training samples of each class, header class,count: many, medium and few shot follow from it
    /// [default: none, and every class's shot is unknown]
    #[arg(long, env = "EQUIPOISE_TRAIN_COUNTS", value_name = "FILE")]
    train_counts: Option<PathBuf>,

    #[command(flatten)]
    preprocess: PreprocessOptions,

    #[command(flatten)]
    device: DeviceOptions,
}

fn name(text: &str) -> Result<String, String> {
    match is_valid_name(text) {
        true => Ok(text.to_owned()),
        false => {
            Err("a name has at most 64 letters, digits, `.`, `_` and `-`, the first a letter or a digit".to_owned())
        }
    }
}

pub(super) fn run(options: &ImportOptions) -> anyhow::Result<()> {
    let place = Place::find(&options.output, options.force)?;
    let file = &options.classifier;
    let n_bytes = fs::metadata(file).with_context(|| shown(file))?.len();
    if n_bytes > onnx::LARGEST_FILE {
        bail!("{}: {n_bytes} bytes, beyond the 2 GB that one ONNX file can hold", shown(file));
    }
    let bytes = Bytes::from(fs::read(file).with_context(|| shown(file))?);
    options.device.init()?;

    let mut assumed = Facts::default();
    let base_dir = file.parent();
    let cut = cut_classifier(bytes.clone(), base_dir).with_context(|| shown(file))?;
    let session = options.device.session();
    let input_size = onnx::Backbone::load(&cut.backbone, None, &session)
        .with_context(|| format!("{}: the backbone that is left does not load", shown(file)))?
        .input_size();
    let preprocess = options.preprocess.complete(input_size, &mut assumed)?;
    let preprocessor = Preprocessor::new(preprocess.clone(), DecodeLimits::default())?;
    // Without a size of its own the model is tried with what an image of the resize's size would give.
    let Some(image_size) = preprocessor.output_size() else {
        bail!("{}: the model takes images of any size; say --crop", shown(file));
    };
    let proof = prove_cut(bytes, &cut, base_dir, image_size, &session).with_context(|| shown(file))?;

    let labels = labels(options.labels.as_deref(), cut.num_classes, &mut assumed)?;
    let train_counts = train_counts(options.train_counts.as_deref(), cut.num_classes, &mut assumed)?;
    let name = match &options.name {
        Some(name) => name.clone(),
        None => {
            let name = name_of(&options.output);
            assumed.add("name", format!("{name} (--name)"));
            name
        }
    };
    let counts = train_counts.as_ref().map(|(_, counts)| counts.as_slice());
    let parts = Parts {
        name: &name,
        backbone: &cut.backbone,
        joint: &classifier_head_file(&cut, counts),
        labels: &labels,
        train_counts: train_counts.as_ref().map(|(text, _)| text.as_str()),
        preprocess: &preprocess,
    };
    let staged = place.stage(&parts)?;
    // The proof that `serve` takes it.
    ModelOptions::of_directory(staged.path().to_owned(), options.device.clone())
        .load(1)
        .context("the imported model does not load, and nothing was written")?;
    staged.publish()?;

    let mut facts = Facts::default();
    facts.add("model", format!("{name}: {}, {}", count(cut.num_classes, "class"), count(cut.feature_dim, "feature")));
    facts.add("image size", format!("{} x {}", image_size.0, image_size.1));
    for note in &cut.notes {
        facts.add("note", note.clone());
    }
    facts.add("proof", shown_proof(&proof));
    facts.add("heads", "joint (the default), tau (tau 1, bias scaled)");
    let mut text = facts.lines(0);
    let assumed = assumed.lines(2);
    if !assumed.is_empty() {
        text.push_str("assumed, because no flag said so:\n");
        text.push_str(&assumed);
    }
    let written = printable(&options.output.to_string_lossy()).into_owned();
    Ok(writeln!(
        io::stdout(),
        "{text}{written} is ready:\n  equipoise classify IMAGE --model {written} --head joint,tau\n  equipoise serve {written}"
    )?)
}

fn shown_proof(proof: &CutProof) -> String {
    let CutProof { max_abs_difference, max_abs_logit, n_inputs, .. } = proof;
    let differ = match *max_abs_difference {
        0.0 => "do not differ".to_owned(),
        difference => format!("differ by at most {difference:.1e}"),
    };
    format!("on {n_inputs} random images the logits {differ}, where they reach {max_abs_logit:.3}")
}

fn labels(file: Option<&Path>, num_classes: usize, assumed: &mut Facts) -> anyhow::Result<Vec<String>> {
    let Some(file) = file else {
        assumed.add("labels", format!("class_0 to class_{} (--labels)", num_classes.saturating_sub(1)));
        return Ok((0..num_classes).map(|class| format!("class_{class}")).collect());
    };
    let labels = read_labels(file)?;
    if labels.len() != num_classes {
        bail!("{}: {}, and the classifier has {num_classes} classes", shown(file), count(labels.len(), "label"));
    }
    Ok(labels)
}

/// The text of the table, and what it says.
fn train_counts(
    file: Option<&Path>,
    num_classes: usize,
    assumed: &mut Facts,
) -> anyhow::Result<Option<(String, Vec<u64>)>> {
    let Some(file) = file else {
        assumed.add("train counts", "unknown, and so is every class's shot (--train-counts)");
        return Ok(None);
    };
    let text = read_text(file)?;
    let counts = parse_train_counts(&text, num_classes).with_context(|| shown(file))?;
    if counts.iter().all(|&count| count == 0) {
        bail!("{}: every count is 0, so no class could be predicted", shown(file));
    }
    Ok(Some((text, counts)))
}

/// The directory's name, made one for a model.
fn name_of(output: &Path) -> String {
    let whole = output.canonicalize().unwrap_or_else(|_| output.to_owned());
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = whole.file_name().unwrap_or_default().to_string_lossy().chars().map(allowed).take(64).collect();
    let name = name.trim_start_matches(['.', '_', '-']);
    if is_valid_name(name) { name.to_owned() } else { "model".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_gives_the_name_as_far_as_it_is_one() {
        let names = ["models/pets", "a b/c d/", "_x", "..", "ü"].map(|path| name_of(Path::new(path)));
        assert_eq!(names[..3], ["pets", "c-d", "x"]);
        assert_eq!(names[4], "model");
    }
}
