//! The markers of a JPEG, read before any decoder sees it.
//!
//! # Why read them here?
//!
//! Decoders fill a picture that ends early with gray, and PIL does not: there a file without its end is an error. The
//! only sure sign is the end marker, so the whole file is walked once, marker to marker. The size, the number of scans
//! and what says how it is turned come along, before anything is allocated.

use super::super::error::ImageError;
use super::{DecodeLimits, Format};

/// Most scans of one file. Encoders write about ten; each one more is a pass over all coefficients.
const MAX_SCANS: usize = 100;

/// Facts of a complete file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct JpegHeader<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    /// 1 gray, 3 colour, 4 inks.
    pub(super) n_components: usize,
    /// Whether three components are red, green and blue as they are. By libjpeg's rule a JFIF marker says that they are not,
    /// without it Adobe's marker says what they are, and without either their names do.
    pub(super) is_plain_rgb: bool,
    /// The EXIF block, without its name.
    pub(super) exif: Option<&'a [u8]>,
    /// The XMP packet, without its name.
    pub(super) xmp: Option<&'a [u8]>,
    /// Whether a decoder keeps every coefficient until the last scan: with several scans, as progressive files have.
    pub(super) is_kept_whole: bool,
}

impl<'a> JpegHeader<'a> {
    /// Walks the markers from the first to the end marker.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let truncated = || Format::Jpeg.truncated();
        let mut header = None;
        let (mut exif, mut xmp, mut n_scans) = (None, None, 0);
        let (mut is_jfif, mut adobe_transform) = (false, None);
        let mut at = 2;
        loop {
            let marker;
            (marker, at) = next_marker(bytes, at).ok_or_else(truncated)?;
            match marker {
                END => break,
                // Stand alone: start, restarts, temporary.
                0xd8 | 0xd0..=0xd7 | 0x01 => continue,
                _ => (),
            }
            let segment = segment(bytes, at).ok_or_else(truncated)?;
            at += 2 + segment.len();
            match marker {
                // PIL reads no further than the first scan. Of EXIF the first counts, of the others the last.
                APP0 if n_scans == 0 => is_jfif |= segment.len() >= 14 && segment.starts_with(b"JFIF\0"),
                APP14 if n_scans == 0 && segment.starts_with(b"Adobe") => {
                    adobe_transform = segment.get(11).copied().or(adobe_transform);
                }
                APP1 if n_scans == 0 => {
                    exif = exif.or(segment.strip_prefix(EXIF_NAME));
                    xmp = segment.strip_prefix(XMP_NAME).or(xmp);
                }
                SCAN => n_scans += 1,
                _ if is_frame(marker) => {
                    if header.is_some() {
                        return Err(Format::Jpeg.malformed("more than one frame"));
                    }
                    header = Some(frame(marker, segment)?);
                }
                _ => (),
            }
            if n_scans > MAX_SCANS {
                return Err(Format::Jpeg.malformed("too many scans"));
            }
        }
        let mut header = header.ok_or_else(|| Format::Jpeg.malformed("no frame"))?;
        if n_scans == 0 {
            return Err(Format::Jpeg.malformed("no scan"));
        }
        (header.exif, header.xmp) = (exif, xmp);
        header.is_kept_whole |= n_scans > 1;
        // What the names say stands there already.
        header.is_plain_rgb = match adobe_transform {
            _ if is_jfif || header.n_components != 3 => false,
            Some(transform) => transform == 0,
            None => header.is_plain_rgb,
        };
        Ok(header)
    }

    /// Refuses what is too large to decode.
    pub(super) fn check(&self, limits: &DecodeLimits) -> Result<(), ImageError> {
        let (width, height) = (self.width as u64, self.height as u64);
        limits.check_size(width, height)?;
        // Sides are padded to whole blocks of at most 32 pixels.
        let padded = width.next_multiple_of(32) * height.next_multiple_of(32);
        let pixels = width * height * 3;
        let inks = if self.n_components == 4 { width * height * 4 } else { 0 };
        // Coefficients have 16 bits each.
        let coefficients = if self.is_kept_whole { padded * self.n_components as u64 * 2 } else { 0 };
        limits.check_alloc(Format::Jpeg, pixels + inks + coefficients)
    }
}

