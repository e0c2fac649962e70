//! The way of an image file to its tensor, and the same with `fast_image_resize` in the resampler's place.
//!
//! `tensor` is decode, resize, crop and normalise; `resample` is the same without decoding, of which `pillow` is ours
//! (Pillow's values) and `fast_image_resize` the baseline (off by one in some). `pillow, scaled` is `decode = "scaled"`, in
//! builds that have it; `decode_rgb` stands before the baseline, so that both have the same decoder.

use std::hint::black_box;
use std::io::Cursor;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use equipoise::preprocess::{
    DecodeLimits, ExifOrientation, Interpolation, PreprocessConfig, PreprocessConfigError, Preprocessor, Rect,
    RgbImage, Target, decode_rgb, resample,
};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{ExtendedColorType, ImageEncoder};
use serde_json::Value;

/// Shapes and noise, so that it compresses about as a photo does.
fn picture(height: usize, width: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut pixels = Vec::with_capacity(height * width * 3);
    for y in 0..height {
        for x in 0..width {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = state >> 28;
            let wave = (x as f32 * 0.05).sin() * (y as f32 * 0.03).cos() * 90.0 + 110.0;
            let gray = wave as u32 + noise;
            pixels.extend([gray as u8, (gray * 2 / 3 + (x % 97) as u32 / 3) as u8, (255 - gray) as u8]);
        }
    }
    pixels
}

/// `jpeg` has its colours at every pixel; `jpeg-420`, at one of four, is what cameras write.
fn encoded(format: &str, height: usize, width: usize) -> Vec<u8> {
    let pixels = picture(height, width);
    #[cfg(feature = "turbojpeg")]
    if format == "jpeg-420" {
        let image = turbojpeg::Image {
            pixels: &pixels[..],
            width,
            pitch: width * 3,
            height,
            format: turbojpeg::PixelFormat::RGB,
        };
        return turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2).expect("the picture is encoded").to_vec();
    }
    let mut bytes = Cursor::new(Vec::new());
    let (columns, rows) = (width as u32, height as u32);
    let written = match format {
        "jpeg" => image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90).write_image(
            &pixels,
            columns,
            rows,
            ExtendedColorType::Rgb8,
        ),
        _ => {
            image::codecs::png::PngEncoder::new(&mut bytes).write_image(&pixels, columns, rows, ExtendedColorType::Rgb8)
        }
    };
    written.expect("the picture is encoded");
    bytes.into_inner()
}

/// `None` for `decode = "scaled"` in a build that decodes every pixel.
fn preprocessor(steps: &Value) -> Option<Preprocessor> {
    let mut config = serde_json::json!({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]});
    for (key, value) in steps.as_object().expect("the steps are an object") {
        config[key] = value.clone();
    }
    let config: PreprocessConfig = serde_json::from_value(config).expect("the configuration is valid");
    match Preprocessor::new(config, DecodeLimits::default()) {
        Err(PreprocessConfigError::CannotScale) => None,
        made => Some(made.expect("the configuration makes sense")),
    }
}

/// A square of `side` pixels in the middle, resized to `crop`, by the baseline.
fn baseline_resample(image: &RgbImage, side: f64, crop: usize, filter: FilterType) -> Vec<u8> {
    let source = ImageRef::new(image.width() as u32, image.height() as u32, image.pixels(), PixelType::U8x3);
    let mut out = Image::new(crop as u32, crop as u32, PixelType::U8x3);
    let (left, top) = ((image.width() as f64 - side) / 2.0, (image.height() as f64 - side) / 2.0);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(left, top, side, side);
    let resized = Resizer::new().resize(&source.expect("the size fits"), &mut out, &options);
    resized.expect("the crop lies inside");
    out.into_vec()
}

fn baseline_tensor(bytes: &[u8], side: f64, crop: usize, filter: FilterType) -> Vec<f32> {
    let image = decode_rgb(bytes, &DecodeLimits::default(), ExifOrientation::Ignore).expect("a valid file");
    let resized = baseline_resample(&image, side, crop, filter);
    let mut tensor = vec![0.0; crop * crop * 3];
    for (channel, (plane, (mean, std))) in
        tensor.chunks_exact_mut(crop * crop).zip([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]).enumerate()
    {
        for (out, pixel) in plane.iter_mut().zip(resized.chunks_exact(3)) {
            *out = (f32::from(pixel[channel]) / 255.0 - mean) / std;
        }
    }
    tensor
}

