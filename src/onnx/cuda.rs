//! NVIDIA devices: what a model may choose there, and what is set for it.

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{self, ArenaExtendStrategy, ExecutionProviderDispatch};
use serde::Deserialize;

use super::device::{Provider, SessionOptions};

/// How a model runs on an NVIDIA device: `[cuda]` in `model.toml`. On the CPU it means nothing.
///
/// # Why no CUDA graphs?
/// A graph replays one batch at fixed addresses. ONNX Runtime keeps graphs by thread, and a model is warmed on the thread that
/// loads it, before its worker has one: the first requests would pay for the capture. `ort` 2.0.0-rc.15 fills a bound
/// input in place only by way of another session behind a lock of the whole process. And a replay that goes wrong answers
/// with the last batch's features, without an error: nothing to offer before it has been tried on a device.
///
/// # Why no cache of TensorRT's engines?
/// ONNX Runtime names a cached engine by the graph's structure and not by its weights: a backbone that was trained again would be
/// answered for by the engine of the old one. So TensorRT builds at every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "CudaTable")]
pub enum CudaOptions {
    /// ONNX Runtime's CUDA kernels, with cuDNN and cuBLAS.
    Cuda {
        /// Whether products of float32 may round their factors to 10 bits (TensorFloat-32): faster from Ampere on, and the
        /// answers are not those of the CPU any more.
        tf32: bool,
    },
    /// TensorRT for the backbone. Heads are plain CUDA.
    TensorRt {
        /// Whether it may compute in float16. TF32 it uses by itself.
        fp16: bool,
    },
}

