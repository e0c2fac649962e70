//! Constants as float32, whichever way the file holds them.

use std::path::Path;

use bytes::Bytes;

use super::error::{CutError, TensorFault};
use super::external;
use super::graph::{Index, attribute, input, int, ints, standard_op};
use crate::onnx::proto::{EXTERNAL, NodeProto, TensorProto, data_type};

/// A constant's values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Constant {
    pub dims: Vec<usize>,
    pub values: Vec<f32>,
    /// The element type that the graph computes with.
    pub data_type: i32,
}

impl Constant {
    /// As it is written in messages.
    pub(super) fn shape(&self) -> Vec<i64> {
        self.dims.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect()
    }

    /// Columns to rows. Only for a matrix; anything else is left as it is.
    pub(super) fn transposed(self) -> Self {
        let [rows, columns] = self.dims[..] else { return self };
        let column = |j: usize| self.values.iter().skip(j).step_by(columns).copied();
        let values = (0..columns).flat_map(column).collect();
        Self { dims: vec![columns, rows], values, data_type: self.data_type }
    }
}

/// Reads the value as a constant; None if it is computed at run time.
///
/// An initializer, a Constant node, and Identity, Cast or Transpose of one of these: what exporters put around weights.
pub(super) fn constant(index: &Index<'_>, value: &str, base_dir: Option<&Path>) -> Result<Option<Constant>, CutError> {
    let mut value = value;
    let mut is_transposed = false;
    let mut cast_to = None;
    for _ in 0..=index.n_nodes() {
        if let Some(tensor) = index.initializer(value) {
            return read(tensor, base_dir).map(|constant| Some(finish(constant, is_transposed, cast_to)));
        }
        let Some(node) = index.producer(value) else { return Ok(None) };
        let before = match standard_op(node) {
            Some("Constant") => {
                let constant = from_node(node, base_dir)?;
                return Ok(constant.map(|constant| finish(constant, is_transposed, cast_to)));
            }
            Some("Identity") => input(node, 0),
            Some("Cast") => {
                // What comes last decides what the layer computes with.
                cast_to = cast_to.or_else(|| i32::try_from(int(node, "to", 0)).ok());
                input(node, 0)
            }
            Some("Transpose") => {
                is_transposed ^= match ints(node, "perm") {
                    None | Some([1, 0]) => true,
                    Some([0, 1]) => false,
                    Some(_) => return Ok(None),
                };
                input(node, 0)
            }
            _ => None,
        };
        match before {
            Some(before) => value = before,
            None => return Ok(None),
        }
    }
    Ok(None)
}

fn finish(constant: Constant, is_transposed: bool, cast_to: Option<i32>) -> Constant {
    let constant = if is_transposed { constant.transposed() } else { constant };
    Constant { data_type: cast_to.unwrap_or(constant.data_type), ..constant }
}

/// The value of a Constant node, of the forms that can hold a matrix or a vector of floats.
fn from_node(node: &NodeProto, base_dir: Option<&Path>) -> Result<Option<Constant>, CutError> {
    let floats = |dims, values| Constant { dims, values, data_type: data_type::FLOAT };
    if let Some(tensor) = attribute(node, "value").and_then(|value| value.t.as_deref()) {
        let mut tensor = tensor.clone();
        if tensor.name.as_deref().is_none_or(str::is_empty) {
            tensor.name = node.output.first().cloned();
        }
        return read(&tensor, base_dir).map(Some);
    }
    if let Some(value) = attribute(node, "value_floats") {
        return Ok(Some(floats(vec![value.floats.len()], value.floats.clone())));
    }
    Ok(attribute(node, "value_float").map(|value| floats(Vec::new(), vec![value.f.unwrap_or(0.0)])))
}

/// Whether a constant flag is set; None if it is not a constant. Only initializers and Constant nodes are looked at.
pub(super) fn flag(index: &Index<'_>, value: &str) -> Option<bool> {
    let tensor = tensor_of(index, value)?;
    let raw = tensor.raw_data.iter().flatten().any(|&byte| byte != 0);
    Some(raw || tensor.int32_data.iter().any(|&x| x != 0))
}

/// The values of a constant list of integers, as it says a shape; None if it is none. Only initializers and Constant nodes are
/// looked at.
pub(super) fn integers(index: &Index<'_>, value: &str) -> Option<Vec<i64>> {
    let Some(tensor) = tensor_of(index, value) else {
        return Some(ints(index.producer(value)?, "value_ints").filter(|values| !values.is_empty())?.to_vec());
    };
    if tensor.data_type != Some(data_type::INT64) || tensor.data_location == Some(EXTERNAL) {
        return None;
    }
    let of_bytes = |raw: &Bytes| raw.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect();
    Some(tensor.raw_data.as_ref().map_or_else(|| tensor.int64_data.clone(), of_bytes))
}

fn tensor_of<'a>(index: &Index<'a>, value: &str) -> Option<&'a TensorProto> {
    let from_node = || attribute(index.producer(value)?, "value")?.t.as_deref();
    index.initializer(value).or_else(from_node)
}

