//! The file of a fitted head.

use std::collections::BTreeMap;

use super::FitError;
use crate::heads::{BiasMode, FORMAT, HeadKind, Parameters, Settings, TensorView, TrainPrior, write_safetensors};

/// The bytes of a head file: the same for the same head.
pub(super) fn head_file(
    kind: HeadKind,
    parameters: &Parameters,
    settings: &Settings,
    prior: TrainPrior,
    train_counts: Option<&[u64]>,
    mut metadata: BTreeMap<String, String>,
) -> Result<Vec<u8>, FitError> {
    let counts: Option<Vec<i64>> =
        train_counts.map(|counts| counts.iter().map(|&count| i64::try_from(count).unwrap_or(i64::MAX)).collect());
    let mut tensors: BTreeMap<String, TensorView<'_>> = BTreeMap::new();
    let mut word = |key: &str, value: String| _ = metadata.insert(key.to_owned(), value);
    let (matrix, transform) = match parameters {
        Parameters::Linear { weight, bias, scale } => {
            let vectors = [("bias", bias), ("scale", scale)];
            for (name, vector) in vectors.into_iter().filter_map(|(name, vector)| Some((name, vector.as_ref()?))) {
                tensors.insert(
                    name.to_owned(),
                    TensorView::F32(vector.as_slice().unwrap_or_default(), vec![vector.len()]),
                );
            }
            tensors.insert("weight".to_owned(), matrix_view(weight));
            (weight, "none")
        }
        Parameters::Ncm { centroids, mean, transform, metric } => {
            if let Some(mean) = mean {
                tensors
                    .insert("mean".to_owned(), TensorView::F32(mean.as_slice().unwrap_or_default(), vec![mean.len()]));
            }
            tensors.insert("centroids".to_owned(), matrix_view(centroids));
            word("metric", metric.to_string());
            (centroids, transform.as_str())
        }
    };
    word("format", FORMAT.to_owned());
    word("kind", kind.to_string());
    word("classes", matrix.nrows().to_string());
    word("feature_dim", matrix.ncols().to_string());
    word("transform", transform.to_owned());
    word("train_prior", prior.to_string());
    if let (HeadKind::TauNorm, Some(tau), Some(bias)) = (kind, settings.tau, settings.bias) {
        word("tau", tau.to_string());
        word("bias", bias_word(bias).to_owned());
    }
    if let Some(counts) = &counts {
        tensors.insert("train_counts".to_owned(), TensorView::I64(counts, vec![counts.len()]));
    }
    // Room for the header, and for the matrix, which is nearly all of it.
    let mut file = Vec::with_capacity(4 * matrix.len() + (1 << 16));
    write_safetensors(&mut file, &metadata, &tensors)
        .map_err(|error| FitError::Invalid { reason: error.to_string() })?;
    Ok(file)
}

fn matrix_view(matrix: &ndarray::Array2<f32>) -> TensorView<'_> {
    TensorView::F32(matrix.as_slice().unwrap_or_default(), vec![matrix.nrows(), matrix.ncols()])
}

fn bias_word(bias: BiasMode) -> &'static str {
    match bias {
        BiasMode::Drop => "drop",
        BiasMode::Keep => "keep",
        BiasMode::Scale => "scale",
    }
}