/// The side of the square that resizing the shorter side and cropping comes to, in the source's coordinates.
fn side_of(height: usize, width: usize, resize: usize, crop: usize) -> f64 {
    crop as f64 * height.min(width) as f64 / resize as f64
}

/// A file, what becomes of it, and what the baseline has to do for that.
struct Case {
    id: String,
    bytes: Vec<u8>,
    steps: Value,
    side: f64,
    crop: usize,
    filter: FilterType,
    is_large: bool,
}

impl Case {
    fn bilinear(format: &str, height: usize, width: usize, resize: usize, crop: usize) -> Self {
        Self {
            id: format!("{format} {width}x{height} to {crop}"),
            bytes: encoded(format, height, width),
            steps: serde_json::json!({"resize": resize, "crop": crop}),
            side: side_of(height, width, resize, crop),
            crop,
            filter: FilterType::Bilinear,
            is_large: height > 1000,
        }
    }

    /// As EfficientNet-Lite0 takes its images.
    fn bicubic_of_square() -> Self {
        Self {
            id: "jpeg 500x375 to 224, bicubic".to_owned(),
            steps: serde_json::json!({"pre_crop": 0.875, "resize": [224, 224], "interpolation": "bicubic"}),
            side: 328.0,
            filter: FilterType::CatmullRom,
            ..Self::bilinear("jpeg", 375, 500, 256, 224)
        }
    }
}

fn tensor(c: &mut Criterion) {
    let mut group = c.benchmark_group("tensor");
    let cases = [
        Case::bilinear("png", 96, 96, 36, 32),
        Case::bilinear("jpeg", 96, 96, 36, 32),
        Case::bilinear("jpeg", 375, 500, 256, 224),
        Case::bicubic_of_square(),
        Case::bilinear("jpeg", 3000, 4000, 256, 224),
        #[cfg(feature = "turbojpeg")]
        Case::bilinear("jpeg-420", 3000, 4000, 256, 224),
    ];
    for Case { id, bytes, mut steps, side, crop, filter, is_large } in cases {
        group.throughput(Throughput::Elements(1));
        if is_large {
            group.sample_size(10);
        }
        let mut ours = |name: &str, steps: &Value| {
            let Some(preprocessor) = preprocessor(steps) else {
                println!("tensor/{name}/{id}: left out, this build decodes every pixel (--features turbojpeg)");
                return;
            };
            group.bench_with_input(BenchmarkId::new(name, &id), &bytes, |b, bytes| {
                let mut out = Vec::new();
                b.iter(|| preprocessor.run_into(black_box(bytes), &mut out).expect("a valid file"));
            });
        };
        ours("pillow", &steps);
        if is_large {
            steps["decode"] = Value::from("scaled");
            ours("pillow, scaled", &steps);
        }
        group.bench_with_input(BenchmarkId::new("fast_image_resize", &id), &bytes, |b, bytes| {
            b.iter(|| baseline_tensor(black_box(bytes), side, crop, filter));
        });
    }
}

fn resampling(c: &mut Criterion) {
    let mut group = c.benchmark_group("resample");
    for (height, width, resize, crop) in [(96, 96, 36, 32), (375, 500, 256, 224), (3000, 4000, 256, 224)] {
        let image = RgbImage::new(picture(height, width), height, width).expect("the size fits");
        let filters = [
            ("bilinear", Interpolation::Bilinear, FilterType::Bilinear),
            ("bicubic", Interpolation::Bicubic, FilterType::CatmullRom),
            ("lanczos", Interpolation::Lanczos, FilterType::Lanczos3),
        ];
        for (name, interpolation, filter) in filters {
            let id = format!("{name} {width}x{height} to {crop}");
            group.throughput(Throughput::Elements(1));
            let (new_height, new_width) = (resize, resize * width / height);
            let window = Rect { top: (new_height - crop) / 2, left: (new_width - crop) / 2, height: crop, width: crop };
            let target = Target { height: new_height, width: new_width, window };
            group.bench_with_input(BenchmarkId::new("pillow", &id), &image, |b, image| {
                b.iter(|| resample(black_box(image).view(), interpolation, &target));
            });
            group.bench_with_input(BenchmarkId::new("fast_image_resize", &id), &image, |b, image| {
                b.iter(|| baseline_resample(black_box(image), side_of(height, width, resize, crop), crop, filter));
            });
        }
    }
}

criterion_group!(benches, tensor, resampling);
criterion_main!(benches);
