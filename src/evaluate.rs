//! Reports: how often a head is right, overall and by shot.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use crate::{
    dataset::{FeatureSet, Shot},
    heads::{Head, Prediction, Settings},
};

/// Values of tau in one evaluation: there is a report for each, all in memory at once.
pub const MAX_TAUS: usize = 1000;

/// Macro accuracies that differ by less are equal: the last bits depend on the order of a sum.
pub const EQUAL: f64 = 1e-12;

/// The number of equal bins of the expected calibration error.
const ECE_BINS: usize = 15;

/// The pairs of classes that a report names.
const MAX_CONFUSIONS: usize = 10;

/// How often a head is right. A group without a sample is `None`, never 0.
///
/// # Reference
/// `shot_acc` of the reference code: the unweighted mean of class accuracies within a group, over the classes that occur.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracies {
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
}

impl Accuracies {
    /// From the correct and the seen samples of each class, `[C]` both, and the classes' shots.
    ///
    /// ```
    /// use equipoise::{dataset::Shot, evaluate::Accuracies};
    /// let accuracies = Accuracies::new(&[3, 0, 0], &[4, 1, 0], &[Shot::Many, Shot::Few, Shot::Medium]);
    /// assert_eq!((accuracies.micro, accuracies.macro_), (Some(0.6), Some(0.375)));
    /// assert_eq!((accuracies.many, accuracies.medium, accuracies.few), (Some(0.75), None, Some(0.0)));
    /// ```
    pub fn new(correct: &[u64], seen: &[u64], shots: &[Shot]) -> Self {
        let n: u64 = seen.iter().sum();
        let mean = |group: &dyn Fn(usize) -> bool| {
            let (mut sum, mut n) = (0.0, 0);
            for (class, (&correct, &seen)) in correct.iter().zip(seen).enumerate() {
                if seen > 0 && group(class) {
                    sum += correct as f64 / seen as f64;
                    n += 1;
                }
            }
            (n > 0).then(|| sum / f64::from(n))
        };
        let of_shot = |shot: Shot| mean(&|class| shots.get(class) == Some(&shot));
        Self {
            micro: (n > 0).then(|| correct.iter().sum::<u64>() as f64 / n as f64),
            macro_: mean(&|_| true),
            many: of_shot(Shot::Many),
            medium: of_shot(Shot::Medium),
            few: of_shot(Shot::Few),
        }
    }
}

/// What a head gets right on a labelled set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// How many samples were looked at.
    pub n: u64,
    /// How often the best class was the right one.
    #[serde(flatten)]
    pub accuracies: Accuracies,
    /// Correct label among the five best, over all samples.
    pub top5: Option<f64>,
    /// Expected calibration error in 15 right-closed bins: `Σ |Bₘ|/N · |accuracy − mean probability|`.
    pub ece: Option<f64>,
    /// The same over the samples of each group of classes.
    pub ece_by_shot: EceByShot,
    /// Each class that occurs.
    pub per_class: Vec<ClassAccuracy>,
    /// The pairs of classes that were taken for each other most often, at most ten.
    pub confusions: Vec<Confusion>,
}

/// The expected calibration error by shot. A group without a sample is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EceByShot {
    /// Over the samples of classes with more than 100 training samples.
    pub many: Option<f64>,
    /// Of those with 20 to 100.
    pub medium: Option<f64>,
    /// Of those with fewer than 20.
    pub few: Option<f64>,
}

/// How often the samples of one class are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClassAccuracy {
    /// The class index.
    pub class: usize,
    /// Its samples in the set.
    pub n: u64,
    /// The share that was predicted as this class.
    pub accuracy: f64,
}

/// How often the samples of one class are taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// The right class.
    pub class: usize,
    /// What it was taken for.
    pub predicted: usize,
    /// So often.
    pub n: u64,
}

/// What an evaluation of a head on a feature set answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationAnswer {
    /// The settings that the report is of.
    pub settings: Settings,
    /// Of these settings.
    #[serde(flatten)]
    pub report: Report,
    /// Of each tau that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curve: Option<Vec<TauPoint>>,
    /// Why the report may be better than the head.
    pub warnings: Vec<String>,
}

/// A tau, and the report under it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TauPoint {
    /// The exponent.
    pub tau: f64,
    /// The report.
    pub report: Report,
}

/// The place of the best macro accuracy; of equal ones the first.
pub fn best_macro<'a>(accuracies: impl IntoIterator<Item = &'a Accuracies>) -> usize {
    let (mut best, mut of_best) = (0, None);
    for (index, accuracies) in accuracies.into_iter().enumerate() {
        if accuracies.macro_ > of_best.map(|of_best: f64| of_best + EQUAL) {
            (best, of_best) = (index, accuracies.macro_);
        }
    }
    best
}

