//! The first picture of a TIFF.

use std::io::Cursor;

use ::tiff::decoder::{BufferLayoutPreference, ChunkType, Decoder, DecodingResult, Limits};
use ::tiff::tags::{ByteOrder, CompressionMethod, ExtraSamples, PhotometricInterpretation, Tag};
use ::tiff::{ColorType, TiffError};
use image::metadata::Orientation;

use super::super::error::ImageError;
use super::super::resample::RgbImage;
use super::{DecodeLimits, Format, Pixels, exif, rgb};

type Opened<'a> = Decoder<Cursor<&'a [u8]>>;

/// Most channels of a pixel, as in Pillow.
const MAX_SAMPLES: u16 = 6;

/// The compressions that a predictor may stand before.
const PREDICTED: [u16; 3] =
    [CompressionMethod::LZW.to_u16(), CompressionMethod::Deflate.to_u16(), CompressionMethod::OldDeflate.to_u16()];

/// Where an XMP packet is.
const XMP: Tag = Tag::Unknown(700);

/// The pixels, turned upright: Pillow turns a TIFF whenever it loads one, so that nothing is left to turn for whoever asks.
pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Pixels, ImageError> {
    let fail = |error| from_tiff_error(error, limits);
    let mut decoder = open(bytes, limits)?;
    let fill_order: Option<u16> = decoder.find_tag_unsigned(Tag::FillOrder).map_err(fail)?;
    let image = match fill_order {
        None | Some(1) => picture(decoder, limits, 0)?,
        Some(2) => {
            limits.check_alloc(Format::Tiff, bytes.len() as u64)?;
            let reversed = with_reversed_bits(bytes, &mut decoder).map_err(fail)?;
            picture(open(&reversed, limits)?, limits, bytes.len())?
        }
        Some(other) => return Err(Format::Tiff.unsupported(format!("FillOrder {other}"))),
    };
    Ok((image, Orientation::NoTransforms))
}

/// The file's decoder, once the size has been looked at.
fn open<'a>(bytes: &'a [u8], limits: &DecodeLimits) -> Result<Opened<'a>, ImageError> {
    let fail = |error| from_tiff_error(error, limits);
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(fail)?;
    let (width, height) = decoder.dimensions().map_err(fail)?;
    limits.check_size(u64::from(width), u64::from(height))?;
    let max_alloc = usize::try_from(limits.max_alloc_bytes).unwrap_or(usize::MAX);
    let mut decoder_limits = Limits::default();
    decoder_limits.decoding_buffer_size = max_alloc;
    decoder_limits.intermediate_buffer_size = max_alloc;
    Ok(decoder.with_limits(decoder_limits))
}

/// The file with the bits of every byte of its strips or tiles the other way round: what libtiff makes of fill order 2 before it
/// decompresses anything.
fn with_reversed_bits(bytes: &[u8], decoder: &mut Opened<'_>) -> Result<Vec<u8>, TiffError> {
    let mut list = |of_strips, of_tiles| match decoder.find_tag_unsigned_vec(of_strips)? {
        Some(list) => Ok::<Vec<u64>, TiffError>(list),
        None => Ok(decoder.find_tag_unsigned_vec(of_tiles)?.unwrap_or_default()),
    };
    let offsets = list(Tag::StripOffsets, Tag::TileOffsets)?;
    let lengths = list(Tag::StripByteCounts, Tag::TileByteCounts)?;
    let mut reversed = bytes.to_vec();
    // What lies in several strips is reversed once; a file of many that overlap must not cost more than its length either.
    let mut pieces: Vec<(u64, u64)> = offsets.into_iter().zip(lengths).collect();
    pieces.sort_unstable();
    let mut done = 0;
    for (offset, length) in pieces {
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let (start, end) = (place(offset).max(done), place(offset.saturating_add(length)));
        if start < end {
            reversed[start..end].iter_mut().for_each(|byte| *byte = byte.reverse_bits());
            done = end;
        }
    }
    Ok(reversed)
}

