//! Pixels to try a backbone on.

/// SplitMix64: good enough for pixels, the same everywhere, and no dependency.
pub(crate) struct RandomPixels(u64);

impl RandomPixels {
    /// From the beginning.
    pub(crate) fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// The next `len` values.
    pub(crate) fn draw(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.pixel()).collect()
    }

    /// About what normalised pixels look like: between -2 and 2, more often near 0.
    fn pixel(&mut self) -> f32 {
        self.unit() + self.unit() + self.unit() + self.unit() - 2.0
    }

    /// Between 0 and 1.
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // 24 bits are what a float32 holds exactly.
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u32 << 24) as f32
    }
}
