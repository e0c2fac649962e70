//! The graph of a head, as ONNX bytes.
//!
//! # Why bytes, when ONNX Runtime has an interface for building graphs?
//! Bytes load by the same path as any model, with the same settings; the model editor skips some of them.

use prost::Message;

use super::error::OnnxError;
use super::proto::{
    AttributeProto, Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorType, TypeProto, TypeValue, ValueInfoProto, data_type,
};
use crate::heads::{FeatureMap, LARGEST_WEIGHT_BYTES, NORM_EPSILON, Weights};

/// Names of the graph's input, weight and outputs.
pub(super) const FEATURES: &str = "features";
pub(super) const WEIGHT: &str = "weight";
pub(super) const SCORES: &str = "scores";
pub(super) const SQUARED_NORM: &str = "squared_norm";

/// Opset 13 is understood by every ONNX Runtime that this program loads, and needs no newer operator.
const OPSET: i64 = 13;
const IR_VERSION: i64 = 7;

/// `g(x)`, what happens to features before they meet the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transform<'a> {
    /// `g(x) = x`
    Identity,
    /// `g(x) = x / max(‖x‖, 1e-12)`, and NaN if `‖x‖²` leaves float32.
    L2Normalize,
    /// `g(x) = (x - mean) / max(‖x - mean‖, 1e-12)`, and NaN in the same case.
    CenterL2Normalize {
        /// `[feature_dim]`
        mean: &'a [f32],
    },
}

/// A weight matrix and what it is multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct ScorerSpec<'a> {
    /// `[num_classes, feature_dim]`, row by row.
    pub weight: &'a [f32],
    /// C
    pub num_classes: usize,
    /// D
    pub feature_dim: usize,
    /// g
    pub transform: Transform<'a>,
    /// Whether `‖g(x)‖²` is wanted as well: squared distances need it.
    pub squared_norm: bool,
}

impl<'a> ScorerSpec<'a> {
    /// The product that `weights` stand for.
    #[must_use]
    pub fn of(weights: &'a Weights) -> Self {
        Self {
            // In row-major order by construction.
            weight: weights.matrix().to_slice().unwrap_or_default(),
            num_classes: weights.num_classes(),
            feature_dim: weights.feature_dim(),
            transform: match weights.feature_map() {
                FeatureMap::Identity => Transform::Identity,
                FeatureMap::L2Normalize => Transform::L2Normalize,
                FeatureMap::CenterL2Normalize { mean } => {
                    Transform::CenterL2Normalize { mean: mean.as_slice().unwrap_or_default() }
                }
            },
            squared_norm: weights.squared_norm(),
        }
    }

    fn check(&self) -> Result<(), OnnxError> {
        let Self { num_classes, feature_dim, .. } = *self;
        let expected = num_classes.checked_mul(feature_dim).filter(|&n| n <= LARGEST_WEIGHT_BYTES / 4);
        let expected = expected.ok_or(OnnxError::TooLarge { num_classes, feature_dim })?;
        let shape_error =
            |what, len, expected| OnnxError::WeightShape { what, len, expected, num_classes, feature_dim };
        if expected == 0 || self.weight.len() != expected {
            return Err(shape_error("the weight", self.weight.len(), expected));
        }
        match self.transform {
            Transform::CenterL2Normalize { mean } if mean.len() != feature_dim => {
                Err(shape_error("the mean", mean.len(), feature_dim))
            }
            _ => Ok(()),
        }
    }