/// Where the making of `head`, which is called `name`, has met this very set.
pub fn warnings(head: &Head, name: &str, set: &FeatureSet) -> Vec<String> {
    let digest = set.digest().to_hex();
    let met = head.sets_met().filter(|(_, met)| *met == digest);
    let words = met.map(|(key, _)| {
        let of_base = if key.starts_with("base_") { "the base of " } else { "" };
        let how = if key.ends_with("validation_set_digest") { "chosen" } else { "fitted" };
        format!("{of_base}{name} was {how} on this very set: on samples that it has never met it gets less right")
    });
    words.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Samples, correct ones, and the sum of probabilities, of each bin.
type Bins = [(u64, u64, f64); ECE_BINS];

fn ece(bins: &Bins) -> Option<f64> {
    let n: u64 = bins.iter().map(|bin| bin.0).sum();
    let gap = |&(_, correct, sum): &(u64, u64, f64)| (correct as f64 - sum).abs() / n as f64;
    (n > 0).then(|| bins.iter().map(gap).sum())
}

/// Collects predictions into a [`Report`].
#[derive(Clone, Debug)]
pub struct Evaluation<'a> {
    shots: &'a [Shot],
    correct: Vec<u64>,
    seen: Vec<u64>,
    top5: u64,
    /// In the order of [`Shot::ALL`].
    bins: [Bins; Shot::ALL.len()],
    confusions: HashMap<(usize, usize), u64>,
}

impl<'a> Evaluation<'a> {
    /// An empty evaluation; `shots` has the shot of each class.
    pub fn new(shots: &'a [Shot]) -> Self {
        Self {
            shots,
            correct: vec![0; shots.len()],
            seen: vec![0; shots.len()],
            top5: 0,
            bins: Default::default(),
            confusions: HashMap::new(),
        }
    }

    /// Counts one sample: its label and its best classes, best first, at least five of them for `top5`.
    ///
    /// # Panics
    /// If `label` is not below the number of classes.
    pub fn add(&mut self, label: usize, best: &[Prediction]) {
        self.seen[label] += 1;
        let Some(first) = best.first() else { return };
        let correct = first.class == label;
        self.correct[label] += u64::from(correct);
        if !correct {
            *self.confusions.entry((label, first.class)).or_default() += 1;
        }
        self.top5 += u64::from(best.iter().take(5).any(|prediction| prediction.class == label));
        // Right-closed: a probability on a boundary belongs to the bin below it.
        let bin = ((first.probability * ECE_BINS as f64).ceil() as usize).clamp(1, ECE_BINS) - 1;
        let bin = &mut self.bins[self.shots[label] as usize][bin];
        bin.0 += 1;
        bin.1 += u64::from(correct);
        bin.2 += first.probability;
    }

    /// Adds what another evaluation of the same classes has counted.
    pub fn merge(&mut self, other: &Self) {
        let add = |sums: &mut [u64], counts: &[u64]| sums.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        add(&mut self.correct, &other.correct);
        add(&mut self.seen, &other.seen);
        self.top5 += other.top5;
        for (sum, bin) in self.bins.iter_mut().flatten().zip(other.bins.iter().flatten()) {
            *sum = (sum.0 + bin.0, sum.1 + bin.1, sum.2 + bin.2);
        }
        for (&pair, n) in &other.confusions {
            *self.confusions.entry(pair).or_default() += n;
        }
    }

    /// The report.
    pub fn report(&self) -> Report {
        let n: u64 = self.seen.iter().sum();
        let mut all = Bins::default();
        for (sum, bin) in self.bins.iter().flat_map(|bins| (0..ECE_BINS).map(|bin| (bin, bins[bin]))) {
            all[sum] = (all[sum].0 + bin.0, all[sum].1 + bin.1, all[sum].2 + bin.2);
        }
        let of_shot = |shot: Shot| ece(&self.bins[shot as usize]);
        let mut confusions: Vec<Confusion> =
            self.confusions.iter().map(|(&(class, predicted), &n)| Confusion { class, predicted, n }).collect();
        confusions.sort_by_key(|confusion| (std::cmp::Reverse(confusion.n), confusion.class, confusion.predicted));
        confusions.truncate(MAX_CONFUSIONS);
        let classes = self.seen.iter().zip(&self.correct).enumerate().filter(|(_, (seen, _))| **seen > 0);
        Report {
            n,
            accuracies: Accuracies::new(&self.correct, &self.seen, self.shots),
            top5: (n > 0).then(|| self.top5 as f64 / n as f64),
            ece: ece(&all),
            ece_by_shot: EceByShot {
                many: of_shot(Shot::Many),
                medium: of_shot(Shot::Medium),
                few: of_shot(Shot::Few),
            },
            per_class: classes
                .map(|(class, (&n, &correct))| ClassAccuracy { class, n, accuracy: correct as f64 / n as f64 })
                .collect(),
            confusions,
        }
    }
}
