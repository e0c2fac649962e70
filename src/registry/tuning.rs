//! How a model is best run on this machine: measured once, and kept in the state directory.
//!
//! What is measured is the backbone alone, on noise: sessions side by side, each on its own threads, at growing batches. The
//! rest of a request costs the same however it is batched.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    LoadError, LoadOptions, ModelDirectory, StateDir, StateError,
    backbone::load_backbones,
    load::{preprocessor_of, read_head_files},
    store::{io_error, write_whole},
};
use crate::{
    files::read,
    heads::Digest,
    onnx::{self, OnnxError},
};

/// Speeds this close to the best count as the same: the speed of a core drifts by as much.
const MARGIN: f64 = 0.05;
/// For how long each plan is measured at a time, and how often: the best of these counts, since others only ever slow it down.
const SLICE: Duration = Duration::from_millis(60);
const N_ROUNDS: usize = 8;
/// No more rounds of one split of the cores after that.
const LONGEST: Duration = Duration::from_secs(10);
/// Larger batches gained nothing on the machine that was tried.
const CPU_LARGEST_BATCH: usize = 32;
const CUDA_LARGEST_BATCH: usize = 128;
/// From batch to batch: at two in a row that are slower than the best by this share, larger ones are not tried.
const HOPELESS: f64 = 0.1;

/// How a model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Sessions side by side.
    pub sessions: usize,
    /// Threads in each.
    pub threads: usize,
    /// Most images in one pass.
    pub max_batch_size: usize,
}

/// The part of a [`Plan`] that is settled already, and need not be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Sessions side by side.
    pub sessions: Option<usize>,
    /// Threads in each.
    pub threads: Option<usize>,
    /// Most images in one pass.
    pub max_batch_size: Option<usize>,
}

impl Settled {
    /// The plan of what is settled, then of what was found, then of the defaults.
    pub fn or(self, found: Option<Plan>, defaults: impl Fn(Option<usize>) -> Plan) -> Plan {
        let sessions = self.sessions.or(found.map(|plan| plan.sessions));
        let defaults = defaults(sessions);
        let sessions = sessions.unwrap_or(defaults.sessions);
        // Threads go with their sessions.
        let threads = found.filter(|plan| plan.sessions == sessions).map(|plan| plan.threads);
        Plan {
            sessions,
            threads: self.threads.or(threads).unwrap_or(defaults.threads),
            max_batch_size: self
                .max_batch_size
                .or(found.map(|plan| plan.max_batch_size))
                .unwrap_or(defaults.max_batch_size),
        }
    }
}

/// What a plan reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The plan.
    #[serde(flatten)]
    pub plan: Plan,
    /// Images that the sessions took a second, all together.
    pub images_per_second: f64,
}

/// The plan that was found for a model on a machine, and what it was chosen from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// Of the plans about as fast as the fastest, the one with the smallest batch, then the one with most sessions.
    pub plan: Plan,
    /// All that were tried.
    pub measured: Vec<Measured>,
    /// Where it holds.
    of: Circumstances,
}

/// What a measurement depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Circumstances {
    /// SHA-256 of the backbone's file.
    backbone: String,
    onnxruntime: String,
    device: String,
    cuda: String,
    cores: usize,
    cpu: String,
    sessions: Option<usize>,
    threads: Option<usize>,
    max_batch_size: Option<usize>,
}

impl Circumstances {
    fn new(directory: &ModelDirectory, options: &LoadOptions, settled: Settled) -> Result<Self, LoadError> {
        let runtime = onnx::init(None).map_err(OnnxError::from);
        let runtime = runtime.map_err(|source| LoadError::Backbone { path: directory.backbone.clone(), source })?;
        Ok(Self {
            backbone: Digest::of(&read(&directory.backbone)?).to_hex(),
            onnxruntime: runtime.version.clone(),
            device: options.session.device.to_string(),
            cuda: directory.cuda.to_string(),
            cores: crate::config::cores(),
            cpu: cpu_name(),
            sessions: settled.sessions,
            threads: settled.threads,
            max_batch_size: settled.max_batch_size,
        })
    }
}