/// What the two kinds of APP1 begin with.
const EXIF_NAME: &[u8] = b"Exif\0\0";
const XMP_NAME: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

const APP0: u8 = 0xe0;
const APP1: u8 = 0xe1;
const APP14: u8 = 0xee;
const SCAN: u8 = 0xda;
const END: u8 = 0xd9;

/// Start of frame of any coding; the gaps are tables.
fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

/// The next marker and the position behind it. Coded data and stray bytes are skipped.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        // Any number of fill bytes may come before a marker.
        at += bytes[at..].iter().position(|&byte| byte != 0xff)?;
        let marker = bytes[at];
        at += 1;
        // A zero says that the 0xff was data.
        if marker != 0 {
            return Some((marker, at));
        }
    }
}

/// The content of the segment whose length stands at `at`.
fn segment(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    // A length counts itself; less than that is a lie, taken as an empty segment and left to the decoder.
    bytes.get(at + 2..at + length.max(2))
}

fn frame(marker: u8, segment: &[u8]) -> Result<JpegHeader<'static>, ImageError> {
    let [bits, h1, h0, w1, w0, n_components, components @ ..] = segment else {
        return Err(Format::Jpeg.malformed("a frame header that is too short"));
    };
    let (height, width) = (u16::from_be_bytes([*h1, *h0]), u16::from_be_bytes([*w1, *w0]));
    let n_components = usize::from(*n_components);
    if components.len() != n_components * 3 {
        return Err(Format::Jpeg.malformed("a frame header of the wrong length"));
    }
    if !matches!(marker, 0xc0..=0xc2 | 0xc9 | 0xca) {
        return Err(Format::Jpeg.unsupported(format!("lossless or hierarchical coding ({marker:#04x})")));
    }
    if height == 0 || width == 0 {
        return Err(Format::Jpeg.malformed("a side of zero pixels"));
    }
    if *bits != 8 {
        return Err(Format::Jpeg.unsupported(format!("{bits} bits a sample")));
    }
    if !matches!(n_components, 1 | 3 | 4) {
        return Err(Format::Jpeg.unsupported(format!("{n_components} components")));
    }
    let names: Vec<u8> = components.iter().step_by(3).copied().collect();
    Ok(JpegHeader {
        width: usize::from(width),
        height: usize::from(height),
        n_components,
        is_plain_rgb: names == *b"RGB",
        exif: None,
        xmp: None,
        is_kept_whole: matches!(marker, 0xc2 | 0xca),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gray file of 3x2 pixels with an empty scan.
    const SMALLEST: &[u8] = &[
        0xff, 0xd8, 0xff, 0xc0, 0, 11, 8, 0, 2, 0, 3, 1, 1, 0x11, 0, 0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0, 0x12, 0xff,
        0, 0xff, 0xd0, 0x34, 0xff, 0xd9,
    ];

    #[test]
    fn the_size_comes_from_the_frame() {
        let header = JpegHeader::read(SMALLEST).expect("complete");
        assert_eq!((header.width, header.height, header.n_components), (3, 2, 1));
    }

    #[test]
    fn every_cut_is_a_truncation() {
        for end in 3..SMALLEST.len() {
            let error = JpegHeader::read(&SMALLEST[..end]).expect_err("cut");
            assert_eq!(error.reason(), "truncated", "cut at {end}");
        }
    }

    #[test]
    fn bytes_behind_the_end_do_not_matter() {
        let mut bytes = SMALLEST.to_vec();
        bytes.extend([0xff, 0xc0, 1]);
        assert!(JpegHeader::read(&bytes).is_ok());
    }

    #[test]
    fn scans_are_counted() {
        let scan = &SMALLEST[15..25];
        let mut bytes = SMALLEST[..15].to_vec();
        bytes.extend(scan.repeat(MAX_SCANS + 1));
        bytes.extend([0xff, 0xd9]);
        assert_eq!(JpegHeader::read(&bytes).expect_err("too many").reason(), "malformed");
    }
}
