//! Preprocessing against Pillow: the numbers of `tests/data/preprocess/golden.json`.

use std::path::PathBuf;

use equipoise::preprocess::{DecodeLimits, ExifOrientation, PreprocessConfig, Preprocessor, RgbImage, decode_rgb};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Golden {
    decode: Vec<DecodeCase>,
    resize: Vec<ResizeCase>,
    #[cfg_attr(not(feature = "turbojpeg"), allow(dead_code))]
    scaled: Vec<ScaledCase>,
    tensor: Vec<TensorCase>,
}

#[derive(Deserialize)]
struct DecodeCase {
    file: String,
    mode: String,
    exif: ExifOrientation,
    height: usize,
    width: usize,
    sha256: String,
    head: String,
    expected: Option<String>,
}

#[derive(Deserialize)]
struct ResizeCase {
    file: String,
    config: Value,
    height: usize,
    width: usize,
    sha256: String,
    head: String,
}

#[derive(Deserialize)]
#[cfg_attr(not(feature = "turbojpeg"), allow(dead_code))]
struct ScaledCase {
    file: String,
    config: Value,
    reduction: usize,
    expected: String,
}

#[derive(Deserialize)]
struct TensorCase {
    file: String,
    config: Value,
    sha256: String,
    head: Vec<f32>,
}

