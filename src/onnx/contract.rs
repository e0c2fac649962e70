//! What a backbone file must look like, checked before and after ONNX Runtime has read it.

use std::collections::HashMap;
use std::path::{Component, Path};

use ort::value::{Outlet, TensorElementType, ValueType};
use prost::Message;

use super::error::OnnxError;
use super::proto::{Dimension, DimensionValue, EXTERNAL, StringStringEntryProto, TypeValue, ValueInfoProto};

/// Most pixels of an image whose size a model fixes: no larger one is decoded. And of a batch whose size it fixes: 12 GB.
const MAX_PIXELS: u64 = 50_000_000;
const MAX_BATCH_PIXELS: u64 = 1_000_000_000;

/// As much of a model file as is needed to judge it: everything else is skipped, weights above all.
#[derive(Clone, PartialEq, prost::Message)]
struct ModelOutline {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphOutline>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<FunctionOutline>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GraphOutline {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeOutline>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorOutline>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NodeOutline {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, optional, tag = "4")]
    op_type: Option<String>,
    #[prost(string, optional, tag = "7")]
    domain: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FunctionOutline {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, repeated, tag = "4")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    output: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    node: Vec<NodeOutline>,
    #[prost(string, optional, tag = "10")]
    domain: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TensorOutline {
    #[prost(string, optional, tag = "8")]
    name: Option<String>,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
    #[prost(int32, optional, tag = "14")]
    data_location: Option<i32>,
}

/// Refuses bytes that are no model, and models that ONNX Runtime should not be given.
///
/// `ort` panics on inputs and outputs of kinds that it does not know (sparse, opaque), ONNX Runtime 1.31 crashes on calls
/// of a function with more values than it has, and weights in other files are to be read from below the model's folder
/// only. This closes the holes that are known; it is no proof that a hostile file cannot crash ONNX Runtime.
pub(super) fn check_file(model: &[u8], base_dir: Option<&Path>) -> Result<(), OnnxError> {
    let outline = ModelOutline::decode(model).map_err(|source| OnnxError::Malformed { source })?;
    let graph = outline.graph.ok_or(OnnxError::NoGraph)?;
    check_calls(&graph.node, &outline.functions)?;
    if graph.input.is_empty() || !graph.input.iter().all(is_tensor) {
        return Err(OnnxError::Input { found: names(&graph.input) });
    }
    if graph.output.is_empty() || !graph.output.iter().all(is_tensor) {
        return Err(OnnxError::Output { found: names(&graph.output) });
    }
    for tensor in graph.initializer.iter().filter(|tensor| tensor.data_location == Some(EXTERNAL)) {
        let location = external_entry(&tensor.external_data, "location").unwrap_or_default();
        let refusal = match base_dir {
            None => Some("the model was given without a folder"),
            Some(_) => refuse_location(location),
        };
        if let Some(reason) = refusal {
            let tensor = tensor.name.clone().unwrap_or_default();
            return Err(OnnxError::ExternalData { tensor, location: location.to_owned(), reason });
        }
    }
    Ok(())
}

/// Every call of one of the model's own functions has at most as many inputs and outputs as that function.
fn check_calls(nodes: &[NodeOutline], functions: &[FunctionOutline]) -> Result<(), OnnxError> {
    // Of several with one name, which only overloads may have, a call has to fit each.
    let mut most: HashMap<_, (usize, usize)> = HashMap::new();
    for function in functions {
        let (inputs, outputs) = (function.input.len(), function.output.len());
        let most = most.entry((&function.domain, &function.name)).or_insert((inputs, outputs));
        *most = (most.0.min(inputs), most.1.min(outputs));
    }
    let calls = nodes.iter().chain(functions.iter().flat_map(|function| &function.node));
    for call in calls.filter(|_| !functions.is_empty()) {
        if let Some(&(inputs, outputs)) = most.get(&(&call.domain, &call.op_type))
            && (inputs < call.input.len() || outputs < call.output.len())
        {
            return Err(OnnxError::Call { function: call.op_type.clone().unwrap_or_default() });
        }
    }
    Ok(())
}

/// Why a file named by a model must not be opened, if so: only names below the model's own folder are.
pub(super) fn refuse_location(location: &str) -> Option<&'static str> {
    let path = Path::new(location);
    if location.is_empty() {
        return Some("the name is empty");
    }
    if location.contains('\0') {
        return Some("the name is not a file name");
    }
    // A backslash or a drive letter is an ordinary character here and a way out on Windows: refused everywhere.
    if path.is_absolute() || location.starts_with(['/', '\\']) || location.contains(':') {
        return Some("absolute paths are refused");
    }
    let leaves = path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
    if leaves || location.split('\\').any(|part| part == "..") {
        return Some("paths that leave the model's folder are refused");
    }
    None
}

pub(super) fn external_entry<'a>(entries: &'a [StringStringEntryProto], key: &str) -> Option<&'a str> {
    entries.iter().find(|entry| entry.key.as_deref() == Some(key))?.value.as_deref()
}