fn cpu_name() -> String {
    let of_linux = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    of_linux.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The plan that was kept for these circumstances; measured now, and kept, if there is none. `None` for a model whose tensors
/// have no size until an image is there.
///
/// # Errors
/// Those of loading the backbone, and of writing the result down.
pub fn tune(directory: &ModelDirectory, options: &LoadOptions, settled: Settled) -> Result<Option<Tuning>, LoadError> {
    let of = Circumstances::new(directory, options, settled)?;
    let path = match &options.state_dir {
        Some(state_dir) => Some(state_dir.tuning_path(&directory.name)?),
        None => None,
    };
    if let Some(kept) = path.as_deref().and_then(kept).filter(|tuning| tuning.of == of) {
        return Ok(Some(kept));
    }
    tracing::info!(model = directory.name, "measuring how to run `{}` on this machine", directory.name);
    let Some(measured) = measure(directory, options, settled)? else {
        tracing::warn!(
            model = directory.name,
            "`{}` cannot be tuned: the size of its tensors depends on the image",
            directory.name
        );
        return Ok(None);
    };
    let Some(plan) = best(&measured) else { return Ok(None) };
    let tuning = Tuning { plan, measured, of };
    if let Some(path) = path {
        keep(&path, &tuning)?;
        tracing::info!(model = directory.name, path = %path.display(), "the result is in {}", path.display());
    }
    Ok(Some(tuning))
}

/// What is in that file. One that cannot be read is measured again.
fn kept(path: &Path) -> Option<Tuning> {
    let bytes = fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(tuning) => Some(tuning),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "{} is not a result of tuning", path.display());
            None
        }
    }
}

fn keep(path: &Path, tuning: &Tuning) -> Result<(), StateError> {
    let bytes = serde_json::to_vec_pretty(tuning).map_err(|error| io_error(path)(error.into()))?;
    write_whole(path.parent().unwrap_or(path), path, &bytes)
}

/// Of the plans that are about as fast as the fastest: the smallest batch, which costs least memory and keeps nobody waiting for
/// others, then the most sessions, of which none waits for another one's image.
fn best(measured: &[Measured]) -> Option<Plan> {
    let fastest = measured.iter().map(|one| one.images_per_second).fold(0.0, f64::max);
    let good = measured.iter().filter(|one| one.images_per_second >= fastest * (1.0 - MARGIN));
    good.map(|one| one.plan).min_by_key(|plan| (plan.max_batch_size, std::cmp::Reverse(plan.sessions)))
}

/// Sessions and threads that share `cores`: as many sessions as cores, half as many, and one.
fn splits(cores: usize, is_cuda: bool, settled: Settled) -> Vec<(usize, usize)> {
    let mut sessions = match (settled.sessions, is_cuda) {
        (Some(sessions), _) => vec![sessions],
        (None, true) => vec![1],
        (None, false) => vec![cores, cores / 2, 1],
    };
    sessions.retain(|&n| n > 0);
    sessions.dedup();
    sessions.iter().map(|&n| (n, settled.threads.unwrap_or((cores / n).max(1)))).collect()
}

fn measure(
    directory: &ModelDirectory,
    options: &LoadOptions,
    settled: Settled,
) -> Result<Option<Vec<Measured>>, LoadError> {
    let failed = |source: OnnxError| LoadError::Backbone { path: directory.backbone.clone(), source };
    let given = preprocessor_of(directory, options)?.output_size();
    let mut measured = Vec::new();
    for (n_sessions, threads) in splits(crate::config::cores(), options.session.device.expects_cuda(), settled) {
        let mut options = LoadOptions { n_sessions, ..options.clone() };
        (options.session.threads, options.session.cuda) = (threads, directory.cuda);
        let mut backbones = load_backbones(directory, &mut read_head_files(directory)?, &options, given)?;
        let size = backbones.sessions.first().and_then(|session| session.image_size(given));
        let Some((height, width)) = size else { return Ok(None) };
        let largest = match backbones.provider {
            onnx::Provider::Cpu => CPU_LARGEST_BATCH,
            _ => CUDA_LARGEST_BATCH,
        };
        let batches = match settled.max_batch_size {
            Some(only) => vec![only],
            None => std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n <= largest).collect(),
        };
        let speeds = sweep(&mut backbones.sessions, &batches, height, width).map_err(failed)?;
        for (max_batch_size, images_per_second) in speeds {
            let plan = Plan { sessions: n_sessions, threads, max_batch_size };
            tracing::debug!(model = directory.name, "{plan:?}: {images_per_second:.0} images/s");
            measured.push(Measured { plan, images_per_second });
        }
    }
    Ok(Some(measured))
}

