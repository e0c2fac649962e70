//! Why an image was refused.

use std::error::Error;

/// What a third-party decoder said.
pub type DecoderError = Box<dyn Error + Send + Sync>;

/// Why an image was refused. Every variant is the caller's fault.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No bytes.
    #[error("the image is empty")]
    Empty,
    /// The first bytes are of no format that is decoded here.
    #[error("unknown image format (known are JPEG, PNG, GIF, WebP, BMP and TIFF)")]
    UnknownFormat,
    /// The file ends before the picture does.
    #[error("the {format} file is truncated")]
    Truncated {
        /// Name of the format.
        format: &'static str,
    },
    /// More pixels than are decoded here.
    #[error(
        "the image has {width}x{height} pixels (width x height), more than {max_pixels} pixels or {max_side} on a side"
    )]
    TooLarge {
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
        /// The limit on `width * height`.
        max_pixels: u64,
        /// The limit on either.
        max_side: u32,
    },
    /// Decoding would take more memory than is given to one image.
    #[error("the {format} file needs more than {max_alloc_bytes} bytes to decode")]
    TooMuchMemory {
        /// Name of the format.
        format: &'static str,
        /// The limit.
        max_alloc_bytes: u64,
    },
    /// The file breaks the rules of its format.
    #[error("the {format} file is malformed")]
    Malformed {
        /// Name of the format.
        format: &'static str,
        /// What is wrong with it.
        source: DecoderError,
    },
    /// A valid file of a kind that is not decoded here.
    #[error("the {format} file is of a kind that is not supported")]
    Unsupported {
        /// Name of the format.
        format: &'static str,
        /// Which kind.
        source: DecoderError,
    },
    /// The crop does not fit into the image.
    #[error("the image has {height}x{width} pixels (height x width), less than the crop of {crop_height}x{crop_width}")]
    TooSmall {
        /// Rows after the resize, if there is one.
        height: usize,
        /// Columns after the resize, if there is one.
        width: usize,
        /// Rows of the crop.
        crop_height: usize,
        /// Columns of the crop.
        crop_width: usize,
    },
}

impl ImageError {
    /// Every value that [`reason`](Self::reason) can have.
    pub const REASONS: [&'static str; 7] =
        ["empty", "unknown_format", "truncated", "too_large", "malformed", "unsupported", "too_small"];

    /// The kind of refusal, from a small closed set: a metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::UnknownFormat => "unknown_format",
            Self::Truncated { .. } => "truncated",
            Self::TooLarge { .. } | Self::TooMuchMemory { .. } => "too_large",
            Self::Malformed { .. } => "malformed",
            Self::Unsupported { .. } => "unsupported",
            Self::TooSmall { .. } => "too_small",
        }
    }
}
