//! Where a session runs: what was asked for, and what is really in use.

use std::fmt;
use std::str::FromStr;

use super::cuda::CudaOptions;
use super::cuda_proof::cuda_works;

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
    /// TensorRT, with CUDA for what it leaves. Backbones alone.
    TensorRt {
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
            Self::TensorRt { .. } => "TensorrtExecutionProvider",
        }
    }

    /// Which CUDA device it runs on; none for the CPU.
    #[must_use]
    pub const fn device_index(self) -> Option<u32> {
        match self {
            Self::Cpu => None,
            Self::Cuda { index } | Self::TensorRt { index } => Some(index),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Asks for exactly the device that another session got: a head runs where its backbone does.
impl From<Provider> for DeviceChoice {
    fn from(provider: Provider) -> Self {
        provider.device_index().map_or(Self::Cpu, |index| Self::Cuda { index })
    }
}

/// How to build a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Where to run.
    pub device: DeviceChoice,
    /// Threads of one session, its caller's included; 0 counts as 1.
    pub threads: usize,
    /// Whether threads spin while they wait for each other within a run. It is faster while nothing else wants the cores, and
    /// takes them from whoever does.
    pub spinning: bool,
    /// Whether a session on the CPU takes the memory of its runs from the arena that all of these share, and not from one of its
    /// own: less memory for sessions that hardly ever run at the same time.
    pub shares_arena: bool,
    /// Upper bound, in bytes, of one session's CUDA arena. None: what the device has.
    pub cuda_memory_limit_bytes: Option<u64>,
    /// What the model says of CUDA; nothing on the CPU.
    pub cuda: CudaOptions,
    /// Rows of the largest batch that is to come. On CUDA smaller ones are padded to it; on the CPU it is nothing.
    pub max_batch_size: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            threads: 1,
            spinning: false,
            shares_arena: false,
            cuda_memory_limit_bytes: None,
            cuda: CudaOptions::default(),
            max_batch_size: 1,
        }
    }
}

/// Providers to try, best first. For [`DeviceChoice::Auto`] the second is taken if the first fails.
pub(super) fn providers_to_try(choice: DeviceChoice) -> Vec<Provider> {
    match choice {
        DeviceChoice::Cpu => vec![Provider::Cpu],
        DeviceChoice::Cuda { index } => vec![Provider::Cuda { index }],
        DeviceChoice::Auto if cuda_works() => vec![Provider::Cuda { index: 0 }, Provider::Cpu],
        DeviceChoice::Auto => vec![Provider::Cpu],
    }
}

/// Providers to try for a backbone: those above, with TensorRT in the place of CUDA where the model asks for it.
pub(super) fn backbone_providers_to_try(options: &SessionOptions) -> Vec<Provider> {
    let of_backbone = |provider| match (provider, options.cuda) {
        (Provider::Cuda { index }, CudaOptions::TensorRt { .. }) => Provider::TensorRt { index },
        (other, _) => other,
    };
    providers_to_try(options.device).into_iter().map(of_backbone).collect()
}

impl DeviceChoice {
    /// Whether sessions may well end up on CUDA: it is asked for, or `auto` and CUDA works, which is tried the first time.
    /// Whether it runs a model only that model's session can tell; this is for defaults that must be chosen before.
    pub fn expects_cuda(self) -> bool {
        match self {
            Self::Cpu => false,
            Self::Cuda { .. } => true,
            Self::Auto => cuda_works(),
        }
    }
}
