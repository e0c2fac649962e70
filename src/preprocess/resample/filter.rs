//! Filters and the fixed-point windows made of them.

use std::ops::Range;

use super::super::config::Interpolation;

/// Bits behind the point of a coefficient: 32 less 8 of a pixel less 2 for overshoot and sign.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// A convolution kernel over the distance to the centre, in units of its own support.
#[derive(Clone, Copy)]
pub(super) struct Filter {
    support: f64,
    kernel: fn(f64) -> f64,
}

impl Filter {
    /// The kernel of an interpolation; `None` for nearest, which is no convolution.
    pub(super) fn of(interpolation: Interpolation) -> Option<Self> {
        match interpolation {
            Interpolation::Nearest => None,
            Interpolation::Bilinear => Some(Self { support: 1.0, kernel: triangle }),
            Interpolation::Bicubic => Some(Self { support: 2.0, kernel: cubic }),
            Interpolation::Lanczos => Some(Self { support: 3.0, kernel: lanczos3 }),
        }
    }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys' cubic convolution with `a = -0.5`.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn lanczos3(x: f64) -> f64 {
    // Half open, as in Pillow: it shows only where a tap falls on the very edge.
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Which input samples make each output sample, and with which weight.
pub(super) struct Windows {
    /// First input sample of each output sample.
    starts: Vec<usize>,
    /// `n_taps` weights an output sample, the unused ones at the end 0, with [`PRECISION_BITS`] bits behind the point.
    weights: Vec<i32>,
    lens: Vec<usize>,
    n_taps: usize,
}

impl Windows {
    /// Windows of the output samples `kept`, of `out_len` made from `in_len`.
    pub(super) fn new(filter: Filter, in_len: usize, out_len: usize, kept: Range<usize>) -> Self {
        let scale = in_len as f64 / out_len as f64;
        // Reducing widens the filter so that every input sample counts (antialias); enlarging does not narrow it.
        let filter_scale = scale.max(1.0);
        let support = filter.support * filter_scale;
        let n_taps = (support.ceil() as usize * 2 + 1).min(in_len);
        let mut windows = Self {
            starts: Vec::with_capacity(kept.len()),
            lens: Vec::with_capacity(kept.len()),
            weights: vec![0; kept.len() * n_taps],
            n_taps,
        };
        let mut exact = Vec::with_capacity(n_taps);
        for (out, weights) in kept.zip(windows.weights.chunks_exact_mut(n_taps)) {
            let center = (out as f64 + 0.5) * scale;
            // `as` truncates and stops at 0, which is the rule.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(in_len);
            exact.clear();
            exact.extend((start..end).map(|x| (filter.kernel)((x as f64 - center + 0.5) * (1.0 / filter_scale))));
            let sum: f64 = exact.iter().sum();
            for (weight, exact) in weights.iter_mut().zip(&exact) {
                let share = if sum == 0.0 { *exact } else { exact / sum };
                let scaled = share * f64::from(1 << PRECISION_BITS);
                *weight = (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i32;
            }
            windows.starts.push(start);
            windows.lens.push(end - start);
        }
        windows
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The first input sample and the weights of an output sample.
    pub(super) fn get(&self, out: usize) -> (usize, &[i32]) {
        (self.starts[out], &self.weights[out * self.n_taps..][..self.lens[out]])
    }

    /// Counts input samples from `first` on, which no window may start before.
    pub(super) fn count_from(&mut self, first: usize) {
        self.starts.iter_mut().for_each(|start| *start -= first);
    }

    /// The input samples that any window touches.
    pub(super) fn touched(&self) -> Range<usize> {
        let start = self.starts.iter().copied().min().unwrap_or(0);
        let end = self.starts.iter().zip(&self.lens).map(|(start, len)| start + len).max().unwrap_or(0);
        start..end
    }
}

/// Index of the input sample of each kept output sample, by Pillow's nearest rule.
///
/// It is `floor((out + 0.5) * scale)`, but the position is *accumulated* in double precision, sample by sample from
/// the first, so the same rounding must be accumulated here.
pub(super) fn nearest_indices(in_len: usize, out_len: usize, kept: Range<usize>) -> Vec<usize> {
    let scale = in_len as f64 / out_len as f64;
    let mut position = scale * 0.5;
    let mut indices = Vec::with_capacity(kept.len());
    for out in 0..kept.end {
        if kept.start <= out {
            indices.push((position as usize).min(in_len - 1));
        }
        position += scale;
    }
    indices
}
