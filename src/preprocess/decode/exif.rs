//! The orientation that a file's metadata name, as `PIL.ImageOps.exif_transpose`.

use image::metadata::Orientation;

use super::super::config::ExifOrientation;
use super::super::resample::RgbImage;

/// The tag of the orientation, in EXIF and in TIFF.
const ORIENTATION: u16 = 0x0112;
/// What it is called in an XMP packet.
const XMP_ORIENTATION: &[u8] = b"tiff:Orientation";

impl ExifOrientation {
    /// The orientation, looked for only if it is to turn the image.
    pub(super) fn asked(self, find: impl FnOnce() -> Orientation) -> Orientation {
        match self {
            Self::Ignore => Orientation::NoTransforms,
            Self::Apply => find(),
        }
    }
}

/// The orientation that an EXIF block (a TIFF header and its directory) has, or if it has none, an XMP packet: in Pillow that
/// counts then. A number that is no orientation turns nothing.
pub(super) fn orientation(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let number = exif.and_then(in_exif).or_else(|| xmp.and_then(in_xmp));
    number.map_or(Orientation::NoTransforms, numbered)
}

/// The orientation of this number.
pub(super) fn numbered(number: u32) -> Orientation {
    u8::try_from(number).ok().and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// The number in an EXIF block; 0 if it is there and no whole number, `None` if it is not there or the block cannot be read.
fn in_exif(block: &[u8]) -> Option<u32> {
    // The name that it has in a JPEG stands before it in other formats too, even twice.
    let block = (0..2).fold(block, |block, _| block.strip_prefix(b"Exif\0\0").unwrap_or(block));
    let is_little = match block.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let short_at = |at: usize| {
        let bytes = [*block.get(at)?, *block.get(at + 1)?];
        Some(if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let long_at = |at: usize| {
        let (first, second) = (u32::from(short_at(at)?), u32::from(short_at(at + 2)?));
        Some(if is_little { first | second << 16 } else { first << 16 | second })
    };
    let directory = usize::try_from(long_at(4)?).ok()?;
    let mut entries = (0..usize::from(short_at(directory)?)).map(|entry| directory + 2 + 12 * entry);
    // Of several the last one counts.
    let at = entries.rfind(|&at| short_at(at) == Some(ORIENTATION) && at + 12 <= block.len())?;
    match (short_at(at + 2)?, long_at(at + 4)?) {
        (SHORT, 1) => short_at(at + 8).map(u32::from),
        (LONG, 1) => long_at(at + 8),
        _ => Some(0),
    }
}

const SHORT: u16 = 3;
const LONG: u16 = 4;

/// The digit of the first `tiff:Orientation="N"` or `tiff:Orientation>N`. Pillow looks for these letters and parses no XML.
pub(super) fn in_xmp(packet: &[u8]) -> Option<u32> {
    let mut rest = packet;
    loop {
        let at = rest.windows(XMP_ORIENTATION.len()).position(|window| window == XMP_ORIENTATION)?;
        rest = &rest[at + XMP_ORIENTATION.len()..];
        if let [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] = rest {
            return Some(u32::from(digit - b'0'));
        }
    }
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
