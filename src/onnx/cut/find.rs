//! Follows the logits back to the last linear layer.

use std::path::Path;

use super::constant::{Constant, constant, flag};
use super::error::{CutError, Reason};
use super::graph::{Index, fixed_dims, float, input, int, ints, name_of, refuse, standard_op};
use super::shape;
use crate::onnx::proto::{GraphProto, NodeProto, data_type};

/// The last linear layer, read.
#[derive(Clone, Debug)]
pub(super) struct LinearLayer {
    /// The value it takes.
    pub features: String,
    /// The value it computes.
    pub logits: String,
    /// The model's output, which may be another value.
    pub answer: String,
    /// What was between them, in order, and is not in the two parts.
    pub dropped: Vec<Dropped>,
    /// `[num_classes, feature_dim]`
    pub weight: Constant,
    pub bias: Option<Vec<f32>>,
    pub num_classes: usize,
    pub feature_dim: usize,
    /// A 1x1 convolution: its features are `[N,D,1,1]`.
    pub is_convolution: bool,
    pub notes: Vec<String>,
}

/// A node behind the last layer that changes values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Dropped {
    Softmax,
    LogSoftmax,
    /// To this type of element.
    Cast(i64),
}

impl LinearLayer {
    /// Whether the layer computes in another type than float32; then the features are of that type too.
    pub(super) fn is_cast_needed(&self) -> bool {
        self.weight.data_type != data_type::FLOAT
    }

    /// Whether the layer computes in fewer bits than float32.
    pub(super) fn is_half_precision(&self) -> bool {
        is_half(self.weight.data_type.into())
    }

    /// Whether the original's output has fewer bits than float32.
    pub(super) fn is_answer_half_precision(&self) -> bool {
        self.dropped.iter().any(|dropped| matches!(dropped, Dropped::Cast(to) if is_half(*to)))
    }
}

fn is_half(data_type: i64) -> bool {
    [data_type::FLOAT16, data_type::BFLOAT16].map(i64::from).contains(&data_type)
}

/// Finds the layer that computes the logits.
pub(super) fn last_layer(
    index: &Index<'_>,
    graph: &GraphProto,
    base_dir: Option<&Path>,
) -> Result<LinearLayer, CutError> {
    let mut notes = Vec::new();
    let answer = logits_output(graph, &mut notes)?;
    let (mut value, mut tail) = (answer, Vec::new());
    for _ in 0..=index.n_nodes() {
        let node = index.producer(value).ok_or_else(|| CutError::NoLayer { value: value.to_owned() })?;
        let finder = Finder { index, base_dir, node };
        let layer = match standard_op(node) {
            Some("Gemm") => finder.gemm()?,
            Some("MatMul") => finder.mat_mul(None)?,
            Some("Add") => finder.add()?,
            Some("Conv") => finder.convolution()?,
            Some(op) => {
                value = look_through(index, node, op, &mut notes)?;
                tail.push(node);
                continue;
            }
            None => return Err(refuse(node, kind_of_refusal(node))),
        };
        tail.reverse();
        shape::check(index, &tail, layer.num_classes, layer.is_convolution)?;
        notes.extend(layer.notes);
        let dropped = tail.into_iter().filter_map(dropped).collect();
        return Ok(LinearLayer { answer: answer.to_owned(), dropped, notes, ..layer });
    }
    // More steps than nodes: the graph runs in a circle.
    Err(CutError::NoLayer { value: value.to_owned() })
}

/// The only output, or the one named `logits`.
fn logits_output<'a>(graph: &'a GraphProto, notes: &mut Vec<String>) -> Result<&'a str, CutError> {
    let outputs: Vec<&str> = graph.output.iter().filter_map(|output| output.name.as_deref()).collect();
    match outputs[..] {
        [only] => Ok(only),
        _ if outputs.contains(&"logits") => {
            let others: Vec<&str> = outputs.into_iter().filter(|&name| name != "logits").collect();
            notes.push(format!("took the output `logits` and dropped the others ({})", others.join(", ")));
            Ok("logits")
        }
        _ => Err(CutError::Outputs { outputs: outputs.into_iter().map(str::to_owned).collect() }),
    }
}

/// Steps over a node that does not change what the logits say, and answers its input. Which rows it makes of them is looked
/// at later, from the layer on.
fn look_through<'a>(
    index: &Index<'a>,
    node: &'a NodeProto,
    op: &str,
    notes: &mut Vec<String>,
) -> Result<&'a str, CutError> {
    match op {
        "Identity" | "Flatten" | "Reshape" | "Squeeze" => (),
        "Cast" => notes.push(format!("dropped the cast of the logits, {}", name_of(node))),
        "Softmax" | "LogSoftmax" => notes.push(format!("dropped a trailing {op}, {}", name_of(node))),
        "Dropout" => {
            let training = input(node, 2).map(|flag_name| flag(index, flag_name).unwrap_or(true));
            if training == Some(true) {
                return Err(refuse(node, Reason::Attribute { attribute: "training_mode".to_owned() }));
            }
        }
        _ => return Err(refuse(node, kind_of_refusal(node))),
    }
    input(node, 0).ok_or_else(|| refuse(node, Reason::NotLinear))
}

