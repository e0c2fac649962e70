//! The first picture of a TIFF.

use std::io::Cursor;

use ::tiff::decoder::{BufferLayoutPreference, Decoder, DecodingResult, Limits};
use ::tiff::tags::{CompressionMethod, Tag};
use ::tiff::{ColorType, TiffError};
use image::metadata::Orientation;

use super::super::error::ImageError;
use super::super::resample::RgbImage;
use super::{DecodeLimits, Format, Pixels, rgb};

pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Pixels, ImageError> {
    let fail = |error| from_tiff_error(error, limits);
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(fail)?;
    let (width, height) = decoder.dimensions().map_err(fail)?;
    limits.check_size(u64::from(width), u64::from(height))?;
    let max_alloc = usize::try_from(limits.max_alloc_bytes).unwrap_or(usize::MAX);
    let mut decoder_limits = Limits::default();
    decoder_limits.decoding_buffer_size = max_alloc;
    decoder_limits.intermediate_buffer_size = max_alloc;
    decoder = decoder.with_limits(decoder_limits);

    // A JPEG inside has a size of its own, which the decoder would trust: a bomb in an honest envelope.
    let compression: Option<u16> = decoder.find_tag_unsigned(Tag::Compression).map_err(fail)?;
    if compression == Some(CompressionMethod::ModernJPEG.to_u16()) {
        return Err(Format::Tiff.unsupported("JPEG compression"));
    }
    let orientation: Option<u16> = decoder.find_tag_unsigned(Tag::Orientation).ok().flatten();
    let orientation = orientation
        .and_then(|value| u8::try_from(value).ok())
        .and_then(Orientation::from_exif)
        .unwrap_or(Orientation::NoTransforms);

    let color = decoder.colortype().map_err(fail)?;
    let layout = decoder.image_buffer_layout().map_err(fail)?;
    // The samples, perhaps once more to bring planes together, and the pixels made of them.
    let n_copies = if layout.planes > 1 { 2 } else { 1 };
    let n_pixel_bytes = u64::from(width) * u64::from(height) * 3;
    limits.check_alloc(
        Format::Tiff,
        (layout.complete_len as u64).saturating_mul(n_copies).saturating_add(n_pixel_bytes),
    )?;
    let mut samples = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut samples).map_err(fail)?;
    let (width, height) = (width as usize, height as usize);
    let pixels = to_rgb(color, chunky(samples, &layout), width, height)?;
    RgbImage::new(pixels, height, width)
        .map(|image| (image, orientation))
        .ok_or_else(|| Format::Tiff.malformed("fewer samples than the size says"))
}

/// Samples of planes stored one after the other, brought together pixel by pixel.
fn chunky(samples: DecodingResult, layout: &BufferLayoutPreference) -> DecodingResult {
    let Some(plane_bytes) = layout.plane_stride.map(|stride| stride.get()).filter(|_| layout.planes > 1) else {
        return samples;
    };
    match samples {
        DecodingResult::U8(samples) => DecodingResult::U8(interleaved(&samples, plane_bytes, layout.planes)),
        DecodingResult::U16(samples) => DecodingResult::U16(interleaved(&samples, plane_bytes / 2, layout.planes)),
        other => other,
    }
}

fn interleaved<T: Copy>(samples: &[T], plane_len: usize, n_planes: usize) -> Vec<T> {
    (0..plane_len).flat_map(|i| (0..n_planes).filter_map(move |p| samples.get(p * plane_len + i).copied())).collect()
}

fn to_rgb(color: ColorType, samples: DecodingResult, width: usize, height: usize) -> Result<Vec<u8>, ImageError> {
    Ok(match (color, samples) {
        (ColorType::Gray(bits @ (1 | 2 | 4)), DecodingResult::U8(s)) => {
            rgb::from_gray(&rgb::unpacked(&s, bits, width, height))
        }
        (ColorType::Gray(8), DecodingResult::U8(s)) => rgb::from_gray(&s),
        (ColorType::GrayA(8), DecodingResult::U8(s)) => rgb::first_as_gray::<2>(&s),
        (ColorType::RGB(8), DecodingResult::U8(s)) => s,
        (ColorType::RGBA(8), DecodingResult::U8(s)) => rgb::first_three::<4>(&s),
        (ColorType::CMYK(8), DecodingResult::U8(s)) => rgb::from_cmyk(&s),
        (ColorType::Gray(16), DecodingResult::U16(s)) => rgb::from_gray16(s.into_iter()),
        (ColorType::RGB(16), DecodingResult::U16(s)) => rgb::high_bytes(s.into_iter()),
        (ColorType::RGBA(16), DecodingResult::U16(s)) => rgb::first_three::<4>(&rgb::high_bytes(s.into_iter())),
        (ColorType::CMYK(16), DecodingResult::U16(s)) => rgb::from_cmyk(&rgb::high_bytes(s.into_iter())),
        (color, _) => return Err(Format::Tiff.unsupported(format!("colour type {color:?}"))),
    })
}

fn from_tiff_error(error: TiffError, limits: &DecodeLimits) -> ImageError {
    match error {
        TiffError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Format::Tiff.truncated(),
        TiffError::LimitsExceeded => {
            ImageError::TooMuchMemory { format: Format::Tiff.name(), max_alloc_bytes: limits.max_alloc_bytes }
        }
        error @ TiffError::UnsupportedError(_) => Format::Tiff.unsupported(error),
        error => Format::Tiff.malformed(error),
    }
}
