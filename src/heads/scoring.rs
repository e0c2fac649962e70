//! The `O(C)` part of a head: scale, shift, temperature, softmax and the k best classes.

use multiversion::multiversion;

/// `a`, `c` and `T` of a head under one setting, and which classes are masked.
#[derive(Clone, Debug)]
pub struct Scoring {
    // In f64, because a norm to the power of −5 leaves the range of f32 long before it stops making sense.
    scale: Vec<f64>,
    shift: Vec<f64>,
    inverse_temperature: f64,
    masked: Vec<bool>,
    num_unmasked: usize,
    screen: Option<Screen>,
}

/// The same in f32, which tells most classes apart; none if it does not reach so far.
#[derive(Clone, Debug)]
struct Screen {
    scale: Vec<Lanes>,
    /// Minus infinity for masked classes, and behind the last one.
    shift: Vec<Lanes>,
    largest_shift: f32,
}

/// What is computed at once, in vectors that lie in one line of the caches each: where they lie in two, as half of those of a
/// plain slice do, reading them takes most of the time.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Lanes([f32; LANES]);

const LANES: usize = 32;

impl Lanes {
    /// The values, and `padding` behind the last one.
    fn of(values: &[f32], padding: f32) -> Vec<Self> {
        let mut lanes = vec![Self([padding; LANES]); values.len().div_ceil(LANES)];
        for (lanes, values) in lanes.iter_mut().zip(values.chunks(LANES)) {
            lanes.0[..values.len()].copy_from_slice(values);
        }
        lanes
    }
}

/// The raw scores of one sample, to be asked for [the best](Scoring::is_best) under many settings.
#[derive(Clone, Debug)]
pub struct RawRow(Vec<Lanes>);

impl RawRow {
    /// A row of the matrix product, `[C]`.
    #[must_use]
    pub fn new(raw: &[f32]) -> Self {
        Self(Lanes::of(raw, 0.0))
    }

    fn get(&self, class: usize) -> f32 {
        self.0[class / LANES].0[class % LANES]
    }
}

impl Screen {
    fn new(scale: &[f64], shift: &[f64], masked: &[bool]) -> Option<Self> {
        let fits = |value: f64| value == 0.0 || (1e-30..1e30).contains(&value.abs());
        let unmasked = || scale.iter().zip(shift).zip(masked).filter(|(_, masked)| !**masked);
        let largest_shift = unmasked().map(|((_, shift), _)| shift.abs()).fold(0.0, f64::max) as f32;
        let shift_or_mask = |(&shift, &masked)| if masked { f32::NEG_INFINITY } else { shift as f32 };
        unmasked().all(|((&scale, &shift), _)| fits(scale) && fits(shift)).then(|| Self {
            scale: Lanes::of(&scale.iter().map(|&scale| scale as f32).collect::<Vec<_>>(), 0.0),
            shift: Lanes::of(&shift.iter().zip(masked).map(shift_or_mask).collect::<Vec<_>>(), f32::NEG_INFINITY),
            largest_shift,
        })
    }