fn dropped(node: &NodeProto) -> Option<Dropped> {
    match standard_op(node)? {
        "Softmax" => Some(Dropped::Softmax),
        "LogSoftmax" => Some(Dropped::LogSoftmax),
        "Cast" => Some(Dropped::Cast(int(node, "to", 0))),
        _ => None,
    }
}

/// Why an operator at the place of the last layer is not one.
fn kind_of_refusal(node: &NodeProto) -> Reason {
    match node.op_type.as_deref().unwrap_or_default() {
        "If" | "Loop" | "Scan" => Reason::ControlFlow,
        "QuantizeLinear" | "DequantizeLinear" | "MatMulInteger" | "ConvInteger" | "MatMulNBits" => Reason::Quantised,
        op if op.starts_with('Q') || op.starts_with("DynamicQuantize") => Reason::Quantised,
        _ => Reason::NotLinear,
    }
}

/// Reads the layer that ends at this node.
struct Finder<'a> {
    index: &'a Index<'a>,
    base_dir: Option<&'a Path>,
    node: &'a NodeProto,
}

impl<'a> Finder<'a> {
    /// `alpha x B + beta C`, with B transposed or not.
    fn gemm(&self) -> Result<LinearLayer, CutError> {
        if int(self.node, "transA", 0) != 0 {
            return Err(self.refuse(Reason::TransposedFeatures));
        }
        let (alpha, beta) = (float(self.node, "alpha", 1.0), float(self.node, "beta", 1.0));
        for (name, value) in [("alpha", alpha), ("beta", beta)] {
            if !value.is_finite() {
                return Err(self.refuse(Reason::Attribute { attribute: name.to_owned() }));
            }
        }
        let weight = self.weight(self.node, 2)?;
        let mut weight = if int(self.node, "transB", 0) == 0 { weight.transposed() } else { weight };
        weight.values.iter_mut().for_each(|w| *w *= alpha);
        let bias = match input(self.node, 2) {
            Some(name) => Some(self.constant_or(name, |input| Reason::BiasNotConstant { input })?),
            None => None,
        };
        let mut layer = self.layer(self.node, weight, bias.map(|bias| (self.node, 2, bias)))?;
        layer.bias.iter_mut().flatten().for_each(|b| *b *= beta);
        if alpha != 1.0 || beta != 1.0 {
            layer
                .notes
                .push(format!("folded alpha {alpha} and beta {beta} into weight and bias, {}", name_of(self.node)));
        }
        Ok(layer)
    }

    /// `x W`; the bias comes from an Add after it, as input `i` of that node.
    fn mat_mul(&self, bias: Option<(&NodeProto, usize, Constant)>) -> Result<LinearLayer, CutError> {
        let weight = self.weight(self.node, 2)?.transposed();
        self.layer(self.node, weight, bias)
    }

    /// A bias after a MatMul, on either side of the sum.
    fn add(&self) -> Result<LinearLayer, CutError> {
        for (product, bias) in [(0, 1), (1, 0)] {
            let (Some(product), Some(bias_name)) = (input(self.node, product), input(self.node, bias)) else {
                continue;
            };
            let Some(node) = self.product(product) else { continue };
            let constant = self.constant_or(bias_name, |input| Reason::BiasNotConstant { input })?;
            let layer = Finder { node, ..*self }.mat_mul(Some((self.node, bias, constant)))?;
            let logits = self.node.output.first().cloned().unwrap_or_default();
            return Ok(LinearLayer { logits, ..layer });
        }
        Err(self.refuse(Reason::NotLinear))
    }

