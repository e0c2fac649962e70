//! Files that lie, and bytes that are no file at all: an error each, in bounded memory, never a panic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use equipoise::preprocess::{
    DecodeLimits, ExifOrientation, ImageError, Interpolation, PreprocessConfig, Preprocessor, RgbImage, Target,
    decode_rgb, resample,
};
use proptest::prelude::*;

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, ImageError> {
    decode_rgb(bytes, limits, ExifOrientation::Apply)
}

#[test]
fn broken_files_are_refused_for_their_reason() {
    let json = std::fs::read(folder("broken/broken.json")).unwrap();
    let reasons: BTreeMap<String, String> = serde_json::from_slice(&json).unwrap();
    let mut wrong = Vec::new();
    for (file, expected) in &reasons {
        let bytes = std::fs::read(folder("broken").join(file)).unwrap();
        match decode(&bytes, &DecodeLimits::default()) {
            Ok(image) => wrong.push(format!("{file}: {}x{}, not {expected}", image.height(), image.width())),
            Err(error) if error.reason() != expected => wrong.push(format!("{file}: {error:?}, not {expected}")),
            Err(error) => {
                assert!(ImageError::REASONS.contains(&error.reason()));
                assert!(!format!("{error:?}").contains("panicked"), "{file} made its decoder panic");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_cut_of_a_file_is_refused() {
    // What stands behind the pixels may be missing: Pillow does not mind either.
    let cases = [("exif6.png", 24), ("444.jpg", 0), ("small_frame.gif", 3), ("lossless.webp", 0), ("rgb.bmp", 0)];
    for (file, n_bytes_behind) in cases {
        let bytes = std::fs::read(folder("preprocess/files").join(file)).unwrap();
        assert!(decode(&bytes, &DecodeLimits::default()).is_ok());
        for end in 0..bytes.len() - n_bytes_behind {
            let error = decode(&bytes[..end], &DecodeLimits::default()).expect_err(&format!("{file} cut at {end}"));
            let is_known = matches!(error.reason(), "truncated" | "malformed" | "unknown_format" | "empty");
            assert!(is_known, "{file} cut at {end}: {error:?}");
        }
    }
}

fn valid_files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder("preprocess/files")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn sizes_at_the_limits_pass_and_beyond_them_fail() {
    for path in valid_files() {
        let bytes = std::fs::read(&path).unwrap();
        let image = decode_rgb(&bytes, &DecodeLimits::default(), ExifOrientation::Ignore).unwrap();
        let max_pixels = (image.height() * image.width()) as u64;
        let max_side = image.height().max(image.width()) as u32;
        let exact = DecodeLimits { max_pixels, max_side, ..DecodeLimits::default() };
        assert!(decode(&bytes, &exact).is_ok(), "{}", path.display());
        let tight = [
            DecodeLimits { max_pixels: max_pixels - 1, ..exact.clone() },
            DecodeLimits { max_side: max_side - 1, ..exact.clone() },
            DecodeLimits { max_alloc_bytes: max_pixels, ..exact.clone() },
        ];
        for limits in tight {
            let error = decode(&bytes, &limits).expect_err(&path.display().to_string());
            assert_eq!(error.reason(), "too_large", "{}: {error:?}", path.display());
            // A side that is too long is not called a lack of memory.
            let is_of_size = limits.max_alloc_bytes == exact.max_alloc_bytes;
            assert_eq!(matches!(error, ImageError::TooLarge { .. }), is_of_size, "{}: {error:?}", path.display());
        }
    }
}

#[test]
fn all_that_decoding_holds_is_counted() {
    let rows = [
        ("rgba16.png", 99 * 11),           // eight bytes a pixel, and RGB
        ("gray_alpha16.png", 99 * 7),      // four
        ("lossless.webp", 1073 * (3 + 5)), // RGB, and what it is decoded in
        ("lossy_alpha.webp", 1073 * (4 + 7)),
        ("animated.webp", 1073 * (4 + 8)),
        ("animated_alpha.webp", 1073 * (4 + 8) + 2890), // and a copy of the file
        ("three_scans.jpg", 1073 * 3 + 64 * 32 * 3 * 2), // the coefficients of whole blocks
        ("exif6.jpg", 1536 * 6),                        // RGB as it is, and turned
        ("exif6_gray.tiff", 54 * 6),
        ("bilevel.tiff", 29 * 5 + 1073 * (1 + 3)), // bits, bytes and RGB
    ];
    for (file, max_alloc_bytes) in rows {
        let bytes = std::fs::read(folder("preprocess/files").join(file)).unwrap();
        let exact = DecodeLimits { max_alloc_bytes, ..DecodeLimits::default() };
        assert!(decode(&bytes, &exact).is_ok(), "{file}");
        let less = DecodeLimits { max_alloc_bytes: max_alloc_bytes - 1, ..exact };
        let error = decode(&bytes, &less).expect_err(file);
        assert!(matches!(error, ImageError::TooMuchMemory { .. }), "{file}: {error:?}");
    }
}

fn refused(config: &str) -> String {
    let config: PreprocessConfig = serde_json::from_str(config).unwrap();
    Preprocessor::new(config, DecodeLimits::default()).unwrap_err().to_string()
}

#[test]
fn a_configuration_that_fits_no_image_names_its_key() {
    let rows = [
        (r#"{"mean": [0, 0, 0], "std": [1, 0, 1]}"#, "`std` of channel 1 is 0"),
        (r#"{"mean": [0, 0, 0], "std": [1, 1, -2]}"#, "`std` of channel 2 is -2"),
        (r#"{"mean": [0, 0, 0], "std": [1, 1, 1], "pre_crop": 0}"#, "`pre_crop` is 0"),
        (r#"{"mean": [0, 0, 0], "std": [1, 1, 1], "pre_crop": 1.5}"#, "`pre_crop` is 1.5"),
        (r#"{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": 0}"#, "`resize` is 0"),
        (r#"{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": [32, 0]}"#, "`resize` is 0"),
        (r#"{"mean": [0, 0, 0], "std": [1, 1, 1], "crop": 0}"#, "`crop` is 0"),
        (r#"{"mean": [0, 0, 0], "std": [1, 1, 1], "crop": 99999}"#, "`crop` is 99999"),
        (r#"{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": 32, "crop": 33}"#, "`crop` of 33x33 is larger"),
        (r#"{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": [32, 40], "crop": [32, 41]}"#, "`crop` of 32x41 is larger"),
        (r#"{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": [16384, 16384]}"#, "`resize` of 16384x16384"),
    ];
    for (config, expected) in rows {
        let message = refused(config);
        assert!(message.starts_with(expected), "{config}: {message}");
    }
}

#[test]
fn a_crop_larger_than_the_image_is_too_small() {
    let config = serde_json::from_str(r#"{"crop": 30, "mean": [0, 0, 0], "std": [1, 1, 1]}"#).unwrap();
    let preprocessor = Preprocessor::new(config, DecodeLimits::default()).unwrap();
    let bytes = std::fs::read(folder("preprocess/files/rgb.png")).unwrap(); // 37x29
    assert_eq!(preprocessor.run(&bytes).unwrap_err().reason(), "too_small");
}

#[test]
fn a_thin_image_is_not_blown_up_without_bound() {
    let config = serde_json::from_str(r#"{"resize": 224, "mean": [0, 0, 0], "std": [1, 1, 1]}"#).unwrap();
    let preprocessor = Preprocessor::new(config, DecodeLimits::default()).unwrap();
    let bytes = std::fs::read(folder("preprocess/files/wide.png")).unwrap(); // 1001x2
    assert_eq!(preprocessor.run(&bytes).unwrap_err().reason(), "too_large");
}

#[test]
fn a_buffer_is_used_again() {
    let config = serde_json::from_str(r#"{"resize": 8, "crop": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}"#).unwrap();
    let preprocessor = Preprocessor::new(config, DecodeLimits::default()).unwrap();
    let mut pixels = vec![7.0; 1000];
    let address = pixels.as_ptr();
    for path in valid_files() {
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(preprocessor.run_into(&bytes, &mut pixels).unwrap(), (8, 8));
        assert_eq!(pixels, preprocessor.run(&bytes).unwrap().pixels);
    }
    assert_eq!(pixels.as_ptr(), address);
}

#[test]
fn a_preprocessor_is_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Preprocessor>();
}

fn interpolations() -> impl Strategy<Value = Interpolation> {
    prop_oneof![
        Just(Interpolation::Nearest),
        Just(Interpolation::Bilinear),
        Just(Interpolation::Bicubic),
        Just(Interpolation::Lanczos),
    ]
}

/// Small enough that hostile sizes are refused and not tried.
fn small_limits() -> DecodeLimits {
    DecodeLimits { max_pixels: 1 << 20, max_side: 4096, max_alloc_bytes: 16 << 20 }
}

proptest! {
    #![proptest_config(crate::seeded(300))]

    #[test]
    fn a_constant_image_stays_constant(
        color in any::<[u8; 3]>(),
        (height, width, new_height, new_width) in (1..40usize, 1..40usize, 1..40usize, 1..40usize),
        interpolation in interpolations(),
    ) {
        let image = RgbImage::new(color.repeat(height * width), height, width).unwrap();
        let resized = resample(image.view(), interpolation, &Target::whole(new_height, new_width));
        prop_assert_eq!(resized.pixels(), color.repeat(new_height * new_width));
    }

    #[test]
    fn no_bytes_panic(format in 0..6usize, tail in prop::collection::vec(any::<u8>(), 0..400)) {
        let signatures: [&[u8]; 6] =
            [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x20\0\0\0WEBP", b"BM", b"II*\0"];
        let mut bytes = signatures[format].to_vec();
        bytes.extend(tail);
        if let Err(error) = decode(&bytes, &small_limits()) {
            prop_assert!(!format!("{error:?}").contains("panicked"), "{:?}", error);
        }
    }

    #[test]
    fn damaged_files_do_not_panic(
        file in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let files = valid_files();
        let mut bytes = std::fs::read(file.get(&files)).unwrap();
        // Half of the damage to the headers, where the sizes are.
        for (i, (at, value)) in damage.into_iter().enumerate() {
            let end = if i % 2 == 0 { bytes.len().min(120) } else { bytes.len() };
            bytes[at.index(end)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Err(error) = decode(&bytes, &small_limits()) {
            prop_assert!(!format!("{error:?}").contains("panicked"), "{} {:?}", file.get(&files).display(), error);
        }
    }
}