/// A dense tensor with a name, and no dimension that makes no sense: `ort` would panic on one.
fn is_tensor(value: &ValueInfoProto) -> bool {
    let is_name = |name: &str| !name.contains('\0');
    let is_sensible = |dim: &Dimension| match &dim.value {
        Some(DimensionValue::Value(size)) => 0 <= *size,
        Some(DimensionValue::Param(name)) => is_name(name),
        None => true,
    };
    let Some(TypeValue::Tensor(tensor)) = value.r#type.as_ref().and_then(|ty| ty.value.as_ref()) else { return false };
    value.name.as_deref().is_some_and(|name| !name.is_empty() && is_name(name))
        && tensor.shape.iter().flat_map(|shape| &shape.dim).all(is_sensible)
}

fn names(values: &[ValueInfoProto]) -> String {
    if values.is_empty() {
        return "none".to_owned();
    }
    let name = |value: &ValueInfoProto| {
        let kind = if is_tensor(value) { "" } else { " (not a dense tensor, or of no sensible shape)" };
        format!("`{}`{kind}", value.name.as_deref().unwrap_or_default())
    };
    values.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The image batch that the model takes.
#[derive(Clone, Debug)]
pub(super) struct ImageInput {
    pub name: String,
    pub batch: Option<usize>,
    pub height: Option<usize>,
    pub width: Option<usize>,
}

/// The feature batch that it answers.
#[derive(Clone, Debug)]
pub(super) struct FeatureOutput {
    pub name: String,
    pub feature_dim: Option<usize>,
    /// `[N,D]`, so that a head can take the tensor as it is; else `[N,D,1,1]`, or unknown until a run.
    pub is_matrix: bool,
}

/// A dimension if it is fixed; None if it is symbolic.
fn fixed(dim: i64) -> Option<usize> {
    usize::try_from(dim).ok()
}

pub(super) fn image_input(inputs: &[Outlet]) -> Result<ImageInput, OnnxError> {
    let wrong = || OnnxError::Input { found: describe(inputs) };
    let [input] = inputs else { return Err(wrong()) };
    let ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } = input.dtype() else {
        return Err(wrong());
    };
    let &[n, channels, height, width] = &shape[..] else {
        return Err(wrong());
    };
    let is_rgb = channels < 0 || channels == 3;
    if !is_rgb || [n, height, width].contains(&0) {
        return Err(wrong());
    }
    // What is not fixed counts as one. The sizes are asked for in memory before anything is run.
    let size = |dim: i64| u64::try_from(dim).unwrap_or(1);
    let n_pixels = size(height).saturating_mul(size(width));
    if n_pixels > MAX_PIXELS || n_pixels.saturating_mul(size(n)) > MAX_BATCH_PIXELS {
        let found = describe(inputs);
        return Err(OnnxError::TooManyPixels { found, max_pixels: MAX_PIXELS, max_batch_pixels: MAX_BATCH_PIXELS });
    }
    Ok(ImageInput { name: input.name().to_owned(), batch: fixed(n), height: fixed(height), width: fixed(width) })
}

pub(super) fn feature_output(outputs: &[Outlet]) -> Result<FeatureOutput, OnnxError> {
    let wrong = || OnnxError::Output { found: describe(outputs) };
    let output = match outputs {
        [only] => only,
        several => several.iter().find(|output| output.name() == "features").ok_or_else(wrong)?,
    };
    let ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } = output.dtype() else {
        return Err(wrong());
    };
    let (feature_dim, is_matrix) = match shape[..] {
        // A scalar and a shape that is not known look the same here. The first run tells.
        [] => (None, false),
        [_, dim] => (fixed(dim), true),
        [_, dim, h, w] if h.max(w) <= 1 => (fixed(dim), false),
        _ => return Err(wrong()),
    };
    if feature_dim == Some(0) {
        return Err(wrong());
    }
    Ok(FeatureOutput { name: output.name().to_owned(), feature_dim, is_matrix })
}

/// `image` float32 [batch,3,32,32].
fn describe(outlets: &[Outlet]) -> String {
    if outlets.is_empty() {
        return "none".to_owned();
    }
    outlets.iter().map(describe_one).collect::<Vec<_>>().join(", ")
}

fn describe_one(outlet: &Outlet) -> String {
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return format!("`{}` (not a tensor)", outlet.name());
    };
    let element = match ty {
        TensorElementType::Float32 => "float32".to_owned(),
        TensorElementType::Float64 => "float64".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    };
    let symbol = |i: usize| dimension_symbols.get(i).filter(|symbol| !symbol.is_empty()).map_or("?", String::as_str);
    let dims = shape.iter().enumerate().map(|(i, &dim)| if dim < 0 { symbol(i).to_owned() } else { dim.to_string() });
    format!("`{}` {element} [{}]", outlet.name(), dims.collect::<Vec<_>>().join(","))
}
