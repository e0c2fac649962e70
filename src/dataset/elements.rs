//! From the bytes of an array to features or labels, block by block: the file's elements are never all held beside ours.

use std::io::{ErrorKind, Read};

use super::{
    Expected, FeatureSetError, MAX_CLASSES,
    feature_set::check_shape,
    sink::{Shape, Sink},
};

/// The names that the features may have.
pub(super) const FEATURES: [&str; 2] = ["features", "feats"];
/// The name of the labels.
pub(super) const LABELS: &str = "labels";

// A multiple of every element size.
const BLOCK_BYTES: usize = 1 << 16;

/// The sorts of numbers that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Float,
    Signed,
    Unsigned,
}

/// How one element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) class: Class,
    /// 1, 2, 4 or 8 bytes; at least 2 for floats.
    pub(super) size: usize,
    pub(super) big_endian: bool,
}

/// An array as its file declares it.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) member: &'static str,
    /// `None` for elements that are neither floats nor integers.
    pub(super) element: Option<Element>,
    /// The file's name of the element type.
    pub(super) type_name: String,
    pub(super) fortran_order: bool,
    pub(super) shape: Vec<u64>,
}

/// What may still be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    max_bytes: u64,
    used: u128,
}

impl Budget {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, used: 0 }
    }

    /// Takes `bytes` for `member` out of the budget, before they are read or allocated.
    pub(super) fn take(&mut self, member: &'static str, bytes: u128) -> Result<(), FeatureSetError> {
        self.used = self.used.saturating_add(bytes);
        if self.used > u128::from(self.max_bytes) {
            return Err(FeatureSetError::TooLarge { member, bytes: self.used, max_bytes: self.max_bytes });
        }
        Ok(())
    }
}

impl Layout {
    fn element(&self, classes: &[Class], expected: &'static str) -> Result<Element, FeatureSetError> {
        self.element.filter(|element| classes.contains(&element.class)).ok_or_else(|| FeatureSetError::ElementType {
            member: self.member,
            found: self.type_name.clone(),
            expected,
        })
    }

    fn dimensions(&self, expected: &'static str) -> FeatureSetError {
        FeatureSetError::Dimensions { member: self.member, found: self.shape.clone(), expected }
    }

    /// The number of elements; `None` if it is beyond all measure.
    fn n_elements(&self) -> Option<u128> {
        self.shape.iter().try_fold(1u128, |product, &dim| product.checked_mul(dim.into()))
    }

    /// Checks the type, the shape and the number of bytes of the labels, before they are read.
    pub(super) fn check_labels(&self, n_bytes: u64, held: &mut Budget) -> Result<Checked, FeatureSetError> {
        let element = self.element(&[Class::Signed, Class::Unsigned], "integers")?;
        let &[rows] = self.shape.as_slice() else { return Err(self.dimensions("one dimension")) };
        self.check_bytes(element, n_bytes, held)?;
        Ok(Checked { member: self.member, element, fortran_order: false, rows, columns: 1 })
    }

    /// Checks the type, the shape and the number of bytes of the features, before anything is read.
    pub(super) fn check_features(
        &self,
        n_labels: u64,
        n_bytes: u64,
        expected: &Expected,
        held: &mut Budget,
    ) -> Result<Checked, FeatureSetError> {
        let element = self.element(&[Class::Float], "float16, float32 or float64")?;
        let &[rows, columns] = self.shape.as_slice() else { return Err(self.dimensions("two dimensions")) };
        check_shape(rows, columns, n_labels)?;
        if let Some(feature_dim) = expected.feature_dim.filter(|&feature_dim| feature_dim as u64 != columns) {
            return Err(FeatureSetError::FeatureDim { found: columns, expected: feature_dim });
        }
        self.check_bytes(element, n_bytes, held)?;
        Ok(Checked { member: self.member, element, fortran_order: self.fortran_order, rows, columns })
    }

    fn check_bytes(&self, element: Element, found: u64, held: &mut Budget) -> Result<(), FeatureSetError> {
        let n_elements = self.n_elements().unwrap_or(u128::MAX);
        // Features and labels alike are held in four bytes.
        held.take(self.member, n_elements.saturating_mul(4))?;
        let expected = u64::try_from(n_elements.saturating_mul(element.size as u128)).unwrap_or(u64::MAX);
        match found.cmp(&expected) {
            std::cmp::Ordering::Less => Err(FeatureSetError::Short { member: self.member, expected, found }),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(FeatureSetError::TrailingBytes { member: self.member }),
        }
    }
}

/// An array whose type, shape and size have been found to fit together and into the budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked {
    member: &'static str,
    element: Element,
    fortran_order: bool,
    rows: u64,
    columns: u64,
}

impl Checked {
    /// N.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// The shape of features.
    pub(super) fn shape(&self) -> Result<Shape, FeatureSetError> {
        Shape::new(self.rows, self.columns, self.fortran_order)
    }

    /// Reads labels; each must be below `num_classes`, or [`MAX_CLASSES`].
    pub(super) fn read_labels(
        &self,
        source: &mut impl Read,
        num_classes: Option<usize>,
        sink: &mut impl Sink,
    ) -> Result<(), FeatureSetError> {
        let shape = self.shape()?;
        let limit = num_classes.unwrap_or(MAX_CLASSES);
        let mut n_read = 0;
        let mut labels = Vec::with_capacity(BLOCK_BYTES / self.element.size);
        self.read_blocks(source, shape.rows, |block| {
            labels.clear();
            for bytes in block.chunks_exact(self.element.size) {
                let label = integer(bytes, self.element);
                let in_range = usize::try_from(label).is_ok_and(|label| label < limit);
                match u32::try_from(label) {
                    Ok(label) if in_range => labels.push(label),
                    _ => {
                        let row = n_read + labels.len();
                        return Err(FeatureSetError::LabelOutOfRange { row, label, num_classes });
                    }
                }
            }
            n_read += labels.len();
            sink.put_labels(&labels)
        })
    }

