//! The nearest class mean.

use multiversion::multiversion;
use ndarray::Array2;

use super::{FitError, NcmOptions, Progress, Samples, Watch, measure::in_parallel, samples::rows_by_class};
use crate::heads::{NORM_EPSILON, Parameters, Transform};

/// Rows whose sum is one piece of work; fixed, so that the sums do not depend on the number of threads.
const ROWS_PER_PIECE: usize = 256;
/// Pieces between two looks at whether anybody still wants the result.
const PIECES_AT_ONCE: usize = 512;

/// `cⱼ = mean of g(x) over the rows of class j`, not normalised again, with `g` one of `x`, `x/‖x‖`, `(x − μ)/‖x − μ‖` and μ
/// the mean of all rows. A class without a row gets zeros, and is masked by its count.
///
/// # Reference
/// Kang et al., ICLR 2020, section 4.2; the reference code's `feat_type` and its instance mean.
pub(super) fn fit(options: &NcmOptions, samples: &Samples<'_>, watch: &mut Watch<'_>) -> Result<Parameters, FitError> {
    let counts = samples.class_counts();
    let n_passes = if options.transform == Transform::Cl2n { 2.0 } else { 1.0 };
    let mut passes_done = 0.0;
    let mut sums = |map: &Map<'_>| -> Result<Array2<f64>, FitError> {
        let before = passes_done;
        passes_done += 1.0;
        class_sums(samples, map, |share| {
            let done = (before + share) / n_passes;
            let samples_seen = (done * n_passes * samples.len() as f64) as usize;
            watch.tell(Progress { done, epoch: 0, epochs: 0, loss: None, samples_seen })
        })
    };
    let origin = vec![0.0; samples.feature_dim()];
    let mean = match options.transform {
        Transform::Cl2n => {
            let total = sums(&Map { center: &origin, normalize: false })?.sum_axis(ndarray::Axis(0));
            Some((total / samples.len() as f64).mapv(|value| value as f32))
        }
        Transform::None | Transform::L2n => None,
    };
    let center = mean.as_ref().and_then(|mean| mean.as_slice()).unwrap_or(&origin);
    let map = Map { center, normalize: options.transform != Transform::None };
    let mut centroids = sums(&map)?;
    for (mut row, &count) in centroids.rows_mut().into_iter().zip(&counts) {
        row /= count.max(1) as f64;
    }
    Ok(Parameters::Ncm {
        centroids: centroids.mapv(|value| value as f32),
        mean,
        transform: options.transform,
        metric: options.metric,
    })
}

/// `g(x) = x − center`, then to unit length if so.
struct Map<'a> {
    /// `[D]`.
    center: &'a [f32],
    normalize: bool,
}

/// The sum of `g(x)` over the rows of each class, `[C, D]`, in f64.
///
/// The rows are visited class by class: the sum of one class stays in the nearest cache, where that of all would be read and
/// written for every row.
fn class_sums(
    samples: &Samples<'_>,
    map: &Map<'_>,
    mut tell: impl FnMut(f64) -> Result<(), FitError>,
) -> Result<Array2<f64>, FitError> {
    let dim = samples.feature_dim();
    let by_class = rows_by_class(samples.labels(), samples.num_classes());
    let of_class = |(class, rows)| <[u32]>::chunks(rows, ROWS_PER_PIECE).map(move |rows| (class, rows));
    let pieces: Vec<(usize, &[u32])> = by_class.iter().map(Vec::as_slice).enumerate().flat_map(of_class).collect();
    let table = samples.table();
    let values = table.as_slice().unwrap_or_default();
    let mut sums = Array2::<f64>::zeros((samples.num_classes(), dim));
    let mut n_done = 0;
    for some in pieces.chunks(PIECES_AT_ONCE) {
        let parts = in_parallel(some, |(_, rows)| {
            let mut sum = vec![0.0f64; dim];
            let row = |sample: u32| {
                let row = samples.row(sample) as usize;
                &values[row * dim..(row + 1) * dim]
            };
            // Four at once: the rows of a class lie all over the file, and one alone would wait for the memory each time.
            let (fours, rest) = rows.as_chunks::<4>();
            fours.iter().for_each(|&four| add_mapped(four.map(row), map, &mut sum));
            rest.iter().for_each(|&one| add_mapped([row(one)], map, &mut sum));
            sum
        });
        for ((class, rows), part) in some.iter().zip(parts) {
            sums.row_mut(*class).iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            n_done += rows.len();
        }
        tell(n_done as f64 / samples.len() as f64)?;
    }
    Ok(sums)
}

/// Adds `g(x)` of some rows to a sum.
fn add_mapped<const N: usize>(rows: [&[f32]; N], map: &Map<'_>, sum: &mut [f64]) {
    // `max(‖x − μ‖, 1e-12)`: a row of zeros stays one.
    let norm = |squared: f64| squared.sqrt().max(f64::from(NORM_EPSILON));
    let scales = match map.normalize {
        true => squared_distances(rows, map.center).map(|squared| 1.0 / norm(squared)),
        false => [1.0; N],
    };
    add_scaled(rows, map.center, scales, sum);
}

/// Adds `Σₙ sₙ (xₙ − μ)`. The difference comes first: of a row next to the centre nothing else would be left but rounding.
#[multiversion(targets("x86_64+avx2"))]
fn add_scaled<const N: usize>(rows: [&[f32]; N], center: &[f32], scales: [f64; N], sum: &mut [f64]) {
    let rows = rows.map(|row| &row[..sum.len()]);
    for (column, (sum, &center)) in sum.iter_mut().zip(center).enumerate() {
        let mut added = 0.0;
        for n in 0..N {
            added += scales[n] * (f64::from(rows[n][column]) - f64::from(center));
        }
        *sum += added;
    }
}

/// `‖xₙ − μ‖²`.
#[multiversion(targets("x86_64+avx2"))]
fn squared_distances<const N: usize>(rows: [&[f32]; N], center: &[f32]) -> [f64; N] {
    // Sums side by side: one alone would wait for each addition to end.
    const LANES: usize = 8;
    let mut lanes = [[0.0f64; LANES]; N];
    let rows = rows.map(|row| row[..center.len()].as_chunks::<LANES>());
    let (centers, rest_of_center) = center.as_chunks::<LANES>();
    for (block, center) in centers.iter().enumerate() {
        for n in 0..N {
            for lane in 0..LANES {
                let difference = f64::from(rows[n].0[block][lane]) - f64::from(center[lane]);
                lanes[n][lane] += difference * difference;
            }
        }
    }
    let mut squared = lanes.map(|lanes| lanes.iter().sum());
    for (squared, (_, rest)) in squared.iter_mut().zip(rows) {
        let differences = rest.iter().zip(rest_of_center).map(|(&x, &center)| f64::from(x) - f64::from(center));
        *squared += differences.map(|difference| difference * difference).sum::<f64>();
    }
    squared
}
