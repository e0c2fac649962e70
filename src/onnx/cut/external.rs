//! Weights that a model keeps in files beside it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::error::{CutError, TensorFault};
use crate::onnx::contract::{external_entry, refuse_location};
use crate::onnx::proto::{EXTERNAL, GraphProto, NodeProto, TensorProto};
use crate::onnx::session::named;

/// Reads the values of a tensor, which must be `expected_len` bytes, from its file below `base_dir`.
pub(super) fn read(tensor: &TensorProto, expected_len: usize, base_dir: Option<&Path>) -> Result<Vec<u8>, CutError> {
    let part = locate(tensor, base_dir)?;
    if part.len != expected_len as u64 {
        let reason = TensorFault::Length { found: part.len, expected: expected_len as u64 };
        return Err(fault(tensor, reason));
    }
    part.read(tensor)
}

/// Takes the values of every tensor of a graph into the model itself, if they are at most `limit` bytes together.
pub(super) fn inline(graph: &mut GraphProto, base_dir: Option<&Path>, limit: u64) -> Result<(), CutError> {
    let mut n_bytes = 0_u64;
    for_each_tensor(graph, &mut |tensor| {
        if tensor.data_location != Some(EXTERNAL) {
            return Ok(());
        }
        let part = locate(tensor, base_dir)?;
        n_bytes = n_bytes.saturating_add(part.len);
        if limit < n_bytes {
            return Err(CutError::TooLarge { n_bytes });
        }
        tensor.raw_data = Some(part.read(tensor)?.into());
        tensor.external_data.clear();
        tensor.data_location = None;
        Ok(())
    })
}

/// Initializers and the tensors in attributes, through all subgraphs.
fn for_each_tensor<F>(graph: &mut GraphProto, visit: &mut F) -> Result<(), CutError>
where
    F: FnMut(&mut TensorProto) -> Result<(), CutError>,
{
    graph.initializer.iter_mut().try_for_each(&mut *visit)?;
    for sparse in &mut graph.sparse_initializer {
        let tensors = [&mut sparse.values, &mut sparse.indices];
        tensors.into_iter().flatten().try_for_each(|tensor| visit(tensor))?;
    }
    graph.node.iter_mut().try_for_each(|node| for_each_tensor_in_node(node, visit))
}

fn for_each_tensor_in_node<F>(node: &mut NodeProto, visit: &mut F) -> Result<(), CutError>
where
    F: FnMut(&mut TensorProto) -> Result<(), CutError>,
{
    for attribute in &mut node.attribute {
        attribute.t.as_deref_mut().into_iter().chain(&mut attribute.tensors).try_for_each(&mut *visit)?;
        let mut graphs = attribute.g.as_deref_mut().into_iter().chain(&mut attribute.graphs);
        graphs.try_for_each(|graph| for_each_tensor(graph, visit))?;
    }
    Ok(())
}

/// Where in which file.
struct Part {
    file: File,
    location: String,
    offset: u64,
    len: u64,
}

impl Part {
    fn read(mut self, tensor: &TensorProto) -> Result<Vec<u8>, CutError> {
        let mut bytes = Vec::new();
        // `take` bounds the memory by what the file really holds, not by what the model claims.
        let result =
            self.file.seek(SeekFrom::Start(self.offset)).and_then(|_| self.file.take(self.len).read_to_end(&mut bytes));
        match result {
            Ok(_) => Ok(bytes),
            Err(source) => Err(fault(tensor, TensorFault::File { location: self.location, source })),
        }
    }
}

/// Opens the tensor's file, below `base_dir` only, and checks that offset and length lie inside it.
fn locate(tensor: &TensorProto, base_dir: Option<&Path>) -> Result<Part, CutError> {
    let entry = |key| external_entry(&tensor.external_data, key);
    let location = entry("location").unwrap_or_default().to_owned();
    let refused = |reason| fault(tensor, TensorFault::Location { location: location.clone(), reason });
    let unreadable = |source| fault(tensor, TensorFault::File { location: location.clone(), source });
    if let Some(reason) = refuse_location(&location) {
        return Err(refused(reason));
    }
    let base_dir = base_dir.ok_or_else(|| refused("the model was given without a folder"))?;
    let base_dir = named(base_dir).canonicalize().map_err(unreadable)?;
    let path = base_dir.join(&location).canonicalize().map_err(unreadable)?;
    if !path.starts_with(&base_dir) {
        return Err(refused("it is a link that leaves the model's folder"));
    }
    if !path.is_file() {
        return Err(refused("it is not a file"));
    }
    let file = File::open(&path).map_err(unreadable)?;
    let file_len = file.metadata().map_err(unreadable)?.len();
    let (offset_text, len_text) = (entry("offset").unwrap_or("0"), entry("length"));
    let offset = offset_text.parse::<u64>().ok();
    let rest = offset.and_then(|offset| file_len.checked_sub(offset));
    // Without a length the values reach to the end of the file.
    let len = len_text.map_or(rest, |len| len.parse().ok());
    match (offset, rest, len) {
        (Some(offset), Some(rest), Some(len)) if len <= rest => Ok(Part { file, location, offset, len }),
        _ => {
            let (offset, len) = (offset_text.to_owned(), len_text.unwrap_or("the rest").to_owned());
            Err(fault(tensor, TensorFault::Range { location, file_len, offset, len }))
        }
    }
}

fn fault(tensor: &TensorProto, reason: TensorFault) -> CutError {
    CutError::Tensor { tensor: tensor.name.clone().unwrap_or_default(), reason }
}
