//! The engine of fits: steps as ONNX graphs, on the chosen device.

use std::borrow::Cow;
use std::collections::HashMap;

use ndarray::ArrayView2;
use ort::session::{Session, SessionInputValue, SessionInputs};
use ort::value::{Tensor, TensorRef};

use super::build::build_session;
use super::device::{Provider, SessionOptions, providers_to_try};
use super::device_table::DeviceTable;
use super::error::OnnxError;
use super::fit_graph::{
    BIAS, BIAS_GRADIENT, Fitted, GRADIENT, INDEX, LABEL, LOG_LIKELIHOOD, ROW_WEIGHT, SCALE, TABLE, WEIGHT, encode,
};
use super::head_graph::ScorerSpec;
use super::scorer::Scorer;
use super::session::tell_fallback;
use crate::fit::{Batch, Engine, EngineError, Gradient, RawScores, Rows, scale_gradient};
use crate::heads::{Digest, Weights};

/// Computes the products and gradients of a fit in ONNX Runtime sessions, built when they are first needed; on the CPU the
/// gradient of a scale without one.
///
/// On CUDA a table that was [held](Engine::hold) stays on the device, and its batches are gathered there; one that does not
/// fit is gathered on the host and sent batch by batch.
///
/// # What is copied in each step on CUDA?
/// To the device: labels, row weights and row numbers of the batch, and what is fitted (`weight [C,D]` and `bias [C]`, or
/// `scale [C]`). Back: the loss and the gradient, as large as what is fitted. The weights stay on the host because the update
/// is the solver's (SGD or L-BFGS, behind [`Engine`]), which computes there. [`Engine::raw_scores`] sends its rows each time,
/// those of a held table too.
#[derive(Debug)]
pub struct FitEngine {
    options: SessionOptions,
    provider: Provider,
    sessions: HashMap<(Fitted, bool), Session>,
    scorer: Option<(Digest, Scorer)>,
    held: Option<Held>,
    /// What the last step gave back.
    gradient: Vec<Tensor<f32>>,
    /// The same of a scale on the CPU.
    of_scale: Vec<f32>,
}

/// A table on the device, and where it lies on the host: whoever holds it there keeps it as it is.
#[derive(Debug)]
struct Held {
    host: (usize, usize),
    table: DeviceTable,
}

impl FitEngine {
    /// An engine on the device of `options`, proved by a step on one row.
    ///
    /// # Errors
    /// [`OnnxError`]: the device does not work. With [`DeviceChoice::Auto`](super::DeviceChoice::Auto) the CPU is taken then.
    pub fn new(options: &SessionOptions) -> Result<Self, OnnxError> {
        super::library::init(None)?;
        let providers = providers_to_try(options.device);
        let mut proved = Err(OnnxError::Nonsense);
        for (i, &provider) in providers.iter().enumerate() {
            proved = Self::prove(options, provider);
            match &proved {
                Err(error) if i + 1 < providers.len() && error.is_of_the_device() => _ = tell_fallback(provider, error),
                _ => break,
            }
        }
        proved
    }

    fn prove(options: &SessionOptions, provider: Provider) -> Result<Self, OnnxError> {
        let options = SessionOptions { device: provider.into(), ..options.clone() };
        let mut engine = Self {
            options,
            provider,
            sessions: HashMap::new(),
            scorer: None,
            held: None,
            gradient: Vec::new(),
            of_scale: Vec::new(),
        };
        let features = ndarray::array![[1.0f32]];
        let batch = Batch { table: features.view(), rows: Rows::Index(&[0]), labels: &[0], row_weights: &[1.0] };
        let weight: (&str, [usize; 2], &[f32]) = (WEIGHT, [2, 1], &[0.0, 0.0]);
        engine.step(Fitted::Linear, &batch, Some(weight), (BIAS, &[0.0, 0.0]))?;
        Ok(engine)
    }

