//! The backbone: images in, features out.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use ort::session::{OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, TensorRef, TensorValueType};

use super::batch_sizes::padded;
use super::build::build_session;
use super::contract::{FeatureOutput, ImageInput, check_file, feature_output, image_input};
use super::device::{DeviceChoice, Provider, SessionOptions, backbone_providers_to_try};
use super::device_memory::{DeviceMemory, OnDevice};
use super::error::OnnxError;
use super::features::{Features, Rows};
use super::library;

/// A backbone network in an ONNX Runtime session, on CUDA in two: images `[n,3,H,W]` to features `[n,D]`.
///
/// # Why does `run` take `&mut self`?
/// A session belongs to one thread at a time: ONNX Runtime's `Run` is not safe to call concurrently with every provider.
/// Serve more by giving each worker thread a `Backbone` of its own.
///
/// # Why no `IoBinding`?
/// Features stay on the device because each run is given an output tensor allocated there. `ort`'s binding would do the
/// same, but `bind_input` of a borrowed tensor that is already where the session wants it (any model that starts with a
/// node on the CPU) locks a mutex twice and never returns in 2.0.0-rc.15.
///
/// # Why are batches padded on a device, and single images not?
/// On CUDA ONNX Runtime keeps one plan for each convolution, for the shape that it had last, and makes another when that changes:
/// 20 batches of changing sizes took 1.27 s where 0.21 s was enough in order, 55 ms for each change, by a report on 1.27 (not
/// measured by us). So each session has one shape there. A batch grows by black images to the largest size; a single image, for
/// which that would be the most work for nothing, has a session of its own. Both shapes have been run before the first request.
/// What is computed for black images is left out of the answer: a head computes it too, so that its shapes are few as well, and
/// drops their scores.
#[derive(Debug)]
pub struct Backbone {
    /// Not on the CPU. It stands first to be dropped before the session whose memory it is.
    on_device: Option<OnDevice>,
    session: Session,
    /// On CUDA, for single images.
    single: Option<Box<Self>>,
    max_batch_size: usize,
    input: ImageInput,
    output: FeatureOutput,
    provider: Provider,
    /// Set until a first run on CUDA has worked, when the choice was left to us: what to load on the CPU otherwise.
    unproved: Option<Source<'static>>,
    fallback: Option<String>,
}

/// Images of one size that a session takes, `[n,3,height,width]`.
#[derive(Clone, Copy)]
struct Images<'a> {
    pixels: &'a [f32],
    n: usize,
    height: usize,
    width: usize,
}

/// What a run may take of a device. On the CPU it makes no difference.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// What is fast: a shape that has been run before, and features that stay on the device.
    Usual,
    /// As little as can be: the batch as it is, and features that come to the host.
    Sparing,
}

/// What a session is built from.
#[derive(Clone, Debug)]
struct Source<'a> {
    model: Cow<'a, [u8]>,
    base_dir: Option<PathBuf>,
    options: SessionOptions,
}

impl Source<'_> {
    fn into_owned(self) -> Source<'static> {
        Source { model: Cow::Owned(self.model.into_owned()), ..self }
    }
}

impl Backbone {
    /// Loads a model: input float32 `[N,3,H,W]`, output float32 `[N,D]` (or `[N,D,1,1]`), the only one or named `features`.
    ///
    /// `base_dir` is the folder of weights that the model keeps in other files. With [`DeviceChoice::Auto`] CUDA is taken
    /// only if a first run works there: at once if the model fixes its input size, else in [`Backbone::warm_up`].
    ///
    /// # Errors
    /// Everything that is wrong with the file or the device, with the names and shapes found in the file.
    pub fn load(model: &[u8], base_dir: Option<&Path>, options: &SessionOptions) -> Result<Self, OnnxError> {
        library::init(None)?;
        check_file(model, base_dir)?;
        let base_dir = base_dir.map(named);
        let source = Source { model: Cow::Borrowed(model), base_dir, options: options.clone() };
        let mut backbone = Self::load_first(source)?;
        let must_run = backbone.output.feature_dim.is_none() || backbone.provider != Provider::Cpu;
        if let (true, (Some(height), Some(width))) = (must_run, backbone.input_size()) {
            backbone.warm_up(&[1], height, width)?;
        }
        Ok(backbone)
    }

