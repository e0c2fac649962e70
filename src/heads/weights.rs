//! The part of a head that costs a matrix product.

use std::{fmt, sync::OnceLock};

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut1};
use sha2::{Digest as _, Sha256};

/// A norm below this is taken as this when a vector is normalised, as `torch.nn.functional.normalize` does: the zero
/// vector stays zero instead of becoming NaN.
pub const NORM_EPSILON: f32 = 1e-12;

/// The most bytes of a weight matrix: one ONNX file, as which it runs, must stay below 2 GiB, and there is more around it.
pub(crate) const LARGEST_WEIGHT_BYTES: usize = (1 << 31) - (1 << 20);

/// What happens to a feature vector before the matrix product: `g` of the algebra.
#[derive(Clone, Debug, PartialEq)]
pub enum FeatureMap {
    /// `g(x) = x`.
    Identity,
    /// `g(x) = x / max(‖x‖, 1e-12)`.
    L2Normalize,
    /// `g(x) = (x − mean) / max(‖x − mean‖, 1e-12)`.
    CenterL2Normalize {
        /// The mean of all training features, `[D]`.
        mean: Array1<f32>,
    },
}

/// SHA-256 of what it names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest that stands in `text` as 64 hexadecimal digits, if that is what it is.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest of what `hasher` has been given.
    pub(crate) fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// The digest in hexadecimal, 64 characters.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// `g` and `W`: everything that the matrix product of a head depends on, immutable.
#[derive(Debug)]
pub struct Weights {
    matrix: Array2<f32>,
    feature_map: FeatureMap,
    squared_norm: bool,
    /// Of everything above, when it is first asked for: a large matrix takes milliseconds.
    digest: OnceLock<Digest>,
}

impl Weights {
    /// Puts together a matrix `[C, D]` and the map of the features before it. `squared_norm` asks that the product also
    /// gives `‖g(x)‖²`.
    pub fn new(matrix: Array2<f32>, feature_map: FeatureMap, squared_norm: bool) -> Self {
        let matrix = if matrix.is_standard_layout() { matrix } else { matrix.as_standard_layout().into_owned() };
        Self { matrix, feature_map, squared_norm, digest: OnceLock::new() }
    }

    /// `W`, `[C, D]`, in row-major order.
    pub fn matrix(&self) -> ArrayView2<'_, f32> {
        self.matrix.view()
    }

    /// `g`.
    pub fn feature_map(&self) -> &FeatureMap {
        &self.feature_map
    }

    /// Whether the product also gives `‖g(x)‖²`.
    pub fn squared_norm(&self) -> bool {
        self.squared_norm
    }

    /// Two weights with equal digests give equal products.
    pub fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| {
            let mut hasher = Sha256::new();
            hasher.update((self.matrix.nrows() as u64).to_le_bytes());
            hasher.update((self.matrix.ncols() as u64).to_le_bytes());
            hash_values(&mut hasher, self.matrix.as_slice().unwrap_or_default());
            hasher.update([u8::from(self.squared_norm), matches!(self.feature_map, FeatureMap::Identity).into()]);
            if let FeatureMap::CenterL2Normalize { mean } = &self.feature_map {
                hash_values(&mut hasher, &mean.to_vec());
            }
            Digest::finish(hasher)
        })
    }

    /// C.
    pub fn num_classes(&self) -> usize {
        self.matrix.nrows()
    }

    /// D.
    pub fn feature_dim(&self) -> usize {
        self.matrix.ncols()
    }

    /// `g(x)` for every row of `features` `[N, D]`.
    pub fn map_features(&self, features: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut mapped = features.to_owned();
        if let FeatureMap::CenterL2Normalize { mean } = &self.feature_map {
            mapped -= mean;
        }
        if self.feature_map != FeatureMap::Identity {
            for mut row in mapped.rows_mut() {
                normalize(&mut row);
            }
        }
        mapped
    }

    /// The matrix product `g(x) Wᵀ` `[N, C]`, and `‖g(x)‖²` `[N]` (empty unless asked for).
    pub fn raw_scores(&self, features: ArrayView2<'_, f32>) -> (Array2<f32>, Vec<f32>) {
        let mapped = self.map_features(features);
        let norms =
            if self.squared_norm { mapped.rows().into_iter().map(|row| row.dot(&row)).collect() } else { vec![] };
        (mapped.dot(&self.matrix.t()), norms)
    }
}

/// Divides `row` by the larger of its norm and [`NORM_EPSILON`], in f64: the norm of large finite values is beyond f32.
pub(super) fn normalize(row: &mut ArrayViewMut1<'_, f32>) {
    let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(f64::from(NORM_EPSILON));
    row.mapv_inplace(|x| (f64::from(x) / norm) as f32);
}

/// Adds the bits of `values`, little-endian.
pub(crate) fn hash_values(hasher: &mut Sha256, values: &[f32]) {
    let mut block = Vec::with_capacity(1 << 16);
    for values in values.chunks(1 << 14) {
        block.clear();
        block.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        hasher.update(&block);
    }
}