    /// The MatMul that computes this value, looked for through Identity.
    fn product(&self, value: &str) -> Option<&'a NodeProto> {
        let mut node = self.index.producer(value)?;
        for _ in 0..=self.index.n_nodes() {
            match standard_op(node)? {
                "MatMul" => return Some(node),
                "Identity" => node = self.index.producer(input(node, 0)?)?,
                _ => return None,
            }
        }
        None
    }

    /// A convolution of one pixel by one pixel.
    fn convolution(&self) -> Result<LinearLayer, CutError> {
        let all = |name, expected| ints(self.node, name).is_none_or(|values| values.iter().all(|&x| x == expected));
        let is_plain = int(self.node, "group", 1) == 1 && all("strides", 1) && all("pads", 0) && all("kernel_shape", 1);
        if !is_plain {
            return Err(self.refuse(Reason::NotPointwise));
        }
        let mut weight = self.weight(self.node, 4)?;
        let [classes, dim, 1, 1] = weight.dims[..] else { return Err(self.refuse(Reason::NotPointwise)) };
        weight.dims = vec![classes, dim];
        let bias = match input(self.node, 2) {
            Some(name) => Some((self.node, 2, self.constant_or(name, |input| Reason::BiasNotConstant { input })?)),
            None => None,
        };
        let layer = self.layer(self.node, weight, bias)?;
        if let Some(shape) = self.index.shape(&layer.features) {
            let is_one_pixel = |dim: &Option<i64>| dim.is_none_or(|size| size == 1);
            if !fixed_dims(shape).iter().skip(2).all(is_one_pixel) {
                return Err(self.refuse(Reason::NotPointwise));
            }
        }
        Ok(LinearLayer { is_convolution: true, ..layer })
    }

    /// The constant on the right of the product, of this rank.
    fn weight(&self, node: &NodeProto, rank: usize) -> Result<Constant, CutError> {
        let Some(name) = input(node, 1) else { return Err(refuse(node, Reason::NotLinear)) };
        let weight = constant(self.index, name, self.base_dir)?;
        let Some(weight) = weight else {
            let left = input(node, 0).map(|left| constant(self.index, left, self.base_dir)).transpose()?.flatten();
            let quantised = self.index.producer(name).filter(|node| kind_of_refusal(node) == Reason::Quantised);
            return Err(refuse(
                node,
                match (left, quantised) {
                    (Some(_), _) => Reason::WeightOnTheLeft,
                    (None, Some(_)) => Reason::Quantised,
                    (None, None) => Reason::WeightNotConstant { input: name.to_owned() },
                },
            ));
        };
        if weight.dims.len() != rank || weight.values.is_empty() {
            return Err(refuse(node, Reason::WeightShape { input: name.to_owned(), shape: weight.shape() }));
        }
        Ok(weight)
    }

    fn constant_or(&self, name: &str, reason: impl Fn(String) -> Reason) -> Result<Constant, CutError> {
        let constant = constant(self.index, name, self.base_dir)?;
        constant.ok_or_else(|| self.refuse(reason(name.to_owned())))
    }

    /// Puts the parts together; `weight` is `[C,D]` by now, the bias is input `i` of its node.
    fn layer(
        &self,
        node: &NodeProto,
        weight: Constant,
        bias: Option<(&NodeProto, usize, Constant)>,
    ) -> Result<LinearLayer, CutError> {
        let &[num_classes, feature_dim] = &weight.dims[..] else { return Err(refuse(node, Reason::NotLinear)) };
        let (Some(features), Some(logits)) = (input(node, 0), node.output.first()) else {
            return Err(refuse(node, Reason::NotLinear));
        };
        if let Some(shape) = self.index.shape(features).filter(|_| standard_op(node) != Some("Conv"))
            && shape.dim.len() != 2
        {
            let reason = Reason::FeatureRank { input: features.to_owned(), rank: shape.dim.len() };
            return Err(refuse(node, reason));
        }
        let bias = match bias {
            Some((node, i, bias)) => Some(per_class(node, i, bias, num_classes)?),
            None => None,
        };
        let mut notes = Vec::new();
        let change = match weight.data_type {
            data_type::DOUBLE => Some("rounded from double"),
            data_type::FLOAT16 => Some("widened from float16"),
            data_type::BFLOAT16 => Some("widened from bfloat16"),
            _ => None,
        };
        notes.extend(change.map(|change| format!("weights {change} to float32, {}", name_of(node))));
        Ok(LinearLayer {
            features: features.to_owned(),
            logits: logits.clone(),
            answer: logits.clone(),
            dropped: Vec::new(),
            weight,
            bias,
            num_classes,
            feature_dim,
            is_convolution: false,
            notes,
        })
    }

    fn refuse(&self, reason: Reason) -> CutError {
        refuse(self.node, reason)
    }
}

/// One number a class: `[C]`, `[1,C]`, or a single number that is broadcast.
fn per_class(node: &NodeProto, i: usize, bias: Constant, num_classes: usize) -> Result<Vec<f32>, CutError> {
    match bias.dims[..] {
        [c] | [1, c] if c == num_classes => Ok(bias.values),
        [] | [1] | [1, 1] => Ok(bias.values.iter().cycle().take(num_classes).copied().collect()),
        _ => {
            let input = input(node, i).unwrap_or_default().to_owned();
            Err(refuse(node, Reason::BiasShape { input, shape: bias.shape(), num_classes }))
        }
    }
}