/// The images a second of these sessions together at each batch size that is worth it.
fn sweep(
    sessions: &mut [onnx::Backbone],
    batches: &[usize],
    height: usize,
    width: usize,
) -> Result<Vec<(usize, f64)>, OnnxError> {
    let start = Instant::now();
    let pixels = onnx::RandomPixels::new().draw(batches.iter().max().unwrap_or(&0) * 3 * height * width);
    let mut run = |n: usize| run_together(sessions, &pixels[..n * 3 * height * width], n, height, width);
    let mut speeds: Vec<(usize, f64)> = Vec::new();
    let (mut fastest, mut n_slow) = (0.0, 0);
    for &n in batches {
        // The first time takes memory, and the second counts.
        let speed = match run(n).and_then(|_| run(n)) {
            Ok(speed) => speed,
            // A batch that the device has no memory for.
            Err(error) if error.is_out_of_memory() && !speeds.is_empty() => break,
            Err(error) => return Err(error),
        };
        speeds.push((n, speed));
        n_slow = if speed < fastest * (1.0 - HOPELESS) { n_slow + 1 } else { 0 };
        fastest = f64::max(fastest, speed);
        if n_slow == 2 {
            break;
        }
    }
    for _ in 1..N_ROUNDS {
        for (n, best) in &mut speeds {
            if start.elapsed() < LONGEST {
                *best = best.max(run(*n)?);
            }
        }
    }
    Ok(speeds)
}

/// Images a second of all sessions at once, each on a thread of its own.
fn run_together(
    sessions: &mut [onnx::Backbone],
    pixels: &[f32],
    n: usize,
    height: usize,
    width: usize,
) -> Result<f64, OnnxError> {
    let run = |session: &mut onnx::Backbone| {
        let start = Instant::now();
        let mut n_images = 0;
        while n_images == 0 || start.elapsed() < SLICE {
            session.run(pixels, n, height, width)?;
            n_images += n;
        }
        Ok(n_images as f64 / start.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = sessions.iter_mut().map(|session| scope.spawn(|| run(session))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(0.0))).sum()
    })
}

impl StateDir {
    /// Where the result of tuning a model is kept: here, whoever shares the store, for it is this machine's.
    fn tuning_path(&self, model: &str) -> Result<std::path::PathBuf, StateError> {
        let folder = self.path().join("models").join(model);
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        Ok(folder.join("tuning.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(sessions: usize, max_batch_size: usize, images_per_second: f64) -> Measured {
        Measured { plan: Plan { sessions, threads: 2 / sessions, max_batch_size }, images_per_second }
    }

    #[test]
    fn the_smallest_batch_that_is_about_as_fast_is_chosen() {
        let all = [
            measured(2, 1, 80.0),
            measured(2, 2, 98.0),
            measured(2, 4, 100.0),
            measured(1, 1, 60.0),
            measured(1, 2, 99.0),
        ];
        assert_eq!(best(&all), Some(all[1].plan));
        assert_eq!(best(&all[2..]), Some(all[4].plan));
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn cores_are_shared_out_without_a_rest_that_nobody_uses() {
        let free = Settled::default();
        assert_eq!(splits(1, false, free), [(1, 1)]);
        assert_eq!(splits(2, false, free), [(2, 1), (1, 2)]);
        assert_eq!(splits(16, false, free), [(16, 1), (8, 2), (1, 16)]);
        assert_eq!(splits(16, true, free), [(1, 16)]);
        assert_eq!(splits(16, false, Settled { sessions: Some(4), ..free }), [(4, 4)]);
        assert_eq!(splits(2, false, Settled { sessions: Some(4), threads: Some(3), ..free }), [(4, 3)]);
    }

    #[test]
    fn what_was_said_comes_before_what_was_found_and_that_before_the_defaults() {
        let defaults =
            |sessions: Option<usize>| Plan { sessions: sessions.unwrap_or(8), threads: 1, max_batch_size: 4 };
        let found = Plan { sessions: 2, threads: 4, max_batch_size: 16 };
        let free = Settled::default();
        assert_eq!(free.or(None, defaults), Plan { sessions: 8, threads: 1, max_batch_size: 4 });
        assert_eq!(free.or(Some(found), defaults), found);
        let said = Settled { sessions: Some(4), threads: None, max_batch_size: Some(1) };
        assert_eq!(said.or(Some(found), defaults), Plan { sessions: 4, threads: 1, max_batch_size: 1 });
    }
}