    /// One batch through the graph.
    fn step(
        &mut self,
        fitted: Fitted,
        batch: &Batch<'_>,
        matrix: Option<(&str, [usize; 2], &[f32])>,
        vector: (&str, &[f32]),
    ) -> Result<Gradient<'_>, OnnxError> {
        // Its memory is taken for the next one.
        self.gradient.clear();
        let n = batch.rows.len();
        let run_error = |source| OnnxError::Run { n, source };
        let is_cpu = self.provider == Provider::Cpu;
        let (n_rows, n_columns) = batch.table.dim();
        let held = self.held.as_ref().filter(|held| held.host == place(batch.table)).map(|held| held.table.tensor());
        let (table, index) = match (held, batch.rows) {
            (Some(_), rows) => (None, Some(indices(rows))),
            (None, Rows::Index(_)) if is_cpu => {
                (Some((Cow::Borrowed(host(batch.table, 0, n_rows)), n_rows)), Some(indices(batch.rows)))
            }
            (None, Rows::Range { start, end }) => (Some((Cow::Borrowed(host(batch.table, start, end)), n)), None),
            (None, Rows::Index(rows)) => (Some((Cow::Owned(gathered(batch.table, rows)), n)), None),
        };
        let labels: Vec<i64> = batch.labels.iter().map(|&label| i64::from(label)).collect();
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(6);
        match (held, &table) {
            (_, Some((values, rows))) => {
                let values = TensorRef::from_array_view(([*rows, n_columns], &**values)).map_err(run_error)?;
                inputs.push((TABLE.into(), values.into()));
            }
            (Some(held), None) => inputs.push((TABLE.into(), held.into())),
            (None, None) => {}
        }
        if let Some(index) = &index {
            inputs.push((INDEX.into(), TensorRef::from_array_view(([n], &**index)).map_err(run_error)?.into()));
        }
        inputs.push((LABEL.into(), TensorRef::from_array_view(([n, 1], &*labels)).map_err(run_error)?.into()));
        let weights = TensorRef::from_array_view(([n, 1], batch.row_weights)).map_err(run_error)?;
        inputs.push((ROW_WEIGHT.into(), weights.into()));
        if let Some((name, shape, values)) = matrix {
            inputs.push((name.into(), TensorRef::from_array_view((shape, values)).map_err(run_error)?.into()));
        }
        let (name, values) = vector;
        inputs.push((name.into(), TensorRef::from_array_view(([values.len()], values)).map_err(run_error)?.into()));

        let session = match self.sessions.entry((fitted, index.is_some())) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let model = encode(fitted, index.is_some());
                entry.insert(build_session(&model, None, &self.options, self.provider, None)?)
            }
        };
        let mut outputs = session.run(SessionInputs::from(inputs)).map_err(run_error)?;
        let missing = OnnxError::OutputShape { found: Vec::new(), n, feature_dim: 1 };
        let value = outputs.get(LOG_LIKELIHOOD).ok_or(missing)?;
        let (_, values) = value.try_extract_tensor::<f32>().map_err(run_error)?;
        let loss = -values.first().copied().map_or(0.0, f64::from);
        for value in [GRADIENT, BIAS_GRADIENT].into_iter().filter_map(|name| outputs.remove(name)) {
            self.gradient.push(value.downcast().map_err(run_error)?);
        }
        let parts = self.gradient.iter().map(|part| Ok(part.try_extract_tensor()?.1)).collect::<ort::Result<_>>();
        Ok(Gradient { loss, parts: parts.map_err(run_error)? })
    }
}

impl Engine for FitEngine {
    fn hold(&mut self, table: ArrayView2<'_, f32>) -> Result<(), EngineError> {
        self.held = None;
        if self.provider == Provider::Cpu {
            return Ok(());
        }
        match DeviceTable::copy(host(table, 0, table.nrows()), table.ncols(), &self.options, self.provider) {
            Ok(copy) => self.held = Some(Held { host: place(table), table: copy }),
            Err(error) => tracing::info!(%error, "the features do not fit the device, and are sent batch by batch"),
        }
        Ok(())
    }

    fn threads(&self) -> usize {
        self.options.threads
    }