/// The picture, with `n_held` bytes held beside it.
fn picture(mut decoder: Opened<'_>, limits: &DecodeLimits, n_held: usize) -> Result<RgbImage, ImageError> {
    let fail = |error| from_tiff_error(error, limits);
    // A JPEG inside has a size of its own, which the decoder would trust: a bomb in an honest envelope.
    let compression: Option<u16> = decoder.find_tag_unsigned(Tag::Compression).map_err(fail)?;
    if compression == Some(CompressionMethod::ModernJPEG.to_u16()) {
        return Err(Format::Tiff.unsupported("JPEG compression"));
    }
    let orientation = orientation(&mut decoder);
    let color = decoder.colortype().map_err(fail)?;
    let layout = decoder.image_buffer_layout().map_err(fail)?;
    // The samples, perhaps once more to bring planes together, or as bytes, and the pixels made of them; or these and what turning
    // makes of them.
    let n_copies = if layout.planes > 1 { 2 } else { 1 };
    let (width, height) = decoder.dimensions().map_err(fail)?;
    let n_pixels = u64::from(width) * u64::from(height);
    let n_as_bytes = match color {
        ColorType::Gray(1 | 2 | 4) | ColorType::RGBA(16) | ColorType::CMYK(16) => n_pixels,
        _ => 0,
    };
    let n_decoded = (layout.complete_len as u64).saturating_mul(n_copies).saturating_add(n_pixels * 3 + n_as_bytes);
    let n_turned = if orientation == Orientation::NoTransforms { 0 } else { n_pixels * 6 };
    limits.check_alloc(Format::Tiff, n_decoded.max(n_turned).saturating_add(n_held as u64))?;
    let kind = Kind::of(&mut decoder).map_err(fail)?;
    if kind.n_samples > MAX_SAMPLES {
        return Err(Format::Tiff.unsupported(format!("{} channels", kind.n_samples)));
    }
    limits.check_alloc(Format::Tiff, n_stored_bytes(&decoder, (width, height), u64::from(kind.n_samples), color))?;
    // libtiff, and so Pillow, knows no differences of neighbours beside another compression, and takes the samples as they are.
    if kind.has_predictor && !compression.is_some_and(|compression| PREDICTED.contains(&compression)) {
        return Err(Format::Tiff.unsupported("a predictor without LZW or Deflate"));
    }
    // The decoder drops the other channels before it adds up differences, and takes those of another channel for them; and it writes
    // what a tile has beyond the picture into the rows below.
    let is_tiled = decoder.get_chunk_type() == ChunkType::Tile;
    if (kind.has_predictor || is_tiled) && layout.planes == 1 && kind.n_samples > color.num_samples() {
        return Err(Format::Tiff.unsupported(format!("{} channels as {color:?} in this form", kind.n_samples)));
    }
    let mut samples = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut samples).map_err(fail)?;
    let (width, height) = (width as usize, height as usize);
    let pixels = to_rgb(color, chunky(samples, &layout), &kind, width, height)?;
    RgbImage::new(pixels, height, width)
        .map(|image| exif::transpose(image, orientation))
        .ok_or_else(|| Format::Tiff.malformed("fewer samples than the size says"))
}

/// Bytes of all samples once they are inflated, those included that are dropped: the other channels, and what tiles hold beyond
/// the picture. The decoder inflates them all, a row at a time, and never looks at how large a tile is.
fn n_stored_bytes(decoder: &Opened<'_>, (width, height): (u32, u32), n_samples: u64, color: ColorType) -> u64 {
    let (tile_width, tile_height) = match decoder.get_chunk_type() {
        ChunkType::Tile => decoder.chunk_dimensions(),
        ChunkType::Strip => (1, 1),
    };
    let padded = |side: u32, tile: u32| u64::from(side).next_multiple_of(u64::from(tile));
    padded(width, tile_width)
        .saturating_mul(padded(height, tile_height))
        .saturating_mul(n_samples * u64::from(color.bit_depth()))
        / 8
}

