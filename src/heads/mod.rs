//! Heads: what turns features `[N, D]` into logits `[N, C]`.
//!
//! Every head is one algebra, `z = (a ∘ (g(x) Wᵀ) + c − ‖g(x)‖²·[squared L2]) / T`, split where the cost is:
//!
//! * [`Weights`] hold `g` and `W`: the matrix product, `O(C·D)` a sample. Heads with equal weights share one, and so share
//!   its product. It never changes.
//! * [`Scoring`] holds `a`, `c` and `T`: `O(C)` a sample, made from a [`Head`] and its [`Settings`] in `O(C)`. A change of
//!   tau makes a new `Scoring` and nothing else.
//!
//! | kind | `W` | `a` | `c` |
//! |---|---|---|---|
//! | joint, crt | weight | 1 | b |
//! | lws | weight | s | s ∘ b |
//! | tau_norm, `bias = drop` | the base's | ‖wⱼ‖^−τ | 0 |
//! | tau_norm, `bias = keep` | the base's | ‖wⱼ‖^−τ | b |
//! | tau_norm, `bias = scale` | the base's | ‖wⱼ‖^−τ | a ∘ b |
//! | ncm, l2 | centroids | 2 | −‖wⱼ‖² |
//! | ncm, cosine | centroids / ‖·‖ | 1 | 0 |
//! | ncm, dot | centroids | 1/D | 0 |
//!
//! The matrix product runs on ONNX Runtime in production; [`Weights::raw_scores`] is the plain form of it that the tests
//! hold that against.

mod file;
mod head;
mod norms;
mod scoring;
mod settings;
mod weights;
mod write;

pub use file::{FORMAT, HeadFile, HeadFileError};
pub use head::{DeriveError, Head, HeadKind, Metric, Parameters, TrainPrior, Transform};
pub use norms::{FOLLOWING_CORRELATION, NEAR_EQUAL_VARIATION, NormStatistics, NormWarning};
pub(crate) use scoring::exp_of_negative;
pub use scoring::{Prediction, RawRow, Scores, Scoring, softmax, top_k};
pub use settings::{BiasMode, MAX_TAU, Settings, SettingsError, SettingsPatch};
pub use weights::{Digest, FeatureMap, NORM_EPSILON, Weights};
pub(crate) use weights::{LARGEST_WEIGHT_BYTES, hash_values};
pub use write::{TensorView, write_safetensors};
