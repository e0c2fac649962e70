//! Where a fit's matrix products run.

use std::ops::Range;

use ndarray::{ArrayView2, s};

use crate::heads::Weights;

/// Rows of a table.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// From `start` to before `end`.
    Range {
        /// The first.
        start: usize,
        /// One past the last.
        end: usize,
    },
    /// These, in this order; one may come several times.
    Index(&'a [u32]),
}

impl Rows<'_> {
    /// How many they are.
    pub fn len(&self) -> usize {
        match self {
            Self::Range { start, end } => end - start,
            Self::Index(rows) => rows.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Labelled rows of a table, each with its share of the loss.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `[N, D]` features, or `[N, C]` scores; in row-major order.
    pub table: ArrayView2<'a, f32>,
    /// Which rows of it, B of them.
    pub rows: Rows<'a>,
    /// `y`, `[B]`, each below C.
    pub labels: &'a [u32],
    /// `ω`, `[B]`.
    pub row_weights: &'a [f32],
}

impl<'a> Batch<'a> {
    /// The features, or the scores, of one of the rows.
    pub(super) fn row(&self, index: usize) -> &'a [f32] {
        let row = match self.rows {
            Rows::Range { start, .. } => start + index,
            Rows::Index(rows) => rows[index] as usize,
        };
        let n_columns = self.table.ncols();
        // In row-major order by construction.
        &self.table.to_slice().unwrap_or_default()[row * n_columns..][..n_columns]
    }
}

/// A loss and its gradient.
#[derive(Clone, Debug)]
pub struct Gradient<'a> {
    /// The loss.
    pub loss: f64,
    /// The gradient, in pieces that follow one another as the parameters do; the engine's own until its next call.
    pub parts: Vec<&'a [f32]>,
}

/// Raw scores of some rows.
#[derive(Clone, Debug, Default)]
pub struct RawScores {
    /// `g(x) Wᵀ`, `[B, C]` in row-major order.
    pub raw: Vec<f32>,
    /// `‖g(x)‖²`, `[B]`, if the weights ask for it.
    pub squared_norms: Option<Vec<f32>>,
}

/// Why an engine could not answer. What it is about is the engine's own.
pub type EngineError = Box<dyn std::error::Error + Send + Sync>;

/// What computes the products of a fit, and the gradients around them: ONNX Runtime in production, [`PlainEngine`] as the
/// form of it that tests hold that against.
pub trait Engine: Send {
    /// Says that the batches which follow are rows of this table, which does not change until the next call: an engine on a
    /// device may keep it there. Scores may be asked of other tables meanwhile.
    ///
    /// # Errors
    /// Those of the engine.
    fn hold(&mut self, table: ArrayView2<'_, f32>) -> Result<(), EngineError> {
        let _ = table;
        Ok(())
    }

    /// The threads that a fit may have on the host for what the engine does not do.
    fn threads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// Whether it may be left out, on the host, where a fit can do by itself, and faster, what it does.
    fn may_be_left_out(&self) -> bool {
        false
    }

