//! From the bytes of an image file to the tensor that the backbone was trained on.
//!
//! ```text
//! bytes -> decode (limits first) -> RGB, 8 bits -> pre-crop -> resample -> crop -> (v / 255 - mean) / std -> [3, H, W]
//! ```
//!
//! Everything behind the decoder gives torchvision's and Pillow's values bit for bit; see [`resample`] and
//! [`decode_rgb`] for what that means. The crop is fused into the resampling, so pixels that it drops cost nothing, and
//! each row is normalised while it is in the cache.

mod config;
mod decode;
mod error;
mod geometry;
mod normalize;
mod resample;

use std::sync::Arc;

pub use config::{Crop, Decode, ExifOrientation, Interpolation, PreprocessConfig, PreprocessConfigError, Resize};
pub use decode::{DecodeLimits, decode_rgb};
pub use error::{DecoderError, ImageError};
pub use resample::{Rect, RgbImage, Target, View, resample};

use decode::Decoded;
use normalize::Normalize;

/// A model's preprocessing: checked once, then cheap to clone and to share between threads.
///
/// ```
/// use equipoise::preprocess::{DecodeLimits, PreprocessConfig, Preprocessor};
///
/// let config: PreprocessConfig =
///     serde_json::from_str(r#"{"resize": 36, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}"#).unwrap();
/// let preprocessor = Preprocessor::new(config, DecodeLimits::default()).unwrap();
/// assert_eq!(preprocessor.output_size(), Some((32, 32)));
/// assert_eq!(preprocessor.run(b"").unwrap_err().reason(), "empty");
/// ```
#[derive(Clone, Debug)]
pub struct Preprocessor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: PreprocessConfig,
    limits: DecodeLimits,
    normalize: Normalize,
}

/// A preprocessed image.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// `[3, height, width]`, red first, rows from the top.
    pub pixels: Vec<f32>,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Preprocessor {
    /// Checks the configuration.
    ///
    /// # Errors
    /// [`PreprocessConfigError`] names the key that no image could satisfy, and why.
    pub fn new(config: PreprocessConfig, limits: DecodeLimits) -> Result<Self, PreprocessConfigError> {
        geometry::check(&config, &limits)?;
        let normalize = Normalize::new(config.mean, config.std)?;
        Ok(Self { inner: Arc::new(Inner { config, limits, normalize }) })
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &PreprocessConfig {
        &self.inner.config
    }

    /// `(height, width)` of every tensor; `None` if it depends on the image: no crop, and no exact resize.
    pub fn output_size(&self) -> Option<(usize, usize)> {
        geometry::output_size(&self.inner.config)
    }

    /// Decodes and transforms one image file.
    ///
    /// # Errors
    /// [`ImageError`], whose [`reason`](ImageError::reason) is a metric label.
    pub fn run(&self, bytes: &[u8]) -> Result<Tensor, ImageError> {
        let mut pixels = Vec::new();
        let (height, width) = self.run_into(bytes, &mut pixels)?;
        Ok(Tensor { pixels, height, width })
    }

    /// Like [`run`](Self::run), but into a buffer whose memory is used again.
    ///
    /// `out` is resized to `[3, height, width]`, and `(height, width)` returned; after an error its content means nothing.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_into(&self, bytes: &[u8], out: &mut Vec<f32>) -> Result<(usize, usize), ImageError> {
        let Inner { config, limits, normalize } = &*self.inner;
        let reduce = |height, width| geometry::reduction(config, height, width);
        let Decoded { image, full_size } = decode::decode(bytes, limits, config.exif_orientation, &reduce)?;
        let plan = geometry::plan(config, limits, full_size, (image.height(), image.width()))?;
        let (height, width) = (plan.target.window.height, plan.target.window.width);
        let plane = height * width;
        out.clear();
        out.resize(3 * plane, 0.0);
        let (red, rest) = out.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        let mut planes =
            red.chunks_exact_mut(width).zip(green.chunks_exact_mut(width)).zip(blue.chunks_exact_mut(width));
        let view = image.view();
        let source = plan.pre_crop.and_then(|rect| view.crop(rect)).unwrap_or(view);
        resample::resample_rows(source, config.interpolation, &plan.target, |row| {
            if let Some(((red, green), blue)) = planes.next() {
                normalize.row(row, [red, green, blue]);
            }
        });
        Ok((height, width))
    }
}