/// The orientation of its directory; if that has none, of its XMP packet.
fn orientation(decoder: &mut Opened<'_>) -> Orientation {
    let number = match decoder.find_tag(Tag::Orientation) {
        Ok(None) => xmp(decoder).and_then(|packet| exif::in_xmp(&packet)),
        Ok(Some(value)) => value.into_u32().ok(),
        Err(_) => None,
    };
    number.map_or(Orientation::NoTransforms, exif::numbered)
}

fn xmp(decoder: &mut Opened<'_>) -> Option<Vec<u8>> {
    let n_bytes = decoder.inner().get_ref().len();
    let count = decoder.image_ifd().find_entry(XMP)?.count();
    // As bytes: the list of numbers that the decoder makes of a tag takes many times as much.
    let mut packet = vec![0; usize::try_from(count).ok()?.min(n_bytes)];
    decoder.image_ifd().find_tag_bytes(XMP, &mut packet, 0).ok()?;
    Some(packet)
}

/// What a colour type does not say of the samples.
struct Kind {
    /// Of a pixel, those included that are no colour.
    n_samples: u16,
    /// What is stored are differences of neighbours.
    has_predictor: bool,
    /// Colours have been multiplied by alpha.
    is_premultiplied: bool,
    /// Gray that the decoder has inverted, and Pillow does not: it takes 16 bits of little-endian files as they are.
    is_inverted_gray16: bool,
}

impl Kind {
    fn of(decoder: &mut Opened<'_>) -> Result<Self, TiffError> {
        let extra: Option<Vec<u16>> = decoder.find_tag_unsigned_vec(Tag::ExtraSamples)?;
        let photometric: Option<u16> = decoder.find_tag_unsigned(Tag::PhotometricInterpretation)?;
        let predictor: Option<u16> = decoder.find_tag_unsigned(Tag::Predictor)?;
        let is_white_zero = photometric == Some(PhotometricInterpretation::WhiteIsZero.to_u16());
        Ok(Self {
            n_samples: decoder.find_tag_unsigned(Tag::SamplesPerPixel)?.unwrap_or(1),
            has_predictor: predictor.is_some_and(|predictor| predictor != 1),
            is_premultiplied: extra.is_some_and(|extra| extra.first() == Some(&ExtraSamples::AssociatedAlpha.to_u16())),
            is_inverted_gray16: is_white_zero && decoder.byte_order() == ByteOrder::LittleEndian,
        })
    }
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
    let mut chunky = Vec::with_capacity(samples.len());
    for i in 0..plane_len {
        chunky.extend((0..n_planes).filter_map(|p| samples.get(p * plane_len + i)));
    }
    chunky
}

fn to_rgb(
    color: ColorType,
    samples: DecodingResult,
    kind: &Kind,
    width: usize,
    height: usize,
) -> Result<Vec<u8>, ImageError> {
    let from_rgba = if kind.is_premultiplied { rgb::from_premultiplied } else { rgb::first_three::<4> };
    Ok(match (color, samples) {
        (ColorType::Gray(bits @ (1 | 2 | 4)), DecodingResult::U8(s)) => {
            rgb::from_gray(&rgb::unpacked(&s, bits, width, height))
        }
        (ColorType::Gray(8), DecodingResult::U8(s)) => rgb::from_gray(&s),
        (ColorType::GrayA(8), DecodingResult::U8(s)) => rgb::first_as_gray::<2>(&s),
        (ColorType::RGB(8), DecodingResult::U8(s)) => s,
        (ColorType::RGBA(8), DecodingResult::U8(s)) => from_rgba(&s),
        (ColorType::CMYK(8), DecodingResult::U8(s)) => rgb::from_cmyk(&s),
        (ColorType::Gray(16), DecodingResult::U16(s)) if kind.is_inverted_gray16 => {
            rgb::from_gray16(s.into_iter().map(|v| !v))
        }
        (ColorType::Gray(16), DecodingResult::U16(s)) => rgb::from_gray16(s.into_iter()),
        (ColorType::RGB(16), DecodingResult::U16(s)) => rgb::high_bytes(s.into_iter()),
        (ColorType::RGBA(16), DecodingResult::U16(s)) => from_rgba(&rgb::high_bytes(s.into_iter())),
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
