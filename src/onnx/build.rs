//! Builds sessions: one place for every setting.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ort::session::Session;
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, Tensor};

use super::assignment::{RECORD_ASSIGNMENT, assignment};
use super::cuda::{preload_cuda, registered};
use super::device::{DeviceChoice, Provider, SessionOptions};
use super::error::OnnxError;
use super::library::{self, Runtime};

/// Where ONNX Runtime looks for weights kept beside a model that it was given as bytes.
const EXTERNAL_DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// Builds a session of this model on exactly this provider.
///
/// # Errors
/// [`OnnxError::Load`], and [`OnnxError::DeviceUnused`] if CUDA was registered and runs no node.
pub(super) fn build_session(
    model: &[u8],
    base_dir: Option<&Path>,
    options: &SessionOptions,
    provider: Provider,
    shared: Option<&SharedWeight>,
) -> Result<Session, OnnxError> {
    let runtime = library::init(None)?;
    let device = DeviceChoice::from(provider);
    let load_error = |source| OnnxError::Load { device, source };
    let mut builder = configure(runtime, options, provider, base_dir).map_err(load_error)?;
    if let Some(shared) = shared {
        builder = shared.give_to(builder).map_err(load_error)?;
    }
    // `ort` panics on some shapes that a damaged file can hold and ONNX Runtime does not mind. The files' own are checked
    // before; those that ONNX Runtime infers are not known until here. What the panic leaves behind is only dropped.
    let session = catch_unwind(AssertUnwindSafe(|| builder.commit_from_memory(model)));
    let session = session.map_err(|_| OnnxError::Nonsense)?.map_err(load_error)?;
    if provider != Provider::Cpu {
        let groups = assignment(&session).map_err(load_error)?;
        let n_nodes = groups.iter().map(|group| group.n_nodes).sum();
        let n_on_device: usize =
            groups.iter().filter(|group| group.provider == provider.as_str()).map(|group| group.n_nodes).sum();
        if n_on_device == 0 && 0 < n_nodes {
            return Err(OnnxError::DeviceUnused { device, n_nodes });
        }
        tracing::debug!("{n_on_device} of {n_nodes} nodes run on {device}");
    }
    Ok(session)
}

/// The settings, with the reasons for those that differ from ONNX Runtime's own.
pub(super) fn configure(
    runtime: &Runtime,
    options: &SessionOptions,
    provider: Provider,
    base_dir: Option<&Path>,
) -> ort::Result<SessionBuilder> {
    let mut builder = Session::builder(runtime.environment())?
        // `ort` starts from a policy that picks devices by itself; this one never does.
        .with_auto_device(AutoDevicePolicy::PreferCPU)?
        .with_no_environment_execution_providers()?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(options.threads.max(1))?
        .with_inter_threads(1)?
        // The memory pattern keeps one block per input shape: no faster, and 100 MiB more on EfficientNet-B0.
        .with_memory_pattern(false)?
        // Threads that spin while they wait for work take the core that preprocessing needs.
        .with_intra_op_spinning(false)?;
    if provider != Provider::Cpu {
        preload_cuda(&runtime.path);
        builder = builder
            .with_config_entry(RECORD_ASSIGNMENT, "1")?
            .with_execution_providers(registered(provider, options))?;
    }
    if let Some(dir) = base_dir {
        builder = builder.with_config_entry(EXTERNAL_DATA_FOLDER, dir.to_string_lossy())?;
    }
    Ok(builder)
}

/// A constant that several sessions on the CPU hold together, and its rearranged copy that the matrix product reads.
///
/// Measured at C = 8142, D = 2048 (64 MiB): each session of its own holds 64 MiB; sharing ones hold 128 MiB in all, the
/// constant and the copy, however many they are. So sharing pays from the third session on.
pub(super) struct SharedWeight {
    name: &'static str,
    value: Arc<DynValue>,
    prepacked: PrepackedWeights,
}

impl SharedWeight {
    pub(super) fn new(name: &'static str, dims: [usize; 2], values: &[f32]) -> ort::Result<Self> {
        let value = Tensor::from_array((dims, values.to_vec()))?;
        Ok(Self { name, value: Arc::new(value.into_dyn()), prepacked: PrepackedWeights::new() })
    }

    /// The session keeps what it needs of both alive.
    fn give_to(&self, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        Ok(builder.with_initializer(self.name, Arc::clone(&self.value))?.with_prepacked_weights(&self.prepacked)?)
    }
}
