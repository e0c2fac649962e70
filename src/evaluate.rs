//! Reports: how often a head is right, overall and by shot.

use serde::Serialize;

use crate::{dataset::Shot, heads::Prediction};

/// The number of equal bins of the expected calibration error.
const ECE_BINS: usize = 15;

/// What a head gets right on a labelled set. A group without a sample is `None`, never 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// How many samples were looked at.
    pub n: usize,
    /// Correct over all samples.
    pub micro: Option<f64>,
    /// The unweighted mean of the accuracies of the classes that occur.
    #[serde(rename = "macro")]
    pub macro_: Option<f64>,
    /// The same over the classes with more than 100 training samples.
    pub many: Option<f64>,
    /// Over those with 20 to 100.
    pub medium: Option<f64>,
    /// Over those with fewer than 20.
    pub few: Option<f64>,
    /// Correct label among the five best, over all samples.
    pub top5: Option<f64>,
    /// Expected calibration error in 15 right-closed bins: `Σ |Bₘ|/N · |accuracy − mean probability|`.
    pub ece: Option<f64>,
    /// Each class that occurs.
    pub per_class: Vec<ClassAccuracy>,
}

/// How often the samples of one class are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClassAccuracy {
    /// The class index.
    pub class: usize,
    /// Its samples in the set.
    pub n: usize,
    /// The share that was predicted as this class.
    pub accuracy: f64,
}

/// Collects predictions into a [`Report`].
#[derive(Clone, Debug)]
pub struct Evaluation {
    correct: Vec<usize>,
    seen: Vec<usize>,
    top5: usize,
    // Of each bin: samples, correct ones, sum of probabilities.
    bins: [(usize, usize, f64); ECE_BINS],
}

impl Evaluation {
    /// An empty evaluation of `num_classes` classes.
    pub fn new(num_classes: usize) -> Self {
        Self { correct: vec![0; num_classes], seen: vec![0; num_classes], top5: 0, bins: [(0, 0, 0.0); ECE_BINS] }
    }

    /// Counts one sample: its label and its best classes, best first, at least five of them for `top5`.
    ///
    /// # Panics
    /// If `label` is not below the number of classes.
    pub fn add(&mut self, label: usize, best: &[Prediction]) {
        self.seen[label] += 1;
        let Some(first) = best.first() else { return };
        let correct = first.class == label;
        self.correct[label] += usize::from(correct);
        self.top5 += usize::from(best.iter().take(5).any(|prediction| prediction.class == label));
        // Right-closed: a probability on a boundary belongs to the bin below it.
        let bin = ((first.probability * ECE_BINS as f64).ceil() as usize).clamp(1, ECE_BINS) - 1;
        self.bins[bin].0 += 1;
        self.bins[bin].1 += usize::from(correct);
        self.bins[bin].2 += first.probability;
    }

    /// The report, with `shots` of the classes.
    ///
    /// # Reference
    /// `shot_acc` of the reference code: the unweighted mean of class accuracies within a group, over the classes that occur.
    pub fn report(&self, shots: &[Shot]) -> Report {
        let n: usize = self.seen.iter().sum();
        let over_all = |count: usize| (n > 0).then(|| count as f64 / n as f64);
        let per_class: Vec<ClassAccuracy> = self
            .seen
            .iter()
            .zip(&self.correct)
            .enumerate()
            .filter(|(_, (seen, _))| **seen > 0)
            .map(|(class, (&n, &correct))| ClassAccuracy { class, n, accuracy: correct as f64 / n as f64 })
            .collect();
        let mean = |group: &dyn Fn(usize) -> bool| {
            let accuracies: Vec<f64> = per_class.iter().filter(|c| group(c.class)).map(|c| c.accuracy).collect();
            (!accuracies.is_empty()).then(|| accuracies.iter().sum::<f64>() / accuracies.len() as f64)
        };
        let of_shot = |shot: Shot| mean(&|class| shots.get(class) == Some(&shot));
        let ece = self.bins.iter().map(|&(n_bin, correct, sum)| match n_bin {
            0 => 0.0,
            _ => (correct as f64 - sum).abs() / n.max(1) as f64,
        });
        Report {
            n,
            micro: over_all(self.correct.iter().sum()),
            macro_: mean(&|_| true),
            many: of_shot(Shot::Many),
            medium: of_shot(Shot::Medium),
            few: of_shot(Shot::Few),
            top5: over_all(self.top5),
            ece: (n > 0).then(|| ece.sum()),
            per_class,
        }
    }
}
