//! How a model is best run on this machine: measured once, and kept in the state directory.
//!
//! What is measured is the backbone alone, on noise: sessions side by side, each on its own threads, at growing batches. The
//! rest of a request costs the same however it is batched. Then, of one image at a time, what more threads would do for it.

mod measure;

use std::{fs, path::Path};

use measure::{measure, measure_alone};
use serde::{Deserialize, Serialize};

use super::{
    LoadError, LoadOptions, ModelDirectory, StateDir, StateError,
    store::{io_error, write_whole},
};
use crate::{
    files::read,
    heads::Digest,
    onnx::{self, OnnxError},
};

/// Speeds this close to the best count as the same: the speed of a core drifts by as much.
const MARGIN: f64 = 0.05;
/// How much faster an image must be with more threads, which take the cores and the memory of another session, to be given them.
const LONE_GAIN: f64 = 1.25;

/// How a model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Sessions side by side.
    pub sessions: usize,
    /// Threads in each.
    pub threads: usize,
    /// Most images in one pass.
    pub max_batch_size: usize,
    /// Threads for an image while no other is worked on; no more than `threads` where that is no faster.
    pub lone_threads: usize,
}

/// The part of a [`Plan`] that is settled already, and need not be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Sessions side by side.
    pub sessions: Option<usize>,
    /// Threads in each.
    pub threads: Option<usize>,
    /// Most images in one pass.
    pub max_batch_size: Option<usize>,
    /// Threads for an image while no other is worked on.
    pub lone_threads: Option<usize>,
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
            lone_threads: self.lone_threads.or(found.map(|plan| plan.lone_threads)).unwrap_or(defaults.lone_threads),
            max_batch_size: self
                .max_batch_size
                .or(found.map(|plan| plan.max_batch_size))
                .unwrap_or(defaults.max_batch_size),
        }
    }
}

/// What some sessions reached, all of them busy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Sessions side by side.
    pub sessions: usize,
    /// Threads in each.
    pub threads: usize,
    /// Images in one pass.
    pub max_batch_size: usize,
    /// Images that the sessions took a second, all together.
    pub images_per_second: f64,
}

/// What one session reached, on one image at a time and nothing beside it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredAlone {
    /// Its threads.
    pub threads: usize,
    /// Images that it took a second.
    pub images_per_second: f64,
}

/// The plan that was found for a model on a machine, and what it was chosen from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// Of what was about as fast as the fastest, the one with the smallest batch, then the one with most sessions; and the
    /// fewest threads about as good as any for an image that is alone.
    pub plan: Plan,
    /// All that were tried.
    pub measured: Vec<Measured>,
    /// All threads that were tried for an image that is alone: first those of the plan's sessions.
    pub measured_alone: Vec<MeasuredAlone>,
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
    #[serde(flatten)]
    settled: Settled,
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
            settled,
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
    let Some(best) = best(&measured) else { return Ok(None) };
    let measured_alone = match settled.lone_threads {
        Some(_) => Vec::new(),
        None => measure_alone(directory, options, &best)?,
    };
    let lone_threads = settled.lone_threads.unwrap_or_else(|| best_alone(&measured_alone));
    let Measured { sessions, threads, max_batch_size, .. } = best;
    let plan = Plan { sessions, threads, max_batch_size, lone_threads };
    let tuning = Tuning { plan, measured, measured_alone, of };
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

/// Of what is about as fast as the fastest: the smallest batch, which costs least memory and keeps nobody waiting for others, then
/// the most sessions, of which none waits for another one's image.
fn best(measured: &[Measured]) -> Option<Measured> {
    let fastest = measured.iter().map(|one| one.images_per_second).fold(0.0, f64::max);
    let good = measured.iter().filter(|one| one.images_per_second >= fastest * (1.0 - MARGIN));
    good.min_by_key(|one| (one.max_batch_size, std::cmp::Reverse(one.sessions))).copied()
}

/// The fewest threads about as fast as the fastest, if that is well ahead of the first.
fn best_alone(measured: &[MeasuredAlone]) -> usize {
    let Some(first) = measured.first() else { return 0 };
    let fastest = measured.iter().map(|one| one.images_per_second).fold(0.0, f64::max);
    if fastest < first.images_per_second * LONE_GAIN {
        return first.threads;
    }
    let good = measured.iter().filter(|one| one.images_per_second >= fastest * (1.0 - MARGIN));
    good.map(|one| one.threads).min().unwrap_or(first.threads)
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
        Measured { sessions, threads: 2 / sessions, max_batch_size, images_per_second }
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
        assert_eq!(best(&all), Some(all[1]));
        assert_eq!(best(&all[2..]), Some(all[4]));
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn an_image_that_is_alone_gets_more_threads_where_it_is_well_faster_with_them() {
        let alone = |speeds: &[(usize, f64)]| {
            let measured = |&(threads, images_per_second)| MeasuredAlone { threads, images_per_second };
            best_alone(&speeds.iter().map(measured).collect::<Vec<_>>())
        };
        assert_eq!(alone(&[]), 0);
        assert_eq!(alone(&[(1, 100.0), (2, 120.0)]), 1);
        assert_eq!(alone(&[(1, 100.0), (2, 170.0)]), 2);
        assert_eq!(alone(&[(1, 100.0), (2, 170.0), (4, 300.0), (8, 310.0), (16, 200.0)]), 4);
    }

    #[test]
    fn what_was_said_comes_before_what_was_found_and_that_before_the_defaults() {
        let defaults = |sessions: Option<usize>| Plan {
            sessions: sessions.unwrap_or(8),
            threads: 1,
            max_batch_size: 4,
            lone_threads: 1,
        };
        let found = Plan { sessions: 2, threads: 4, max_batch_size: 16, lone_threads: 8 };
        let free = Settled::default();
        assert_eq!(free.or(None, defaults), Plan { sessions: 8, threads: 1, max_batch_size: 4, lone_threads: 1 });
        assert_eq!(free.or(Some(found), defaults), found);
        let said = Settled { sessions: Some(4), threads: None, max_batch_size: Some(1), lone_threads: Some(2) };
        assert_eq!(
            said.or(Some(found), defaults),
            Plan { sessions: 4, threads: 1, max_batch_size: 1, lone_threads: 2 }
        );
    }
}
