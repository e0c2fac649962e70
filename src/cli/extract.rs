//! `equipoise extract`.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, bail};
use clap::{ArgAction, Args, builder::FalseyValueParser};

use super::{
    images::run_images,
    labelled_files::{LabelledFiles, shown},
    model::ModelOptions,
    progress::Progress,
    text::count,
    whole_file::{check_place, is_standard_output, write_whole},
};
use crate::{
    batcher::{Output, Wanted},
    dataset::NpzWriter,
};

/// Below the flags in the help.
pub(super) const NOTES: &str = "\
    Writes a NumPy archive: `features` float32 [N,D], what the model's backbone makes of each image, and `labels` \
    int64 [N]. The rows are in the order of the arguments, the images of a folder sorted by their paths: the same \
    files give the same bytes.\n\n\
    An image's label is the name of its folder: a label of the model, or else the index of a class. For a folder \
    that is named here, that is the folder next below it, or it itself for the images right in it; for a file, the \
    folder around it. In folders, files that do not end like images are left out, and names that begin with a dot \
    are passed over.\n\n\
    The features are kept in memory until all are there. The file is written whole or not at all.";

/// What `equipoise extract` takes.
#[derive(Args, Debug)]
pub(super) struct ExtractOptions {
    /// Folders of images, or image files: JPEG, PNG, GIF, WebP, BMP or TIFF
    #[arg(value_name = "DIR|FILE", required = true)]
    inputs: Vec<PathBuf>,

    /// File to write, a NumPy archive (.npz); one that is there is replaced, also behind a symbolic link. A pipe or a device
    /// is written to; /dev/stdout is standard output, and `-` is not taken
    #[arg(short, long, env = "EQUIPOISE_OUTPUT", value_name = "FILE")]
    output: PathBuf,

    /// Write no `labels`, and take images from folders of any name. `fit` and `evaluate` need labels
    #[arg(long, env = "EQUIPOISE_NO_LABELS", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    no_labels: bool,

    /// Go on after an image that cannot be read, or a link to nothing, and say at the end which they were; without it the
    /// first one ends it
    #[arg(long, env = "EQUIPOISE_SKIP_UNREADABLE", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    skip_unreadable: bool,

    #[command(flatten)]
    model: ModelOptions,
}

pub(super) fn run(options: &ExtractOptions) -> anyhow::Result<()> {
    check_place(&options.output)?;
    let found = LabelledFiles::find(&options.inputs, options.skip_unreadable)?;
    let model = options.model.load(found.files.len())?;
    let mut labels = if options.no_labels { Vec::new() } else { found.labels(model.labels())? };

    let feature_dim = model.feature_dim();
    let mut features: Vec<f32> = Vec::with_capacity(found.files.len().saturating_mul(feature_dim));
    let mut skipped: Vec<(usize, String)> = Vec::new();
    let mut progress = Progress::new(found.files.len());
    run_images(
        &model,
        &found.files,
        || Wanted::Features,
        |index, answer| {
            progress.step();
            match answer {
                Ok((Output::Features(row), _)) if row.len() == feature_dim => features.extend(row),
                Ok(_) => bail!("{}: the model gave no features", shown(&found.files[index])),
                Err(failure) if options.skip_unreadable && failure.is_of_the_file() => {
                    skipped.push((index, failure.to_string()))
                }
                Err(failure) => return Err(failure).with_context(|| shown(&found.files[index])),
            }
            Ok(())
        },
    )?;
    drop(progress);

    for (path, reason) in &found.unreadable {
        eprintln!("skipped {}: {reason}", shown(path));
    }
    for (index, reason) in &skipped {
        eprintln!("skipped {}: {reason}", shown(&found.files[*index]));
    }
    if !skipped.is_empty() {
        eprintln!("skipped {} of {}", skipped.len(), count(found.files.len(), "image"));
    }
    if let Some(first) = found.left_out.first() {
        let n = count(found.left_out.len(), "file");
        eprintln!("left out {n} without an image's ending, such as {}", shown(first));
    }
    let n_rows = found.files.len() - skipped.len();
    if n_rows == 0 {
        bail!("not one of {} can be read", count(found.files.len(), "image"));
    }
    let mut is_skipped = vec![false; found.files.len()];
    for (index, _) in &skipped {
        is_skipped[*index] = true;
    }
    let mut kept = is_skipped.iter().map(|skipped| !skipped);
    labels.retain(|_| kept.next().unwrap_or(true));

    write_whole(&options.output, |file| {
        let mut writer = NpzWriter::new(file, n_rows, feature_dim)?;
        features.chunks_exact(feature_dim).try_for_each(|row| writer.write_row(row))?;
        if options.no_labels { writer.finish_without_labels() } else { writer.finish(&labels) }.map(drop)
    })?;
    let classes = match options.no_labels {
        true => "no labels".to_owned(),
        false => {
            let mut seen = labels;
            seen.sort_unstable();
            seen.dedup();
            format!("images of {} of {}", seen.len(), count(model.labels().len(), "class"))
        }
    };
    let (rows, dims) = (count(n_rows, "row"), count(feature_dim, "feature"));
    let summary = format!("{}: {rows} of {dims}, {classes}", shown(&options.output));
    if is_standard_output(&options.output) {
        eprintln!("{summary}");
        return Ok(());
    }
    Ok(writeln!(io::stdout(), "{summary}")?)
}
