//! The `O(C)` part of a head: scale, shift, temperature, softmax and the k best classes.

use multiversion::multiversion;

/// Below this all temperatures are one: the best class has probability 1 either way, and no finite score overflows.
const MIN_TEMPERATURE: f64 = 1e-60;

/// `a`, `c` and `T` of a head under one setting, and which classes are masked.
#[derive(Clone, Debug)]
pub struct Scoring {
    // In f64, because a norm to the power of −5 leaves the range of f32 long before it stops making sense.
    scale: Vec<f64>,
    shift: Vec<f64>,
    inverse_temperature: f64,
    masked: Vec<bool>,
    /// The shift; minus infinity for masked classes.
    shift_if_unmasked: Vec<f64>,
    num_unmasked: usize,
}

/// The raw scores of one sample: a row of the matrix product, and `‖g(x)‖²` if the head's logit is minus a squared distance.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    /// `[C]`.
    pub raw: &'a [f32],
    /// 0 for every head but NCM with squared L2.
    pub squared_norm: f32,
}

/// One class of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Its index.
    pub class: usize,
    /// Its softmax probability among all classes that are not masked.
    pub probability: f64,
    /// Its logit, after the temperature.
    pub logit: f64,
}

impl Scoring {
    /// Puts a scoring together. A class that `train_counts` says had no sample is masked.
    pub fn new(scale: Vec<f64>, shift: Vec<f64>, temperature: f64, train_counts: Option<&[u64]>) -> Self {
        let masked: Vec<bool> = match train_counts {
            Some(counts) => counts.iter().map(|&count| count == 0).collect(),
            None => vec![false; scale.len()],
        };
        let num_unmasked = masked.iter().filter(|&&masked| !masked).count();
        let shift_or_none = |(&shift, &masked): (&f64, &bool)| if masked { f64::NEG_INFINITY } else { shift };
        let shift_if_unmasked = shift.iter().zip(&masked).map(shift_or_none).collect();
        Self {
            scale,
            shift,
            shift_if_unmasked,
            inverse_temperature: temperature.max(MIN_TEMPERATURE).recip(),
            masked,
            num_unmasked,
        }
    }

    /// How many classes can be predicted.
    pub fn num_unmasked(&self) -> usize {
        self.num_unmasked
    }

    /// Writes the logits `z = (a ∘ s + c − ‖g(x)‖²) / T` of one sample to `logits`; minus infinity for masked classes.
    pub fn logits(&self, scores: Scores<'_>, logits: &mut Vec<f64>) {
        let constant = f64::from(scores.squared_norm);
        logits.clear();
        logits.extend(scores.raw.iter().zip(&self.scale).zip(&self.shift).zip(&self.masked).map(
            |(((&raw, scale), shift), &masked)| {
                if masked {
                    f64::NEG_INFINITY
                } else {
                    (scale * f64::from(raw) + shift - constant) * self.inverse_temperature
                }
            },
        ));
    }

    /// The best class of one sample by its raw scores alone, of equal ones the lower; for heads without a `‖g(x)‖²` to
    /// subtract, or where that is the same for all classes. `None` if a logit is not a finite number.
    pub fn best_class(&self, raw: &[f32]) -> Option<usize> {
        let n = raw.len().min(self.scale.len());
        best_logit(&raw[..n], &self.scale[..n], &self.shift_if_unmasked[..n])
    }

    /// The `k` best classes of one sample, best first; fewer if fewer are not masked. `logits` is scratch space.
    ///
    /// `None` if a logit is not a finite number: the features were so large that the matrix product overflowed.
    pub fn predict(&self, scores: Scores<'_>, k: usize, logits: &mut Vec<f64>) -> Option<Vec<Prediction>> {
        self.logits(scores, logits);
        let all_finite = logits.iter().zip(&self.masked).all(|(logit, &masked)| masked || logit.is_finite());
        all_finite.then(|| top_k(logits, k.min(self.num_unmasked)))
    }
}

/// The first index of the largest `scale · raw + shift`, all of one length; `None` if that is not a finite number.
///
/// The largest is looked for first and its place then: neither has a branch within a block, so both go by vectors.
#[multiversion(targets("x86_64+avx2"))]
fn best_logit(raw: &[f32], scale: &[f64], shift: &[f64]) -> Option<usize> {
    const LANES: usize = 16;
    let n_blocked = raw.len() - raw.len() % LANES;
    let blocks = || raw.chunks_exact(LANES).zip(scale.chunks_exact(LANES)).zip(shift.chunks_exact(LANES));
    let logit = |class: usize| scale[class] * f64::from(raw[class]) + shift[class];
    let mut lanes = [f64::NEG_INFINITY; LANES];
    for ((raw, scale), shift) in blocks() {
        for lane in 0..LANES {
            let logit = scale[lane] * f64::from(raw[lane]) + shift[lane];
            lanes[lane] = if logit > lanes[lane] { logit } else { lanes[lane] };
        }
    }
    let largest = lanes.into_iter().chain((n_blocked..raw.len()).map(logit)).fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() {
        return None;
    }
    let holds_it = |((raw, scale), shift): ((&[f32], &[f64]), &[f64])| {
        (0..LANES).fold(false, |found, lane| found | (scale[lane] * f64::from(raw[lane]) + shift[lane] == largest))
    };
    let first = blocks().position(holds_it).map_or(n_blocked, |block| block * LANES);
    (first..raw.len()).find(|&class| logit(class) == largest)
}

/// The softmax of `logits`: `exp(zⱼ − max z) / Σ exp(zᵢ − max z)`.
pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let (max, sum) = max_and_sum(logits);
    logits.iter().map(|logit| (logit - max).exp() / sum).collect()
}

/// The `k` largest of `logits` with their softmax probabilities; of equal ones the lower class first, as argmax has it.
///
/// ```
/// use equipoise::heads::top_k;
/// let best = top_k(&[0.0, 2.0, 2.0], 2);
/// assert_eq!((best[0].class, best[1].class), (1, 2));
/// assert!((best[0].probability - 1.0 / (2.0 + (-2.0f64).exp())).abs() < 1e-7);
/// ```
pub fn top_k(logits: &[f64], k: usize) -> Vec<Prediction> {
    let k = k.min(logits.len());
    if k == 0 {
        return Vec::new();
    }
    let (max, sum) = max_and_sum(logits);
    // Adding 0 makes −0 a 0: the two are equal here, as they are to `<=`.
    let better = |&a: &usize, &b: &usize| (logits[b] + 0.0).total_cmp(&(logits[a] + 0.0)).then(a.cmp(&b));
    // Insertion into a short list beats a selection over all indices while k is small, which is nearly always.
    let mut best: Vec<usize> = Vec::with_capacity(k + 1);
    if k <= 16 {
        for (class, logit) in logits.iter().enumerate() {
            if best.len() == k && best.last().is_some_and(|&last| *logit <= logits[last]) {
                continue;
            }
            let position = best.partition_point(|&other| logits[other] >= *logit);
            best.insert(position, class);
            best.truncate(k);
        }
    } else {
        best.extend(0..logits.len());
        best.select_nth_unstable_by(k - 1, better);
        best.truncate(k);
        best.sort_unstable_by(better);
    }
    best.into_iter()
        .map(|class| Prediction { class, probability: (logits[class] - max).exp() / sum, logit: logits[class] })
        .collect()
}

fn max_and_sum(logits: &[f64]) -> (f64, f64) {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Each term is at most 1, so f32 carries it to 1e-7 of the largest; the sum stays in f64.
    let sum = logits.iter().map(|logit| f64::from(((logit - max) as f32).exp())).sum();
    (max, sum)
}