    /// Takes the first provider that loads the model.
    fn load_first(source: Source<'_>) -> Result<Self, OnnxError> {
        let providers = backbone_providers_to_try(&source.options);
        let mut fallback = None;
        for (i, &provider) in providers.iter().enumerate() {
            let is_last = i + 1 == providers.len();
            match Self::load_on(&source, provider) {
                Ok(backbone) => {
                    let unproved = (!is_last).then(|| source.into_owned());
                    return Ok(Self { unproved, fallback, ..backbone });
                }
                Err(err) if !is_last && err.is_of_the_device() => fallback = Some(tell_fallback(provider, &err)),
                Err(err) => return Err(err),
            }
        }
        Self::load_on(&source, Provider::Cpu)
    }

    fn load_on(source: &Source<'_>, provider: Provider) -> Result<Self, OnnxError> {
        let session = build_session(&source.model, source.base_dir.as_deref(), &source.options, provider, None)?;
        let input = image_input(session.inputs())?;
        let output = feature_output(session.outputs())?;
        let device = DeviceChoice::from(provider);
        let on_device = provider.device_index().map(|index| OnDevice::of(&session, index)).transpose();
        let on_device = on_device.map_err(|source| OnnxError::Load { device, source })?;
        let max_batch_size = source.options.max_batch_size;
        let single = if matches!(provider, Provider::Cuda { .. }) && 1 < max_batch_size && input.batch.is_none() {
            let options = SessionOptions { max_batch_size: 1, ..source.options.clone() };
            Some(Box::new(Self::load_on(&Source { options, ..source.clone() }, provider)?))
        } else {
            None
        };
        Ok(Self { session, on_device, single, max_batch_size, input, output, provider, unproved: None, fallback: None })
    }

    /// The same backbone in another session of the same graph.
    pub(super) fn with_session(&self, session: Session) -> Self {
        let (input, output) = (self.input.clone(), self.output.clone());
        let (provider, fallback) = (self.provider, self.fallback.clone());
        Self {
            session,
            on_device: None,
            single: None,
            input,
            output,
            provider,
            unproved: None,
            fallback,
            max_batch_size: self.max_batch_size,
        }
    }

    /// D, the values in a feature row. From the model, or from the first run; 0 until then.
    #[must_use]
    pub fn feature_dim(&self) -> usize {
        self.output.feature_dim.unwrap_or(0)
    }

    /// Height and width of the images, each where the model fixes it.
    #[must_use]
    pub fn input_size(&self) -> (Option<usize>, Option<usize>) {
        (self.input.height, self.input.width)
    }

    /// Height and width of the images: the model's, or what is `given` where it leaves them free.
    #[must_use]
    pub fn image_size(&self, given: Option<(usize, usize)>) -> Option<(usize, usize)> {
        self.input.height.zip(self.input.width).or(given)
    }

    /// The batch size, if the model fixes it. Any `n` can be run: smaller batches are padded, larger ones split.
    #[must_use]
    pub fn fixed_batch(&self) -> Option<usize> {
        self.input.batch
    }

    /// The execution provider really in use.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Why the CPU is used although CUDA might have been, if so.
    #[must_use]
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// What its sessions hold on the device; nothing on the CPU.
    #[must_use]
    pub fn device_memory(&self) -> Option<DeviceMemory> {
        let held = self.on_device.as_ref().and_then(OnDevice::held);
        let single = self.single.as_ref().and_then(|single| single.device_memory());
        held.map(|held| single.map_or(held, |single| held + single))
    }

