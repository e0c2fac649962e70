//! The speed of sessions on noise.

use std::time::{Duration, Instant};

use super::{
    super::{
        LoadError, LoadOptions, ModelDirectory,
        backbone::load_backbones,
        load::{preprocessor_of, read_head_files},
    },
    Measured, MeasuredAlone, Settled,
};
use crate::{
    config::cores,
    onnx::{self, OnnxError},
};

/// For how long each plan is measured at a time, and how often: the best of these counts, since others only ever slow it down.
const SLICE: Duration = Duration::from_millis(60);
const N_ROUNDS: usize = 8;
/// No more rounds of one split of the cores, or of one number of threads, after that.
const LONGEST: Duration = Duration::from_secs(10);
/// Larger batches gained nothing on the machine that was tried.
const CPU_LARGEST_BATCH: usize = 32;
const CUDA_LARGEST_BATCH: usize = 128;
/// From batch to batch: at two in a row that are slower than the best by this share, larger ones are not tried.
const HOPELESS: f64 = 0.1;

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

/// What each split of the cores reaches at each batch size that is worth it; `None` where images have no size until they are there.
pub(super) fn measure(
    directory: &ModelDirectory,
    options: &LoadOptions,
    settled: Settled,
) -> Result<Option<Vec<Measured>>, LoadError> {
    let failed = |source: OnnxError| LoadError::Backbone { path: directory.backbone.clone(), source };
    let given = preprocessor_of(directory, options)?.output_size();
    let mut measured = Vec::new();
    for (n_sessions, threads) in splits(cores(), options.session.device.expects_cuda(), settled) {
        let mut options = LoadOptions { n_sessions, lone_threads: 0, ..options.clone() };
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
            let one = Measured { sessions: n_sessions, threads, max_batch_size, images_per_second };
            tracing::debug!(model = directory.name, "{one:?}");
            measured.push(one);
        }
    }
    Ok(Some(measured))
}

/// Threads for an image that is alone, those of a session first and all cores last.
fn threads_alone(threads: usize, cores: usize) -> Vec<usize> {
    std::iter::successors(Some(threads), |n| Some(n * 2))
        .take_while(|&n| n < cores)
        .chain([cores.max(threads)])
        .collect()
}

/// What one image at a time takes with a session like those that were chosen, and with more threads in one of its own. Nothing
/// where there are no more cores, or where no session for lone images can be had.
pub(super) fn measure_alone(
    directory: &ModelDirectory,
    options: &LoadOptions,
    best: &Measured,
) -> Result<Vec<MeasuredAlone>, LoadError> {
    let failed = |source: OnnxError| LoadError::Backbone { path: directory.backbone.clone(), source };
    let given = preprocessor_of(directory, options)?.output_size();
    let mut measured = vec![MeasuredAlone { threads: best.threads, images_per_second: 0.0 }];
    for &lone_threads in &threads_alone(best.threads, cores())[1..] {
        let mut options = LoadOptions { n_sessions: 1, lone_threads, ..options.clone() };
        (options.session.threads, options.session.cuda) = (best.threads, directory.cuda);
        let backbones = load_backbones(directory, &mut read_head_files(directory)?, &options, given)?;
        let (Some(mut lone), Some(mut session)) = (backbones.lone, backbones.sessions.into_iter().next()) else {
            break;
        };
        let Some((height, width)) = session.image_size(given) else { break };
        let pixels = onnx::RandomPixels::new().draw(3 * height * width);
        let speed = |session: &mut onnx::Backbone| {
            run_together(std::slice::from_mut(session), &pixels, 1, height, width).map_err(failed)
        };
        let start = Instant::now();
        // The first time takes memory, and the second counts.
        speed(&mut session)?;
        speed(&mut lone)?;
        let (mut of_session, mut of_lone) = (0.0f64, 0.0f64);
        for round in 0..N_ROUNDS {
            if round == 0 || start.elapsed() < LONGEST {
                of_session = of_session.max(speed(&mut session)?);
                of_lone = of_lone.max(speed(&mut lone)?);
            }
        }
        measured[0].images_per_second = measured[0].images_per_second.max(of_session);
        measured.push(MeasuredAlone { threads: lone_threads, images_per_second: of_lone });
    }
    for one in &measured {
        tracing::debug!(model = directory.name, "{one:?}");
    }
    Ok(if measured.len() < 2 { Vec::new() } else { measured })
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn an_image_that_is_alone_is_tried_with_ever_more_threads_up_to_all_cores() {
        assert_eq!(threads_alone(1, 1), [1]);
        assert_eq!(threads_alone(2, 1), [2]);
        assert_eq!(threads_alone(1, 2), [1, 2]);
        assert_eq!(threads_alone(2, 12), [2, 4, 8, 12]);
    }
}
