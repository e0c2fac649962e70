//! The preprocessing of an imported model: what the flags say, and what has to be assumed.

use anyhow::bail;
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use serde::de::DeserializeOwned;

use super::Facts;
use crate::preprocess::{Crop, Decode, ExifOrientation, Interpolation, PreprocessConfig, Resize};

const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// How images became the classifier's input when it was trained; nothing in an ONNX file says it.
#[derive(Args, Debug)]
#[command(next_help_heading = "Preprocessing, as it was in training")]
pub(super) struct PreprocessOptions {
    /// Size to resample to, in pixels: of the shorter side, or HEIGHT,WIDTH [default: the model's input size]
    #[arg(long, env = "EQUIPOISE_RESIZE", value_name = "SIDE|H,W", value_parser = resize)]
    resize: Option<Resize>,

    /// Size of the centred part that is kept after the resize, in pixels: a square's side, or HEIGHT,WIDTH; it must be the
    /// model's input size [default: the model's input size]
    #[arg(long, env = "EQUIPOISE_CROP", value_name = "SIDE|H,W", value_parser = crop)]
    crop: Option<Crop>,

    /// Side of a centred square cut before the resize, as a share of the shorter side, above 0 and at most 1; 0.875 is
    /// EfficientNet-Lite's way [default: none is cut]
    #[arg(long, env = "EQUIPOISE_PRE_CROP", value_name = "SHARE", value_parser = share)]
    pre_crop: Option<f64>,

    /// Filter of the resize, antialiased as Pillow does it, `nearest` excepted [default: bilinear]
    #[arg(long, env = "EQUIPOISE_INTERPOLATION", value_name = "FILTER", value_parser = interpolation())]
    interpolation: Option<Interpolation>,

    /// Mean of red, green and blue, of values scaled to 0..1 [default: ImageNet's, 0.485,0.456,0.406]
    #[arg(long, env = "EQUIPOISE_MEAN", value_name = "R,G,B", value_parser = three, allow_hyphen_values = true)]
    mean: Option<Three>,

    /// Standard deviation of red, green and blue, of values scaled to 0..1; each above 0
    /// [default: ImageNet's, 0.229,0.224,0.225]
    #[arg(long, env = "EQUIPOISE_STD", value_name = "R,G,B", value_parser = three_above_0)]
    std: Option<Three>,

    /// Whether an EXIF orientation turns the image; most training code ignores it [default: ignore]
    #[arg(long, env = "EQUIPOISE_EXIF_ORIENTATION", value_name = "WHAT", value_parser = exif_orientation())]
    exif_orientation: Option<ExifOrientation>,
}

/// A number for each channel. A bare array would be taken for a list of arguments.
#[derive(Clone, Copy, Debug)]
struct Three([f32; 3]);

fn three(text: &str) -> Result<Three, String> {
    let values: Vec<f32> = text.split(',').map_while(|value| value.trim().parse().ok()).collect();
    match <[f32; 3]>::try_from(values) {
        Ok(values) if text.split(',').count() == 3 && values.iter().all(|value| value.is_finite()) => Ok(Three(values)),
        _ => Err("three numbers are needed, as in 0.5,0.5,0.5".to_owned()),
    }
}