    /// Runs each batch size once on black images, so that no request pays for the first time. A size of more than one that does
    /// not fit the memory is let be: such a batch is run in parts.
    ///
    /// # Errors
    /// Those of [`Backbone::run`]. With [`DeviceChoice::Auto`] the first failure on
    /// CUDA loads the model on the CPU instead; it never happens after a run has worked.
    pub fn warm_up(&mut self, batch_sizes: &[usize], height: usize, width: usize) -> Result<(), OnnxError> {
        for &n in batch_sizes.iter().filter(|&&n| n != 0) {
            let len = n.checked_mul(3).and_then(|x| x.checked_mul(height)).and_then(|x| x.checked_mul(width));
            let len = len.ok_or_else(|| self.image_shape_error(n, height, width, 0))?;
            let pixels = vec![0.0; len];
            let images = self.images(&pixels, n, height, width)?;
            match self.rehearse(images) {
                Ok(()) => self.unproved = None,
                Err(error) if 1 < n && error.is_out_of_memory() => {
                    tracing::warn!(%error, batch_size = n, "batches of {n} do not fit the memory, and will be run in halves");
                }
                Err(error) => {
                    let Some(source) = self.unproved.take() else { return Err(error) };
                    let fallback = Some(tell_fallback(self.provider, &error));
                    *self = Self { fallback, ..Self::load_on(&source, Provider::Cpu)? };
                    self.rehearse(images)?;
                }
            }
        }
        Ok(())
    }

    /// A run, and its features on the host. `ort` copies them from a device with a session that it makes the first time and keeps:
    /// rather now than when a request waits for it, and memory may have run out.
    fn rehearse(&mut self, images: Images<'_>) -> Result<(), OnnxError> {
        self.run_as(Manner::Usual, images)?.to_host().map(|_| ())
    }

    /// Computes the features of `n` images, given as `[n,3,height,width]`. Those of an image may be NaN or infinite: that is a
    /// matter of this image, for whoever reads its row, and of no other.
    ///
    /// # Errors
    /// [`OnnxError::ImageShape`], [`OnnxError::Run`] and [`OnnxError::OutputShape`].
    pub fn run(&mut self, pixels: &[f32], n: usize, height: usize, width: usize) -> Result<Features, OnnxError> {
        let images = self.images(pixels, n, height, width)?;
        self.run_as(Manner::Usual, images)
    }

    /// The same with as little of a device's memory as can be: no padding, and the run itself brings the features to the host.
    /// It takes longer.
    ///
    /// # Errors
    /// Those of [`Backbone::run`].
    pub fn run_sparing(
        &mut self,
        pixels: &[f32],
        n: usize,
        height: usize,
        width: usize,
    ) -> Result<Features, OnnxError> {
        let images = self.images(pixels, n, height, width)?;
        self.run_as(Manner::Sparing, images)
    }

