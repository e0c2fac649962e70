//! PIL's `convert("RGB")` from the layouts that decoders give.

/// Gray to three equal channels.
pub(super) fn from_gray(gray: &[u8]) -> Vec<u8> {
    gray.iter().flat_map(|&v| [v; 3]).collect()
}

/// The first three of `N` channels: RGBA without its alpha, and whatever else comes behind.
pub(super) fn first_three<const N: usize>(pixels: &[u8]) -> Vec<u8> {
    pixels.chunks_exact(N).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
}

/// RGBA whose colours have been multiplied by alpha: divided by it again, at most 255; nothing is left where alpha is 0.
pub(super) fn from_premultiplied(pixels: &[u8]) -> Vec<u8> {
    let divided = |value: u8, alpha: u8| match alpha {
        0 => 0,
        alpha => (u32::from(value) * 255 / u32::from(alpha)).min(255) as u8,
    };
    pixels.chunks_exact(4).flat_map(|pixel| [0, 1, 2].map(|channel| divided(pixel[channel], pixel[3]))).collect()
}

/// The first of `N` channels, as gray: gray with alpha, without its alpha.
pub(super) fn first_as_gray<const N: usize>(pixels: &[u8]) -> Vec<u8> {
    pixels.chunks_exact(N).flat_map(|pixel| [pixel[0]; 3]).collect()
}

/// 16-bit gray: clipped, not scaled. That is how Pillow converts its mode `I;16`.
pub(super) fn from_gray16(gray: impl Iterator<Item = u16>) -> Vec<u8> {
    gray.flat_map(|v| [v.min(255) as u8; 3]).collect()
}

/// 16-bit samples of colour, or of gray with alpha: the high byte.
pub(super) fn high_bytes(samples: impl Iterator<Item = u16>) -> Vec<u8> {
    samples.map(|v| (v >> 8) as u8).collect()
}

/// CMYK (255 is full ink) by Pillow's formula: `(255 - k) - c * (255 - k) / 255`.
pub(super) fn from_cmyk(pixels: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(pixels.len() / 4 * 3);
    for pixel in pixels.chunks_exact(4) {
        let light = 255 - pixel[3];
        rgb.extend([pixel[0], pixel[1], pixel[2]].map(|ink| light - scaled(ink, light)));
    }
    rgb
}

/// `a * b / 255`, rounded.
fn scaled(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    // At most 255, since both factors are.
    (((product >> 8) + product) >> 8) as u8
}

/// Samples of 1, 2 or 4 bits, rows padded to whole bytes, scaled to 0..255.
pub(super) fn unpacked(packed: &[u8], bits: u8, width: usize, height: usize) -> Vec<u8> {
    let bits = usize::from(bits);
    let max = (1usize << bits) - 1;
    let stride = (width * bits).div_ceil(8);
    let mut samples = Vec::with_capacity(width * height);
    for row in packed.chunks(stride.max(1)).take(height) {
        for bit in (0..width).map(|x| x * bits) {
            let value = usize::from(row.get(bit / 8).copied().unwrap_or(0)) >> (8 - bits - bit % 8) & max;
            samples.push((value * 255 / max) as u8);
        }
    }
    samples
}
