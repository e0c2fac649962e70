//! `[preprocess]` of a model, as data.

use serde::{Deserialize, Serialize};

/// How a model wants its images: `[preprocess]` in `model.toml`, and `preprocess` in `GET /v1/models/{model}`.
///
/// The steps run in the order of the fields: orientation, `pre_crop`, `resize`, `crop`, then `(v / 255 - mean) / std`.
///
/// ```
/// use equipoise::preprocess::{Interpolation, PreprocessConfig, Resize};
///
/// let config: PreprocessConfig =
///     serde_json::from_str(r#"{"resize": 36, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}"#).unwrap();
/// assert_eq!(config.resize, Some(Resize::ShorterSide(36)));
/// assert_eq!(config.interpolation, Interpolation::Bilinear);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessConfig {
    /// Side of a centred square cut before the resize, as a share of the shorter side, in `(0, 1]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_crop: Option<f64>,
    /// Size to resample to, in pixels; without it the image keeps its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// Size of the centred part that is kept after the resize, in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<Crop>,
    /// Filter of the resize.
    #[serde(default)]
    pub interpolation: Interpolation,
    /// Mean of each channel (red, green, blue), of values scaled to 0..1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, of values scaled to 0..1.
    pub std: [f32; 3],
    /// Whether an EXIF orientation turns the image.
    #[serde(default)]
    pub exif_orientation: ExifOrientation,
    /// Whether a large JPEG may be decoded smaller than it is.
    #[serde(default, skip_serializing_if = "Decode::is_exact")]
    pub decode: Decode,
}

/// Target of the resize: `36` or `[height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Sides", into = "Sides")]
pub enum Resize {
    /// The shorter side gets this many pixels, the longer one `floor(size * long / short)`.
    ShorterSide(u32),
    /// Both sides, whatever that does to the aspect ratio.
    Exact {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
}

/// What the centre crop keeps: `32` or `[height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Sides", into = "Sides")]
pub enum Crop {
    /// A square of this side.
    Square(u32),
    /// A rectangle.
    Exact {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
}

impl Crop {
    /// `(height, width)` in pixels.
    pub fn size(self) -> (u32, u32) {
        match self {
            Self::Square(side) => (side, side),
            Self::Exact { height, width } => (height, width),
        }
    }
}

/// The two ways to write a size.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "a size is a number of pixels or [height, width]")]
enum Sides {
    One(u32),
    Two([u32; 2]),
}

impl From<Sides> for Resize {
    fn from(sides: Sides) -> Self {
        match sides {
            Sides::One(side) => Self::ShorterSide(side),
            Sides::Two([height, width]) => Self::Exact { height, width },
        }
    }
}

impl From<Resize> for Sides {
    fn from(resize: Resize) -> Self {
        match resize {
            Resize::ShorterSide(side) => Self::One(side),
            Resize::Exact { height, width } => Self::Two([height, width]),
        }
    }
}

impl From<Sides> for Crop {
    fn from(sides: Sides) -> Self {
        match sides {
            Sides::One(side) => Self::Square(side),
            Sides::Two([height, width]) => Self::Exact { height, width },
        }
    }
}

impl From<Crop> for Sides {
    fn from(crop: Crop) -> Self {
        match crop {
            Crop::Square(side) => Self::One(side),
            Crop::Exact { height, width } => Self::Two([height, width]),
        }
    }
}

/// Filter of the resize. All but `nearest` are antialiased: the filter widens with the reduction, as in Pillow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// The pixel whose area holds the centre of the new one.
    Nearest,
    /// Triangle, support 1.
    #[default]
    Bilinear,
    /// Cubic with `a = -0.5`, support 2.
    Bicubic,
    /// Sinc windowed by a wider sinc, support 3.
    Lanczos,
}

/// Whether an EXIF orientation turns the image. Must be what training did; most training code ignores it.
///
/// A TIFF is turned in either case: Pillow turns one whenever it loads it, before any training code sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExifOrientation {
    /// The pixels stay as Pillow loads them: as they are stored, but for TIFF.
    #[default]
    Ignore,
    /// As `PIL.ImageOps.exif_transpose`: JPEG, PNG and WebP by the orientation in EXIF, or if there is none, in XMP.
    Apply,
}

/// Whether a large JPEG may be decoded smaller than it is, where `resize` makes it smaller still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decode {
    /// Every pixel: what training saw, unless it called Pillow's `draft`.
    #[default]
    Exact,
    /// A JPEG of which `resize` leaves a half, a quarter or an eighth of each side, or less, is decoded at that share from
    /// fewer coefficients, as Pillow's `draft` does it; the resize does the rest. Sizes and offsets stay those of the whole
    /// picture. Other images, and other formats, as `exact`. With the feature `turbojpeg` only: other decoders give other pixels
    /// than `draft`.
    Scaled,
}

impl Decode {
    fn is_exact(&self) -> bool {
        *self == Self::Exact
    }
}

/// A `[preprocess]` that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PreprocessConfigError {
    /// `decode = "scaled"` in a build that decodes every pixel.
    #[error("`decode` is `scaled`, and this build decodes every pixel: build with `--features turbojpeg`")]
    CannotScale,
    /// A share outside `(0, 1]`.
    #[error("`pre_crop` is {value}, but it is a share of the shorter side: more than 0, at most 1")]
    PreCrop {
        /// What was given.
        value: f64,
    },
    /// A size of zero, or beyond what the limits would ever let through.
    #[error("`{key}` is {size} pixels, but a side has 1 to {max_side}")]
    Size {
        /// `resize` or `crop`.
        key: &'static str,
        /// What was given.
        size: u32,
        /// Largest side that the limits allow.
        max_side: u32,
    },
    /// A tensor beyond the limit on pixels.
    #[error("`{key}` of {height}x{width} has more than {max_pixels} pixels")]
    Pixels {
        /// `resize` or `crop`.
        key: &'static str,
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// A crop that cannot be cut from the resized image.
    #[error(
        "`crop` of {crop_height}x{crop_width} is larger than the resized image of {height}x{width} (height x width)"
    )]
    CropTooLarge {
        /// Rows of the crop.
        crop_height: u32,
        /// Columns of the crop.
        crop_width: u32,
        /// Rows that the resize is sure to give.
        height: u32,
        /// Columns that the resize is sure to give.
        width: u32,
    },
    /// A mean that is not a number.
    #[error("`mean` of channel {channel} is {value}, but it must be finite")]
    Mean {
        /// 0 red, 1 green, 2 blue.
        channel: usize,
        /// What was given.
        value: f32,
    },
    /// A standard deviation that cannot be divided by.
    #[error("`std` of channel {channel} is {value}, but it must be finite and more than 0")]
    Std {
        /// 0 red, 1 green, 2 blue.
        channel: usize,
        /// What was given.
        value: f32,
    },
}
