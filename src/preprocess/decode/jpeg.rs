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
    // Three components are taken for YCbCr; when they are not, asking for YCbCr gives them as they are.
    let color = if header.is_plain_rgb { ColorSpace::YCbCr } else { ColorSpace::RGB };
    let options = DecoderOptions::default()
        .set_strict_mode(false) // Damage inside a scan is shown, not refused, as PIL does.
        .set_max_width(header.width)
        .set_max_height(header.height)
        .jpeg_set_out_colorspace(color);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(from_zune_error)?;
    let mut pixels = vec![0; header.width * header.height * 3];
    if decoder.dimensions() != Some((header.width, header.height)) {
        return Err(Format::Jpeg.malformed("two sizes"));
    }
    decoder.decode_into(&mut pixels).map_err(from_zune_error)?;
    RgbImage::new(pixels, header.height, header.width).ok_or_else(|| Format::Jpeg.malformed("a side of zero pixels"))
}

fn from_zune_error(error: DecodeErrors) -> ImageError {
    match error {
        DecodeErrors::Unsupported(_) => Format::Jpeg.unsupported(error),
        // The end marker was found, so data that runs out lies about itself.
        error => Format::Jpeg.malformed(error),
    }
}
