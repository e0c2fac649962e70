//! Which rows the next batch is made of.
//!
//! All samplers are one rule: a class is drawn with probability `pⱼ = nⱼ^q / Σᵢ nᵢ^q`, and a row of it uniformly. They
//! differ in q, and in whether the draws are independent or run through a shuffled cycle.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde::{Deserialize, Serialize};

use super::samples::rows_by_class;

/// How the rows of a batch are drawn.
///
/// # Reference
/// Kang et al., ICLR 2020, section 3.1, and the samplers of the reference code.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// `q = 1`: every row alike. Each epoch runs through all rows in an order of its own, without replacement.
    InstanceBalanced,
    /// `q = 0`: every class alike. As in the reference code the classes come in a shuffled cycle, and of each class taken
    /// four rows in turn from its own shuffled cycle: the frequencies of `q = 0` with less variance than free draws.
    ClassBalanced,
    /// `q = 0` with independent draws: the paper's words.
    ClassBalancedIid,
    /// `q = ½`, independent draws.
    SquareRoot,
    /// `pⱼ = (1 − l) nⱼ/N + l/C` with `l = (e − 1)/(E − 1)` in epoch e of E: from instance-balanced to class-balanced. The
    /// class is drawn independently, its rows come in a shuffled cycle.
    ProgressivelyBalanced,
    /// Any q, independent draws.
    Power(f64),
}

/// Rows of a class taken in a row by [`Sampling::ClassBalanced`]: `num_samples_cls` of the reference code.
const ROWS_PER_CLASS: usize = 4;

/// `pⱼ = nⱼ^q / Σᵢ nᵢ^q`, `[C]`; 0 for a class without a sample.
///
/// ```
/// use equipoise::fit::class_probabilities;
/// assert_eq!(class_probabilities(&[9, 1], 0.5), [0.75, 0.25]);
/// assert_eq!(class_probabilities(&[9, 0], 0.0), [1.0, 0.0]);
/// ```
pub fn class_probabilities(counts: &[u64], q: f64) -> Vec<f64> {
    let power = |&count: &u64| if count == 0 { 0.0 } else { (count as f64).powf(q) };
    let sum: f64 = counts.iter().map(power).sum();
    counts.iter().map(|count| power(count) / sum).collect()
}

impl Sampling {
    /// The probability of each class in epoch `epoch` of `epochs`, from 1, `[C]`.
    pub fn class_probabilities(self, counts: &[u64], epoch: usize, epochs: usize) -> Vec<f64> {
        match self {
            Self::InstanceBalanced => class_probabilities(counts, 1.0),
            Self::ClassBalanced | Self::ClassBalancedIid => class_probabilities(counts, 0.0),
            Self::SquareRoot => class_probabilities(counts, 0.5),
            Self::Power(q) => class_probabilities(counts, q),
            Self::ProgressivelyBalanced => {
                let l = if epochs > 1 { (epoch - 1) as f64 / (epochs - 1) as f64 } else { 0.0 };
                let (instance, class) = (class_probabilities(counts, 1.0), class_probabilities(counts, 0.0));
                instance.iter().zip(class).map(|(instance, class)| (1.0 - l) * instance + l * class).collect()
            }
        }
    }
}

