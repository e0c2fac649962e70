//! EXIF orientation, as `PIL.ImageOps.exif_transpose`.

use image::metadata::Orientation;

use super::super::resample::RgbImage;

/// The orientation in an EXIF block (a TIFF header and its directory); none if the block cannot be read.
pub(super) fn orientation(exif: Option<&[u8]>) -> Orientation {
    exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
}

/// `(height, width)` of an image once it stands upright.
pub(super) fn size((height, width): (usize, usize), orientation: Orientation) -> (usize, usize) {
    match orientation {
        Orientation::Rotate90 | Orientation::Rotate90FlipH | Orientation::Rotate270 | Orientation::Rotate270FlipH => {
            (width, height)
        }
        _ => (height, width),
    }
}

/// Turns the stored pixels upright.
pub(super) fn transpose(image: RgbImage, orientation: Orientation) -> RgbImage {
    let (height, width) = (image.height(), image.width());
    // Where the new pixel at (y, x) comes from, (y, x) in the stored image.
    let from: fn(usize, usize, usize, usize) -> (usize, usize) = match orientation {
        Orientation::NoTransforms => return image,
        Orientation::FlipHorizontal => |y, x, _, width| (y, width - 1 - x),
        Orientation::Rotate180 => |y, x, height, width| (height - 1 - y, width - 1 - x),
        Orientation::FlipVertical => |y, x, height, _| (height - 1 - y, x),
        Orientation::Rotate90FlipH => |y, x, _, _| (x, y),
        Orientation::Rotate90 => |y, x, height, _| (height - 1 - x, y),
        Orientation::Rotate270FlipH => |y, x, height, width| (height - 1 - x, width - 1 - y),
        Orientation::Rotate270 => |y, x, _, width| (x, width - 1 - y),
    };
    let (new_height, new_width) = size((height, width), orientation);
    let mut pixels = Vec::with_capacity(image.pixels().len());
    for y in 0..new_height {
        for x in 0..new_width {
            let (from_y, from_x) = from(y, x, height, width);
            let at = (from_y * width + from_x) * 3;
            pixels.extend_from_slice(&image.pixels()[at..at + 3]);
        }
    }
    RgbImage::new(pixels, new_height, new_width).unwrap_or(image)
}