    /// Whether `class` has the largest logit, if f32 can tell.
    ///
    /// Each of scale, shift, product and sum is rounded once, by 2⁻²⁴ of itself at most, so that a logit `z` is wrong by no
    /// more than `2⁻²² (|z| + |shift|)`, and a difference of two by both together.
    fn is_best(&self, raw: &RawRow, class: usize) -> Option<bool> {
        const ERROR: f32 = 1.0 / (1 << 22) as f32;
        let (block, lane) = (class / LANES, class % LANES);
        let (scale, mut shift) = (self.scale.get(block)?, self.shift[block]);
        let own = scale.0[lane] * raw.0[block].0[lane] + shift.0[lane];
        shift.0[lane] = f32::NEG_INFINITY;
        let others = largest_logit(&raw.0, &self.scale, &self.shift, (block, &shift));
        let error = ERROR * (own.abs() + others.abs() + 2.0 * self.largest_shift) + f32::MIN_POSITIVE;
        // Not so if one of the two is no finite number.
        ((own - others).abs() > error && error.is_finite()).then_some(own > others)
    }
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
        let screen = Screen::new(&scale, &shift, &masked);
        Self {
            scale,
            shift,
            screen,
            // Of a smaller one that would be infinite, and a logit of 0 no number.
            inverse_temperature: temperature.max(f64::MIN_POSITIVE).recip(),
            masked,
            num_unmasked,
        }
    }

    /// How many classes can be predicted.
    pub fn num_unmasked(&self) -> usize {
        self.num_unmasked
    }

    /// Writes the logits `z = (a ∘ s + c − ‖g(x)‖²) / T` of one sample to `logits`; minus infinity for masked classes. Says
    /// whether all others are finite.
    pub fn logits(&self, scores: Scores<'_>, logits: &mut Vec<f64>) -> bool {
        let n = scores.raw.len().min(self.scale.len());
        logits.resize(n, 0.0);
        let constants = (f64::from(scores.squared_norm), self.inverse_temperature);
        write_logits(&scores.raw[..n], &self.scale[..n], &self.shift[..n], &self.masked[..n], constants, logits)
    }

    /// Whether `class` is the best of one sample by its raw scores alone, of equal ones the lowest; for heads without a
    /// `‖g(x)‖²` to subtract, or where that is the same for all classes. `false` if the largest logit is not a finite number.
    ///
    /// # Panics
    /// If the row has fewer classes than this.
    pub fn is_best(&self, raw: &RawRow, class: usize) -> bool {
        let in_single = self.screen.as_ref().and_then(|screen| screen.is_best(raw, class));
        in_single.unwrap_or_else(|| self.best_class(raw) == Some(class))
    }

    /// The first class with the largest logit; `None` if that is not a finite number.
    fn best_class(&self, raw: &RawRow) -> Option<usize> {
        let classes = self.scale.iter().zip(&self.shift).zip(&self.masked).enumerate();
        let mut best = (0, f64::NEG_INFINITY);
        for (class, ((scale, shift), _)) in classes.filter(|(_, (_, masked))| !**masked) {
            let logit = scale * f64::from(raw.get(class)) + shift;
            if logit > best.1 {
                best = (class, logit);
            }
        }
        best.1.is_finite().then_some(best.0)
    }

    /// The `k` best classes of one sample, best first; fewer if fewer are not masked. `logits` is scratch space.
    ///
    /// `None` if a logit is not a finite number, or one of the best is beyond float32: the features were so large that the
    /// matrix product overflowed, or the temperature is too small for them.
    pub fn predict(&self, scores: Scores<'_>, k: usize, logits: &mut Vec<f64>) -> Option<Vec<Prediction>> {
        let best = self.logits(scores, logits).then(|| top_k(logits, k.min(self.num_unmasked)))?;
        best.iter().all(|prediction| prediction.logit.abs() <= f64::from(f32::MAX)).then_some(best)
    }
}

/// See [`Scoring::logits`].
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn write_logits(
    raw: &[f32],
    scale: &[f64],
    shift: &[f64],
    masked: &[bool],
    (constant, inverse_temperature): (f64, f64),
    logits: &mut [f64],
) -> bool {
    let mut all_finite = true;
    for ((((logit, &raw), scale), shift), &masked) in logits.iter_mut().zip(raw).zip(scale).zip(shift).zip(masked) {
        let unmasked = (scale * f64::from(raw) + shift - constant) * inverse_temperature;
        all_finite &= masked | (unmasked.abs() < f64::INFINITY);
        *logit = if masked { f64::NEG_INFINITY } else { unmasked };
    }
    all_finite
}

