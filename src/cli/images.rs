//! Runs image files through a model: some at a time, so that memory stays bounded, and answered in order.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};

use crate::{
    batcher::{BatchError, Inputs, Output, Outputs, Timing, Wanted},
    preprocess::ImageError,
    registry::Model,
};

/// Larger files are not read: no image of a size that is decoded comes near it.
const MAX_FILE_BYTES: u64 = 1 << 28;
/// For one image, waiting included: only a model that hangs comes near it.
const MAX_IMAGE_TIME: Duration = Duration::from_secs(3600);

/// Why there is no answer for an image.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageFailure {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The file is too large to be an image.
    #[error("the file is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge,
    /// The file is no readable image.
    #[error(transparent)]
    Image(Arc<ImageError>),
    /// The model failed.
    #[error(transparent)]
    Model(BatchError),
}

impl ImageFailure {
    /// Whether another image may well be answered.
    pub(super) fn is_of_the_file(&self) -> bool {
        !matches!(self, Self::Model(_))
    }
}

/// What a model answered for one image.
pub(super) type Answer = Result<(Output, Timing), ImageFailure>;

/// Asks `model` for `wanted` of each of `files`, and gives the answers to `take`, in order, with the index of the file.
/// An error of `take` ends it, when the images in work are done: a process that exits in the middle of a run makes ONNX
/// Runtime complain, or worse.
///
/// At most twice as many files as the sessions run at once are in memory: one half is computed while the other is read.
pub(super) fn run_images(
    model: &Model,
    files: &[PathBuf],
    wanted: impl Fn() -> Wanted,
    mut take: impl FnMut(usize, Answer) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let limits = model.batcher().limits();
    let at_once = (2 * model.batcher().n_workers() * limits.max_batch_size).min(limits.queue_capacity);
    let (wanted, is_over) = (&wanted, &Cell::new(false));
    let mut answers = stream::iter(files)
        .map(|file| async move {
            if is_over.get() {
                return Err(ImageFailure::Read(io::ErrorKind::Interrupted.into()));
            }
            let bytes = read(file)?;
            let outputs =
                model.batcher().run(Inputs::Images(vec![bytes.into()]), wanted(), Instant::now() + MAX_IMAGE_TIME);
            match outputs.await {
                Ok(Outputs { mut rows, timing }) => {
                    let row = rows.pop().ok_or(ImageFailure::Model(BatchError::WorkerLost))?;
                    Ok((row, timing))
                }
                Err(BatchError::Image { source, .. }) => Err(ImageFailure::Image(source)),
                Err(error) => Err(ImageFailure::Model(error)),
            }
        })
        .buffered(at_once.max(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let (mut index, mut outcome) = (0, Ok(()));
        while let Some(answer) = answers.next().await {
            if !is_over.get() {
                outcome = take(index, answer);
                is_over.set(outcome.is_err());
                index += 1;
            }
        }
        outcome
    })
}

fn read(path: &Path) -> Result<Vec<u8>, ImageFailure> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ImageFailure::TooLarge);
    }
    Ok(bytes)
}