/// Random numbers of a fit: the same seed gives the same numbers on every machine and in every version.
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The numbers of `stream` under `seed`; streams are independent of each other.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Uniform in `[0, 1)`, with 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`; 0 for `n = 0`.
    pub fn below(&mut self, n: usize) -> usize {
        // The bias is n / 2^64.
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Shuffles in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// An endless run through items, shuffled anew after each round.
#[derive(Clone, Debug)]
struct Cycle {
    items: Vec<u32>,
    next: usize,
}

impl Cycle {
    fn new(items: Vec<u32>) -> Self {
        let next = items.len();
        Self { items, next }
    }

    fn draw(&mut self, random: &mut Random) -> u32 {
        if self.next >= self.items.len() {
            random.shuffle(&mut self.items);
            self.next = 0;
        }
        self.next += 1;
        self.items[self.next - 1]
    }

    /// Ends the round: the next item is the first of a new one.
    fn restart(&mut self) {
        self.next = self.items.len();
    }
}

/// Draws rows of a labelled set, batch by batch. Cycles over classes, and over the rows of one class, go on across epochs, as in
/// the reference code; that over all rows begins anew with each, so that no batch holds a row twice.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    counts: Vec<u64>,
    /// The rows of each class.
    rows: Vec<Cycle>,
    /// All rows, or all classes that have one.
    cycle: Cycle,
    /// The class of which rows are being taken, and how many are still to take.
    current: (usize, usize),
    /// `Σ_{i ≤ j} pᵢ`, for free draws of classes.
    cumulative: Vec<f64>,
}

impl Sampler {
    /// A sampler of the rows with these `labels`, each below `num_classes`. At least one row is needed.
    pub fn new(sampling: Sampling, labels: &[u32], num_classes: usize, seed: u64) -> Self {
        let rows = rows_by_class(labels, num_classes);
        let counts = rows.iter().map(|rows| rows.len() as u64).collect();
        let cycle = match sampling {
            Sampling::InstanceBalanced => (0u32..).zip(labels).map(|(row, _)| row).collect(),
            _ => (0u32..).zip(&rows).filter(|(_, rows)| !rows.is_empty()).map(|(class, _)| class).collect(),
        };
        let rows = rows.into_iter().map(Cycle::new).collect();
        let random = Random::new(seed, 1);
        let mut sampler =
            Self { sampling, random, counts, rows, cycle: Cycle::new(cycle), current: (0, 0), cumulative: Vec::new() };
        sampler.start_epoch(1, 1);
        sampler
    }

    /// Begins epoch `epoch` of `epochs`, from 1: sets the class probabilities, and shuffles anew what is instance-balanced.
    pub fn start_epoch(&mut self, epoch: usize, epochs: usize) {
        if self.sampling == Sampling::InstanceBalanced {
            self.cycle.restart();
        }
        let mut sum = 0.0;
        let probabilities = self.sampling.class_probabilities(&self.counts, epoch, epochs);
        self.cumulative = probabilities
            .into_iter()
            .map(|p| {
                sum += p;
                sum
            })
            .collect();
    }

    /// Draws `n` rows into `batch`.
    pub fn draw(&mut self, n: usize, batch: &mut Vec<u32>) {
        batch.clear();
        batch.extend((0..n).map(|_| self.draw_one()));
    }

    fn draw_one(&mut self) -> u32 {
        match self.sampling {
            Sampling::InstanceBalanced => self.cycle.draw(&mut self.random),
            Sampling::ClassBalanced => {
                if self.current.1 == 0 {
                    self.current = (self.cycle.draw(&mut self.random) as usize, ROWS_PER_CLASS);
                }
                self.current.1 -= 1;
                self.rows[self.current.0].draw(&mut self.random)
            }
            Sampling::ProgressivelyBalanced => {
                let class = self.draw_class();
                self.rows[class].draw(&mut self.random)
            }
            Sampling::ClassBalancedIid | Sampling::SquareRoot | Sampling::Power(_) => {
                let class = self.draw_class();
                let items = &self.rows[class].items;
                items[self.random.below(items.len())]
            }
        }
    }

    fn draw_class(&mut self) -> usize {
        let total = self.cumulative.last().copied().unwrap_or(0.0);
        let point = self.random.unit() * total;
        // The first class whose interval holds the point; one without a sample has none.
        self.cumulative.partition_point(|&sum| sum <= point).min(self.cumulative.len() - 1)
    }
}

/// Splits rows into a larger part and a held-out one, class by class: of a class with n rows `round(share · n)` are held
/// out, at least one if there are two, never all. Both parts are in ascending order.
pub fn stratified_holdout(labels: &[u32], num_classes: usize, share: f64, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let mut random = Random::new(seed, 2);
    let (mut kept, mut held_out) = (Vec::new(), Vec::new());
    for mut rows in rows_by_class(labels, num_classes) {
        random.shuffle(&mut rows);
        let n = match rows.len() {
            0 | 1 => 0,
            n => ((share * n as f64).round() as usize).clamp(1, n - 1),
        };
        held_out.extend(rows.drain(..n));
        kept.append(&mut rows);
    }
    kept.sort_unstable();
    held_out.sort_unstable();
    (kept, held_out)
}