fn data(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/preprocess").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn golden() -> Golden {
    serde_json::from_slice(&data("golden.json")).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(file: &str, exif: ExifOrientation) -> RgbImage {
    decode_rgb(&data(file), &DecodeLimits::default(), exif).unwrap_or_else(|error| panic!("{file}: {error:?}"))
}

/// Largest and mean difference of two images.
fn difference(left: &[u8], right: &[u8]) -> (u8, f64) {
    assert_eq!(left.len(), right.len());
    let differences = left.iter().zip(right).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences.clone().map(u64::from).sum();
    (differences.max().unwrap_or(0), sum as f64 / left.len() as f64)
}

#[test]
fn lossless_files_decode_to_the_pixels_of_pillow() {
    let mut wrong = Vec::new();
    for case in golden().decode.iter().filter(|case| case.expected.is_none()) {
        let image = decode(&format!("files/{}", case.file), case.exif);
        let is_size = (image.height(), image.width()) == (case.height, case.width);
        if !is_size || hex(&Sha256::digest(image.pixels())) != case.sha256 {
            let head = hex(&image.pixels()[..12.min(image.pixels().len())]);
            wrong.push(format!(
                "{} ({}): {}x{} instead of {}x{}, {head} instead of {}",
                case.file,
                case.mode,
                image.height(),
                image.width(),
                case.height,
                case.width,
                case.head
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Largest and mean difference that a lossy file may show. With libjpeg-turbo, and for WebP always: none.
///
/// Measured with `zune-jpeg` 0.5: 4:2:0 at most 3, mean 0.41; 4:2:2 at most 3, mean 0.21; 4:4:4 and CMYK at most 2, mean
/// 0.03; gray at most 1, mean 0.02. Photos of high contrast show up to 6.
fn allowed_difference(file: &str) -> (u8, f64) {
    let is_exact = cfg!(feature = "turbojpeg") || file.ends_with(".webp");
    if is_exact { (0, 0.0) } else { (3, 0.45) }
}

#[test]
fn lossy_files_decode_close_to_the_pixels_of_pillow() {
    for case in golden().decode.iter() {
        let Some(expected) = &case.expected else { continue };
        let image = decode(&format!("files/{}", case.file), case.exif);
        assert_eq!((image.height(), image.width()), (case.height, case.width), "{}", case.file);
        let expected = decode(&format!("expected/{expected}"), ExifOrientation::Ignore);
        let (max, mean) = difference(image.pixels(), expected.pixels());
        let (max_allowed, mean_allowed) = allowed_difference(&case.file);
        assert!(max <= max_allowed && mean <= mean_allowed, "{}: max {max}, mean {mean:.3}", case.file);
    }
}

/// Runs a configuration whose normalisation gives the bytes back.
fn bytes_of(file: &str, config: &Value) -> (Vec<u8>, usize, usize) {
    let mut config = config.clone();
    config["mean"] = Value::from(vec![0.0; 3]);
    config["std"] = Value::from(vec![1.0; 3]);
    let config: PreprocessConfig = serde_json::from_value(config).unwrap();
    let preprocessor = Preprocessor::new(config, DecodeLimits::default()).unwrap();
    let tensor = preprocessor.run(&data(file)).unwrap();
    let plane = tensor.height * tensor.width;
    let bytes = (0..plane)
        .flat_map(|at| [0, 1, 2].map(|channel| (tensor.pixels[channel * plane + at] * 255.0).round() as u8))
        .collect();
    (bytes, tensor.height, tensor.width)
}

#[test]
fn resizes_and_crops_are_those_of_pillow_to_the_last_bit() {
    let cases = golden().resize;
    let mut wrong = Vec::new();
    for case in &cases {
        let (bytes, height, width) = bytes_of(&format!("files/{}", case.file), &case.config);
        if (height, width) != (case.height, case.width) || hex(&Sha256::digest(&bytes)) != case.sha256 {
            let head = hex(&bytes[..12.min(bytes.len())]);
            wrong.push(format!("{} {}: {height}x{width}, {head} instead of {}", case.file, case.config, case.head));
        }
    }
    assert!(wrong.is_empty(), "{} of {}\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[cfg(feature = "turbojpeg")]
#[test]
fn large_jpegs_decoded_smaller_are_those_of_pillows_draft_to_the_last_bit() {
    let cases = golden().scaled;
    assert!([1, 2, 4, 8].iter().all(|reduction| cases.iter().any(|case| case.reduction == *reduction)));
    for case in &cases {
        let mut config = case.config.clone();
        config["decode"] = Value::from("scaled");
        let (bytes, height, width) = bytes_of(&format!("files/{}", case.file), &config);
        let expected = decode(&format!("expected/{}", case.expected), ExifOrientation::Ignore);
        let case = format!("{} {} by {}", case.file, case.config, case.reduction);
        assert_eq!((height, width), (expected.height(), expected.width()), "{case}");
        assert_eq!(difference(&bytes, expected.pixels()), (0, 0.0), "{case}");
    }
}

#[cfg(feature = "turbojpeg")]
#[test]
fn an_orientation_turns_what_was_decoded_smaller_too() {
    for orientation in 1..=8 {
        let file = format!("files/exif{orientation}.jpg");
        let upright = decode(&file, ExifOrientation::Apply);
        let resize = [upright.height() / 4, upright.width() / 4];
        let of = |decode: &str| {
            let config = serde_json::json!({
                "resize": resize, "interpolation": "bilinear", "exif_orientation": "apply", "decode": decode
            });
            bytes_of(&file, &config)
        };
        let ((scaled, height, width), (exact, ..)) = (of("scaled"), of("exact"));
        assert_eq!([height, width], resize);
        // The picture is made of blocks of 16 x 16 pixels, and so of 4 x 4 now: their middles are what they were.
        for (y, x) in (1..height).step_by(4).flat_map(|y| (1..width).step_by(4).map(move |x| (y, x))) {
            let pixel = (y * width + x) * 3..(y * width + x) * 3 + 3;
            let (max, _) = difference(&scaled[pixel.clone()], &exact[pixel]);
            assert!(max <= 24, "{file} at {y}, {x}: {max}");
        }
    }
}

#[cfg(not(feature = "turbojpeg"))]
#[test]
fn scaled_decoding_is_refused_by_a_build_that_cannot() {
    let config = r#"{"resize": 8, "mean": [0, 0, 0], "std": [1, 1, 1], "decode": "scaled"}"#;
    let error = Preprocessor::new(serde_json::from_str(config).unwrap(), DecodeLimits::default()).unwrap_err();
    assert!(error.to_string().contains("`--features turbojpeg`"), "{error}");
}

#[test]
fn tensors_are_those_of_torchvision_to_the_last_bit() {
    for case in golden().tensor {
        let config: PreprocessConfig = serde_json::from_value(case.config).unwrap();
        let tensor = Preprocessor::new(config, DecodeLimits::default())
            .unwrap()
            .run(&data(&format!("files/{}", case.file)))
            .unwrap();
        assert_eq!(tensor.pixels[..4], case.head);
        let bytes: Vec<u8> = tensor.pixels.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(hex(&Sha256::digest(&bytes)), case.sha256);
    }
}
