//! From the bytes of a file to RGB pixels, as PIL's `Image.open(...).convert("RGB")` gives them.
//!
//! Alpha is dropped, not composited, and divided out first where a TIFF has multiplied it in; palettes are looked up; the first
//! frame of an animation counts; 16-bit colour keeps its high byte, while 16-bit gray is *clipped* to 255 (what Pillow's `I;16`
//! does). A TIFF is turned as its orientation says, which Pillow does when it loads one.
//!
//! # What bounds a hostile file?
//!
//! The size is read from the header and refused before anything of that size is allocated. Each decoder's memory is
//! estimated or limited too. Truncated files are errors, as they are in PIL by default.
//!
//! # How exact are the pixels?
//!
//! PNG, GIF, BMP, TIFF and lossless WebP: equal to Pillow's. JPEG depends on the decoder: see `jpeg`.

mod exif;
mod gif;
mod jpeg_header;
mod png_metadata;
mod rgb;
mod still;
mod tiff;

#[cfg(not(feature = "turbojpeg"))]
mod jpeg;
#[cfg(feature = "turbojpeg")]
#[path = "jpeg_turbo.rs"]
mod jpeg;

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;

pub(super) use jpeg::CAN_SCALE;

use jpeg_header::JpegHeader;

use super::config::ExifOrientation;
use super::error::ImageError;
use super::resample::RgbImage;

/// What one image may cost. The bytes of the file are the caller's to limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most pixels of an image, and of a tensor. Default 50 million: the full picture of a 48-megapixel phone camera,
    /// 150 MB as RGB.
    pub max_pixels: u64,
    /// Most pixels on one side. Default 16384: panoramas; beyond it are mostly files that lie.
    pub max_side: u32,
    /// Most bytes that decoding may hold at a time, the pixels included. Default 512 MiB: a progressive JPEG of 50
    /// megapixels, which keeps all its coefficients until the last scan.
    pub max_alloc_bytes: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_pixels: 50_000_000, max_side: 16_384, max_alloc_bytes: 512 << 20 }
    }
}

impl DecodeLimits {
    /// Refuses a size that a header announces.
    pub(super) fn check_size(&self, width: u64, height: u64) -> Result<(), ImageError> {
        let max_side = u64::from(self.max_side);
        if width > max_side || height > max_side || width.saturating_mul(height) > self.max_pixels {
            let (max_pixels, max_side) = (self.max_pixels, self.max_side);
            return Err(ImageError::TooLarge { width, height, max_pixels, max_side });
        }
        Ok(())
    }

    /// Refuses a decoder that would need so much memory.
    fn check_alloc(&self, format: Format, n_bytes: u64) -> Result<(), ImageError> {
        if n_bytes > self.max_alloc_bytes {
            return Err(ImageError::TooMuchMemory { format: format.name(), max_alloc_bytes: self.max_alloc_bytes });
        }
        Ok(())
    }

    fn of_image_crate(&self) -> image::Limits {
        let mut limits = image::Limits::no_limits();
        limits.max_image_width = Some(self.max_side);
        limits.max_image_height = Some(self.max_side);
        limits.max_alloc = Some(self.max_alloc_bytes);
        limits
    }
}

/// What is decoded here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Jpeg,
    Png,
    Gif,
    WebP,
    Bmp,
    Tiff,
}

impl Format {
    /// Goes by the first bytes; names and content types lie.
    fn sniff(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'B', b'M', ..] => Some(Self::Bmp),
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] | [b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..] => {
                Some(Self::Tiff)
            }
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        }
    }

    fn truncated(self) -> ImageError {
        ImageError::Truncated { format: self.name() }
    }

    fn malformed(self, source: impl Into<super::error::DecoderError>) -> ImageError {
        ImageError::Malformed { format: self.name(), source: source.into() }
    }

    fn unsupported(self, source: impl Into<super::error::DecoderError>) -> ImageError {
        ImageError::Unsupported { format: self.name(), source: source.into() }
    }
}

/// Decodes an image file of any known format.
///
/// # Errors
/// Any [`ImageError`] but `TooSmall`.
pub fn decode_rgb(bytes: &[u8], limits: &DecodeLimits, exif: ExifOrientation) -> Result<RgbImage, ImageError> {
    decode(bytes, limits, exif, &|_, _| 1).map(|decoded| decoded.image)
}

/// An image, and the size that it has when it is decoded as a whole.
pub(super) struct Decoded {
    pub(super) image: RgbImage,
    /// `(height, width)`.
    pub(super) full_size: (usize, usize),
}

/// Like [`decode_rgb`], with a JPEG's sides divided by what `reduce` says of its height and width, 1, 2, 4 or 8; rounded up.
pub(super) fn decode(
    bytes: &[u8],
    limits: &DecodeLimits,
    exif: ExifOrientation,
    reduce: &dyn Fn(usize, usize) -> usize,
) -> Result<Decoded, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let format = Format::sniff(bytes).ok_or(ImageError::UnknownFormat)?;
    let decode = || match format {
        Format::Jpeg => jpeg(bytes, limits, exif, reduce),
        Format::Png | Format::WebP | Format::Bmp => still::decode(format, bytes, limits, exif).map(Stored::whole),
        Format::Gif => gif::decode(bytes, limits).map(Stored::whole),
        Format::Tiff => tiff::decode(bytes, limits).map(Stored::whole),
    };
    // Third-party decoders are large and get hostile bytes. None is known to panic, but one that does must cost its
    // caller an answer and not the process a thread. They own no state that outlives the call.
    let Stored { image, orientation, full_size } =
        catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(format.malformed("the decoder panicked")))?;
    if orientation != Orientation::NoTransforms {
        // The pixels as they are, and turned.
        limits.check_alloc(format, 2 * image.pixels().len() as u64)?;
    }
    Ok(Decoded { image: exif::transpose(image, orientation), full_size: exif::size(full_size, orientation) })
}

/// What every decoder gives: the pixels as Pillow loads them, and how they are to be turned.
type Pixels = (RgbImage, Orientation);

/// The same, and the size as a whole.
struct Stored {
    image: RgbImage,
    orientation: Orientation,
    full_size: (usize, usize),
}

impl Stored {
    fn whole((image, orientation): Pixels) -> Self {
        Self { full_size: (image.height(), image.width()), image, orientation }
    }
}

fn jpeg(
    bytes: &[u8],
    limits: &DecodeLimits,
    exif: ExifOrientation,
    reduce: &dyn Fn(usize, usize) -> usize,
) -> Result<Stored, ImageError> {
    let header = JpegHeader::read(bytes)?;
    header.check(limits)?;
    let orientation = exif.asked(|| exif::orientation(header.exif, header.xmp));
    let full_size = (header.height, header.width);
    let (height, width) = exif::size(full_size, orientation);
    let image = jpeg::decode(bytes, &header, reduce(height, width))?;
    Ok(Stored { image, orientation, full_size })
}