impl fmt::Display for CudaOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cuda { tf32: false } => "CUDA",
            Self::Cuda { tf32: true } => "CUDA with TF32",
            Self::TensorRt { fp16: false } => "TensorRT with TF32",
            Self::TensorRt { fp16: true } => "TensorRT with float16 and TF32",
        })
    }
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self::Cuda { tf32: false }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CudaTable {
    #[serde(default)]
    provider: ProviderName,
    tf32: Option<bool>,
    fp16: Option<bool>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProviderName {
    #[default]
    Cuda,
    #[serde(rename = "tensorrt")]
    TensorRt,
}

impl TryFrom<CudaTable> for CudaOptions {
    type Error = &'static str;

    fn try_from(table: CudaTable) -> Result<Self, Self::Error> {
        match (table.provider, table.tf32, table.fp16) {
            (ProviderName::Cuda, _, Some(_)) => Err(
                "[cuda]: `fp16` is for `provider = \"tensorrt\"`; with CUDA the backbone's file itself has to be float16 inside",
            ),
            (ProviderName::TensorRt, Some(_), _) => Err(
                "[cuda]: `tf32` is for `provider = \"cuda\"`; TensorRT uses TF32 unless NVIDIA_TF32_OVERRIDE=0 is in the environment",
            ),
            (ProviderName::Cuda, tf32, None) => Ok(Self::Cuda { tf32: tf32.unwrap_or(false) }),
            (ProviderName::TensorRt, None, fp16) => Ok(Self::TensorRt { fp16: fp16.unwrap_or(false) }),
        }
    }
}

/// What is registered for a session on `provider`, best first; the CPU needs nothing.
pub(super) fn registered(provider: Provider, options: &SessionOptions) -> Vec<ExecutionProviderDispatch> {
    match provider {
        Provider::Cpu => Vec::new(),
        Provider::Cuda { index } => vec![cuda(index, options)],
        Provider::TensorRt { index } => vec![tensorrt(index, options), cuda(index, options)],
    }
}

/// # Why these settings?
/// `HEURISTIC`: the default times every convolution algorithm at every new shape, seconds of delay on a live request; what is left
/// of it is tens of milliseconds, and [`Backbone`](super::Backbone) has few shapes for that. TF32 off unless the model asks for it:
/// answers should be those of the CPU. `kSameAsRequested`: the other strategy doubles the arena at every extension. Errors on
/// failure, because a session that falls back to the CPU in silence is a server ten times slower with no word about it.
fn cuda(index: u32, options: &SessionOptions) -> ExecutionProviderDispatch {
    let mut cuda = ep::CUDA::default()
        .with_device_id(device_id(index))
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
        .with_tf32(options.cuda == CudaOptions::Cuda { tf32: true });
    if let Some(limit) = options.cuda_memory_limit_bytes {
        cuda = cuda.with_memory_limit(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    cuda.build().error_on_failure()
}

/// An engine serves every batch size between the smallest and the largest that it has seen, so warming 1 and then the
/// largest builds it twice, and no request builds it again.
fn tensorrt(index: u32, options: &SessionOptions) -> ExecutionProviderDispatch {
    ep::TensorRT::default()
        .with_device_id(device_id(index))
        .with_fp16(options.cuda == CudaOptions::TensorRt { fp16: true })
        .build()
        .error_on_failure()
}

/// ONNX Runtime takes the number as an i32; [`DeviceChoice`](super::DeviceChoice) holds no larger one.
pub(super) fn device_id(index: u32) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

/// Loads CUDA's and cuDNN's libraries from the Python packages beside ONNX Runtime's, if they are there.
///
/// pip puts them at `nvidia/cu13/lib` and `nvidia/cudnn/lib` next to `onnxruntime/`, where the system loader does not
/// look. Where they are not, the system's are used, and a failure shows when the provider is registered.
pub(super) fn preload_cuda(library: &Path) {
    static PRELOADED: OnceLock<()> = OnceLock::new();
    PRELOADED.get_or_init(|| {
        for error in library.ancestors().nth(3).map(preload_from).unwrap_or_default() {
            tracing::warn!("NVIDIA's libraries beside ONNX Runtime could not all be loaded: {error}");
        }
    });
}

/// CUDA's and cuDNN's apart: the first library that is missing ends a call, and it may be one that ONNX Runtime does without.
fn preload_from(site: &Path) -> Vec<ort::Error> {
    let library_of = |package: &str| Some(site.join("nvidia").join(package).join("lib")).filter(|dir| dir.is_dir());
    let cuda = ep::cuda::preload_dylibs(library_of("cu13").as_deref(), None);
    let cudnn = ep::cuda::preload_dylibs(None, library_of("cudnn").as_deref());
    [cuda, cudnn].into_iter().filter_map(Result::err).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DeviceChoice;

    fn read(table: &str) -> Result<CudaOptions, String> {
        #[derive(Debug, Deserialize)]
        struct Model {
            #[serde(default)]
            cuda: CudaOptions,
        }
        toml::from_str(table).map(|model: Model| model.cuda).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_refused(table: &str, parts: &[&str]) {
        let error = read(table).expect_err(table);
        for part in parts {
            assert!(error.contains(part), "{table}: no `{part}` in: {error}");
        }
    }

    #[test]
    fn a_library_of_cuda_that_is_missing_does_not_keep_cudnns_from_being_loaded() {
        crate::onnx::init(None).expect("run `make ort`");
        let site = tempfile::tempdir().expect("a folder");
        assert!(preload_from(site.path()).is_empty(), "what is not there is the system's to find");
        for package in ["cu13", "cudnn"] {
            std::fs::create_dir_all(site.path().join("nvidia").join(package).join("lib")).expect("a folder");
        }
        let errors: Vec<String> = preload_from(site.path()).iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[1].contains("cudnn"), "{errors:?}");
    }

    #[test]
    fn the_table_is_read() {
        assert_eq!(read(""), Ok(CudaOptions::Cuda { tf32: false }));
        assert_eq!(read("[cuda]"), Ok(CudaOptions::Cuda { tf32: false }));
        assert_eq!(read("[cuda]\ntf32 = true"), Ok(CudaOptions::Cuda { tf32: true }));
        assert_eq!(read("[cuda]\nprovider = \"cuda\"\ntf32 = false"), Ok(CudaOptions::Cuda { tf32: false }));
        assert_eq!(read("[cuda]\nprovider = \"tensorrt\""), Ok(CudaOptions::TensorRt { fp16: false }));
        assert_eq!(read("[cuda]\nprovider = \"tensorrt\"\nfp16 = true"), Ok(CudaOptions::TensorRt { fp16: true }));
    }

    #[test]
    fn what_is_wrong_names_its_line_and_what_to_do() {
        check_refused("\n[cuda]\ngraphs = true", &["line 3", "unknown field `graphs`"]);
        check_refused("\n[cuda]\nprovider = \"rocm\"", &["line 3", "rocm", "`cuda` or `tensorrt`"]);
        check_refused("\n[cuda]\ntf32 = 1", &["line 3", "boolean"]);
        check_refused("\n[cuda]\nfp16 = true", &["line 2", "`fp16`", "tensorrt", "float16 inside"]);
        check_refused("\n[cuda]\nprovider = \"tensorrt\"\ntf32 = false", &["line 2", "`tf32`", "NVIDIA_TF32_OVERRIDE"]);
    }

    #[test]
    fn the_table_changes_what_is_registered_for_a_backbone_on_a_device_and_nothing_else() {
        use crate::onnx::device::{backbone_providers_to_try, providers_to_try};
        let cuda = DeviceChoice::Cuda { index: 1 };
        let options = |device, cuda| SessionOptions { device, cuda, ..SessionOptions::default() };
        let tensorrt = CudaOptions::TensorRt { fp16: true };
        assert_eq!(backbone_providers_to_try(&options(cuda, tensorrt)), [Provider::TensorRt { index: 1 }]);
        assert_eq!(backbone_providers_to_try(&options(cuda, CudaOptions::default())), [Provider::Cuda { index: 1 }]);
        assert_eq!(backbone_providers_to_try(&options(DeviceChoice::Cpu, tensorrt)), [Provider::Cpu]);
        // Heads and fits, on the device of that backbone.
        assert_eq!(providers_to_try(Provider::TensorRt { index: 1 }.into()), [Provider::Cuda { index: 1 }]);
        assert_eq!(registered(Provider::Cpu, &options(DeviceChoice::Cpu, tensorrt)).len(), 0);
        assert_eq!(registered(Provider::Cuda { index: 1 }, &options(cuda, tensorrt)).len(), 1);
        assert_eq!(registered(Provider::TensorRt { index: 1 }, &options(cuda, tensorrt)).len(), 2);
    }
}
