//! What makes a batch, and what of it goes through together.

use std::time::{Duration, Instant};

use super::{
    BatchLimits,
    job::{Input, Job},
    turns::Turns,
    worker::Shared,
};

/// Once decoding has taken so long, a batch goes as it is, unless a longer delay was asked for: the first of it would wait for
/// large photos behind it, and what a larger batch saves on the CPU is a fraction of a millisecond.
const LONGEST_DECODING: Duration = Duration::from_millis(10);

/// Jobs whose inputs go through together.
pub(super) struct Group {
    pub(super) jobs: Vec<Job>,
    pub(super) n: usize,
    /// Height and width of the pixels; `None` for feature rows.
    pub(super) size: Option<(usize, usize)>,
}

impl Shared {
    /// The rest of a batch: an even share of what waits, so that idle workers have work too, up to the maximum; or what comes
    /// within the delay, if there is one. Each image is decoded as it is taken, if that is not done yet. Jobs that nobody
    /// waits for any more are skipped.
    ///
    /// Why a share? On the CPU two batches of four on two cores end sooner than one batch of eight on one.
    pub(super) fn fill(&mut self, first: Job, turns: &mut Turns) -> Vec<Job> {
        let BatchLimits { max_batch_size, max_queue_delay, .. } = self.limits;
        let share = (self.jobs.len() + 1).div_ceil(self.n_workers.max(1)).min(max_batch_size);
        let target = if max_queue_delay > Duration::ZERO { max_batch_size } else { share };
        let until = first.queued_at + max_queue_delay;
        let longest_decoding = LONGEST_DECODING.max(max_queue_delay);
        let mut batch = Vec::with_capacity(target);
        let (mut n, mut decoding) = (0, Duration::ZERO);
        let mut next = Some(first);
        while let Some(job) = next {
            let start = Instant::now();
            if let Some(mut job) = job.still_wanted(start) {
                // It waits no longer: its places are the next one's.
                job.place = None;
                let is_decoded = !matches!(job.input, Input::Encoded(_));
                if let Some(job) = job.decoded(&self.preprocessor, &self.metrics) {
                    n += job.n;
                    batch.push(job);
                }
                if !is_decoded {
                    // Also of an image that cannot be read: those before it wait all the same.
                    decoding += start.elapsed();
                    // Who is alone has nobody to let go first.
                    if !self.occupancy.is_of_one() {
                        turns.give();
                    }
                }
            }
            next = match n {
                n if n >= target || decoding >= longest_decoding => None,
                // What already waits comes first, whatever the time.
                _ => self.jobs.recv_until(until).ok(),
            };
        }
        batch
    }
}

/// Splits a batch by what can go through together: feature rows, and pixels of equal size.
pub(super) fn group(batch: Vec<Job>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::with_capacity(1);
    for job in batch {
        let size = match &job.input {
            Input::Pixels { height, width, .. } => Some((*height, *width)),
            Input::Features { .. } => None,
            // What is in a batch has been decoded.
            Input::Encoded(_) => continue,
        };
        match groups.iter_mut().find(|group| group.size == size) {
            Some(group) => {
                group.n += job.n;
                group.jobs.push(job);
            }
            None => groups.push(Group { n: job.n, jobs: vec![job], size }),
        }
    }
    groups
}
