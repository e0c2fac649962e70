//! Builds sessions: one place for every setting.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::session::Session;
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, TensorElementType};

use super::assignment::{RECORD_ASSIGNMENT, assignment};
use super::cuda::{preload_cuda, registered};
use super::device::{DeviceChoice, Provider, SessionOptions};
use super::error::OnnxError;
use super::library::{self, Runtime};
use crate::heads::Weights;

/// Where ONNX Runtime looks for weights kept beside a model that it was given as bytes.
const EXTERNAL_DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";
/// Whether threads that spin sleep as soon as a run ends.
const STOP_SPINNING: &str = "session.force_spinning_stop";

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
        .with_intra_op_spinning(options.spinning)?;
    if options.spinning {
        // Not after a run either.
        builder = builder.with_config_entry(STOP_SPINNING, "1")?;
    }
    if options.shares_arena && provider == Provider::Cpu {
        builder = builder.with_env_allocators()?;
    }
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

/// The weights of a head, from where they lie, for sessions on the CPU; and the rearranged copy that the matrix product
/// reads, which is one for all of them.
///
/// Measured with heads of 164 MB, two sessions of each (`make bench-growth`): a server of 47 MB without them has 384 MB with
/// them, their weights twice, registry included.
pub(super) struct SharedWeight {
    name: &'static str,
    value: Arc<DynValue>,
    prepacked: PrepackedWeights,
}

impl SharedWeight {
    /// Sessions that have been [given](SharedWeight::give_to) this read the weights' memory until they are dropped.
    ///
    /// # Safety
    /// `weights` outlive every session that is given this, and this.
    #[expect(
        unsafe_code,
        reason = "ort has no tensor that borrows and is owned at once, as a session wants its constants"
    )]
    pub(super) unsafe fn new(name: &'static str, weights: &Weights) -> ort::Result<Self> {
        let matrix = weights.matrix();
        // In row-major order by construction.
        let values = matrix.to_slice().unwrap_or_default();
        let shape = [weights.num_classes(), weights.feature_dim()];
        let (memory, allocator) = (MemoryInfo::default(), Allocator::default());
        // SAFETY: ONNX Runtime does not write to a session's constant, and the memory outlives it by this function's contract.
        let value = unsafe { tensor_over(values.as_ptr().cast_mut(), shape, &memory, &allocator) }?;
        Ok(Self { name, value: Arc::new(value), prepacked: PrepackedWeights::new() })
    }

    /// The session keeps what it needs alive, but for the weights.
    fn give_to(&self, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        Ok(builder.with_initializer(self.name, Arc::clone(&self.value))?.with_prepacked_weights(&self.prepacked)?)
    }
}

/// A tensor of values that are somebody else's, where they lie: on the host, or on a device. It keeps the allocator alive and does
/// not free the values.
///
/// # Safety
/// At `values` there is a matrix of that shape in memory of that kind, for as long as the tensor lives; and what is written
/// to the tensor may be written there.
#[expect(unsafe_code, reason = "ort makes tensors of memory that it has, or that is borrowed for as long as they live")]
pub(super) unsafe fn tensor_over(
    values: *mut f32,
    [n_rows, n_columns]: [usize; 2],
    memory: &MemoryInfo<'_>,
    allocator: &Allocator,
) -> ort::Result<DynValue> {
    let shape = [n_rows as i64, n_columns as i64];
    let n_bytes = n_rows * n_columns * size_of::<f32>();
    let mut value = ptr::null_mut();
    // SAFETY: the description, the shape and the place to write to are valid for the call; the values by the contract.
    let status = unsafe {
        (ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            values.cast(),
            n_bytes,
            shape.as_ptr(),
            shape.len(),
            TensorElementType::Float32.into(),
            &raw mut value,
        )
    };
    // SAFETY: the status comes straight from a call of the interface and is handed over.
    unsafe { ort::Error::result_from_status(status) }?;
    let value = NonNull::new(value)
        .ok_or_else(|| ort::Error::new("ONNX Runtime made no tensor of values that it was given"))?;
    // SAFETY: a tensor that was made just now, and is nobody else's.
    Ok(unsafe { DynValue::from_ptr(value, Some(allocator)) })
}
