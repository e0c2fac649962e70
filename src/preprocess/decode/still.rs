//! PNG, WebP and BMP, through the decoders of the `image` crate.

use std::borrow::Cow;
use std::io::{Cursor, ErrorKind};

use image::codecs::{bmp::BmpDecoder, png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder};

use super::super::config::ExifOrientation;
use super::super::error::ImageError;
use super::super::resample::RgbImage;
use super::{DecodeLimits, Format, Pixels, exif, png_metadata, rgb};

pub(super) fn decode(
    format: Format,
    bytes: &[u8],
    limits: &DecodeLimits,
    exif: ExifOrientation,
) -> Result<Pixels, ImageError> {
    let fail = |source| from_image_error(format, limits, source);
    match format {
        Format::Png => {
            // A side that is too long would be called a lack of memory here; `read` says what it is.
            let mut any_side = limits.of_image_crate();
            (any_side.max_image_width, any_side.max_image_height) = (None, None);
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), any_side).map_err(fail)?;
            let image = read(format, decoder, is_gray_png(bytes), 0, limits)?;
            Ok((image, exif.asked(|| png_metadata::orientation(bytes))))
        }
        Format::WebP if !is_whole_webp(bytes) => Err(format.truncated()),
        Format::WebP => {
            let bytes = unblended(bytes);
            let mut decoder = WebPDecoder::new(Cursor::new(&*bytes)).map_err(fail)?;
            let n_copied = if matches!(bytes, Cow::Owned(_)) { bytes.len() as u64 } else { 0 };
            let n_beside = n_copied.saturating_add(n_beside_webp(&decoder));
            let orientation = exif.asked(|| {
                // A broken EXIF block is no reason to refuse the picture.
                let (exif, xmp) = (decoder.exif_metadata().ok().flatten(), decoder.xmp_metadata().ok().flatten());
                exif::orientation(exif.as_deref(), xmp.as_deref())
            });
            Ok((read(format, decoder, false, n_beside, limits)?, orientation))
        }
        _ => Ok((bmp(bytes, limits)?, Orientation::NoTransforms)),
    }
}

fn bmp(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, ImageError> {
    let decode = |bytes: &[u8], n_copied: usize| {
        let decoder = BmpDecoder::new(Cursor::new(bytes));
        let decoder = decoder.map_err(|source| from_image_error(Format::Bmp, limits, source))?;
        read(Format::Bmp, decoder, false, n_copied as u64, limits)
    };
    let Some((numbered, palette)) = numbered(bytes) else {
        let mut image = decode(bytes, 0)?;
        rescale_bmp16(bytes, &mut image)?;
        return Ok(image);
    };
    let mut image = decode(&numbered, numbered.len())?;
    for pixel in image.pixels_mut().chunks_exact_mut(3) {
        let at = 4 * usize::from(pixel[0]);
        let [blue, green, red] = palette.get(at..at + 3).map_or([0; 3], |color| [color[0], color[1], color[2]]);
        pixel.copy_from_slice(&[red, green, blue]);
    }
    Ok(image)
}

/// A BMP of runs with each colour's number for the colour, and its palette. The runs may leave out pixels, which have number 0 in
/// Pillow; the decoder makes them black, whatever colour 0 is.
fn numbered(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (header_len, compression) = (length_at(bytes, 14)?, length_at(bytes, 30)?);
    if header_len < 40 || !matches!(compression, 1 | 2) {
        return None;
    }
    let n_colors = match length_at(bytes, 46)? {
        0 if compression == 1 => 256,
        0 => 16,
        n_colors => n_colors.min(256),
    };
    let start = 14 + header_len;
    let palette = bytes.get(start..start + 4 * n_colors)?;
    let mut numbered = bytes.to_vec();
    for (number, color) in numbered[start..].chunks_exact_mut(4).take(n_colors).enumerate() {
        color.fill(number as u8);
    }
    Some((numbered, palette))
}

/// Where the high byte of a word is in memory.
const HIGH: usize = if cfg!(target_endian = "little") { 1 } else { 0 };

/// Whether a PNG's colour type is gray: alpha that its decoder gives then was made of one transparent gray.
fn is_gray_png(bytes: &[u8]) -> bool {
    bytes.get(25) == Some(&0)
}

/// The masks of red, green and blue in a 16-bit BMP that names them.
const RGB565: &[u8] = &[0x00, 0xf8, 0, 0, 0xe0, 0x07, 0, 0, 0x1f, 0, 0, 0];
const RGB555: &[u8] = &[0x00, 0x7c, 0, 0, 0xe0, 0x03, 0, 0, 0x1f, 0, 0, 0];

/// Widens the channels of a 16-bit BMP as Pillow does, `v * 255 / max` rounded down. The decoder repeats their bits
/// instead, which is up to 1 more. Like Pillow it takes no other masks than these two.
fn rescale_bmp16(bytes: &[u8], image: &mut RgbImage) -> Result<(), ImageError> {
    // The oldest header, of 12 bytes, has no 16 bits, and others numbers at this place.
    if bytes.get(14..18) == Some(&[12, 0, 0, 0]) || bytes.get(28..30) != Some(&[16, 0]) {
        return Ok(());
    }
    let green_bits = match (bytes.get(30), bytes.get(54..66)) {
        (Some(3), Some(RGB565)) => 6,
        (Some(3), masks) if masks != Some(RGB555) => {
            return Err(Format::Bmp.unsupported("other masks than 565 and 555"));
        }
        _ => 5,
    };
    let widened = |value: u8, bits: u32| {
        let max = (1u32 << bits) - 1;
        ((u32::from(value) >> (8 - bits)) * 255 / max) as u8
    };
    for pixel in image.pixels_mut().chunks_exact_mut(3) {
        pixel[0] = widened(pixel[0], 5);
        pixel[1] = widened(pixel[1], green_bits);
        pixel[2] = widened(pixel[2], 5);
    }
    Ok(())
}

/// Checks what the header says, then decodes. `is_gray` says that no alpha is stored, `n_beside` how many bytes the decoder holds
/// beside the pixels that it gives.
fn read(
    format: Format,
    mut decoder: impl ImageDecoder,
    is_gray: bool,
    n_beside: u64,
    limits: &DecodeLimits,
) -> Result<RgbImage, ImageError> {
    let fail = |source| from_image_error(format, limits, source);
    let (width, height) = decoder.dimensions();
    limits.check_size(u64::from(width), u64::from(height))?;
    let n_pixels = u64::from(width) * u64::from(height);
    // RGB is made when the decoder is gone.
    limits.check_alloc(format, decoder.total_bytes().saturating_add(n_beside.max(n_pixels * 3)))?;
    decoder.set_limits(limits.of_image_crate()).map_err(fail)?;
    let color = decoder.color_type();
    let mut raw = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut raw).map_err(fail)?;
    let words = || raw.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]));
    let pixels = match color {
        ColorType::Rgb8 => raw,
        ColorType::Rgba8 => rgb::first_three::<4>(&raw),
        ColorType::L8 => rgb::from_gray(&raw),
        ColorType::La8 => rgb::first_as_gray::<2>(&raw),
        ColorType::L16 => rgb::from_gray16(words()),
        ColorType::La16 if is_gray => rgb::from_gray16(words().step_by(2)),
        // The high bytes of what counts, without a copy of all of them.
        ColorType::La16 => raw.chunks_exact(4).flat_map(|pixel| [pixel[HIGH]; 3]).collect(),
        ColorType::Rgb16 => rgb::high_bytes(words()),
        ColorType::Rgba16 => {
            raw.chunks_exact(8).flat_map(|pixel| [0, 2, 4].map(|channel| pixel[channel + HIGH])).collect()
        }
        other => return Err(format.unsupported(format!("colour type {other:?}"))),
    };
    RgbImage::new(pixels, height as usize, width as usize).ok_or_else(|| format.malformed("a side of zero pixels"))
}

