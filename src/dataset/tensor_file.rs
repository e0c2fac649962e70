//! Feature sets in safetensors.
//!
//! The header is read here and not by the library's reader, which wants the whole file in memory: the data would be held
//! twice. What is checked is the same, and a name that stands twice is refused besides.

use std::{
    fmt,
    io::{Read, Seek, SeekFrom},
};

use ndarray::Array2;
use safetensors::{Dtype, tensor::TensorInfo};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{
    FeatureSetError,
    elements::{Budget, Class, Element, FEATURES, LABELS, Layout, fill},
};

/// Room for some ten thousand tensors.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Reads features and labels; see `FeatureSet::read`.
pub(super) fn read(
    mut source: impl Read + Seek,
    num_classes: Option<usize>,
    max_bytes: u64,
) -> Result<(Array2<f32>, Vec<u32>), FeatureSetError> {
    let file_bytes = source.seek(SeekFrom::End(0))?;
    source.seek(SeekFrom::Start(0))?;
    let mut length = [0; 8];
    if fill(&mut source, &mut length)? < length.len() {
        return Err(container("shorter than the length of a header"));
    }
    let header_bytes = u64::from_le_bytes(length);
    let data_bytes = file_bytes.checked_sub(8).and_then(|rest| rest.checked_sub(header_bytes));
    let Some(data_bytes) = data_bytes else {
        return Err(container(format!("a header of {header_bytes} bytes is declared, and the file has {file_bytes}")));
    };
    if header_bytes > MAX_HEADER_BYTES {
        return Err(container(format!("a header of {header_bytes} bytes, and the limit is {MAX_HEADER_BYTES}")));
    }
    let mut header = Vec::new();
    source.by_ref().take(header_bytes).read_to_end(&mut header)?;
    let Tensors(mut tensors) =
        serde_json::from_slice(&header).map_err(|error| container(format!("its header: {error}")))?;

    let features = find(&tensors, FEATURES[0])?;
    let feats = find(&tensors, FEATURES[1])?;
    let labels = find(&tensors, LABELS)?;
    let features = match (features, feats) {
        (Some(_), Some(_)) => return Err(FeatureSetError::BothNames),
        (features, feats) => features.or(feats),
    };
    let features = features.ok_or(FeatureSetError::MissingFeatures)?;
    let labels = labels.ok_or(FeatureSetError::MissingLabels)?;
    check_offsets(&mut tensors, data_bytes)?;

    let mut unpacked = Budget::new(max_bytes);
    unpacked.take(LABELS, labels.n_bytes.into())?;
    unpacked.take(features.layout.member, features.n_bytes.into())?;

    let mut held = Budget::new(max_bytes);
    let data_start = 8 + header_bytes;
    source.seek(SeekFrom::Start(data_start + labels.start))?;
    let checked = labels.layout.check_labels(labels.n_bytes, &mut held)?;
    let n_labels = checked.rows();
    let label_values = checked.read_labels(&mut source.by_ref().take(labels.n_bytes), num_classes)?;

    source.seek(SeekFrom::Start(data_start + features.start))?;
    let checked = features.layout.check_features(n_labels, features.n_bytes, &mut held)?;
    Ok((checked.read_features(&mut source.by_ref().take(features.n_bytes))?, label_values))
}

struct Member {
    layout: Layout,
    start: u64,
    n_bytes: u64,
}

fn find(tensors: &[(String, TensorInfo)], member: &'static str) -> Result<Option<Member>, FeatureSetError> {
    let mut named = tensors.iter().filter(|(name, _)| name == member).map(|(_, info)| info);
    let Some(info) = named.next() else { return Ok(None) };
    if named.next().is_some() {
        return Err(FeatureSetError::DuplicateMember { member });
    }
    let layout = Layout {
        member,
        element: element_of(info.dtype),
        type_name: info.dtype.to_string(),
        fortran_order: false,
        shape: info.shape.iter().map(|&dim| dim as u64).collect(),
    };
    let (start, end) = info.data_offsets;
    Ok(Some(Member { layout, start: start as u64, n_bytes: end.saturating_sub(start) as u64 }))
}

fn element_of(dtype: Dtype) -> Option<Element> {
    let (class, size) = match dtype {
        Dtype::F16 => (Class::Float, 2),
        Dtype::F32 => (Class::Float, 4),
        Dtype::F64 => (Class::Float, 8),
        Dtype::I8 => (Class::Signed, 1),
        Dtype::I16 => (Class::Signed, 2),
        Dtype::I32 => (Class::Signed, 4),
        Dtype::I64 => (Class::Signed, 8),
        Dtype::U8 => (Class::Unsigned, 1),
        Dtype::U16 => (Class::Unsigned, 2),
        Dtype::U32 => (Class::Unsigned, 4),
        Dtype::U64 => (Class::Unsigned, 8),
        _ => return None,
    };
    Some(Element { class, size, big_endian: false })
}

/// Sorts `tensors` and checks that they follow each other without a hole, each as long as its shape says, to the end.
fn check_offsets(tensors: &mut [(String, TensorInfo)], data_bytes: u64) -> Result<(), FeatureSetError> {
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut position = 0;
    for (name, info) in tensors.iter() {
        let name: String = name.chars().take(64).collect();
        let (start, end) = info.data_offsets;
        if start != position || end < start {
            return Err(container(format!(
                "tensor `{name}` is at bytes {start} to {end}, and should begin at {position}"
            )));
        }
        let n_bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &dim| bits.checked_mul(dim));
        if n_bits != (end - start).checked_mul(8) {
            let shape = &info.shape[..info.shape.len().min(8)];
            return Err(container(format!("tensor `{name}` has {} bytes, and shape {shape:?}", end - start)));
        }
        position = end;
    }
    if position as u64 != data_bytes {
        return Err(container(format!("its tensors have {position} bytes, and the file has {data_bytes} for them")));
    }
    Ok(())
}

fn container(reason: impl Into<String>) -> FeatureSetError {
    FeatureSetError::Container { format: "safetensors", reason: reason.into() }
}

/// The tensors of a header in the order of the file, with every name as often as it is there.
struct Tensors(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Tensors;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensors, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Tensors(tensors))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
