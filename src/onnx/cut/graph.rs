//! A graph with its values looked up by name.

use std::collections::{HashMap, HashSet};

use super::error::{CutError, NodeName, Reason};
use crate::onnx::proto::{
    AttributeProto, Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto,
    TypeValue, ValueInfoProto,
};

/// Who computes what in a graph.
pub(super) struct Index<'a> {
    graph: &'a GraphProto,
    /// The node that computes a value.
    producers: HashMap<&'a str, &'a NodeProto>,
    initializers: HashMap<&'a str, &'a TensorProto>,
    /// What the file tells of values; what it says first counts.
    shapes: HashMap<&'a str, &'a TensorShapeProto>,
    images: Option<&'a ValueInfoProto>,
    opset: i64,
}

impl<'a> Index<'a> {
    pub(super) fn new(model: &'a ModelProto, graph: &'a GraphProto) -> Self {
        let outputs = |node: &'a NodeProto| node.output.iter().map(move |output| (output.as_str(), node));
        let standard = |domain: &Option<String>| matches!(domain.as_deref(), None | Some("" | "ai.onnx"));
        let opset = model.opset_import.iter().find(|opset| standard(&opset.domain));
        let infos = graph.output.iter().rev().chain(graph.input.iter().rev()).chain(graph.value_info.iter().rev());
        Self {
            graph,
            producers: graph.node.iter().flat_map(outputs).collect(),
            initializers: graph
                .initializer
                .iter()
                .filter_map(|tensor| Some((tensor.name.as_deref()?, tensor)))
                .collect(),
            shapes: infos.filter_map(|info| Some((info.name.as_deref()?, shape_of(info)?))).collect(),
            images: images(graph),
            opset: opset.and_then(|opset| opset.version).unwrap_or(1),
        }
    }

    pub(super) fn producer(&self, value: &str) -> Option<&'a NodeProto> {
        self.producers.get(value).copied()
    }

    pub(super) fn initializer(&self, value: &str) -> Option<&'a TensorProto> {
        self.initializers.get(value).copied()
    }

    /// The version of the standard operators.
    pub(super) fn opset(&self) -> i64 {
        self.opset
    }

    /// Longest chain of nodes that can be followed: a longer one runs in a circle.
    pub(super) fn n_nodes(&self) -> usize {
        self.graph.node.len()
    }

    /// Images in a batch, if the file fixes that.
    pub(super) fn batch(&self) -> Option<i64> {
        match shape_of(self.images?)?.dim.first()?.value.as_ref()? {
            DimensionValue::Value(n) => Some(*n),
            DimensionValue::Param(_) => None,
        }
    }

    /// Whether the value is the image batch.
    pub(super) fn is_image(&self, value: &str) -> bool {
        self.images.is_some_and(|images| images.name.as_deref() == Some(value))
    }

    /// The shape of a value, if the file tells it.
    pub(super) fn shape(&self, value: &str) -> Option<&'a TensorShapeProto> {
        self.shapes.get(value).copied()
    }
}

/// The first input that has no value of its own: in old files the constants are inputs too.
fn images(graph: &GraphProto) -> Option<&ValueInfoProto> {
    let constants: HashSet<Option<&str>> = graph.initializer.iter().map(|tensor| tensor.name.as_deref()).collect();
    graph.input.iter().find(|input| !constants.contains(&input.name.as_deref()))
}

/// The dimension of the images.
pub(super) fn batch_dim(graph: &GraphProto) -> Option<&Dimension> {
    shape_of(images(graph)?)?.dim.first()
}

pub(super) fn shape_of(info: &ValueInfoProto) -> Option<&TensorShapeProto> {
    match info.r#type.as_ref()?.value.as_ref()? {
        TypeValue::Tensor(tensor) => tensor.shape.as_ref(),
        _ => None,
    }
}

/// The dimensions, None for those that are symbolic.
pub(super) fn fixed_dims(shape: &TensorShapeProto) -> Vec<Option<i64>> {
    let fixed = |value: &Option<DimensionValue>| match value {
        Some(DimensionValue::Value(size)) => Some(*size),
        Some(DimensionValue::Param(_)) | None => None,
    };
    shape.dim.iter().map(|dim| fixed(&dim.value)).collect()
}

/// The operator, if it is one of ONNX's own.
pub(super) fn standard_op(node: &NodeProto) -> Option<&str> {
    match node.domain.as_deref() {
        None | Some("" | "ai.onnx") => node.op_type.as_deref(),
        Some(_) => None,
    }
}

/// The name of an input that is there: one left out is an empty string.
pub(super) fn input(node: &NodeProto, i: usize) -> Option<&str> {
    node.input.get(i).map(String::as_str).filter(|name| !name.is_empty())
}

pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some(name))
}

pub(super) fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |attribute| attribute.i.unwrap_or(0))
}

pub(super) fn float(node: &NodeProto, name: &str, default: f32) -> f32 {
    attribute(node, name).map_or(default, |attribute| attribute.f.unwrap_or(0.0))
}

pub(super) fn ints<'a>(node: &'a NodeProto, name: &str) -> Option<&'a [i64]> {
    attribute(node, name).map(|attribute| attribute.ints.as_slice())
}

pub(super) fn refuse(node: &NodeProto, reason: Reason) -> CutError {
    CutError::Node { node: Box::new(name_of(node)), reason }
}

pub(super) fn name_of(node: &NodeProto) -> NodeName {
    NodeName {
        name: node.name.clone().unwrap_or_default(),
        op_type: node.op_type.clone().unwrap_or_default(),
        output: node.output.first().cloned().unwrap_or_default(),
    }
}

/// The graphs inside a node: branches and loop bodies.
pub(super) fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.as_deref().into_iter().chain(&attribute.graphs))
}

/// Every value a node may read, those that its subgraphs take from outside included.
///
/// A subgraph's own names are among them: keeping a little too much is harmless, and too little is not.
pub(super) fn reads<'a>(node: &'a NodeProto, into: &mut HashSet<&'a str>) {
    into.extend(node.input.iter().map(String::as_str));
    for graph in subgraphs(node) {
        into.extend(graph.output.iter().filter_map(|output| output.name.as_deref()));
        for inner in &graph.node {
            reads(inner, into);
        }
    }
}
