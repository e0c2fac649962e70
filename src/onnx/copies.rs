//! Several sessions of one backbone that hold its weights once.
//!
//! Each session that is loaded the usual way has the weights to itself, and changes their layout while it optimises the graph,
//! so that they cannot be given to it from outside. So ONNX Runtime optimises once and writes down what comes out, weights in
//! a file of their own, and the sessions are made of that: they map the file, and the system keeps its pages once for all of
//! them. The files are gone again as soon as they are mapped.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;

use super::build::configure;
use super::device::{Provider, SessionOptions};
use super::error::OnnxError;
use super::library;
use super::random_pixels::RandomPixels;
use super::session::{Backbone, named};

const WEIGHTS: &str = "weights.bin";
/// Smaller ones stay in the graph.
const SMALLEST_WEIGHTS_BYTES: &str = "1024";

/// Where copies are being made.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the copies that are being made, for the end of a process that does not wait for that: they are as large as the weights.
pub(crate) fn remove_copies() {
    for folder in FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // Nobody is left who could do something about it.
        let _ = std::fs::remove_dir_all(folder);
    }
}

impl Backbone {
    /// Backbones like this one, one for each of `options`, made of the same file, that hold its weights once if they run on the
    /// CPU.
    ///
    /// `image_size` is height and width of the images, if the model does not fix them. Where neither does, or where shared
    /// weights do not give the same features to the last bit, each has its own.
    ///
    /// # Errors
    /// Those of [`Backbone::load`].
    pub fn replicate(
        mut self,
        model: &[u8],
        base_dir: Option<&Path>,
        options: &[SessionOptions],
        image_size: Option<(usize, usize)>,
    ) -> Result<Vec<Self>, OnnxError> {
        if let (Provider::Cpu, true, Some(size)) = (self.provider(), options.len() >= 2, self.image_size(image_size)) {
            match self.sharing(model, base_dir, options, size) {
                Ok(sharing) => return Ok(sharing),
                Err(error) => tracing::info!(%error, "each session has a copy of the weights to itself: {error}"),
            }
        }
        let others = options.iter().skip(1).map(|options| Self::load(model, base_dir, options));
        std::iter::once(Ok(self)).chain(others).take(options.len()).collect()
    }

    /// Whether this one and the other have the same features of an image of noise, to the last bit.
    ///
    /// # Errors
    /// Those of [`Backbone::run`].
    pub fn agrees_with(&mut self, other: &mut Self, height: usize, width: usize) -> Result<bool, OnnxError> {
        let pixels = RandomPixels::new().draw(3 * height * width);
        let features = [self.run(&pixels, 1, height, width)?, other.run(&pixels, 1, height, width)?];
        let (a, b) = (features[0].to_host()?, features[1].to_host()?);
        Ok(a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.to_bits() == b.to_bits()))
    }

    fn sharing(
        &mut self,
        model: &[u8],
        base_dir: Option<&Path>,
        options: &[SessionOptions],
        (height, width): (usize, usize),
    ) -> Result<Vec<Self>, Box<dyn std::error::Error>> {
        let base_dir = base_dir.map(named);
        let sessions = sharing_sessions(model, base_dir.as_deref(), options)?;
        let mut sharing: Vec<Self> = sessions.into_iter().map(|session| self.with_session(session)).collect();
        match self.agrees_with(sharing.first_mut().ok_or("no session")?, height, width)? {
            true => Ok(sharing),
            false => Err("the optimised graph, written down and read again, gives other features".into()),
        }
    }
}

fn sharing_sessions(
    model: &[u8],
    base_dir: Option<&Path>,
    options: &[SessionOptions],
) -> Result<Vec<Session>, Box<dyn std::error::Error>> {
    let first = options.first().ok_or("no session")?;
    let runtime = library::init(None)?;
    let folder = tempfile::tempdir()?;
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(folder.path().to_owned());
    let path = folder.path().join("backbone.onnx");
    let mut optimising = configure(runtime, first, Provider::Cpu, base_dir)?
        // It warns that the file is for this machine alone, which is where it stays.
        .with_log_level(LogLevel::Error)?
        .with_optimized_model_path(&path)?
        .with_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)?
        .with_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", SMALLEST_WEIGHTS_BYTES)?;
    drop(optimising.commit_from_memory(model)?);
    let session = |options: &SessionOptions| {
        let builder = configure(runtime, options, Provider::Cpu, None)?;
        builder.with_optimization_level(GraphOptimizationLevel::Disable)?.commit_from_file(&path)
    };
    let sessions = options.iter().map(session).collect::<ort::Result<_>>();
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).retain(|making| making != folder.path());
    Ok(sessions?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_are_being_made_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(WEIGHTS), "large").unwrap();
        FOLDERS.lock().unwrap().push(folder.path().to_owned());
        remove_copies();
        assert!(!folder.path().exists());
    }
}