fn three_above_0(text: &str) -> Result<Three, String> {
    match three(text)? {
        Three(values) if values.iter().all(|value| *value > 0.0) => Ok(Three(values)),
        _ => Err("each of the three is above 0".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("a share is a number above 0 and at most 1".to_owned()),
    }
}

/// `36` or `36,48`.
fn sides(text: &str) -> Result<(u32, Option<u32>), String> {
    let side = |text: &str| match text.trim().parse() {
        Ok(side) if side > 0 => Ok(side),
        _ => Err("a size is a number of pixels, as in 36, or a height and a width, as in 36,48".to_owned()),
    };
    match text.split_once(',') {
        None => Ok((side(text)?, None)),
        Some((height, width)) => Ok((side(height)?, Some(side(width)?))),
    }
}

fn resize(text: &str) -> Result<Resize, String> {
    Ok(match sides(text)? {
        (side, None) => Resize::ShorterSide(side),
        (height, Some(width)) => Resize::Exact { height, width },
    })
}

fn crop(text: &str) -> Result<Crop, String> {
    Ok(match sides(text)? {
        (side, None) => Crop::Square(side),
        (height, Some(width)) => Crop::Exact { height, width },
    })
}

fn interpolation() -> impl TypedValueParser<Value = Interpolation> {
    named(["nearest", "bilinear", "bicubic", "lanczos"])
}

fn exif_orientation() -> impl TypedValueParser<Value = ExifOrientation> {
    named(["ignore", "apply"])
}

/// Names as `model.toml` has them.
fn named<T: DeserializeOwned + Clone + Send + Sync + 'static, const N: usize>(
    names: [&'static str; N],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names).try_map(|name| serde_json::from_value(serde_json::Value::String(name)))
}

impl PreprocessOptions {
    /// The whole of it, for a model that takes images of `input_size` (height, width). What had to be assumed is added to
    /// `assumed`.
    pub(super) fn complete(
        &self,
        input_size: (Option<usize>, Option<usize>),
        assumed: &mut Facts,
    ) -> anyhow::Result<PreprocessConfig> {
        let input = match input_size {
            (Some(height), Some(width)) => Some((u32::try_from(height)?, u32::try_from(width)?)),
            _ => None,
        };
        let (resize, crop) = self.sizes(input, assumed)?;
        let mut or = |given: Option<Three>, imagenet: [f32; 3], name: &str| match given {
            Some(Three(values)) => values,
            None => {
                let [red, green, blue] = imagenet;
                assumed.add(name, format!("{red}, {green}, {blue}: ImageNet's (--{name})"));
                imagenet
            }
        };
        let mean = or(self.mean, IMAGENET_MEAN, "mean");
        let std = or(self.std, IMAGENET_STD, "std");
        if let Some(value) = mean.iter().chain(&std).find(|value| value.abs() > 2.0) {
            bail!("--mean and --std are of values scaled to 0..1, and one is {value}: divide those of 0..255 by 255");
        }
        if self.interpolation.is_none() {
            assumed.add("interpolation", "bilinear (--interpolation)");
        }
        if self.exif_orientation.is_none() {
            assumed.add("EXIF orientation", "ignored (--exif-orientation)");
        }
        Ok(PreprocessConfig {
            pre_crop: self.pre_crop,
            resize,
            crop,
            interpolation: self.interpolation.unwrap_or_default(),
            mean,
            std,
            exif_orientation: self.exif_orientation.unwrap_or_default(),
            decode: Decode::Exact,
        })
    }

    /// Resize and crop, such that every image becomes as large as the model takes it.
    fn sizes(&self, input: Option<(u32, u32)>, assumed: &mut Facts) -> anyhow::Result<(Option<Resize>, Option<Crop>)> {
        let exact = |(height, width)| Crop::Exact { height, width };
        let square_or_exact = |size: (u32, u32)| if size.0 == size.1 { Crop::Square(size.0) } else { exact(size) };
        let crop = match (self.crop, self.resize, input) {
            (Some(crop), _, Some(input)) if crop.size() != input => {
                let ((height, width), (input_height, input_width)) = (crop.size(), input);
                bail!("--crop keeps {height} x {width}, and the model takes images of {input_height} x {input_width}")
            }
            (Some(crop), ..) => Some(crop),
            // What the resize gives is what the model takes.
            (None, Some(Resize::Exact { height, width }), input)
                if input.is_none_or(|input| input == (height, width)) =>
            {
                None
            }
            (None, _, Some(input)) => {
                let crop = square_or_exact(input);
                assumed.add("crop", format!("{}: the model's input size (--crop)", shown(input)));
                Some(crop)
            }
            (None, Some(Resize::ShorterSide(side)), None) => {
                assumed.add("crop", format!("{}: a square of the resize (--crop)", shown((side, side))));
                Some(Crop::Square(side))
            }
            (None, _, None) => bail!("the model takes images of any size: say which by --resize and --crop"),
        };
        let resize = match (self.resize, crop) {
            (Some(resize), _) => Some(resize),
            (None, Some(crop)) => {
                let (height, width) = crop.size();
                // The shorter side keeps the aspect ratio, and leaves nothing out of a square image.
                let (resize, what) = match height == width {
                    true => (Resize::ShorterSide(height), format!("{height} for the shorter side")),
                    false => (
                        Resize::Exact { height, width },
                        format!("{}, whatever the aspect ratio", shown((height, width))),
                    ),
                };
                assumed.add("resize", format!("{what}: what the crop keeps (--resize)"));
                Some(resize)
            }
            (None, None) => None,
        };
        Ok((resize, crop))
    }
}

fn shown((height, width): (u32, u32)) -> String {
    if height == width { height.to_string() } else { format!("{height} x {width}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        given: (Option<Resize>, Option<Crop>),
        input: Option<(u32, u32)>,
        expected: Result<(Option<Resize>, Option<Crop>), &str>,
        n_assumed: usize,
    ) {
        let options = PreprocessOptions {
            resize: given.0,
            crop: given.1,
            pre_crop: None,
            interpolation: None,
            mean: None,
            std: None,
            exif_orientation: None,
        };
        let mut assumed = Facts::default();
        match (options.sizes(input, &mut assumed), expected) {
            (Ok(sizes), Ok(expected)) => {
                assert_eq!(sizes, expected);
                assert_eq!(assumed.lines(0).lines().count(), n_assumed);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn what_the_flags_leave_open_follows_from_the_models_size() {
        let (shorter, square) = (|side| Some(Resize::ShorterSide(side)), |side| Some(Crop::Square(side)));
        check((shorter(36), square(32)), Some((32, 32)), Ok((shorter(36), square(32))), 0);
        check((shorter(36), None), Some((32, 32)), Ok((shorter(36), square(32))), 1);
        check((None, square(32)), None, Ok((shorter(32), square(32))), 1);
        check((None, None), Some((32, 32)), Ok((shorter(32), square(32))), 2);
        let (height, width) = (32, 48);
        let exact = (Some(Resize::Exact { height, width }), Some(Crop::Exact { height, width }));
        check((None, None), Some((32, 48)), Ok(exact), 2);
        check((exact.0, None), Some((32, 48)), Ok((exact.0, None)), 0);
        check((exact.0, None), None, Ok((exact.0, None)), 0);
        check((shorter(36), None), None, Ok((shorter(36), square(36))), 1);
        check((None, None), None, Err("any size"), 0);
        check((None, square(32)), Some((32, 48)), Err("the model takes images of 32 x 48"), 0);
    }

    #[test]
    fn sizes_and_channels_are_read_strictly() {
        assert_eq!(sides("36"), Ok((36, None)));
        assert_eq!(sides("36, 48"), Ok((36, Some(48))));
        for text in ["", "0", "36,", "36,48,3", "-1", "3.5"] {
            assert!(sides(text).is_err(), "{text}");
        }
        assert_eq!(three("0.5, 0.25,-1").map(|three| three.0), Ok([0.5, 0.25, -1.0]));
        for text in ["", "0.5", "1,2", "1,2,3,4", "1,2,x", "1,2,nan", "1,2,3,x"] {
            assert!(three(text).is_err(), "{text}");
        }
    }
}
