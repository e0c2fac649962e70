use super::*;

/// Noise with a fixed seed (xorshift).
fn noise(height: usize, width: usize) -> RgbImage {
    let mut state = 0x9e37_79b9_u32;
    let pixels = (0..height * width * 3)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            // Extremes more often than not: they make the sums overshoot.
            match state % 4 {
                0 => 0,
                1 => 255,
                _ => (state >> 8) as u8,
            }
        })
        .collect();
    RgbImage::new(pixels, height, width).expect("the size fits")
}

/// Of two pixels the largest weights are made, with Lanczos.
#[cfg(target_arch = "x86_64")]
const SIZES: [(usize, usize); 11] =
    [(1, 1), (2, 2), (1, 9), (9, 1), (5, 4), (7, 11), (23, 33), (64, 64), (61, 97), (200, 31), (3, 401)];
const CONVOLUTIONS: [Interpolation; 3] = [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos];

#[cfg(target_arch = "x86_64")]
#[test]
fn the_fast_horizontal_pass_gives_the_scalar_bytes() {
    for (height, width) in SIZES {
        let image = noise(height, width);
        for (out, interpolation) in [1, 2, 7, 32, 65, 513].into_iter().flat_map(|out| CONVOLUTIONS.map(|i| (out, i))) {
            let filter = Filter::of(interpolation).expect("not nearest");
            let windows = Windows::new(filter, width, out, 0..out);
            let mut slow = Rows::new(height, out);
            scalar::horizontal(image.view(), &windows, &mut slow);
            for instructions in x86::Instructions::all() {
                let what = format!("{instructions:?}, {height}x{width} to {out}, {interpolation:?}");
                let mut fast = Rows::new(height, out);
                instructions.horizontal(image.view(), &windows, &mut fast);
                for y in 0..height {
                    assert_eq!(fast.view().row(y), slow.view().row(y), "{what}");
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_fast_vertical_pass_gives_the_scalar_bytes() {
    for (height, width) in SIZES {
        let image = noise(height, width);
        for (out, interpolation) in [1, 2, 7, 32, 65, 513].into_iter().flat_map(|out| CONVOLUTIONS.map(|i| (out, i))) {
            let filter = Filter::of(interpolation).expect("not nearest");
            let windows = Windows::new(filter, height, out, 0..out);
            for y in 0..out {
                let mut slow = vec![0; width * 3];
                scalar::vertical(image.view(), &windows, y, &mut slow);
                for instructions in x86::Instructions::all() {
                    let mut fast = vec![0; width * 3];
                    instructions.vertical(image.view(), &windows, y, &mut fast);
                    assert_eq!(fast, slow, "{instructions:?}, {height}x{width} to {out}, {interpolation:?}");
                }
            }
        }
    }
}

#[test]
fn a_window_is_the_same_part_of_the_whole() {
    let image = noise(47, 61);
    let window = Rect { top: 5, left: 9, height: 20, width: 13 };
    for interpolation in
        [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos]
    {
        for (height, width) in [(31, 29), (47, 29), (31, 61), (47, 61), (90, 70)] {
            let whole = resample(image.view(), interpolation, &Target::whole(height, width));
            let part = resample(image.view(), interpolation, &Target { height, width, window });
            let expected = resample(whole.view().crop(window).expect("inside"), interpolation, &Target::whole(20, 13));
            assert_eq!(part, expected, "{interpolation:?} to {height}x{width}");
        }
    }
}

#[test]
fn an_unchanged_size_keeps_every_byte() {
    let image = noise(13, 17);
    for interpolation in CONVOLUTIONS {
        assert_eq!(resample(image.view(), interpolation, &Target::whole(13, 17)), image);
    }
}
