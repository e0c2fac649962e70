//! The first frame of a GIF, as Pillow shows it.

use std::io::Cursor;
use std::num::NonZeroU64;

use image::metadata::Orientation;

use super::super::error::ImageError;
use super::super::resample::RgbImage;
use super::{DecodeLimits, Format, Pixels};

pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Pixels, ImageError> {
    let mut options = ::gif::DecodeOptions::new();
    options.set_color_output(::gif::ColorOutput::Indexed);
    if let Some(max) = NonZeroU64::new(limits.max_alloc_bytes) {
        options.set_memory_limit(::gif::MemoryLimit::Bytes(max));
    }
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(|error| from_gif_error(error, limits))?;
    let (width, height) = (usize::from(decoder.width()), usize::from(decoder.height()));
    limits.check_size(width as u64, height as u64)?;
    limits.check_alloc(Format::Gif, width as u64 * height as u64 * 4)?;
    let global_palette = decoder.global_palette().map(<[u8]>::to_vec);

    let frame = decoder
        .next_frame_info()
        .map_err(|error| from_gif_error(error, limits))?
        .ok_or_else(|| Format::Gif.malformed("no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    let transparent = frame.transparent;
    let palette = frame.palette.clone().or(global_palette).unwrap_or_default();
    // Pillow widens the canvas to hold such a frame; a file that needs it is wrong about its own size.
    if left + frame_width > width || top + frame_height > height {
        return Err(Format::Gif.malformed("a frame outside the canvas"));
    }
    let mut indices = vec![0; frame_width * frame_height];
    decoder.read_into_buffer(&mut indices).map_err(|error| from_gif_error(error, limits))?;

    let color = |index: u8| {
        let at = usize::from(index) * 3;
        // An index beyond the palette is black, as in Pillow.
        palette.get(at..at + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]])
    };
    // What the frame leaves free has the transparent colour, or else the first; alpha is dropped either way.
    let mut pixels = color(transparent.unwrap_or(0)).repeat(width * height);
    for (y, row) in indices.chunks_exact(frame_width.max(1)).enumerate() {
        let at = ((top + y) * width + left) * 3;
        for (pixel, &index) in pixels[at..at + frame_width * 3].chunks_exact_mut(3).zip(row) {
            pixel.copy_from_slice(&color(index));
        }
    }
    RgbImage::new(pixels, height, width)
        .map(|image| (image, Orientation::NoTransforms))
        .ok_or_else(|| Format::Gif.malformed("a side of zero pixels"))
}

fn from_gif_error(error: ::gif::DecodingError, limits: &DecodeLimits) -> ImageError {
    use ::gif::DecodingError as E;
    match error {
        E::UnexpectedEof => Format::Gif.truncated(),
        E::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Format::Gif.truncated(),
        E::MemoryLimit | E::OutOfMemory => {
            ImageError::TooMuchMemory { format: Format::Gif.name(), max_alloc_bytes: limits.max_alloc_bytes }
        }
        error => Format::Gif.malformed(error),
    }
}