/// Reads a tensor of floats of any width and encoding.
///
/// # Errors
/// [`CutError::Tensor`] if its type is no float, or its parts contradict each other.
pub(super) fn read(tensor: &TensorProto, base_dir: Option<&Path>) -> Result<Constant, CutError> {
    let fault = |reason| CutError::Tensor { tensor: tensor.name.clone().unwrap_or_default(), reason };
    let dims = dims(tensor).ok_or_else(|| fault(TensorFault::Dims { dims: tensor.dims.clone() }))?;
    let n_values: usize = dims.iter().product();
    let data_type = tensor.data_type.unwrap_or(0);
    let Some(width) = width(data_type) else {
        return Err(fault(TensorFault::ElementType { data_type }));
    };
    let external;
    let raw = if tensor.data_location == Some(EXTERNAL) {
        external = external::read(tensor, n_values * width, base_dir)?;
        Some(external.as_slice())
    } else {
        tensor.raw_data.as_deref()
    };
    let (values, expected): (Vec<f32>, usize) = match raw {
        Some(raw) if raw.len() != n_values * width => {
            let (found, expected) = (raw.len() as u64, (n_values * width) as u64);
            return Err(fault(TensorFault::Length { found, expected }));
        }
        Some(raw) => (from_bytes(raw, data_type), n_values),
        None => (from_lists(tensor, data_type), n_values),
    };
    if values.len() != expected {
        return Err(fault(TensorFault::Length { found: values.len() as u64, expected: expected as u64 }));
    }
    if let Some(index) = values.iter().position(|x| !x.is_finite()) {
        return Err(fault(TensorFault::NotFinite { index }));
    }
    Ok(Constant { dims, values, data_type })
}

/// The dimensions, if they are sizes above 0 and their product fits memory with room to spare. Of one that is 0 the others could
/// be of any size, and no layer has it.
fn dims(tensor: &TensorProto) -> Option<Vec<usize>> {
    let dims: Vec<usize> = tensor.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
    let n_values = dims.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim))?;
    (1..=usize::MAX / 16).contains(&n_values).then_some(dims)
}

/// Bytes of one value.
fn width(data_type: i32) -> Option<usize> {
    match data_type {
        data_type::FLOAT => Some(4),
        data_type::DOUBLE => Some(8),
        data_type::FLOAT16 | data_type::BFLOAT16 => Some(2),
        _ => None,
    }
}

fn from_bytes(raw: &[u8], data_type: i32) -> Vec<f32> {
    let singles = || raw.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let halves = |decode: fn(u16) -> f32| raw.as_chunks().0.iter().map(|&b| decode(u16::from_le_bytes(b))).collect();
    match data_type {
        data_type::DOUBLE => raw.as_chunks().0.iter().map(|&bytes| narrowed(f64::from_le_bytes(bytes))).collect(),
        data_type::FLOAT16 => halves(from_float16),
        data_type::BFLOAT16 => halves(from_bfloat16),
        _ => singles(),
    }
}

/// Two-byte floats are kept in the list of 32-bit integers, one each.
fn from_lists(tensor: &TensorProto, data_type: i32) -> Vec<f32> {
    let halves = |decode: fn(u16) -> f32| tensor.int32_data.iter().map(|&x| decode((x & 0xffff) as u16)).collect();
    match data_type {
        data_type::DOUBLE => tensor.double_data.iter().map(|&x| narrowed(x)).collect(),
        data_type::FLOAT16 => halves(from_float16),
        data_type::BFLOAT16 => halves(from_bfloat16),
        _ => tensor.float_data.clone(),
    }
}

/// The nearest float32. What is beyond its range becomes infinite, and is refused as such.
fn narrowed(x: f64) -> f32 {
    x as f32
}

fn from_bfloat16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// IEEE 754 half precision: 1 bit sign, 5 bits exponent (bias 15), 10 bits fraction. Exact.
fn from_float16(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(bits >> 10 & 0x1f);
    let fraction = f32::from(bits & 0x3ff) / 1024.0;
    match exponent {
        0 => sign * fraction * 2.0_f32.powi(-14),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + fraction) * 2.0_f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float16_is_read_exactly() {
        let cases = [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, 6.103_515_6e-5), // the smallest normal number
            (0x0001, 5.960_464_5e-8), // the smallest of all
            (0x3555, 0.333_251_95),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, expected) in cases {
            assert_eq!(from_float16(bits), expected, "{bits:#06x}");
        }
        assert!(from_float16(0x7e00).is_nan());
    }

    #[test]
    fn bfloat16_is_the_upper_half_of_float32() {
        assert_eq!(from_bfloat16(0x3f80), 1.0);
        assert_eq!(from_bfloat16(0xc049), -3.140_625);
    }

    #[test]
    fn transposing_swaps_rows_and_columns() {
        let matrix = Constant { dims: vec![2, 3], values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], data_type: 1 };
        let expected = Constant { dims: vec![3, 2], values: vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0], data_type: 1 };
        assert_eq!(matrix.transposed(), expected);
    }
}
