//! Head files that are right.

use std::collections::BTreeMap;

use equipoise::heads::{
    BiasMode, Digest, FORMAT, FeatureMap, HeadFile, HeadKind, Settings, TensorView, TrainPrior, write_safetensors,
};
use ndarray::Array2;
use proptest::prelude::*;

use super::{linear, logits, plain};
use crate::seeded;

pub(super) type Metadata = BTreeMap<String, String>;

pub(super) fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    let format = ("format".to_owned(), FORMAT.to_owned());
    std::iter::once(format).chain(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))).collect()
}

pub(super) fn file(metadata: &Metadata, tensors: &[(&str, TensorView<'_>)]) -> Vec<u8> {
    let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, metadata, &tensors).unwrap();
    bytes
}

fn parse(metadata: &Metadata, tensors: &[(&str, TensorView<'_>)]) -> HeadFile {
    HeadFile::parse(&file(metadata, tensors)).unwrap()
}

#[test]
fn a_tau_norm_file_brings_its_settings_prior_and_provenance() {
    let words = [
        ("kind", "tau_norm"),
        ("classes", "2"),
        ("feature_dim", "1"),
        ("tau", "0.7"),
        ("bias", "scale"),
        ("train_prior", "joint"),
        ("seed", "3"),
    ];
    let weight = TensorView::F32(&[1.0, 2.0], vec![2, 1]);
    let head = parse(&metadata(&words), &[("weight", weight)]).head;
    assert_eq!(head.kind(), HeadKind::TauNorm);
    let expected = Settings { tau: Some(0.7), bias: Some(BiasMode::Scale), temperature: 1.0 };
    assert_eq!(head.initial_settings(), &expected);
    assert_eq!(head.train_prior(), TrainPrior::Joint);
    assert_eq!(head.provenance(), &BTreeMap::from([("seed".to_owned(), "3".to_owned())]));
}

#[test]
fn what_a_file_does_not_say_is_the_default_of_its_kind() {
    let words = [("kind", "tau_norm"), ("classes", "2"), ("feature_dim", "1")];
    let head = parse(&metadata(&words), &[("weight", TensorView::F32(&[1.0, 2.0], vec![2, 1]))]).head;
    assert_eq!(head.initial_settings(), &plain(HeadKind::TauNorm));
    assert_eq!(head.train_prior(), TrainPrior::None);
    assert_eq!(head.train_counts(), None);
}

#[test]
fn an_ncm_file_centres_only_if_its_transform_does() {
    let centroids = TensorView::F32(&[1.0, 0.0, 0.0, 1.0], vec![2, 2]);
    let mean = TensorView::F32(&[0.5, 0.5], vec![2]);
    for (transform, centred) in [("none", false), ("l2n", false), ("cl2n", true)] {
        let words =
            [("kind", "ncm"), ("classes", "2"), ("feature_dim", "2"), ("metric", "l2"), ("transform", transform)];
        let head = parse(&metadata(&words), &[("centroids", centroids.clone()), ("mean", mean.clone())]).head;
        assert_eq!(
            matches!(head.weights().feature_map(), FeatureMap::CenterL2Normalize { .. }),
            centred,
            "{transform}"
        );
        assert!(head.weights().squared_norm());
    }
}

#[test]
fn equal_weights_have_equal_digests_and_others_do_not() {
    let weight = Array2::from_shape_vec((2, 1), vec![1.0, 2.0]).unwrap();
    let joint = linear(HeadKind::Joint, &weight, None, None);
    let crt = linear(HeadKind::Crt, &weight, None, None);
    assert_eq!(joint.weights().digest(), crt.weights().digest());
    let shared = crt.sharing(joint.weights());
    assert!(std::sync::Arc::ptr_eq(shared.weights(), joint.weights()));
    let turned = weight.into_shape_with_order((1, 2)).unwrap();
    assert_ne!(linear(HeadKind::Joint, &turned, None, None).weights().digest(), joint.weights().digest());
}

#[test]
fn writing_refuses_a_shape_that_does_not_fit() {
    for shape in [vec![3], vec![usize::MAX, 2], vec![]] {
        let tensors = BTreeMap::from([("weight".to_owned(), TensorView::F32(&[0.0, 0.0], shape))]);
        let error = write_safetensors(&mut Vec::new(), &Metadata::new(), &tensors).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("`weight`"), "{error}");
    }
}

#[test]
fn every_tensor_begins_at_a_multiple_of_its_element_size() {
    let bytes = file(
        &metadata(&[]),
        &[("bias", TensorView::F32(&[0.0; 3], vec![3])), ("train_counts", TensorView::I64(&[1; 3], vec![3]))],
    );
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let address = |name: &str| tensors.tensor(name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    assert_eq!((address("train_counts") % 8, address("bias") % 4), (0, 0));
}

proptest! {
    #![proptest_config(seeded(64))]

    #[test]
    fn a_written_head_is_read_back_bit_for_bit(
        (c, d) in (1usize..6, 1usize..6),
        bits in prop::collection::vec(any::<u32>(), 60),
        counts in prop::collection::vec(0i64..1000, 6),
        value in "\\PC{0,20}",
        with_bias in any::<bool>(),
    ) {
        let finite = |bits: &u32| if f32::from_bits(*bits).is_finite() { f32::from_bits(*bits) } else { 0.5 };
        let values: Vec<f32> = bits.iter().map(finite).collect();
        let weight = &values[..c * d];
        let bias = &values[36..36 + c];
        let counts: Vec<i64> = counts[..c].iter().map(|&count| count + 1).collect();
        let words = metadata(&[("kind", "joint"), ("classes", &c.to_string()), ("feature_dim", &d.to_string()), ("note", &value)]);
        let mut tensors = vec![("weight", TensorView::F32(weight, vec![c, d])), ("train_counts", TensorView::I64(&counts, vec![c]))];
        if with_bias {
            tensors.push(("bias", TensorView::F32(bias, vec![c])));
        }
        let bytes = file(&words, &tensors);
        tensors.reverse();
        prop_assert_eq!(&bytes, &file(&words, &tensors));
        let HeadFile { head, digest } = HeadFile::parse(&bytes).unwrap();
        prop_assert_eq!(digest, Digest::of(&bytes));
        let read: Vec<u32> = head.weights().matrix().iter().map(|x| x.to_bits()).collect();
        prop_assert_eq!(read, weight.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        prop_assert_eq!(head.provenance().get("note"), Some(&value));
        prop_assert_eq!(head.train_counts().unwrap().len(), c);
        let at_zero = logits(&head, &plain(HeadKind::Joint), &Array2::zeros((1, d)));
        let expected: Vec<f64> = (0..c).map(|class| if with_bias { f64::from(bias[class]) } else { 0.0 }).collect();
        prop_assert_eq!(&at_zero[0], &expected);
    }
}
