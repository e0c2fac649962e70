//! What a PNG says beside its pixels of how it is to be turned.
//!
//! Read here, because the decoder knows nothing of what stands behind the pixels, nor of EXIF kept as text.

use std::borrow::Cow;

use image::metadata::Orientation;

use super::exif;

/// Most bytes of a text once it is inflated, as in Pillow.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Where ImageMagick keeps EXIF in hexadecimal digits.
const EXIF_KEYWORD: &[u8] = b"Raw profile type exif";
const XMP_KEYWORD: &[u8] = b"XML:com.adobe.xmp";

/// The orientation of a PNG. What cannot be read turns nothing.
pub(super) fn orientation(bytes: &[u8]) -> Orientation {
    let (mut exif, mut profile, mut xmp) = (None, None, None);
    for (kind, data) in Chunks(bytes.get(8..).unwrap_or_default()) {
        match kind {
            b"eXIf" => exif = Some(data),
            b"tEXt" | b"zTXt" | b"iTXt" => match keyword(data) {
                EXIF_KEYWORD => profile = Some((kind, data)),
                XMP_KEYWORD => xmp = Some((kind, data)),
                _ => (),
            },
            _ => (),
        }
    }
    // Only the last of each is inflated: a file may have thousands.
    let exif =
        exif.map(Cow::Borrowed).or_else(|| profile.and_then(text).and_then(|text| from_hex(&text)).map(Cow::Owned));
    exif::orientation(exif.as_deref(), xmp.and_then(text).as_deref())
}

/// The type and the data of each whole chunk, up to the end of the picture.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = (&'a [u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let (data, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        // Behind the data is a checksum, which whoever decodes the pixels has looked at.
        self.0 = rest.get(4..).unwrap_or_default();
        (kind != b"IEND").then_some((kind, data))
    }
}

fn keyword(data: &[u8]) -> &[u8] {
    data.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The text of a chunk, inflated if it is compressed.
fn text<'a>((kind, data): (&[u8; 4], &'a [u8])) -> Option<Cow<'a, [u8]>> {
    let after_zero = |data: &'a [u8]| Some(&data[data.iter().position(|&byte| byte == 0)? + 1..]);
    let data = after_zero(data)?;
    let (is_compressed, method, text) = match kind {
        b"tEXt" => (false, 0, data),
        b"zTXt" => (true, *data.first()?, &data[1..]),
        // A flag, a method, a language, a translated keyword, the text.
        _ => (*data.first()? != 0, *data.get(1)?, after_zero(after_zero(&data[2..])?)?),
    };
    match (is_compressed, method) {
        (false, _) => Some(Cow::Borrowed(text)),
        (true, 0) => fdeflate::decompress_to_vec_bounded(text, MAX_TEXT_BYTES).ok().map(Cow::Owned),
        (true, _) => None,
    }
}

/// The bytes of a profile in hexadecimal digits: an empty line, its name, its length, then the digits in lines.
fn from_hex(profile: &[u8]) -> Option<Vec<u8>> {
    let lines = profile.split(|&byte| byte == b'\n').skip(3).flatten();
    let digits = lines.filter(|byte| !byte.is_ascii_whitespace()).map(|&byte| char::from(byte).to_digit(16));
    let digits: Vec<u8> =
        digits.map(|digit| digit.and_then(|digit| u8::try_from(digit).ok())).collect::<Option<_>>()?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}
