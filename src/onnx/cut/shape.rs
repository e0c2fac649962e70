//! Follows the shape of the logits from the last layer to the output: each of its rows must be one image's logits.
//!
//! What has the values of `[N,C]` and these two dimensions in front is `[N,C,1,...]`, so that only the rank is to be followed.

use super::constant::integers;
use super::error::{CutError, Reason};
use super::graph::{Index, fixed_dims, input, int, ints, refuse, standard_op};
use crate::onnx::proto::NodeProto;

/// Nodes between the shape of a value and one of its dimensions: Gather, Unsqueeze, and a Cast of each.
const MAX_STEPS: usize = 4;

/// Checks that the nodes behind the layer, in order, keep a row of `num_classes` values for each image, and that a softmax
/// among them is one over the classes. `is_convolution` says that the logits are `[N,C,1,1]`.
///
/// # Errors
/// [`CutError::Node`] with [`Reason::Rows`] or [`Reason::Axis`].
pub(super) fn check(
    index: &Index<'_>,
    tail: &[&NodeProto],
    num_classes: usize,
    is_convolution: bool,
) -> Result<(), CutError> {
    let follower = Follower { index, num_classes: i64::try_from(num_classes).unwrap_or(i64::MAX) };
    let mut rank = if is_convolution { 4 } else { 2 };
    for (i, node) in tail.iter().enumerate() {
        let after = match standard_op(node) {
            Some("Flatten") => (from_front(int(node, "axis", 1), rank) == Some(1)).then_some(2),
            Some("Reshape") => follower.reshaped(&tail[i..], rank),
            Some("Squeeze") => follower.squeezed(&tail[i..], rank),
            Some("Softmax" | "LogSoftmax") => {
                follower.check_axis(node, rank)?;
                Some(rank)
            }
            // The others that are looked through change no shape.
            _ => Some(rank),
        };
        rank = after.ok_or_else(|| refuse(node, Reason::Rows { num_classes }))?;
    }
    match tail.last() {
        Some(last) if rank != 2 && rank != 4 => Err(refuse(last, Reason::Rows { num_classes })),
        _ => Ok(()),
    }
}

/// A dimension that a Reshape makes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    /// As it is said; -1 is what is left over.
    Number(i64),
    /// That of this dimension before.
    Kept(usize),
}

struct Follower<'a> {
    index: &'a Index<'a>,
    num_classes: i64,
}

