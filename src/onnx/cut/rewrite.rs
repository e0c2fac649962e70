//! Writes the part of a model before the last layer as a model of its own.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use prost::Message;

use super::error::CutError;
use super::external;
use super::find::LinearLayer;
use super::graph::{batch_dim, reads};
use crate::onnx::head_graph::value_info;
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorShapeProto, TypeValue, ValueInfoProto, data_type,
};

/// The name of the backbone's output.
const FEATURES: &str = "features";

/// Most bytes of an ONNX file: a protobuf message cannot be longer.
pub const LARGEST_FILE: u64 = (1 << 31) - 1;

/// The model that computes the features: everything that only the last layer needed is gone.
pub(super) fn backbone(
    mut model: ModelProto,
    layer: &LinearLayer,
    base_dir: Option<&Path>,
    notes: &mut Vec<String>,
) -> Result<Vec<u8>, CutError> {
    if !model.training_info.is_empty() {
        model.training_info.clear();
        notes.push("dropped the training information".to_owned());
    }
    let mut graph = model.graph.take().ok_or(CutError::NoGraph)?;
    end_at(&mut graph, &layer.features, FEATURES, layer.feature_dim, layer);
    let before = graph.node.len();
    prune(&mut graph, notes);
    notes
        .push(format!("removed {} nodes that only the last layer or what follows it needs", before - graph.node.len()));
    external::inline(&mut graph, base_dir, LARGEST_FILE)?;
    model.graph = Some(graph);
    let n_bytes = model.encoded_len() as u64;
    if LARGEST_FILE < n_bytes {
        return Err(CutError::TooLarge { n_bytes });
    }
    Ok(model.encode_to_vec())
}

/// The original with the last layer's result as its only output: what the two parts are compared with.
pub(super) fn logits_model(mut model: ModelProto, layer: &LinearLayer) -> Result<Vec<u8>, CutError> {
    let graph = model.graph.as_mut().ok_or(CutError::NoGraph)?;
    end_at(graph, &layer.logits, "logits", layer.num_classes, layer);
    // Inputs stay as they are, so that a model with two of them is refused as the original would be.
    Ok(model.encode_to_vec())
}

/// The original with its output alone, as float32: which shape that has is for a run to tell.
pub(super) fn answer_model(mut model: ModelProto, layer: &LinearLayer) -> Result<Vec<u8>, CutError> {
    let graph = model.graph.as_mut().ok_or(CutError::NoGraph)?;
    let mut names = HashSet::new();
    all_names(graph, &mut names);
    let name = fresh(&names, "answer");
    graph.node.push(added("Cast", &layer.answer, &name, Some(("to", i64::from(data_type::FLOAT)))));
    let mut output = value_info(&name, &[]);
    if let Some(shape) = shape_mut(&mut output) {
        *shape = None;
    }
    graph.output = vec![output];
    Ok(model.encode_to_vec())
}

/// Makes `value` the graph's only output, under `name`, as a float32 matrix.
fn end_at(graph: &mut GraphProto, value: &str, name: &str, dim: usize, layer: &LinearLayer) {
    let mut value = value.to_owned();
    let is_ready = value == name && !layer.is_convolution && !layer.is_cast_needed();
    if !is_ready {
        let mut names = HashSet::new();
        all_names(graph, &mut names);
        if names.contains(name) {
            let other = fresh(&names, name);
            rename(graph, name, &other);
            if value == name {
                value = other.clone();
            }
            names.insert(other);
        }
        if layer.is_convolution {
            let flat = fresh(&names, "flat");
            graph.node.push(added("Flatten", &value, &flat, Some(("axis", 1))));
            names.insert(flat.clone());
            value = flat;
        }
        let last = if layer.is_cast_needed() {
            added("Cast", &value, name, Some(("to", i64::from(data_type::FLOAT))))
        } else {
            added("Identity", &value, name, None)
        };
        graph.node.push(last);
    }
    let mut output = value_info(name, &[None, Some(dim)]);
    let first = shape_mut(&mut output).and_then(|shape| shape.as_mut()?.dim.first_mut());
    if let (Some(batch), Some(first)) = (batch_dim(graph).cloned(), first) {
        // The batch dimension under its own name, or its own fixed size.
        *first = batch;
    }
    graph.value_info.retain(|info| info.name.as_deref() != Some(name));
    graph.output = vec![output];
}

fn shape_mut(info: &mut ValueInfoProto) -> Option<&mut Option<TensorShapeProto>> {
    match info.r#type.as_mut()?.value.as_mut()? {
        TypeValue::Tensor(tensor) => Some(&mut tensor.shape),
        _ => None,
    }
}

