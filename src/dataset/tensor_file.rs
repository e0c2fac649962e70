//! Feature sets in safetensors.
//!
//! The header is read here and not by the library's reader, which wants the whole file in memory: the data would be held
//! twice. What is checked is the same, and a name that stands twice is refused besides.

use std::{
    collections::BTreeMap,
    fmt,
    io::{Read, Seek, SeekFrom},
};

use safetensors::{Dtype, tensor::TensorInfo};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::{
    Expected, FeatureSetError,
    elements::{Budget, Class, Element, FEATURES, LABELS, Layout, fill},
    sink::Sink,
};

/// Room for some ten thousand tensors.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Reads features and labels into `sink`; see `FeatureSet::read`.
pub(super) fn read(
    mut source: impl Read + Seek,
    expected: &Expected,
    sink: &mut impl Sink,
) -> Result<(), FeatureSetError> {
    let Header { features, labels, .. } = read_header(&mut source)?;
    let mut unpacked = Budget::new(expected.max_bytes);
    unpacked.take(LABELS, labels.n_bytes.into())?;
    unpacked.take(features.layout.member, features.n_bytes.into())?;

    let mut held = Budget::new(expected.max_bytes);
    let checked_labels = labels.layout.check_labels(labels.n_bytes, &mut held)?;
    let checked = features.layout.check_features(checked_labels.rows(), features.n_bytes, expected, &mut held)?;

    sink.begin(checked.shape()?)?;
    source.seek(SeekFrom::Start(labels.start))?;
    checked_labels.read_labels(&mut source.by_ref().take(labels.n_bytes), expected.num_classes, sink)?;
    source.seek(SeekFrom::Start(features.start))?;
    checked.read_features(&mut source.by_ref().take(features.n_bytes), sink)
}

/// What the header of a file says of the two arrays.
pub(super) struct Header {
    pub(super) features: Member,
    pub(super) labels: Member,
    /// The entries of the metadata that are text.
    pub(super) metadata: BTreeMap<String, String>,
}

/// Reads the header, and checks that its tensors are all that the file has.
pub(super) fn read_header(source: &mut (impl Read + Seek)) -> Result<Header, FeatureSetError> {
    let file_bytes = source.seek(SeekFrom::End(0))?;
    source.seek(SeekFrom::Start(0))?;
    let mut length = [0; 8];
    if fill(source, &mut length)? < length.len() {
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
    source.take(header_bytes).read_to_end(&mut header)?;
    let Tensors { mut tensors, metadata } =
        serde_json::from_slice(&header).map_err(|error| container(format!("its header: {error}")))?;

    let data_start = 8 + header_bytes;
    let features = find(&tensors, FEATURES[0], data_start)?;
    let feats = find(&tensors, FEATURES[1], data_start)?;
    let labels = find(&tensors, LABELS, data_start)?;
    let features = match (features, feats) {
        (Some(_), Some(_)) => return Err(FeatureSetError::BothNames),
        (features, feats) => features.or(feats),
    };
    let features = features.ok_or(FeatureSetError::MissingFeatures)?;
    let labels = labels.ok_or(FeatureSetError::MissingLabels)?;
    check_offsets(&mut tensors, data_bytes)?;
    Ok(Header { features, labels, metadata })
}

/// An array, and where in the file its data lie.
pub(super) struct Member {
    pub(super) layout: Layout,
    pub(super) start: u64,
    pub(super) n_bytes: u64,
}

fn find(
    tensors: &[(String, TensorInfo)],
    member: &'static str,
    data_start: u64,
) -> Result<Option<Member>, FeatureSetError> {
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
    // Offsets beyond all measure are refused when they are compared with the file.
    Ok(Some(Member {
        layout,
        start: data_start.saturating_add(start as u64),
        n_bytes: end.saturating_sub(start) as u64,
    }))
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

/// What a header holds.
struct Tensors {
    /// In the order of the file, with every name as often as it is there.
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Tensors;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensors, A::Error> {
                let (mut tensors, mut metadata) = (Vec::new(), BTreeMap::new());
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        // Whatever else stands there is nothing of ours.
                        if let Value::Object(entries) = map.next_value()? {
                            let texts = entries.into_iter().filter_map(|(key, value)| match value {
                                Value::String(text) => Some((key, text)),
                                _ => None,
                            });
                            metadata.extend(texts);
                        }
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Tensors { tensors, metadata })
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
