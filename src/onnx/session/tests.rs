//! What only CUDA uses, run on the CPU, where it must answer the same.

use ort::memory::Allocator;
use ort::value::Tensor;

use super::*;
use crate::onnx::head_graph::{Value, model_bytes, node, value_info};
use crate::onnx::proto::{GraphProto, TensorProto, data_type};
use crate::onnx::{Scorer, ScorerSpec, Transform};

const BACKBONE: &[u8] = include_bytes!("../../../tests/data/onnx/backbone.onnx");

fn backbone() -> Backbone {
    let options = SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::default() };
    Backbone::load(BACKBONE, None, &options).expect("a valid backbone")
}

fn rows(backbone: &mut Backbone, pixels: &[f32]) -> Vec<f32> {
    let features = backbone.run(pixels, pixels.len() / 192, 8, 8).expect("a run");
    features.to_host().expect("on the host").into_owned()
}

#[test]
fn features_computed_into_given_memory_are_the_same() {
    let (mut plain, mut given) = (backbone(), backbone());
    given.on_device = Some(OnDevice::with(Allocator::default(), Allocator::default()));
    assert_eq!(given.kept_dim(), Some(6));
    for max_batch_size in [1, 4, 6, 8] {
        given.max_batch_size = max_batch_size;
        for n in [3, 1, 5, 6, 2, 9] {
            let pixels: Vec<f32> = (0..n * 192).map(|i| (i % 7) as f32 - 3.0).collect();
            let expected = rows(&mut plain, &pixels);
            assert_eq!(rows(&mut given, &pixels), expected, "{n} of {max_batch_size}");
            let sparing = given.run_sparing(&pixels, n, 8, 8).expect("a run");
            assert_eq!(*sparing.to_host().expect("on the host"), expected, "{n} of {max_batch_size}, sparing");
        }
    }
}

#[test]
fn a_batch_is_padded_unless_the_model_fixes_its_size() {
    let mut backbone = backbone();
    backbone.max_batch_size = 8;
    assert_eq!(backbone.padded(3), 3, "on the CPU");
    backbone.on_device = Some(OnDevice::with(Allocator::default(), Allocator::default()));
    assert_eq!((backbone.padded(3), backbone.padded(1)), (8, 1));
    backbone.input.batch = Some(3);
    assert_eq!(backbone.padded(3), 3);
}

#[test]
fn single_images_go_to_the_session_for_them() {
    let mut backbone = backbone();
    let expected = rows(&mut backbone, &[1.0; 192]);
    backbone.single = Some(Box::new(backbone_for(0)));
    let error = backbone.run(&[1.0; 192], 1, 8, 8).map(|_| ()).expect_err("that session can run none");
    assert!(error.is_out_of_memory(), "{error}");
    assert_eq!(rows(&mut backbone, &[1.0; 384]), [expected.clone(), expected].concat());
}

#[test]
fn features_in_a_tensor_are_scored_and_copied() {
    library::init(None).expect("run `make ort`");
    // Two rows, and one of padding that is not even finite.
    let values = vec![1.0_f32, 2.0, 3.0, 4.0, f32::NAN, f32::INFINITY];
    let tensor = Tensor::from_array(([3_usize, 2], values)).expect("a tensor");
    let features = Features::new(Rows::Device(tensor), 2, 2);
    assert!(features.is_on_device());
    assert_eq!(*features.to_host().expect("a copy"), [1.0, 2.0, 3.0, 4.0]);
    let spec = ScorerSpec {
        weight: &[1.0, 10.0],
        num_classes: 1,
        feature_dim: 2,
        transform: Transform::Identity,
        squared_norm: false,
    };
    let options = SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::default() };
    let mut scorer = Scorer::build(&spec, &options).expect("a valid head");
    assert_eq!(scorer.run(&features).expect("a run").raw, [21.0, 43.0]);
    let Rows::Device(tensor) = features.rows() else { panic!("it was put there") };
    let scores = scorer.run_padded(tensor, 2).expect("a run, without a copy to the host");
    assert_eq!((scores.n, &*scores.raw), (2, &[21.0, 43.0][..]));
}

/// A backbone for `n_free` images of 8 x 8: each one more needs a tensor that is larger than the address space.
fn backbone_for(n_free: i64) -> Backbone {
    let int64 = |name: &str, value: i64| TensorProto {
        name: Some(name.to_owned()),
        dims: vec![1],
        data_type: Some(data_type::INT64),
        raw_data: Some(value.to_le_bytes().to_vec().into()),
        ..TensorProto::default()
    };
    let model = model_bytes(GraphProto {
        name: Some("large".to_owned()),
        node: vec![
            node("Shape", &["image"], "shape", &[]),
            node("Gather", &["shape", "first"], "n", &[]),
            node("Sub", &["n", "n_free"], "n_more", &[]),
            node("Mul", &["n_more", "too_many"], "size", &[]),
            node("ConstantOfShape", &["size"], "zeros", &[]),
            node("ReduceSum", &["zeros"], "zero", &[("keepdims", Value::Int(0))]),
            node("Flatten", &["image"], "flat", &[]),
            node("Add", &["flat", "zero"], "features", &[]),
        ],
        initializer: vec![int64("first", 0), int64("n_free", n_free), int64("too_many", 1 << 46)],
        input: vec![value_info("image", &[None, Some(3), Some(8), Some(8)])],
        output: vec![value_info("features", &[None, Some(192)])],
        ..GraphProto::default()
    });
    let options = SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::default() };
    Backbone::load(&model, None, &options).expect("a valid backbone")
}

#[test]
fn a_batch_that_does_not_fit_is_no_reason_not_to_begin_and_one_image_that_does_not_fit_is() {
    let mut backbone = backbone_for(1);
    backbone.warm_up(&[1, 4], 8, 8).expect("one fits, and four are run in halves");
    assert_eq!(rows(&mut backbone, &[1.0; 192]), [1.0; 192]);
    let error = backbone.run(&[1.0; 384], 2, 8, 8).map(|_| ()).expect_err("two do not fit");
    assert!(error.is_out_of_memory(), "{error}");
    let error = backbone_for(0).warm_up(&[1, 4], 8, 8).expect_err("not even one fits");
    assert!(error.is_out_of_memory(), "{error}");
}
