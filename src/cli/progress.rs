//! How far a command is, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counts the images that are done.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    n: usize,
    n_done: usize,
    last_line: Instant,
}

impl Progress {
    /// Of `n` images.
    pub(super) fn new(n: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(n as u64);
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} images, {per_sec}, {eta} left") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, n, n_done: 0, last_line: Instant::now() }
    }

    /// One more is done.
    pub(super) fn step(&mut self) {
        self.n_done += 1;
        match &self.bar {
            Some(bar) => bar.inc(1),
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                eprintln!("{} of {} images", self.n_done, self.n);
            }
            None => {}
        }
    }
}

/// What follows on the terminal stands where the bar was.
impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