    /// The loss `Σᵢ ωᵢ (log Σⱼ exp zᵢⱼ − zᵢ,yᵢ)` of `z = x Wᵀ + b`, and its gradient.
    ///
    /// `weight` is `[C, D]` and `bias` `[C]`; the gradient of the weight comes first.
    ///
    /// # Errors
    /// Those of the engine.
    fn linear_gradient(&mut self, batch: &Batch<'_>, weight: &[f32], bias: &[f32])
    -> Result<Gradient<'_>, EngineError>;

    /// The same loss of `z = s ∘ t` with the rows of the table as `t`, and its gradient in `s`.
    ///
    /// `scale` is `[C]`.
    ///
    /// # Errors
    /// Those of the engine.
    fn scale_gradient(&mut self, batch: &Batch<'_>, scale: &[f32]) -> Result<Gradient<'_>, EngineError>;

    /// The raw scores of some rows of a table of features.
    ///
    /// # Errors
    /// Those of the engine.
    fn raw_scores(
        &mut self,
        table: ArrayView2<'_, f32>,
        rows: Rows<'_>,
        weights: &Weights,
    ) -> Result<RawScores, EngineError>;
}

/// Plain loops and the `matrixmultiply` of `ndarray`, on one thread.
#[derive(Clone, Debug, Default)]
pub struct PlainEngine {
    gradient: Vec<f32>,
}

impl Engine for PlainEngine {
    fn linear_gradient(
        &mut self,
        batch: &Batch<'_>,
        weight: &[f32],
        bias: &[f32],
    ) -> Result<Gradient<'_>, EngineError> {
        let features = taken(batch.table, batch.rows);
        let shape = (bias.len(), features.ncols());
        let n_weights = weight.len();
        let weight = ArrayView2::from_shape(shape, weight)?;
        let mut logits = features.dot(&weight.t());
        logits += &ndarray::ArrayView1::from(bias);
        let loss = residuals(&mut logits, batch);
        self.gradient.resize(n_weights + bias.len(), 0.0);
        let (of_weight, of_bias) = self.gradient.split_at_mut(n_weights);
        let mut of_weight = ndarray::ArrayViewMut2::from_shape(shape, of_weight)?;
        ndarray::linalg::general_mat_mul(1.0, &logits.t(), &features, 0.0, &mut of_weight);
        for (target, column) in of_bias.iter_mut().zip(logits.columns()) {
            *target = column.iter().map(|&value| f64::from(value)).sum::<f64>() as f32;
        }
        Ok(Gradient { loss, parts: vec![&self.gradient] })
    }

    fn scale_gradient(&mut self, batch: &Batch<'_>, scale: &[f32]) -> Result<Gradient<'_>, EngineError> {
        let scores = taken(batch.table, batch.rows);
        let mut logits = &scores * &ndarray::ArrayView1::from(scale);
        let loss = residuals(&mut logits, batch);
        self.gradient.clear();
        self.gradient.extend(logits.columns().into_iter().zip(scores.columns()).map(|(residuals, scores)| {
            residuals.iter().zip(scores).map(|(&r, &s)| f64::from(r) * f64::from(s)).sum::<f64>() as f32
        }));
        Ok(Gradient { loss, parts: vec![&self.gradient] })
    }

    fn raw_scores(
        &mut self,
        table: ArrayView2<'_, f32>,
        rows: Rows<'_>,
        weights: &Weights,
    ) -> Result<RawScores, EngineError> {
        let (raw, squared_norms) = weights.raw_scores(taken(table, rows).view());
        let raw = raw.as_standard_layout().into_owned().into_raw_vec_and_offset().0;
        Ok(RawScores { raw, squared_norms: weights.squared_norm().then_some(squared_norms) })
    }
}

/// The rows, copied only if they do not lie together.
fn taken<'a>(table: ArrayView2<'a, f32>, rows: Rows<'_>) -> ndarray::CowArray<'a, f32, ndarray::Ix2> {
    match rows {
        Rows::Range { start, end } => table.slice_move(s![start..end, ..]).into(),
        Rows::Index(rows) => {
            let rows: Vec<usize> = rows.iter().map(|&row| row as usize).collect();
            table.select(ndarray::Axis(0), &rows).into()
        }
    }
}

/// Turns logits into `ωᵢ (pᵢⱼ − [j = yᵢ])`; gives back the loss.
fn residuals(logits: &mut ndarray::Array2<f32>, batch: &Batch<'_>) -> f64 {
    let mut loss = 0.0;
    for ((mut row, &label), &weight) in logits.rows_mut().into_iter().zip(batch.labels).zip(batch.row_weights) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f64> = row.iter().map(|&logit| f64::from(logit - max).exp()).collect();
        let sum: f64 = exps.iter().sum();
        let (label, weight) = (label as usize, f64::from(weight));
        loss += weight * (sum.ln() - f64::from(row[label] - max));
        for (class, (target, exp)) in row.iter_mut().zip(exps).enumerate() {
            *target = (weight * (exp / sum - if class == label { 1.0 } else { 0.0 })) as f32;
        }
    }
    loss
}

/// Cuts `0..n` into pieces of `size`, the last one shorter.
pub(super) fn pieces(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.max(1);
    (0..n.div_ceil(size)).map(move |piece| piece * size..((piece + 1) * size).min(n))
}