    fn may_be_left_out(&self) -> bool {
        self.provider == Provider::Cpu
    }

    fn linear_gradient(
        &mut self,
        batch: &Batch<'_>,
        weight: &[f32],
        bias: &[f32],
    ) -> Result<Gradient<'_>, EngineError> {
        let shape = [bias.len(), batch.table.ncols()];
        Ok(self.step(Fitted::Linear, batch, Some((WEIGHT, shape, weight)), (BIAS, bias))?)
    }

    fn scale_gradient(&mut self, batch: &Batch<'_>, scale: &[f32]) -> Result<Gradient<'_>, EngineError> {
        if self.provider != Provider::Cpu {
            return Ok(self.step(Fitted::Scale, batch, None, (SCALE, scale))?);
        }
        // No product is in it, and a graph would read and write the scores at each of its nodes.
        let loss;
        (loss, self.of_scale) = scale_gradient(batch, scale, self.options.threads);
        Ok(Gradient { loss, parts: vec![&self.of_scale] })
    }

    fn raw_scores(
        &mut self,
        table: ArrayView2<'_, f32>,
        rows: Rows<'_>,
        weights: &Weights,
    ) -> Result<RawScores, EngineError> {
        let digest = weights.digest();
        if self.scorer.as_ref().is_none_or(|(known, _)| *known != digest) {
            self.scorer = Some((digest, Scorer::build(&ScorerSpec::of(weights), &self.options)?));
        }
        let Some((_, scorer)) = &mut self.scorer else { return Err(Box::new(OnnxError::Nonsense)) };
        let scores = match rows {
            Rows::Range { start, end } => scorer.run_host(host(table, start, end), end - start)?,
            Rows::Index(rows) => scorer.run_host(&gathered(table, rows), rows.len())?,
        };
        Ok(RawScores { raw: scores.raw, squared_norms: scores.squared_norm })
    }
}

/// Where a table lies, and how long it is.
fn place(table: ArrayView2<'_, f32>) -> (usize, usize) {
    (table.as_ptr().addr(), table.len())
}

/// Rows that lie together; tables are in row-major order.
fn host<'a>(table: ArrayView2<'a, f32>, start: usize, end: usize) -> &'a [f32] {
    let n_columns = table.ncols();
    table.to_slice().and_then(|values| values.get(start * n_columns..end * n_columns)).unwrap_or_default()
}

fn gathered(table: ArrayView2<'_, f32>, rows: &[u32]) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows.len() * table.ncols());
    for &row in rows {
        values.extend_from_slice(host(table, row as usize, row as usize + 1));
    }
    values
}

fn indices(rows: Rows<'_>) -> Vec<i64> {
    match rows {
        Rows::Range { start, end } => (start as i64..end as i64).collect(),
        Rows::Index(rows) => rows.iter().map(|&row| i64::from(row)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::PlainEngine;

    #[test]
    fn the_graph_of_a_scale_is_the_plain_engines() {
        let options = SessionOptions { device: super::super::DeviceChoice::Cpu, ..SessionOptions::default() };
        let mut engine = FitEngine::new(&options).expect("run `make ort`");
        let table = ndarray::array![[1.0f32, 2.0, -1.0], [0.5, -3.0, 4.0], [2.0, 2.5, 3.0]];
        let (rows, row_weights) = (Rows::Index(&[2, 0]), &[0.5f32, 0.25]);
        let batch = Batch { table: table.view(), rows, labels: &[1, 2], row_weights };
        let scale = [1.0f32, 0.5, 2.0];
        let mut plain = PlainEngine::default();
        let expected = plain.scale_gradient(&batch, &scale).expect("a gradient");
        let found = engine.step(Fitted::Scale, &batch, None, (SCALE, &scale)).expect("a gradient");
        assert!((found.loss - expected.loss).abs() < 1e-6, "{} is not {}", found.loss, expected.loss);
        for (found, expected) in found.parts.concat().iter().zip(expected.parts.concat()) {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }
}