    /// The images, if there are as many pixels as they should have and the model takes their size.
    fn images<'a>(&self, pixels: &'a [f32], n: usize, height: usize, width: usize) -> Result<Images<'a>, OnnxError> {
        let len = n.checked_mul(3).and_then(|x| x.checked_mul(height)).and_then(|x| x.checked_mul(width));
        let fits = |fixed: Option<usize>, given| fixed.is_none_or(|fixed| fixed == given);
        if n == 0
            || pixels.is_empty()
            || len != Some(pixels.len())
            || !fits(self.input.height, height)
            || !fits(self.input.width, width)
        {
            return Err(self.image_shape_error(n, height, width, pixels.len()));
        }
        Ok(Images { pixels, n, height, width })
    }

    fn image_shape_error(&self, n: usize, height: usize, width: usize, len: usize) -> OnnxError {
        let side = |fixed: Option<usize>, name: &str| fixed.map_or_else(|| name.to_owned(), |side| side.to_string());
        let expected = format!("[3,{},{}]", side(self.input.height, "H"), side(self.input.width, "W"));
        OnnxError::ImageShape { expected, n, height, width, len }
    }

    fn run_as(&mut self, manner: Manner, images: Images<'_>) -> Result<Features, OnnxError> {
        if let (1, Some(single)) = (images.n, &mut self.single) {
            let features = single.run_as(manner, images)?;
            self.output.feature_dim = Some(features.feature_dim());
            return Ok(features);
        }
        match self.input.batch {
            Some(batch) if batch != images.n => self.run_in_batches(images, batch),
            _ => self.run_once(manner, images),
        }
    }

    /// For a model with a fixed batch size: splits what is too long and pads what is too short with black images.
    fn run_in_batches(&mut self, images: Images<'_>, batch: usize) -> Result<Features, OnnxError> {
        let image_len = 3 * images.height * images.width;
        let mut rows = Vec::new();
        for chunk in images.pixels.chunks(batch * image_len) {
            let mut padded = chunk.to_vec();
            padded.resize(batch * image_len, 0.0);
            let features = self.run_once(Manner::Sparing, Images { pixels: &padded, n: batch, ..images })?;
            let n_real = chunk.len() / image_len;
            rows.extend(features.to_host()?.iter().take(n_real * features.feature_dim()));
        }
        Ok(Features::new(Rows::Host(rows), images.n, self.feature_dim()))
    }

    fn run_once(&mut self, manner: Manner, images: Images<'_>) -> Result<Features, OnnxError> {
        let Images { pixels, n, height, width } = images;
        let run_error = |source| OnnxError::Run { n, source };
        let (n_run, kept_dim) = match manner {
            Manner::Usual => (self.padded(n), self.kept_dim()),
            Manner::Sparing => (n, None),
        };
        let mut selector = OutputSelector::no_default().with(&*self.output.name);
        if let (Some(memory), Some(feature_dim)) = (&self.on_device, kept_dim) {
            let buffer = memory.features(n_run, feature_dim).map_err(run_error)?;
            selector = selector.preallocate(&*self.output.name, buffer);
        }
        let shape = [n_run, 3, height, width];
        let images: SessionInputValue<'_> = match &mut self.on_device {
            None => TensorRef::from_array_view((shape, pixels)).map_err(run_error)?.into(),
            Some(memory) => memory.stage(pixels, shape).map_err(run_error)?.into(),
        };
        let run_options = RunOptions::new().map_err(run_error)?.with_outputs(selector);
        let inputs = ort::inputs![&*self.input.name => images];
        let mut outputs = self.session.run_with_options(inputs, &run_options).map_err(run_error)?;
        let value = outputs.remove(&*self.output.name);
        drop(outputs);
        self.accept(value, n, n_run)
    }

    /// How many images are run for `n`: as many on the CPU, and where the model fixes the number.
    fn padded(&self, n: usize) -> usize {
        if self.on_device.is_some() && self.input.batch.is_none() { padded(n, self.max_batch_size) } else { n }
    }

    /// D if features can be left on the device: they are `[N,D]` with D known.
    fn kept_dim(&self) -> Option<usize> {
        self.output.feature_dim.filter(|_| self.output.is_matrix)
    }

    /// Checks the answer's shape, learns D from the first one, and copies host values of the first `n` of `n_run` images out of
    /// ONNX Runtime's memory.
    fn accept(&mut self, value: Option<DynValue>, n: usize, n_run: usize) -> Result<Features, OnnxError> {
        let run_error = |source| OnnxError::Run { n, source };
        let shape_error = |found: Vec<i64>, known: Option<usize>| OnnxError::OutputShape {
            found,
            n: n_run,
            feature_dim: known.unwrap_or(0),
        };
        let known = self.output.feature_dim;
        let value = value.ok_or_else(|| shape_error(Vec::new(), known))?;
        let tensor = value.downcast::<TensorValueType<f32>>().map_err(run_error)?;
        let shape = tensor.shape().to_vec();
        let (rows, dim) = match shape[..] {
            [rows, dim] | [rows, dim, 1, 1] => (usize::try_from(rows).ok(), usize::try_from(dim).ok()),
            _ => (None, None),
        };
        let feature_dim = match (rows, dim) {
            (Some(rows), Some(dim)) if rows == n_run && dim != 0 && known.is_none_or(|known| known == dim) => dim,
            _ => return Err(shape_error(shape, known)),
        };
        self.output.feature_dim = Some(feature_dim);
        if tensor.memory_info().is_cpu_accessible() {
            let (_, values) = tensor.try_extract_tensor::<f32>().map_err(run_error)?;
            let rows = values.get(..n * feature_dim).unwrap_or(values);
            return Ok(Features::new(Rows::Host(rows.to_vec()), n, feature_dim));
        }
        Ok(Features::new(Rows::Device(tensor), n, feature_dim))
    }
}

/// A folder as it can be handed on: `model.onnx` in the current folder has the parent ``.
pub(super) fn named(dir: &Path) -> PathBuf {
    if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir.to_path_buf() }
}

/// Logs why CUDA is not used after all, and gives the reason back for whoever asks later.
pub(super) fn tell_fallback(provider: Provider, err: &OnnxError) -> String {
    let reason = err.to_string();
    tracing::warn!("{provider} does not work here, the CPU is used instead: {reason}");
    reason
}

#[cfg(test)]
mod tests;
