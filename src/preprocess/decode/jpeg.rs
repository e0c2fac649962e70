//! JPEG through `zune-jpeg`.
//!
//! Not Pillow's decoder, so not all of Pillow's pixels. The differences, of 255, over the files in
//! `tests/data/preprocess` (the tests hold them to it):
//!
//! | file | largest | mean |
//! |---|---|---|
//! | 4:2:0 | 3 | 0.41 |
//! | 4:2:2 | 3 | 0.21 |
//! | 4:4:4, CMYK, YCCK | 2 | 0.03 |
//! | gray, plain RGB | 1 | 0.02 |
//!
//! Most of it is the upsampling of chroma, and less of it is left after a resize. Photos of high contrast show up to 6.
//! The feature `turbojpeg` takes libjpeg-turbo instead, whose pixels are Pillow's.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::super::error::ImageError;
use super::super::resample::RgbImage;
use super::Format;
use super::jpeg_header::JpegHeader;

/// Whether a picture can be decoded smaller than it is.
pub(in super::super) const CAN_SCALE: bool = false;

/// The pixels of a file with this header: all of them, since nobody could ask for less.
pub(super) fn decode(bytes: &[u8], header: &JpegHeader<'_>, _reduction: usize) -> Result<RgbImage, ImageError> {
    let options = DecoderOptions::default()
        .set_strict_mode(false) // Damage inside a scan is shown, not refused, as PIL does.
        .set_max_width(header.width)
        .set_max_height(header.height)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(from_zune_error)?;
    let mut pixels = vec![0; header.width * header.height * 3];
    if decoder.dimensions() != Some((header.width, header.height)) {
        return Err(Format::Jpeg.malformed("two sizes"));
    }
    decoder.decode_into(&mut pixels).map_err(from_zune_error)?;
    // To the decoder the names R, G and B, and an Adobe marker, say more than JFIF's. Then it has given YCbCr as it is.
    let is_taken_for_rgb = header.n_components == 3 && decoder.input_colorspace() == Some(ColorSpace::RGB);
    if is_taken_for_rgb && !header.is_plain_rgb {
        from_ycbcr(&mut pixels);
    }
    RgbImage::new(pixels, header.height, header.width).ok_or_else(|| Format::Jpeg.malformed("a side of zero pixels"))
}

/// YCbCr to RGB by libjpeg's numbers, of 16 bits behind the point.
fn from_ycbcr(pixels: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    for pixel in pixels.chunks_exact_mut(3) {
        let [y, cb, cr] = [i32::from(pixel[0]), i32::from(pixel[1]) - 128, i32::from(pixel[2]) - 128];
        let red = (91_881 * cr + HALF) >> 16;
        let green = (-22_554 * cb - 46_802 * cr + HALF) >> 16;
        let blue = (116_130 * cb + HALF) >> 16;
        pixel.copy_from_slice(&[red, green, blue].map(|change| (y + change).clamp(0, 255) as u8));
    }
}

fn from_zune_error(error: DecodeErrors) -> ImageError {
    match error {
        DecodeErrors::Unsupported(_) => Format::Jpeg.unsupported(error),
        // The end marker was found, so data that runs out lies about itself.
        error => Format::Jpeg.malformed(error),
    }
}
