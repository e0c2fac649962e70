//! Threads that turn bytes into tensors, where the workers are too few to do it.

use std::time::Instant;

use super::{
    job::{BatchError, Job},
    queue::{Sender, queue},
};
use crate::{metrics::ModelMetrics, preprocess::Preprocessor, sync::thread};

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
            let mut queue = queue.clone();
            thread::Builder::new().name(format!("decode-{index}")).spawn(move || {
                while let Some(task) = queue.recv() {
                    task();
                }
            })?;
        }
        Ok(Self { tasks })
    }

    /// Decodes the image of `job`, then sends the job to `queue`; an unreadable image is answered here.
    pub(super) fn decode(
        &self,
        job: Job,
        preprocessor: &Preprocessor,
        queue: &Sender<Job>,
        metrics: &ModelMetrics,
    ) -> Result<(), BatchError> {
        let (preprocessor, queue, metrics) = (preprocessor.clone(), queue.clone(), metrics.clone());
        let task = move || {
            let job = job.still_wanted(Instant::now()).and_then(|job| job.decoded(&preprocessor, &metrics));
            let Some(job) = job else { return };
            if let Err(lost) = queue.send(job) {
                lost.fail(BatchError::WorkerLost);
            }
        };
        self.tasks.send(Box::new(task)).map_err(|_| BatchError::WorkerLost)
    }
}
