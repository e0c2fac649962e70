//! Who does which part of a step.

use std::time::Instant;

/// How much of a thread's speed is that of the last step: the rest is what was known before.
const OF_LAST_STEP: f64 = 0.1;

/// Who has some of the panels in a step.
#[derive(Debug)]
pub(super) struct Thread<S> {
    /// How many, after those of the threads before.
    n_panels: usize,
    /// Panels in a second, lately; none before the first step.
    speed: Option<f64>,
    /// What this step took.
    seconds: f64,
    scratch: S,
}

impl<S: Default> Default for Thread<S> {
    fn default() -> Self {
        Self { n_panels: 0, speed: None, seconds: 0.0, scratch: S::default() }
    }
}

/// Shares the panels out by how fast each thread was lately, at least one for each: the cores of a machine that others use too are
/// not equally fast, and a step takes as long as its last thread.
pub(super) fn share<S>(n_panels: usize, threads: &mut [Thread<S>]) {
    for thread in threads.iter_mut().filter(|thread| thread.seconds > 0.0) {
        let last = thread.n_panels as f64 / thread.seconds;
        thread.speed = Some(thread.speed.map_or(last, |speed| speed + OF_LAST_STEP * (last - speed)));
        thread.seconds = 0.0;
    }
    let speed = |thread: &Thread<S>| thread.speed.unwrap_or(1.0);
    let total: f64 = threads.iter().map(speed).sum();
    let (mut before, mut start, mut n_others) = (0.0, 0, threads.len());
    for thread in threads {
        before += speed(thread);
        n_others -= 1;
        let end = (n_panels as f64 * before / total).round() as usize;
        let end = end.clamp(start + 1, (n_panels - n_others).max(start + 1));
        thread.n_panels = end - start;
        start = end;
    }
}

/// Does it with the panels of each thread.
pub(super) fn in_shares<P: Send, S: Send>(
    mut panels: &mut [P],
    threads: &mut [Thread<S>],
    work: impl Fn(&mut [P], &mut S) + Sync,
) {
    let mut shares = Vec::with_capacity(threads.len());
    for thread in threads {
        let own = panels.split_off_mut(..thread.n_panels).unwrap_or_default();
        shares.push((own, thread));
    }
    each(&mut shares, |(panels, thread)| {
        let start = Instant::now();
        work(panels, &mut thread.scratch);
        thread.seconds += start.elapsed().as_secs_f64();
    });
}

/// Does it with each, each on a thread of its own.
pub(super) fn each<T: Send>(items: &mut [T], work: impl Fn(&mut T) + Sync) {
    let Some((first, others)) = items.split_first_mut() else { return };
    std::thread::scope(|scope| {
        for item in others {
            scope.spawn(|| work(item));
        }
        work(first);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_as_many_panels_as_it_is_fast() {
        let mut threads: Vec<Thread<()>> = (0..3).map(|_| Thread::default()).collect();
        let n_panels = |threads: &[Thread<()>]| threads.iter().map(|thread| thread.n_panels).collect::<Vec<_>>();
        share(32, &mut threads);
        assert_eq!(n_panels(&threads), [11, 10, 11]);
        // One takes three times as long for a panel, then one hardly gets on.
        for (seconds, expected) in [([1.0, 3.0, 1.0], [14, 4, 14]), ([1.0, 1.0, 1e6], [16, 15, 1])] {
            for _ in 0..200 {
                threads
                    .iter_mut()
                    .zip(seconds)
                    .for_each(|(thread, each)| thread.seconds = thread.n_panels as f64 * each);
                share(32, &mut threads);
                assert_eq!(n_panels(&threads).iter().sum::<usize>(), 32);
            }
            assert_eq!(n_panels(&threads), expected);
        }
        share(3, &mut threads);
        assert_eq!(n_panels(&threads), [1, 1, 1]);
    }
}
