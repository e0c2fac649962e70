//! Finds ONNX Runtime's shared library and loads it, once per process.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::AsPointer;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

/// The oldest minor version of ONNX Runtime 1.x whose API this program can use.
pub const OLDEST_MINOR_VERSION: u32 = ort::MINOR_VERSION;

/// ONNX Runtime could not be found or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// No place that was searched holds the library.
    #[error(
        "ONNX Runtime was not found; searched {}, and the system loader said: {system}; \
         run `make ort` to fetch it, or set ORT_DYLIB_PATH to the file `{}`",
        Listed(searched),
        plain_name()
    )]
    NotFound {
        /// The folders that were looked into, in order.
        searched: Vec<PathBuf>,
        /// What the system loader answered.
        system: String,
    },
    /// `ORT_DYLIB_PATH` names something that is not there.
    #[error("ORT_DYLIB_PATH is `{}`, where there is no ONNX Runtime library; correct it, or unset it and run `make ort`", path.display())]
    ExplicitMissing {
        /// What the variable says.
        path: PathBuf,
    },
    /// The library is older than the API that this program speaks.
    #[error(
        "`{}` is ONNX Runtime {version}, which is too old: 1.{OLDEST_MINOR_VERSION} or newer is needed; \
         run `make ort` to fetch one, or set ORT_DYLIB_PATH to one",
        path.display()
    )]
    TooOld {
        /// The library's file.
        path: PathBuf,
        /// The version it reports.
        version: String,
    },
    /// The file is there and the loader refuses it.
    #[error("`{}` cannot be loaded as ONNX Runtime; run `make ort` to fetch one that fits this machine, or set ORT_DYLIB_PATH", path.display())]
    Load {
        /// The library's file.
        path: PathBuf,
        /// What the loader said.
        source: Box<ort::LoadDynamicError>,
    },
    /// The library was loaded and its environment could not be made.
    #[error("ONNX Runtime from `{}` could not be initialised", path.display())]
    Environment {
        /// The library's file.
        path: PathBuf,
        /// What ONNX Runtime said.
        source: ort::Error,
    },
}

/// ONNX Runtime, loaded.
#[derive(Debug)]
pub struct Runtime {
    /// The file it was loaded from; a bare file name when the system loader found it.
    pub path: PathBuf,
    /// Its version, `1.31.1`; only `1.31` where the file name does not tell the patch level.
    pub version: String,
    environment: Environment,
}

impl Runtime {
    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }
}

/// ONNX Runtime allows one environment per process, and a loaded library is never unloaded.
static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());

/// Finds and loads ONNX Runtime; later calls answer the same one, whatever folder they name.
///
/// Searched in this order: `ORT_DYLIB_PATH` (when set, nothing else is tried), `configured_dir`, the executable's
/// folder and its `lib/`, `.ort/onnxruntime/capi` in the executable's folder, the current one and all above them, the
/// system loader. The first file found is the one used: a broken or outdated one is an error, not a reason to search on.
///
/// # Errors
/// [`LibraryError`] says what was searched and what to do. A failure is not remembered: the next call searches again.
pub fn init(configured_dir: Option<&Path>) -> Result<&'static Runtime, LibraryError> {
    let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let places = SearchPlaces {
        explicit: env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from),
        configured_dir: configured_dir.map(Path::to_path_buf),
        executable_dir: env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)),
        current_dir: env::current_dir().ok(),
    };
    let runtime = load(&places)?;
    tracing::debug!("loaded ONNX Runtime {} from `{}`", runtime.version, runtime.path.display());
    Ok(RUNTIME.get_or_init(|| runtime))
}

fn load(places: &SearchPlaces) -> Result<Runtime, LibraryError> {
    let (path, builder) = match places.find()? {
        Found::File(path) => {
            let builder = ort::init_from(&path).map_err(|err| load_error(path.clone(), err))?;
            (path, builder)
        }
        Found::Nothing { searched } => {
            let path = PathBuf::from(plain_name());
            match ort::init_from(&path) {
                Ok(builder) => (path, builder),
                Err(err @ ort::LoadDynamicError::BadVersion { .. }) => {
                    return Err(load_error(path, err));
                }
                Err(err) => {
                    return Err(LibraryError::NotFound { searched, system: err.to_string() });
                }
            }
        }
    };
    let environment = builder
        .with_name("equipoise")
        .with_telemetry(false)
        .with_logger(std::sync::Arc::new(forward_log))
        .build()
        .map_err(|source| LibraryError::Environment { path: path.clone(), source })?;
    register_arena(&environment).map_err(|source| LibraryError::Environment { path: path.clone(), source })?;
    // With a logger of its own the environment starts at the chattiest level: every line would cross the boundary.
    environment.set_log_level(LogLevel::Warning);
    Ok(Runtime { version: version_of(&path), path, environment })
}

