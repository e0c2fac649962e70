//! What is sent: the test images of a model that has some, else photos made here.

use std::path::{Path, PathBuf};

use image::{ImageFormat, RgbImage, codecs::jpeg::JpegEncoder};

/// At it a test image of icons30 has 4.4 kB, as a photo of its size might.
const TEST_IMAGE_QUALITY: u8 = 98;
const PHOTO_QUALITY: u8 = 90;

/// The same pictures twice.
pub(crate) struct Images {
    /// What is timed.
    pub(crate) jpegs: Vec<Vec<u8>>,
    /// What every decoder makes the same pixels of.
    pub(crate) pngs: Vec<Vec<u8>>,
}

impl Images {
    pub(crate) fn of(model: &Path) -> Self {
        let (pictures, quality) = match has_test_images(model) {
            true => {
                let decode = |file: Vec<u8>| image::load_from_memory(&file).unwrap().to_rgb8();
                (test_images(model).into_iter().map(decode).collect(), TEST_IMAGE_QUALITY)
            }
            false => (photos(), PHOTO_QUALITY),
        };
        Self {
            jpegs: pictures.iter().map(|picture| jpeg(picture, quality)).collect(),
            pngs: pictures.iter().map(png).collect(),
        }
    }

    /// Of the JPEGs, on average.
    pub(crate) fn mean_bytes(&self) -> usize {
        self.jpegs.iter().map(Vec::len).sum::<usize>() / self.jpegs.len()
    }
}

pub(crate) fn has_test_images(model: &Path) -> bool {
    model.join("test").is_dir()
}

/// Some of the files in the folders of `test`, of every class.
pub(crate) fn test_images(model: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(model.join("test"))
        .unwrap()
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files.iter().step_by(9).map(|file| std::fs::read(file).unwrap()).collect()
}

pub(crate) fn photo_jpegs() -> Vec<Vec<u8>> {
    photos().iter().map(|photo| jpeg(photo, PHOTO_QUALITY)).collect()
}

/// A JPEG of that size, as one of the photos.
pub(crate) fn photo_jpeg(width: u32, height: u32) -> Vec<u8> {
    jpeg(&photo(width, height, 0), PHOTO_QUALITY)
}

fn photos() -> Vec<RgbImage> {
    (0..16).map(|seed| photo(500, 375, seed)).collect()
}

/// A picture with structure at every scale, so that decoding costs what it costs on a photo.
fn photo(width: u32, height: u32, seed: u32) -> RgbImage {
    let mut noise = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    RgbImage::from_fn(width, height, |x, y| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (x, y, s) = (x as f32, y as f32, seed as f32 + 1.0);
        let wave = |k: f32| 127.0 + 60.0 * ((x / (k * s)).sin() + (y / k).cos()) + (noise >> 29) as f32 * 4.0 - 14.0;
        image::Rgb([wave(7.0) as u8, wave(19.0) as u8, wave(53.0) as u8])
    })
}

fn jpeg(picture: &RgbImage, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(picture).unwrap();
    bytes
}

fn png(picture: &RgbImage) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}