fn from_image_error(format: Format, limits: &DecodeLimits, error: image::ImageError) -> ImageError {
    match error {
        image::ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => format.truncated(),
        image::ImageError::Limits(_) => {
            ImageError::TooMuchMemory { format: format.name(), max_alloc_bytes: limits.max_alloc_bytes }
        }
        image::ImageError::Unsupported(error) => format.unsupported(error),
        error => format.malformed(error),
    }
}

/// The number of four bytes at a place.
fn length_at(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at + 4)?;
    usize::try_from(u32::from_le_bytes([four[0], four[1], four[2], four[3]])).ok()
}

/// Whether every chunk of a WebP lies inside the file. The decoder is content with less, Pillow's is not.
fn is_whole_webp(bytes: &[u8]) -> bool {
    let Some(end) = length_at(bytes, 4).map(|length| length.saturating_add(8)).filter(|end| *end <= bytes.len()) else {
        return false;
    };
    let mut at = 12;
    while at + 8 <= end {
        let Some(length) = length_at(bytes, at + 4) else { return false };
        at = at.saturating_add(8).saturating_add(length);
        if at > end {
            return false;
        }
        at += length % 2;
    }
    true
}

/// A WebP whose first frame, if it has several, is not blended into the canvas: there is nothing behind it, and where it is
/// transparent Pillow keeps its colours.
fn unblended(bytes: &[u8]) -> Cow<'_, [u8]> {
    /// The flags of a frame, counted from its chunk, and the one that says not to blend.
    const FLAGS: usize = 8 + 15;
    const IS_NOT_BLENDED: u8 = 2;
    let mut at = 12;
    while bytes.get(at..at + 4).is_some_and(|kind| kind != b"ANMF") {
        at = length_at(bytes, at + 4).map_or(bytes.len(), |length| at.saturating_add(8 + length + length % 2));
    }
    match bytes.get(at + FLAGS) {
        Some(flags) if flags & IS_NOT_BLENDED == 0 => {
            let mut bytes = bytes.to_vec();
            bytes[at + FLAGS] |= IS_NOT_BLENDED;
            Cow::Owned(bytes)
        }
        _ => Cow::Borrowed(bytes),
    }
}

/// Bytes that the decoder of a WebP holds beside the pixels that it gives.
fn n_beside_webp(decoder: &WebPDecoder<Cursor<&[u8]>>) -> u64 {
    let (width, height) = decoder.dimensions();
    let n_bytes_a_pixel = match decoder.color_type() {
        // A frame and the canvas, of four channels each.
        _ if decoder.has_animation() => 8,
        // Brightness and colours, and alpha, which is decoded with four channels and then brought together.
        ColorType::Rgba8 => 7,
        // Four channels, and a part of them once more to predict them by.
        _ => 5,
    };
    u64::from(width) * u64::from(height) * n_bytes_a_pixel
}