/// Gives the environment an arena in the host's memory, for sessions that share one ([`super::SessionOptions::shares_arena`]).
#[expect(unsafe_code, reason = "ort can have sessions use such an arena, and cannot make one")]
fn register_arena(environment: &Environment) -> ort::Result<()> {
    let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
    // SAFETY: the environment and the description are valid for the call, which keeps neither; no settings are the defaults.
    let status = unsafe {
        (ort::api().CreateAndRegisterAllocator)(environment.ptr().cast_mut(), memory.ptr(), std::ptr::null())
    };
    // SAFETY: the status comes straight from a call of the interface and is handed over.
    unsafe { ort::Error::result_from_status(status) }
}

fn load_error(path: PathBuf, err: ort::LoadDynamicError) -> LibraryError {
    match err {
        ort::LoadDynamicError::BadVersion { version_str, .. } => LibraryError::TooOld { path, version: version_str },
        other => LibraryError::Load { path, source: Box::new(other) },
    }
}

/// ONNX Runtime's log lines become ours. A failure is also returned as an error, and logged once where it is handled,
/// so here it is only a detail.
fn forward_log(level: LogLevel, _category: &str, _id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Verbose | LogLevel::Info => {
            tracing::trace!(target: "onnxruntime", location, "{message}")
        }
        LogLevel::Warning | LogLevel::Error | LogLevel::Fatal => {
            tracing::debug!(target: "onnxruntime", location, "{message}")
        }
    }
}

/// Where to look. A value of its own, so that the search is tested without loading anything.
#[derive(Clone, Debug, Default)]
pub struct SearchPlaces {
    /// `ORT_DYLIB_PATH`: the library's file, or the folder that holds it.
    pub explicit: Option<PathBuf>,
    /// The folder that the configuration names.
    pub configured_dir: Option<PathBuf>,
    /// The folder of the running program.
    pub executable_dir: Option<PathBuf>,
    /// The folder the program was started in.
    pub current_dir: Option<PathBuf>,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The library's file.
    File(PathBuf),
    /// Nothing: only the system loader remains.
    Nothing {
        /// The folders that were looked into, in order.
        searched: Vec<PathBuf>,
    },
}

impl SearchPlaces {
    /// The folders to look into, in order, without those that an explicit path makes irrelevant.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = self.configured_dir.iter().cloned().collect();
        if let Some(dir) = &self.executable_dir {
            folders.extend([dir.clone(), dir.join("lib")]);
        }
        let roots = self.executable_dir.iter().chain(&self.current_dir);
        folders
            .extend(roots.flat_map(|dir| dir.ancestors()).map(|dir| dir.join(".ort").join("onnxruntime").join("capi")));
        let mut seen = std::collections::HashSet::new();
        folders.retain(|folder| seen.insert(folder.clone()));
        folders
    }

    /// Looks for the library.
    ///
    /// # Errors
    /// [`LibraryError::ExplicitMissing`] if an explicit path is set and there is no library there.
    pub fn find(&self) -> Result<Found, LibraryError> {
        if let Some(explicit) = &self.explicit {
            let file =
                if explicit.is_dir() { library_in(explicit) } else { explicit.is_file().then(|| explicit.clone()) };
            return file.map(Found::File).ok_or_else(|| LibraryError::ExplicitMissing { path: explicit.clone() });
        }
        let searched = self.folders();
        match searched.iter().find_map(|folder| library_in(folder)) {
            Some(file) => Ok(Found::File(file)),
            None => Ok(Found::Nothing { searched }),
        }
    }
}

/// `libonnxruntime.so` on Linux, `libonnxruntime.dylib` on macOS, `onnxruntime.dll` on Windows.
fn plain_name() -> String {
    format!("{}onnxruntime{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX)
}

/// The library's file in this folder: the plain name, else the highest version. The Python wheel holds only the latter.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let plain = folder.join(plain_name());
    if plain.is_file() {
        return Some(plain);
    }
    let versioned = fs::read_dir(folder).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let version = version_in_name(entry.file_name().to_str()?)?;
        entry.path().is_file().then(|| (version, entry.path()))
    });
    versioned.max().map(|(_, path)| path)
}

/// The version in `libonnxruntime.so.1.31.1` or `libonnxruntime.1.31.1.dylib`.
fn version_in_name(name: &str) -> Option<Vec<u32>> {
    let version = match name.strip_prefix("libonnxruntime.so.") {
        Some(version) => version,
        None => name.strip_prefix("libonnxruntime.")?.strip_suffix(".dylib")?,
    };
    let numbers: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    numbers.filter(|numbers| numbers.first() == Some(&1))
}

/// The library tells its version in words nowhere but when it is loaded, and `ort` passes only the minor number on.
fn version_of(path: &Path) -> String {
    let minor = ort::util::probe(path);
    let real_path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let from_name = real_path.file_name().and_then(|name| version_in_name(name.to_str()?));
    match (from_name, minor) {
        (Some(numbers), minor) if minor.is_none() || numbers.get(1).copied() == minor => {
            numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
        }
        (_, Some(minor)) => format!("1.{minor}"),
        (_, None) => "unknown".to_owned(),
    }
}

struct Listed<'a>(&'a [PathBuf]);

impl std::fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no folder");
        }
        for (i, path) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}`{}`", path.display())?;
        }
        Ok(())
    }
}
