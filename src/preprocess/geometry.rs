//! Sizes and offsets, rounded as torchvision and Pillow round them.

use super::config::{Decode, PreprocessConfig, PreprocessConfigError, Resize};
use super::decode::{CAN_SCALE, DecodeLimits};
use super::error::ImageError;
use super::resample::{Rect, Target};

/// What to do with one image.
pub(super) struct Plan {
    /// What to cut out before the resize.
    pub(super) pre_crop: Option<Rect>,
    pub(super) target: Target,
}

/// Refuses a configuration that no image could satisfy.
pub(super) fn check(config: &PreprocessConfig, limits: &DecodeLimits) -> Result<(), PreprocessConfigError> {
    if let Some(value) = config.pre_crop.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
        return Err(PreprocessConfigError::PreCrop { value });
    }
    if config.decode == Decode::Scaled && !CAN_SCALE {
        return Err(PreprocessConfigError::CannotScale);
    }
    let resized = match config.resize {
        Some(Resize::ShorterSide(side)) => Some((side, side)),
        Some(Resize::Exact { height, width }) => Some((height, width)),
        None => None,
    };
    let crop = config.crop.map(|crop| crop.size());
    for (key, size) in [("resize", resized), ("crop", crop)] {
        let Some((height, width)) = size else { continue };
        if let Some(size) = [height, width].into_iter().find(|&side| side == 0 || side > limits.max_side) {
            return Err(PreprocessConfigError::Size { key, size, max_side: limits.max_side });
        }
        let max_pixels = limits.max_pixels;
        if u64::from(height) * u64::from(width) > max_pixels {
            return Err(PreprocessConfigError::Pixels { key, height, width, max_pixels });
        }
    }
    if let (Some((height, width)), Some((crop_height, crop_width))) = (resized, crop) {
        // By the shorter side, only that side is sure: of a square, both.
        let is_exact = matches!(config.resize, Some(Resize::Exact { .. })) || config.pre_crop.is_some();
        let fits = match is_exact {
            true => crop_height <= height && crop_width <= width,
            false => crop_height.min(crop_width) <= height,
        };
        if !fits {
            return Err(PreprocessConfigError::CropTooLarge { crop_height, crop_width, height, width });
        }
    }
    Ok(())
}

/// `(height, width)` of every tensor, if they do not depend on the image.
pub(super) fn output_size(config: &PreprocessConfig) -> Option<(usize, usize)> {
    let size = match (config.crop, config.resize) {
        (Some(crop), _) => crop.size(),
        (None, Some(Resize::Exact { height, width })) => (height, width),
        (None, Some(Resize::ShorterSide(side))) if config.pre_crop.is_some() => (side, side),
        (None, _) => return None,
    };
    Some((size.0 as usize, size.1 as usize))
}

/// The square that is cut out of an image of this size before the resize.
fn pre_crop(config: &PreprocessConfig, height: usize, width: usize) -> Option<Rect> {
    config.pre_crop.map(|share| {
        let shorter = height.min(width);
        let side = ((share * shorter as f64).round_ties_even() as usize).clamp(1, shorter);
        centered(height, width, side, side)
    })
}

/// The size of what is resized, and of what it becomes.
fn resize(config: &PreprocessConfig, height: usize, width: usize) -> ((usize, usize), (usize, usize)) {
    let (height, width) =
        pre_crop(config, height, width).map_or((height, width), |square| (square.height, square.width));
    let resized = match config.resize {
        Some(Resize::ShorterSide(side)) => shorter_side_to(side as usize, height, width),
        Some(Resize::Exact { height, width }) => (height as usize, width as usize),
        None => (height, width),
    };
    ((height, width), resized)
}

/// By how much an image of this size may be decoded smaller, so that the resize makes nothing larger: 1, 2, 4 or 8.
pub(super) fn reduction(config: &PreprocessConfig, height: usize, width: usize) -> usize {
    if config.decode == Decode::Exact {
        return 1;
    }
    let ((height, width), (new_height, new_width)) = resize(config, height, width);
    let times = (height / new_height.max(1)).min(width / new_width.max(1));
    [8, 4, 2].into_iter().find(|&reduction| reduction <= times).unwrap_or(1)
}

/// Lays out the steps for an image of the full size that was decoded at another, or the same. `(height, width)`.
pub(super) fn plan(
    config: &PreprocessConfig,
    limits: &DecodeLimits,
    full: (usize, usize),
    decoded: (usize, usize),
) -> Result<Plan, ImageError> {
    let (_, (height, width)) = resize(config, full.0, full.1);
    let pre_crop = pre_crop(config, decoded.0, decoded.1);
    let window = match config.crop.map(|crop| crop.size()) {
        Some((crop_height, crop_width)) => {
            let (crop_height, crop_width) = (crop_height as usize, crop_width as usize);
            if crop_height > height || crop_width > width {
                return Err(ImageError::TooSmall { height, width, crop_height, crop_width });
            }
            centered(height, width, crop_height, crop_width)
        }
        None => {
            // A thin image blown up by its shorter side may become larger than anything that is let in.
            limits.check_size(width as u64, height as u64)?;
            Rect { top: 0, left: 0, height, width }
        }
    };
    Ok(Plan { pre_crop, target: Target { height, width, window } })
}

/// `(height, width)` with the shorter side of this length, the longer one `floor(side * long / short)`.
fn shorter_side_to(side: usize, height: usize, width: usize) -> (usize, usize) {
    if height <= width { (side, side * width / height) } else { (side * height / width, side) }
}

/// A rectangle in the middle; half a pixel goes to the even offset.
fn centered(height: usize, width: usize, rect_height: usize, rect_width: usize) -> Rect {
    Rect {
        top: half_to_even(height - rect_height),
        left: half_to_even(width - rect_width),
        height: rect_height,
        width: rect_width,
    }
}

/// `n / 2`, rounded half to even as Python's `round` does.
fn half_to_even(n: usize) -> usize {
    n / 2 + usize::from(n % 4 == 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_to_the_even_side() {
        let halves: Vec<usize> = (0..8).map(half_to_even).collect();
        assert_eq!(halves, [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn the_longer_side_is_rounded_down() {
        assert_eq!(shorter_side_to(256, 375, 500), (256, 341));
        assert_eq!(shorter_side_to(256, 500, 375), (341, 256));
        assert_eq!(shorter_side_to(36, 96, 96), (36, 36));
        assert_eq!(shorter_side_to(2, 1, 65_535), (2, 131_070));
    }
}