impl Follower<'_> {
    /// The rank that the first of `nodes`, a Reshape, makes of `[N,C,1,...]`, if that is of this form again.
    fn reshaped(&self, nodes: &[&NodeProto], rank: usize) -> Option<usize> {
        let Some(target) = self.target(nodes.first()?) else { return self.declared(nodes) };
        let &[images, classes, ref rest @ ..] = &target[..] else { return None };
        let are_all_classes = classes == Size::Kept(1) || classes == Size::Number(self.num_classes);
        let is_right = match (images, classes) {
            (Size::Number(-1), _) => are_all_classes,
            (Size::Kept(0), _) => are_all_classes || classes == Size::Number(-1),
            // Of another number of images it would not run.
            (Size::Number(n), Size::Number(-1)) => self.index.batch() == Some(n),
            (Size::Number(_), _) => are_all_classes,
            (Size::Kept(_), _) => false,
        };
        let is_one = |(i, size): (usize, &Size)| *size == Size::Number(1) || *size == Size::Kept(i) && i < rank;
        (is_right && (2..).zip(rest).all(is_one)).then_some(target.len())
    }

    /// The rank after a Squeeze. One without axes takes a batch of one away too.
    fn squeezed(&self, nodes: &[&NodeProto], rank: usize) -> Option<usize> {
        let node = nodes.first()?;
        let axes = match input(node, 1) {
            Some(axes) => integers(self.index, axes),
            None => Some(ints(node, "axes")?.to_vec()),
        };
        let Some(axes) = axes else { return self.declared(nodes) };
        let mut axes: Vec<usize> = axes.into_iter().map(|axis| from_front(axis, rank)).collect::<Option<_>>()?;
        axes.sort_unstable();
        axes.dedup();
        (axes.first()? >= &2).then_some(rank - axes.len())
    }

    fn check_axis(&self, node: &NodeProto, rank: usize) -> Result<(), CutError> {
        // Before version 13 all dimensions from the axis on were one.
        let default = if self.index.opset() < 13 { 1 } else { -1 };
        let axis = int(node, "axis", default);
        if from_front(axis, rank) == Some(1) { Ok(()) } else { Err(refuse(node, Reason::Axis { axis })) }
    }

    /// The rank that the file tells of what the first node computes, or of a later value of the same shape.
    fn declared(&self, nodes: &[&NodeProto]) -> Option<usize> {
        let keeps_shape = |op| matches!(op, "Identity" | "Cast" | "Dropout" | "Softmax" | "LogSoftmax");
        let later = nodes.iter().skip(1).take_while(|node| standard_op(node).is_some_and(keeps_shape));
        let mut values = nodes.iter().take(1).chain(later).filter_map(|node| node.output.first());
        let dims = fixed_dims(values.find_map(|value| self.index.shape(value))?);
        match dims[..] {
            [_, Some(classes), ref rest @ ..] => {
                (classes == self.num_classes && rest.iter().all(|&dim| dim == Some(1))).then_some(dims.len())
            }
            _ => None,
        }
    }

    /// The shape that a Reshape makes, if it is a constant, or put together of constants and of dimensions as they were.
    fn target(&self, node: &NodeProto) -> Option<Vec<Size>> {
        let data = input(node, 0)?;
        // Up to version 4 it was an attribute.
        let Some(shape) = input(node, 1) else {
            return Some(ints(node, "shape")?.iter().copied().map(Size::Number).collect());
        };
        let mut sizes = Vec::new();
        if let Some(numbers) = integers(self.index, shape) {
            sizes.extend(numbers.into_iter().map(Size::Number));
        } else {
            let parts = self.index.producer(shape).filter(|node| standard_op(node) == Some("Concat"))?;
            for part in &parts.input {
                match integers(self.index, part) {
                    Some(numbers) => sizes.extend(numbers.into_iter().map(Size::Number)),
                    None => sizes.push(self.dimension(part, data)?),
                }
            }
        }
        if int(node, "allowzero", 0) == 0 {
            let keep =
                |(i, size): (usize, &mut Size)| *size = if *size == Size::Number(0) { Size::Kept(i) } else { *size };
            sizes.iter_mut().enumerate().for_each(keep);
        }
        Some(sizes)
    }

    /// Which dimension of `data` a value is; that of the images is also the input's.
    fn dimension(&self, value: &str, data: &str) -> Option<Size> {
        let (mut value, mut gathered) = (value, None);
        for _ in 0..=MAX_STEPS {
            let node = self.index.producer(value)?;
            let before = input(node, 0)?;
            match standard_op(node)? {
                "Unsqueeze" | "Cast" | "Identity" => (),
                "Gather" => {
                    let [dimension] = integers(self.index, input(node, 1)?)?[..] else { return None };
                    gathered = Some(dimension);
                }
                "Shape" => {
                    let start = int(node, "start", 0);
                    let is_one = gathered.is_some() || int(node, "end", -1) == start + 1;
                    let dimension = usize::try_from(start.checked_add(gathered.unwrap_or(0))?).ok()?;
                    let is_kept = before == data || dimension == 0 && self.index.is_image(before);
                    return (is_one && is_kept).then_some(Size::Kept(dimension));
                }
                _ => return None,
            }
            value = before;
        }
        None
    }
}

/// The axis counted from the front, if there is one of that number.
fn from_front(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis.checked_add(i64::try_from(rank).ok()?)? } else { axis };
    usize::try_from(axis).ok().filter(|&axis| axis < rank)
}