    /// The graph `features [N,D] -> scores [N,C]`, and `squared_norm [N]` if wanted.
    pub(super) fn encode(&self) -> Result<Vec<u8>, OnnxError> {
        self.check()?;
        let (classes, dim) = (self.num_classes, self.feature_dim);
        let mut nodes = Vec::new();
        let mut constants = vec![constant(WEIGHT, &[classes, dim], self.weight)];
        let mut x = FEATURES;
        if let Transform::CenterL2Normalize { mean } = self.transform {
            constants.push(constant("mean", &[dim], mean));
            nodes.push(node("Sub", &[x, "mean"], "centered", &[]));
            x = "centered";
        }
        if self.transform != Transform::Identity {
            constants.push(constant("smallest_norm", &[], &[NORM_EPSILON]));
            nodes.push(node("ReduceL2", &[x], "norm", &[("axes", Value::Ints(&[1])), ("keepdims", Value::Int(1))]));
            nodes.push(node("Max", &["norm", "smallest_norm"], "bounded_norm", &[]));
            // A norm beyond float32 is infinite, and what is divided by that is 0: scores that look like an answer. The difference
            // makes it NaN, as the scores are then, and adds 0 to every other norm. Both are of [N, 1].
            nodes.push(node("Sub", &["bounded_norm", "bounded_norm"], "zero_or_nan", &[]));
            nodes.push(node("Add", &["bounded_norm", "zero_or_nan"], "divisor", &[]));
            nodes.push(node("Div", &[x, "divisor"], "normalized", &[]));
            x = "normalized";
        }
        nodes.push(node("Gemm", &[x, WEIGHT], SCORES, &[("transB", Value::Int(1))]));
        let mut outputs = vec![value_info(SCORES, &[None, Some(classes)])];
        if self.squared_norm {
            nodes.push(node(
                "ReduceSumSquare",
                &[x],
                SQUARED_NORM,
                &[("axes", Value::Ints(&[1])), ("keepdims", Value::Int(0))],
            ));
            outputs.push(value_info(SQUARED_NORM, &[None]));
        }
        let graph = GraphProto {
            name: Some("head".to_owned()),
            node: nodes,
            initializer: constants,
            input: vec![value_info(FEATURES, &[None, Some(dim)])],
            output: outputs,
            ..GraphProto::default()
        };
        Ok(model_bytes(graph))
    }
}

/// A whole model file of this graph.
pub(super) fn model_bytes(graph: GraphProto) -> Vec<u8> {
    let opset = OperatorSetIdProto { domain: None, version: Some(OPSET) };
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some("equipoise".to_owned()),
        opset_import: vec![opset],
        graph: Some(graph),
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

pub(super) enum Value<'a> {
    Int(i64),
    Ints(&'a [i64]),
}

/// A node with one output, which it is named after.
pub(super) fn node(op_type: &str, inputs: &[&str], output: &str, attributes: &[(&str, Value<'_>)]) -> NodeProto {
    // `AttributeProto.type`: 2 is INT, 7 is INTS.
    let attribute = |(name, value): &(&str, Value<'_>)| {
        let named = AttributeProto { name: Some((*name).to_owned()), ..AttributeProto::default() };
        match value {
            Value::Int(i) => AttributeProto { i: Some(*i), r#type: Some(2), ..named },
            Value::Ints(ints) => AttributeProto { ints: ints.to_vec(), r#type: Some(7), ..named },
        }
    };
    NodeProto {
        op_type: Some(op_type.to_owned()),
        name: Some(output.to_owned()),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute: attributes.iter().map(attribute).collect(),
        ..NodeProto::default()
    }
}

/// A float32 constant. Lengths have been checked to fit long before an i64 overflows.
pub(super) fn constant(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
    // Of the right size from the start: a list that grows would leave holes of many megabytes behind.
    let mut bytes = Vec::with_capacity(size_of_val(values));
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect(),
        data_type: Some(data_type::FLOAT),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}

/// A float32 tensor; the dimension without a number is the batch.
pub(super) fn value_info(name: &str, dims: &[Option<usize>]) -> ValueInfoProto {
    let dim = |dim: &Option<usize>| match dim {
        Some(dim) => DimensionValue::Value(i64::try_from(*dim).unwrap_or(i64::MAX)),
        None => DimensionValue::Param("N".to_owned()),
    };
    tensor_info(name, data_type::FLOAT, dims.iter().map(dim).collect())
}

/// A tensor of any type; dimensions of one name are equal.
pub(super) fn tensor_info(name: &str, elem_type: i32, dims: Vec<DimensionValue>) -> ValueInfoProto {
    let dim = dims.into_iter().map(|value| Dimension { value: Some(value), denotation: None }).collect();
    let tensor = TensorType { elem_type: Some(elem_type), shape: Some(TensorShapeProto { dim }) };
    let r#type = TypeProto { value: Some(TypeValue::Tensor(tensor)), denotation: None };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(r#type), ..ValueInfoProto::default() }
}