fn added(op_type: &str, from: &str, to: &str, attribute: Option<(&str, i64)>) -> NodeProto {
    let attribute = attribute.map(|(name, i)| AttributeProto {
        name: Some(name.to_owned()),
        i: Some(i),
        r#type: Some(2), // INT
        ..AttributeProto::default()
    });
    NodeProto {
        name: Some(format!("equipoise_{to}")),
        op_type: Some(op_type.to_owned()),
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        attribute: attribute.into_iter().collect(),
        ..NodeProto::default()
    }
}

/// Removes nodes, constants and descriptions that nothing leads from to the output.
fn prune(graph: &mut GraphProto, notes: &mut Vec<String>) {
    let mut writers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, node) in graph.node.iter().enumerate() {
        node.output.iter().for_each(|output| writers.entry(output).or_default().push(i));
    }
    // Each node is looked at once, in whatever order they stand: the standard demands one, and ONNX Runtime does not.
    let mut kept = vec![false; graph.node.len()];
    let mut needed: HashSet<&str> = HashSet::new();
    let mut waiting: Vec<&str> = graph.output.iter().filter_map(|output| output.name.as_deref()).collect();
    while let Some(name) = waiting.pop() {
        if !needed.insert(name) {
            continue;
        }
        for &i in writers.get(name).into_iter().flatten() {
            if !std::mem::replace(&mut kept[i], true) {
                let mut names = HashSet::new();
                reads(&graph.node[i], &mut names);
                waiting.extend(names.into_iter().filter(|name| !name.is_empty()));
            }
        }
    }
    let needed: HashSet<String> = needed.into_iter().map(str::to_owned).collect();
    let mut kept = kept.into_iter();
    graph.node.retain(|_| kept.next().unwrap_or(false));
    graph.initializer.retain(|tensor| tensor.name.as_ref().is_some_and(|name| needed.contains(name)));
    let sparse_name = |sparse: &crate::onnx::proto::SparseTensorProto| sparse.values.as_ref()?.name.clone();
    graph.sparse_initializer.retain(|sparse| sparse_name(sparse).is_some_and(|name| needed.contains(&name)));
    for input in graph.input.extract_if(.., |input| input.name.as_ref().is_none_or(|name| !needed.contains(name))) {
        notes.push(format!("dropped the input `{}`, which the backbone does not use", input.name.unwrap_or_default()));
    }
    let made: HashSet<&str> = graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    let exists =
        |name: &Option<String>| name.as_deref().is_some_and(|name| made.contains(name) || needed.contains(name));
    graph.value_info.retain(|info| exists(&info.name));
    graph.quantization_annotation.retain(|annotation| exists(&annotation.tensor_name));
}

/// A name that is not used anywhere in the graph.
fn fresh(names: &HashSet<String>, name: &str) -> String {
    let mut candidates = (1_u64..).map(|i| format!("{name}_{i}"));
    candidates.find(|candidate| !names.contains(candidate)).unwrap_or_default()
}

/// Every value name of a graph and its subgraphs.
fn all_names(graph: &mut GraphProto, names: &mut HashSet<String>) {
    for_each_name(graph, &mut |name| _ = names.insert(name.clone()));
}

/// Renames a value everywhere, subgraphs included: the same change at every place changes no meaning.
fn rename(graph: &mut GraphProto, from: &str, to: &str) {
    for_each_name(graph, &mut |name| {
        if name == from {
            to.clone_into(name);
        }
    });
}

fn for_each_name<F: FnMut(&mut String)>(graph: &mut GraphProto, visit: &mut F) {
    let infos = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
    infos.flat_map(|info| &mut info.name).for_each(&mut *visit);
    graph.initializer.iter_mut().flat_map(|tensor| &mut tensor.name).for_each(&mut *visit);
    let sparse = graph.sparse_initializer.iter_mut().flat_map(|sparse| &mut sparse.values);
    sparse.flat_map(|tensor| &mut tensor.name).for_each(&mut *visit);
    for annotation in &mut graph.quantization_annotation {
        annotation.tensor_name.iter_mut().for_each(&mut *visit);
        annotation.quant_parameter_tensor_names.iter_mut().flat_map(|entry| &mut entry.value).for_each(&mut *visit);
    }
    for node in &mut graph.node {
        node.input.iter_mut().chain(&mut node.output).for_each(&mut *visit);
        for attribute in &mut node.attribute {
            for inner in attribute.g.as_deref_mut().into_iter().chain(&mut attribute.graphs) {
                for_each_name(inner, visit);
            }
        }
    }
}
