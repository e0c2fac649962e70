//! Where a session runs: what was asked for, and what is really in use.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{self, ArenaExtendStrategy, ExecutionProvider, ExecutionProviderDispatch};

/// What the configuration asks for: `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// ```
/// use equipoise::onnx::DeviceChoice;
/// assert_eq!("cuda:1".parse(), Ok(DeviceChoice::Cuda { index: 1 }));
/// assert_eq!(DeviceChoice::Auto.to_string(), "auto");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where it works, proved by a first run at load; else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// This CUDA device, or an error at load.
    Cuda {
        /// Which device, from 0.
        index: u32,
    },
}

/// A device name that is none of `auto`, `cpu`, `cuda`, `cuda:N`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a device: expected auto, cpu, cuda or cuda:N")]
pub struct ParseDeviceError {
    name: String,
}

impl FromStr for DeviceChoice {
    type Err = ParseDeviceError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseDeviceError { name: name.to_owned() };
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda { index: 0 }),
            _ => {
                let index = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                // ONNX Runtime takes the number as an i32; `+1` parses as a number and is no device name.
                let index = index.parse().ok().filter(|&i: &u32| i.to_string() == index && i32::try_from(i).is_ok());
                index.map(|index| Self::Cuda { index }).ok_or_else(unknown)
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { index: 0 } => f.write_str("cuda"),
            Self::Cuda { index } => write!(f, "cuda:{index}"),
        }
    }
}

/// The execution provider really in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// ONNX Runtime's own kernels.
    Cpu,
    /// CUDA and cuDNN.
    Cuda {
        /// Which device, from 0.
        index: u32,
    },
}

impl Provider {
    /// ONNX Runtime's name of the provider.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "CPUExecutionProvider",
            Self::Cuda { .. } => "CUDAExecutionProvider",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Asks for exactly the provider that another session got: a head runs where its backbone does.
impl From<Provider> for DeviceChoice {
    fn from(provider: Provider) -> Self {
        match provider {
            Provider::Cpu => Self::Cpu,
            Provider::Cuda { index } => Self::Cuda { index },
        }
    }
}

/// How to build a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Where to run.
    pub device: DeviceChoice,
    /// Threads of one session, its caller's included; 0 counts as 1.
    pub threads: usize,
    /// Upper bound, in bytes, of one session's CUDA arena. None: what the device has.
    pub cuda_memory_limit_bytes: Option<u64>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { device: DeviceChoice::Auto, threads: 1, cuda_memory_limit_bytes: None }
    }
}

/// Providers to try, best first. For [`DeviceChoice::Auto`] the second is taken if the first fails.
pub(super) fn providers_to_try(choice: DeviceChoice) -> Vec<Provider> {
    match choice {
        DeviceChoice::Cpu => vec![Provider::Cpu],
        DeviceChoice::Cuda { index } => vec![Provider::Cuda { index }],
        // A library built without CUDA is the normal case: it is not worth a failed attempt and a warning.
        DeviceChoice::Auto if !matches!(ep::CUDA::is_available(), Ok(true)) => vec![Provider::Cpu],
        DeviceChoice::Auto => vec![Provider::Cuda { index: 0 }, Provider::Cpu],
    }
}

impl DeviceChoice {
    /// Whether sessions may well end up on CUDA: it is asked for, or `auto` and the library that is loaded knows it.
    /// Whether it really works only a session can tell; this is for defaults that must be chosen before.
    pub fn expects_cuda(self) -> bool {
        match self {
            Self::Cpu => false,
            Self::Cuda { .. } => true,
            Self::Auto => ep::CUDA::is_available().unwrap_or(false),
        }
    }
}

/// The CUDA provider's settings.
///
/// # Why these?
/// `HEURISTIC`: the default times every convolution algorithm at every new shape, seconds of delay on a live request.
/// TF32 off: it rounds the factors of every product to 10 bits, and answers should be those of the CPU; on, it would be
/// faster on recent devices. `kSameAsRequested`: the other strategy doubles the arena at every extension. Errors on
/// failure, because a session that falls back to the CPU in silence is a server ten times slower with no word about it.
pub(super) fn cuda_provider(index: u32, memory_limit_bytes: Option<u64>) -> ExecutionProviderDispatch {
    let mut cuda = ep::CUDA::default()
        .with_device_id(i32::try_from(index).unwrap_or(i32::MAX))
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
        .with_tf32(false);
    if let Some(limit) = memory_limit_bytes {
        cuda = cuda.with_memory_limit(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    cuda.build().error_on_failure()
}

/// Loads CUDA's and cuDNN's libraries from the Python packages beside ONNX Runtime's, if they are there.
///
/// pip puts them at `nvidia/cu13/lib` and `nvidia/cudnn/lib` next to `onnxruntime/`, where the system loader does not
/// look. Where they are not, the system's are used, and a failure shows when the provider is registered.
pub(super) fn preload_cuda(library: &Path) {
    static PRELOADED: OnceLock<()> = OnceLock::new();
    PRELOADED.get_or_init(|| {
        let Some(site) = library.ancestors().nth(3) else {
            return;
        };
        let cuda = Some(site.join("nvidia").join("cu13").join("lib")).filter(|dir| dir.is_dir());
        let cudnn = Some(site.join("nvidia").join("cudnn").join("lib")).filter(|dir| dir.is_dir());
        if let Err(err) = ep::cuda::preload_dylibs(cuda.as_deref(), cudnn.as_deref()) {
            tracing::warn!("CUDA's libraries beside ONNX Runtime could not all be loaded: {err}");
        }
    });
}
