//! The graph of a step of a fit, as ONNX bytes: loss and gradient of a softmax classifier on one batch.
//!
//! ```text
//! table [N,D] (index [B]) -> x [B,D] -> z = x Wᵀ + b, or s ∘ x -> log-softmax -> loss = Σ ωᵢ log pᵢ,yᵢ (without the minus)
//!                                                       r = ωᵢ (pᵢⱼ − [j = yᵢ]) -> rᵀ x and Σᵢ r, or Σᵢ r ∘ x
//! ```
//!
//! No dimension is fixed, so that one session serves every batch, set and head.

use super::head_graph::{Value, constant, model_bytes, node, tensor_info};
use super::proto::{DimensionValue, GraphProto, TensorProto, data_type};

pub(super) const TABLE: &str = "table";
pub(super) const INDEX: &str = "index";
pub(super) const LABEL: &str = "label";
pub(super) const ROW_WEIGHT: &str = "row_weight";
pub(super) const WEIGHT: &str = "weight";
pub(super) const BIAS: &str = "bias";
pub(super) const SCALE: &str = "scale";
pub(super) const LOG_LIKELIHOOD: &str = "log_likelihood";
pub(super) const GRADIENT: &str = "gradient";
pub(super) const BIAS_GRADIENT: &str = "bias_gradient";
pub(super) const COPY: &str = "copy";

/// What is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fitted {
    /// `weight [C,D]` and `bias [C]`.
    Linear,
    /// `scale [C]`, of a table of scores `[N,C]`.
    Scale,
}

/// The model. With `indexed` the batch is the rows `index [B]` of the table, else the whole table.
pub(super) fn encode(fitted: Fitted, indexed: bool) -> Vec<u8> {
    let mut nodes = Vec::new();
    let x = if indexed {
        nodes.push(node("Gather", &[TABLE, INDEX], "x", &[("axis", Value::Int(0))]));
        "x"
    } else {
        TABLE
    };
    match fitted {
        Fitted::Linear => nodes.push(node("Gemm", &[x, WEIGHT, BIAS], "z", &[("transB", Value::Int(1))])),
        Fitted::Scale => nodes.push(node("Mul", &[x, SCALE], "z", &[])),
    }
    let last_axis = [("axis", Value::Int(1))];
    nodes.push(node("LogSoftmax", &["z"], "log_p", &last_axis));
    nodes.push(node("GatherElements", &["log_p", LABEL], "log_p_of_label", &last_axis));
    nodes.push(node("Mul", &["log_p_of_label", ROW_WEIGHT], "weighted", &[]));
    nodes.push(node("ReduceSum", &["weighted"], LOG_LIKELIHOOD, &[("keepdims", Value::Int(0))]));
    nodes.push(node("Exp", &["log_p"], "p", &[]));
    nodes.push(node("Exp", &["log_p_of_label"], "p_of_label", &[]));
    nodes.push(node("Sub", &["p_of_label", "one"], "p_less_one", &[]));
    nodes.push(node("ScatterElements", &["p", LABEL, "p_less_one"], "p_less_target", &last_axis));
    nodes.push(node("Mul", &["p_less_target", ROW_WEIGHT], "residual", &[]));
    let no_dims = [("keepdims", Value::Int(0))];
    let (classes, columns) = (symbol("C"), if fitted == Fitted::Linear { symbol("D") } else { symbol("C") });
    let mut inputs = vec![
        tensor_info(TABLE, data_type::FLOAT, vec![symbol(if indexed { "N" } else { "B" }), columns.clone()]),
        tensor_info(LABEL, data_type::INT64, vec![symbol("B"), DimensionValue::Value(1)]),
        tensor_info(ROW_WEIGHT, data_type::FLOAT, vec![symbol("B"), DimensionValue::Value(1)]),
    ];
    if indexed {
        inputs.push(tensor_info(INDEX, data_type::INT64, vec![symbol("B")]));
    }
    let mut outputs = vec![tensor_info(LOG_LIKELIHOOD, data_type::FLOAT, vec![])];
    match fitted {
        Fitted::Linear => {
            nodes.push(node("Gemm", &["residual", x], GRADIENT, &[("transA", Value::Int(1))]));
            nodes.push(node("ReduceSum", &["residual", "rows"], BIAS_GRADIENT, &no_dims));
            inputs.push(tensor_info(WEIGHT, data_type::FLOAT, vec![classes.clone(), columns.clone()]));
            inputs.push(tensor_info(BIAS, data_type::FLOAT, vec![classes.clone()]));
            outputs.push(tensor_info(GRADIENT, data_type::FLOAT, vec![classes.clone(), columns]));
            outputs.push(tensor_info(BIAS_GRADIENT, data_type::FLOAT, vec![classes]));
        }
        Fitted::Scale => {
            nodes.push(node("Mul", &["residual", x], "product", &[]));
            nodes.push(node("ReduceSum", &["product", "rows"], GRADIENT, &no_dims));
            inputs.push(tensor_info(SCALE, data_type::FLOAT, vec![classes.clone()]));
            outputs.push(tensor_info(GRADIENT, data_type::FLOAT, vec![classes]));
        }
    }
    let rows = TensorProto {
        name: Some("rows".to_owned()),
        dims: vec![1],
        data_type: Some(data_type::INT64),
        raw_data: Some(0i64.to_le_bytes().to_vec().into()),
        ..TensorProto::default()
    };
    model_bytes(GraphProto {
        name: Some("fit".to_owned()),
        node: nodes,
        initializer: vec![constant("one", &[], &[1.0]), rows],
        input: inputs,
        output: outputs,
        ..GraphProto::default()
    })
}

/// A graph that does nothing to a table, or to rows of it: running it copies them to where its output is wanted.
pub(super) fn encode_copy() -> Vec<u8> {
    let rows = |name| tensor_info(name, data_type::FLOAT, vec![symbol("N"), symbol("D")]);
    model_bytes(GraphProto {
        name: Some("copy".to_owned()),
        node: vec![node("Identity", &[TABLE], COPY, &[])],
        input: vec![rows(TABLE)],
        output: vec![rows(COPY)],
        ..GraphProto::default()
    })
}

fn symbol(name: &str) -> DimensionValue {
    DimensionValue::Param(name.to_owned())
}
