//! The other way: tensors to a safetensors file.

use std::{
    collections::BTreeMap,
    io::{Error, ErrorKind, Result, Write},
};

use serde::Serialize;

/// One tensor to write.
#[derive(Clone, Debug)]
pub enum TensorView<'a> {
    /// float32 in row-major order, with its shape.
    F32(&'a [f32], Vec<usize>),
    /// int64 in row-major order, with its shape.
    I64(&'a [i64], Vec<usize>),
}

impl TensorView<'_> {
    fn dtype(&self) -> &'static str {
        match self {
            Self::F32(..) => "F32",
            Self::I64(..) => "I64",
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::F32(_, shape) | Self::I64(_, shape) => shape,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(values, _) => values.len(),
            Self::I64(values, _) => values.len(),
        }
    }

    fn element_size(&self) -> usize {
        match self {
            Self::F32(..) => 4,
            Self::I64(..) => 8,
        }
    }
}

// The order of the fields is that of the file.
#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

/// Writes a safetensors file. The same tensors and metadata give the same bytes: keys are sorted, and nothing else is
/// written.
///
/// The data of wider elements stand first, so that each tensor begins at a multiple of its element size: readers that
/// take views of the file refuse others.
///
/// # Errors
/// Those of `out`, and `InvalidInput` if the values of a tensor are not as many as its shape says.
pub fn write_safetensors(
    out: &mut impl Write,
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, TensorView<'_>>,
) -> Result<()> {
    let mut ordered: Vec<(&String, &TensorView<'_>)> = tensors.iter().collect();
    ordered.sort_by_key(|(name, tensor)| (std::cmp::Reverse(tensor.element_size()), *name));

    let mut entries = BTreeMap::new();
    let mut offset = 0;
    for (name, tensor) in &ordered {
        let n_elements = tensor.shape().iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if n_elements != Some(tensor.len()) {
            let message = format!("tensor `{name}` has {} values for shape {:?}", tensor.len(), tensor.shape());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let end = offset + tensor.len() * tensor.element_size();
        entries
            .insert(name.as_str(), Entry { dtype: tensor.dtype(), shape: tensor.shape(), data_offsets: [offset, end] });
        offset = end;
    }
    let mut header = b"{\"__metadata__\":".to_vec();
    serde_json::to_writer(&mut header, metadata)?;
    for (name, entry) in &entries {
        header.push(b',');
        serde_json::to_writer(&mut header, name)?;
        header.push(b':');
        serde_json::to_writer(&mut header, entry)?;
    }
    header.push(b'}');
    // The format asks that the data begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, tensor) in ordered {
        match tensor {
            TensorView::F32(values, _) => write_blocks(out, values, |value| value.to_le_bytes())?,
            TensorView::I64(values, _) => write_blocks(out, values, |value| value.to_le_bytes())?,
        }
    }
    Ok(())
}

/// Writes values some thousands at a time: one by one takes longer than the rest of a fit by class means.
fn write_blocks<T: Copy, const N: usize>(
    out: &mut impl Write,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> Result<()> {
    let mut block = Vec::with_capacity(N * 8192);
    for values in values.chunks(8192) {
        block.clear();
        block.extend(values.iter().flat_map(|&value| bytes(value)));
        out.write_all(&block)?;
    }
    Ok(())
}