/// The largest `scale · raw + shift`, all of one length, with another shift for one block; a NaN does not count.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn largest_logit(raw: &[Lanes], scale: &[Lanes], shift: &[Lanes], (other, shift_of_other): (usize, &Lanes)) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut take = |Lanes(raw): &Lanes, Lanes(scale): &Lanes, Lanes(shift): &Lanes| {
        for lane in 0..LANES {
            lanes[lane] = larger(scale[lane] * raw[lane] + shift[lane], lanes[lane]);
        }
    };
    let blocks = || raw.iter().zip(scale).zip(shift);
    for ((raw, scale), shift) in blocks().take(other) {
        take(raw, scale, shift);
    }
    for ((raw, scale), shift) in blocks().skip(other + 1) {
        take(raw, scale, shift);
    }
    take(&raw[other], &scale[other], shift_of_other);
    // By halves: one lane after the other took longer than the thousand classes before.
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = larger(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
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
        insert_best(logits, k, &mut best);
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

/// The `k` best of `logits`, best first, by insertion into `best`, which is empty.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn insert_best(logits: &[f64], k: usize, best: &mut Vec<usize>) {
    const LANES: usize = 8;
    let insert = |best: &mut Vec<usize>, class: usize| {
        best.insert(best.partition_point(|&other| logits[other] >= logits[class]), class);
    };
    (0..k).for_each(|class| insert(best, class));
    for (block, first) in logits[k..].chunks(LANES).zip((k..).step_by(LANES)) {
        // Nearly every block has nothing better than what is there, and one comparison of all of it at once says so.
        let worst = best.last().map_or(f64::NEG_INFINITY, |&last| logits[last]);
        if block.iter().fold(true, |none, logit| none & (*logit <= worst)) {
            continue;
        }
        for class in first..first + block.len() {
            if best.last().is_some_and(|&last| logits[class] <= logits[last]) {
                continue;
            }
            insert(best, class);
            best.truncate(k);
        }
    }
}

/// `max z` and `Σ exp(zᵢ − max z)`. Each term is at most 1, so f32 carries it to 1e-7 of the largest; the sum stays in f64.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn max_and_sum(logits: &[f64]) -> (f64, f64) {
    const LANES: usize = 16;
    let (blocks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f64::NEG_INFINITY; LANES];
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
        }
    }
    let max = lanes.iter().chain(rest).copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sums = [0.0f64; LANES];
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += f64::from(exp_of_negative((block[lane] - max) as f32));
        }
    }
    let rest = rest.iter().map(|logit| f64::from(exp_of_negative((logit - max) as f32)));
    (max, sums.into_iter().chain(rest).sum())
}

/// `exp(x)` for `x ≤ 0` to 2e-7 of itself, without a branch or a call, so that several go at once; what is below the
/// smallest normal f32 counts as that.
///
/// `exp(x) = 2ᵏ exp(r)` with the integer k nearest to `x / ln 2`, and `r` in ±0.35, where seven terms of the series reach
/// further than f32 does.
#[inline(always)]
pub(crate) fn exp_of_negative(x: f32) -> f32 {
    /// Adding it leaves no place for anything behind the binary point.
    const ROUNDER: f32 = 1.5 * (1u32 << 23) as f32;
    /// Its product with a small integer is exact.
    const HIGH_LN_2: f32 = 355.0 / 512.0;
    const LOW_LN_2: f32 = (std::f64::consts::LN_2 - HIGH_LN_2 as f64) as f32;
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUNDER;
    let k = rounded - ROUNDER;
    let r = (x - k * HIGH_LN_2) - k * LOW_LN_2;
    let series = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let mut sum = 0.0f32;
    for term in series {
        sum = sum * r + term;
    }
    // The low bits of `rounded` are k; in the exponent's place it is a power of two.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    sum * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_the_library() {
        for step in 0..=870_000 {
            let x = -(step as f32) * 1e-4;
            let (found, expected) = (f64::from(exp_of_negative(x)), f64::from(x).exp());
            assert!((found - expected).abs() <= 2e-7 * expected, "exp({x}) is {expected}, and {found} was found");
        }
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert!(exp_of_negative(f32::NAN).is_nan());
        assert!(exp_of_negative(f32::NEG_INFINITY) < 1e-37);
    }
}
