//! The threads that turn bytes into tensors.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use bytes::Bytes;

use super::{
    job::{BatchError, Input, Job},
    queue::{Sender, queue},
};
use crate::{
    metrics::{ModelMetrics, Phase},
    preprocess::Preprocessor,
    sync::thread,
};

type Task = Box<dyn FnOnce() + Send>;

/// A fixed number of threads that decode images in the order they came, for all models of the process. What waits for
/// them is bounded by the places of the batchers.
///
/// Why not the runtime's blocking pool? It grows to hundreds of threads under load, and decoding gains nothing from more
/// threads than cores.
#[derive(Clone, Debug)]
pub struct DecodePool {
    tasks: Sender<Task>,
}

impl DecodePool {
    /// Starts `n_threads` threads; they end when the last clone of the pool is dropped.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(n_threads: usize) -> std::io::Result<Self> {
        let (tasks, queue) = queue::<Task>();
        for index in 0..n_threads.max(1) {
            let queue = queue.clone();
            thread::Builder::new().name(format!("decode-{index}")).spawn(move || {
                while let Some(task) = queue.recv() {
                    // The task's own panic drops its reply, which answers the request; the thread lives on.
                    if std::panic::catch_unwind(AssertUnwindSafe(task)).is_err() {
                        tracing::error!("decoding panicked");
                    }
                }
            })?;
        }
        Ok(Self { tasks })
    }

    /// Decodes `image` for `job`, then sends the job to `queue`; an unreadable image is answered here.
    pub(super) fn decode(
        &self,
        image: Bytes,
        preprocessor: &Arc<Preprocessor>,
        job: Job,
        queue: &Sender<Job>,
        metrics: &ModelMetrics,
    ) -> Result<(), BatchError> {
        let (preprocessor, queue, metrics) = (Arc::clone(preprocessor), queue.clone(), metrics.clone());
        let task = move || {
            let start = Instant::now();
            let Some(mut job) = job.still_wanted(start) else { return };
            match preprocessor.run(&image) {
                Ok(tensor) => {
                    job.queued_at = Instant::now();
                    job.preprocess = job.queued_at - start;
                    job.input = Input::Pixels { pixels: tensor.pixels, height: tensor.height, width: tensor.width };
                    metrics.phase(Phase::Preprocess).observe(job.preprocess.as_secs_f64());
                    if let Err(lost) = queue.send(job) {
                        lost.fail(BatchError::WorkerLost);
                    }
                }
                Err(source) => {
                    metrics.image_error(source.reason());
                    job.fail(BatchError::Image { index: 0, source: Arc::new(source) });
                }
            }
        };
        self.tasks.send(Box::new(task)).map_err(|_| BatchError::WorkerLost)
    }
}
