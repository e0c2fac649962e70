//! JPEG through libjpeg-turbo, with the settings that Pillow leaves at their defaults (accurate integer DCT, smooth
//! chroma upsampling): the same pixels, bit for bit, of every file that `tests/data/preprocess` holds.

use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat, ScalingFactor};

use super::super::error::ImageError;
use super::super::resample::RgbImage;
use super::jpeg_header::JpegHeader;
use super::{Format, rgb};

/// Whether a picture can be decoded smaller than it is.
pub(in super::super) const CAN_SCALE: bool = true;

/// The pixels of a file with this header, each side divided by `reduction` and rounded up.
pub(super) fn decode(bytes: &[u8], header: &JpegHeader<'_>, reduction: usize) -> Result<RgbImage, ImageError> {
    let mut decompressor = Decompressor::new().map_err(from_turbo_error)?;
    let facts = decompressor.read_header(bytes).map_err(from_turbo_error)?;
    let (width, height) = (header.width, header.height);
    if (facts.width, facts.height) != (width, height) {
        return Err(Format::Jpeg.malformed("two sizes"));
    }
    let scale = match reduction {
        8 => ScalingFactor::ONE_EIGHTH,
        4 => ScalingFactor::ONE_QUARTER,
        2 => ScalingFactor::ONE_HALF,
        _ => ScalingFactor::ONE,
    };
    decompressor.set_scaling_factor(scale).map_err(from_turbo_error)?;
    let (width, height) = (scale.scale(width), scale.scale(height));
    let pixels = match facts.colorspace {
        Colorspace::RGB | Colorspace::YCbCr | Colorspace::Gray => {
            decompress(&mut decompressor, bytes, width, height, PixelFormat::RGB)?
        }
        Colorspace::CMYK | Colorspace::YCCK => {
            let mut inks = decompress(&mut decompressor, bytes, width, height, PixelFormat::CMYK)?;
            // Pillow takes all four-component files for Adobe's, which store the inks inverted.
            inks.iter_mut().for_each(|ink| *ink = 255 - *ink);
            rgb::from_cmyk(&inks)
        }
    };
    RgbImage::new(pixels, height, width).ok_or_else(|| Format::Jpeg.malformed("a side of zero pixels"))
}

fn decompress(
    decompressor: &mut Decompressor,
    bytes: &[u8],
    width: usize,
    height: usize,
    format: PixelFormat,
) -> Result<Vec<u8>, ImageError> {
    let pitch = width * format.size();
    let mut pixels = vec![0; pitch * height];
    let image = Image { pixels: pixels.as_mut_slice(), width, pitch, height, format };
    match decompressor.decompress(bytes, image) {
        Ok(()) => Ok(pixels),
        Err(error) if is_warning(&error) => Ok(pixels),
        Err(error) => Err(from_turbo_error(error)),
    }
}

/// Whether the picture was decoded all the same. Damage inside a scan is shown, not refused, as PIL does; the library
/// reports it like an error once all rows are there, and only its words tell the two apart.
fn is_warning(error: &turbojpeg::Error) -> bool {
    const WARNINGS: [&str; 4] = [
        "Corrupt JPEG data",
        "Inconsistent progression sequence",
        "Unknown Adobe color transform",
        "Invalid SOS parameters",
    ];
    matches!(error, turbojpeg::Error::TurboJpegError(message) if WARNINGS.iter().any(|known| message.contains(known)))
}

fn from_turbo_error(error: turbojpeg::Error) -> ImageError {
    match &error {
        turbojpeg::Error::TurboJpegError(message)
            if message.contains("nsupported")
                || message.contains("not supported")
                || message.contains("not implemented") =>
        {
            Format::Jpeg.unsupported(error)
        }
        // The end marker was found, so data that runs out lies about itself.
        _ => Format::Jpeg.malformed(error),
    }
}
