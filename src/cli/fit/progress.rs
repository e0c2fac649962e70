//! How far a fit is, on standard error: a bar on a terminal, a line for every tenth elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::fit::Progress;

/// The length of the bar.
const STEPS: f64 = 1000.0;

/// Shows what a fit tells.
#[derive(Debug)]
pub(in crate::cli) struct FitProgress {
    bar: Option<ProgressBar>,
    has_style: bool,
    has_lines: bool,
    tenths: u32,
}

impl FitProgress {
    /// A bar, or else lines.
    pub(in crate::cli) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(STEPS as u64));
        Self { bar, has_style: false, has_lines: true, tenths: 0 }
    }

    /// A bar, or else nothing: for what takes seconds.
    pub(in crate::cli) fn of_short_work() -> Self {
        let mut progress = Self::new();
        progress.has_lines = false;
        progress
    }

    /// This far it is now.
    pub(in crate::cli) fn tell(&mut self, progress: &Progress) {
        if let Some(bar) = &self.bar {
            if !self.has_style {
                // L-BFGS ends when it has converged: the time left would be a guess.
                let left = if is_of_lbfgs(progress) { "" } else { ", {eta} left" };
                if let Ok(style) = ProgressStyle::with_template(&format!("{{wide_bar}} {{percent}} %{{msg}}{left}")) {
                    bar.set_style(style);
                }
                self.has_style = true;
            }
            bar.set_position((progress.done * STEPS) as u64);
            bar.set_message(state(progress));
            return;
        }
        // A last bit less than a tenth is a tenth.
        let tenths = (progress.done * 10.0 + 1e-9) as u32;
        if self.has_lines && tenths > self.tenths {
            self.tenths = tenths;
            eprintln!("{} %{}", 10 * tenths, state(progress));
        }
    }
}

/// What follows on the terminal stands where the bar was.
impl Drop for FitProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn is_of_lbfgs(progress: &Progress) -> bool {
    progress.epoch > 0 && progress.epochs == 0
}

/// Epoch and loss, as far as there are any.
fn state(progress: &Progress) -> String {
    let mut state = match (progress.epoch, progress.epochs) {
        (0, _) => String::new(),
        (evaluation, 0) => format!(", evaluation {evaluation}"),
        (epoch, epochs) => format!(", epoch {epoch} of {epochs}"),
    };
    if let Some(loss) = progress.loss {
        state.push_str(&format!(", loss {loss:.4}"));
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_told() {
        let progress = Progress { done: 0.35, epoch: 4, epochs: 10, loss: Some(0.5), samples_seen: 9 };
        assert_eq!(state(&progress), ", epoch 4 of 10, loss 0.5000");
        assert_eq!(state(&Progress { epochs: 0, loss: None, ..progress }), ", evaluation 4");
        assert_eq!(state(&Progress { epoch: 0, loss: None, ..progress }), "");
    }
}