    /// Reads features as float32, in the order of the file.
    pub(super) fn read_features(&self, source: &mut impl Read, sink: &mut impl Sink) -> Result<(), FeatureSetError> {
        let shape = self.shape()?;
        let mut n_read = 0;
        let mut converted = Vec::with_capacity(BLOCK_BYTES / 2);
        self.read_blocks(source, shape.n_elements(), |block| {
            converted.clear();
            convert(block, self.element, &mut converted);
            if let Some(offset) = converted.iter().position(|value| !value.is_finite()) {
                let index = shape.place(n_read + offset);
                return Err(FeatureSetError::NotFinite { row: index / shape.columns, column: index % shape.columns });
            }
            n_read += converted.len();
            sink.put_features(&converted)
        })
    }

    /// Hands `n_elements` elements to `take` block by block, and makes sure that nothing follows them.
    fn read_blocks(
        &self,
        source: &mut impl Read,
        n_elements: usize,
        mut take: impl FnMut(&[u8]) -> Result<(), FeatureSetError>,
    ) -> Result<(), FeatureSetError> {
        let n_bytes = n_elements as u64 * self.element.size as u64;
        let mut block = vec![0; BLOCK_BYTES.min(usize::try_from(n_bytes).unwrap_or(BLOCK_BYTES))];
        let mut n_read = 0;
        while n_read < n_bytes {
            let wanted = block.len().min(usize::try_from(n_bytes - n_read).unwrap_or(block.len()));
            let found = fill(source, &mut block[..wanted]).map_err(|error| damaged(self.member, &error))?;
            n_read += found as u64;
            if found < wanted {
                return Err(FeatureSetError::Short { member: self.member, expected: n_bytes, found: n_read });
            }
            take(&block[..wanted])?;
        }
        // The end is read too: that is where an archive compares the checksum.
        match fill(source, &mut [0]).map_err(|error| damaged(self.member, &error))? {
            0 => Ok(()),
            _ => Err(FeatureSetError::TrailingBytes { member: self.member }),
        }
    }
}

/// Reads until `buffer` is full or the source has ended; says how much was read.
pub(super) fn fill(source: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

pub(super) fn damaged(member: &'static str, error: &impl ToString) -> FeatureSetError {
    FeatureSetError::Damaged { member, reason: error.to_string() }
}

fn integer(bytes: &[u8], element: Element) -> i128 {
    let mut word = [0; 8];
    for (target, index) in word.iter_mut().zip(0..bytes.len()) {
        *target = bytes[if element.big_endian { bytes.len() - 1 - index } else { index }];
    }
    let unsigned = u64::from_le_bytes(word);
    if element.class == Class::Signed {
        let unused = 64 - 8 * bytes.len();
        i128::from((unsigned << unused) as i64 >> unused)
    } else {
        i128::from(unsigned)
    }
}

fn convert(block: &[u8], element: Element, out: &mut Vec<f32>) {
    fn each<const N: usize>(block: &[u8], element: Element, out: &mut Vec<f32>, value: impl Fn([u8; N]) -> f32) {
        let (chunks, _) = block.as_chunks::<N>();
        out.extend(chunks.iter().map(|&bytes| {
            let mut bytes = bytes;
            if element.big_endian {
                bytes.reverse();
            }
            value(bytes)
        }));
    }
    match element.size {
        2 => each(block, element, out, |bytes| f32_of_f16(u16::from_le_bytes(bytes))),
        4 => each(block, element, out, f32::from_le_bytes),
        _ => each(block, element, out, |bytes| f64::from_le_bytes(bytes) as f32),
    }
}

/// IEEE 754 binary16 to binary32, which holds each of its values.
fn f32_of_f16(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let mantissa = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        0 => (mantissa as f32 * 2f32.powi(-24)).to_bits(),
        0x1f => 0xff << 23 | mantissa << 13,
        _ => (exponent + 127 - 15) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float16_has_its_value() {
        for bits in 0..=u16::MAX {
            let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
            let magnitude = match exponent {
                0 => mantissa * 2f64.powi(-24),
                0x1f if mantissa == 0.0 => f64::INFINITY,
                0x1f => f64::NAN,
                _ => (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
            };
            let expected = magnitude.copysign(if bits >> 15 == 1 { -1.0 } else { 1.0 }) as f32;
            let actual = f32_of_f16(bits);
            assert!(actual.to_bits() == expected.to_bits() || (actual.is_nan() && expected.is_nan()), "{bits:#06x}");
        }
    }

    #[test]
    fn integers_of_every_width_keep_their_sign() {
        let signed = |size, big_endian| Element { class: Class::Signed, size, big_endian };
        assert_eq!(integer(&[0xfe], signed(1, false)), -2);
        assert_eq!(integer(&[0xff, 0xfe], signed(2, true)), -2);
        assert_eq!(integer(&[0x00, 0x01], signed(2, true)), 1);
        assert_eq!(integer(&i64::MIN.to_le_bytes(), signed(8, false)), i128::from(i64::MIN));
        let unsigned = Element { class: Class::Unsigned, size: 8, big_endian: true };
        assert_eq!(integer(&u64::MAX.to_be_bytes(), unsigned), i128::from(u64::MAX));
    }
}
