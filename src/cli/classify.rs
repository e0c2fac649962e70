//! `equipoise classify`.

use std::{
    io::{self, BufWriter, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use clap::{ArgAction, Args, builder::FalseyValueParser};

use super::{images::run_images, model::ModelOptions, progress::Progress, text::printable};
use crate::{
    batcher::{Outputs, Timing, Wanted},
    heads::MAX_TAU,
    http::predictions::{ClassifyResponse, HeadChoice, HeadResult, choose_heads},
    registry::ModelState,
};

/// A column no wider than this: a longer label moves the rest of its own line only.
const MAX_LABEL_WIDTH: usize = 40;

/// Below the flags in the help.
pub(super) const NOTES: &str = "\
    Prints a table for each image as soon as it is answered. With `--json` there is one document, printed when all \
    are answered: exactly what `POST /v1/models/{model}/classify` answers for these images in this order. An image \
    that cannot be read ends it.";

/// What `equipoise classify` takes.
#[derive(Args, Debug)]
pub(super) struct ClassifyOptions {
    /// Image files: JPEG, PNG, GIF, WebP, BMP or TIFF
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,

    /// Heads to ask, NAME or NAME@VERSION, comma-separated: the backbone runs once for all of them
    /// [default: the model's default head]
    #[arg(long, env = "EQUIPOISE_HEAD", value_name = "NAME,...")]
    head: Option<String>,

    /// Tau of the tau-normalised heads among them, from 0 to 5; refused if there is none [default: what each head has]
    #[arg(long, env = "EQUIPOISE_TAU", value_name = "TAU", value_parser = tau)]
    tau: Option<f64>,

    /// Classes to answer for each image and head, the most probable first; at least 1
    #[arg(long, env = "EQUIPOISE_TOP_K", value_name = "K", default_value = "5")]
    top_k: NonZeroUsize,

    /// Print one JSON document, what the server's API answers, when all images are done; nothing but its predictions is
    /// kept in memory until then
    #[arg(long, env = "EQUIPOISE_JSON", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    model: ModelOptions,
}

fn tau(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(tau) if (0.0..=MAX_TAU).contains(&tau) => Ok(tau),
        _ => Err(format!("tau is a number from 0 to {MAX_TAU}")),
    }
}

pub(super) fn run(options: &ClassifyOptions) -> anyhow::Result<()> {
    // Before the model is loaded, which takes longer.
    for image in &options.images {
        if image.is_dir() {
            bail!("{}: it is a folder; name the images in it", printable(&image.to_string_lossy()));
        }
        image.metadata().with_context(|| printable(&image.to_string_lossy()).into_owned())?;
    }
    let model = options.model.load(options.images.len())?;
    let choice = HeadChoice { head: options.head.clone(), top_k: Some(options.top_k.get()), tau: options.tau };
    let (heads, requests) = choose_heads(&model.state(), &choice).map_err(|error| {
        anyhow!("{}; model `{}` has {}", error.of_query(), model.name(), head_names(&model.state()))
    })?;

    let start = Instant::now();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut progress = options.json.then(|| Progress::new(options.images.len()));
    let mut all = Outputs { rows: Vec::new(), timing: Timing::default() };
    let width = label_width(model.labels());
    let wanted = || Wanted::Predictions(requests.clone());
    run_images(&model, &options.images, wanted, |index, answer| {
        let name = || printable(&options.images[index].to_string_lossy()).into_owned();
        let (row, timing) = answer.with_context(name)?;
        if let Some(progress) = &mut progress {
            progress.step();
            all.rows.push(row);
            all.timing = all.timing.max(timing);
            return Ok(());
        }
        let response = ClassifyResponse::new(&model, &heads, Outputs { rows: vec![row], timing }, start);
        for image in &response.images {
            write!(
                out,
                "{}{}",
                if index == 0 { "" } else { "\n" },
                table(&options.images[index], &image.results, width)
            )?;
        }
        Ok(out.flush()?)
    })?;
    drop(progress);
    if options.json {
        let response = ClassifyResponse::new(&model, &heads, all, start);
        serde_json::to_writer(&mut out, &response).map_err(io::Error::from)?;
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

fn head_names(state: &ModelState) -> String {
    let names: Vec<&str> = state.series().map(|(name, _)| name).collect();
    format!("the heads {}", names.join(", "))
}

fn label_width(labels: &[String]) -> usize {
    labels.iter().map(|label| printable(label).chars().count()).max().unwrap_or(0).min(MAX_LABEL_WIDTH)
}

/// The answer for one image: its name, each head, and below it the classes.
fn table(file: &Path, results: &[HeadResult<'_>], width: usize) -> String {
    let mut table = format!("{}\n", printable(&file.to_string_lossy()));
    for result in results {
        table.push_str(&format!("  {}", result.head));
        if let Some(tau) = result.tau {
            table.push_str(&format!(" (tau {tau})"));
        }
        table.push('\n');
        for prediction in &result.predictions {
            let (label, percent) = (printable(prediction.label), 100.0 * prediction.probability);
            table.push_str(&format!("    {label:width$}  {percent:6.2} %  {}\n", prediction.shot.as_str()));
        }
    }
    table
}
