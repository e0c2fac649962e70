//! Cutting classifiers in two: every spelling of the last layer, every refusal, and files that lie.

use equipoise::onnx::{Backbone, CutClassifier, CutError, cut_classifier, prove_cut};
use proptest::prelude::*;

use crate::onnx::{MANY, data_dir, field, golden, max_difference, on_cpu, pixels, read_model};

/// `features Wᵀ + bias`, in f64.
fn logits(cut: &CutClassifier, features: &[f32]) -> Vec<f32> {
    let mut logits = Vec::new();
    for row in features.chunks(cut.feature_dim) {
        for (class, weights) in cut.weight.chunks(cut.feature_dim).enumerate() {
            let bias = cut.bias.as_ref().map_or(0.0, |bias| f64::from(bias[class]));
            let sum: f64 = row.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            logits.push((sum + bias) as f32);
        }
    }
    logits
}

#[test]
fn every_spelling_of_the_last_layer_is_cut_and_proved() {
    for case in golden().accepted {
        let file = &case.file;
        let model = read_model(file);
        let cut = cut_classifier(model.clone(), Some(&data_dir())).unwrap_or_else(|err| panic!("{file}: {err}"));
        assert_eq!((cut.num_classes, cut.feature_dim, cut.bias.is_some()), (5, 6, case.bias), "{file}");
        assert_eq!(cut.weight.len(), 30, "{file}");
        assert!(
            cut.notes.iter().any(|note| note.contains(&case.note)),
            "{file}: no `{}` in {:?}",
            case.note,
            cut.notes
        );

        let mut backbone = Backbone::load(&cut.backbone, None, &on_cpu()).unwrap_or_else(|err| panic!("{file}: {err}"));
        assert_eq!(backbone.feature_dim(), 6, "{file}");
        let features = backbone.run(&pixels(case.n), case.n, 8, 8).expect(file);
        let difference = max_difference(&logits(&cut, &features.to_host().expect(file)), &case.logits);
        assert!(difference <= case.tolerance, "{file}: {difference:e} from the reference evaluator's logits");

        let proof = prove_cut(model.clone(), &cut, Some(&data_dir()), (8, 8), &on_cpu());
        let proof = proof.unwrap_or_else(|err| panic!("{file}: {err}"));
        println!(
            "{file}: {difference:e} from the reference; proof {:e} of {:e} on {} images; {}",
            proof.max_abs_difference,
            proof.max_abs_logit,
            proof.n_inputs,
            cut.notes.join("; ")
        );
        assert!(proof.max_abs_logit > 0.1, "{file}");
    }
}

#[test]
fn a_refusal_names_the_node_and_the_reason() {
    for case in golden().refused {
        let err = cut_classifier(read_model(&case.file), Some(&data_dir()));
        let message = err.map(|_| ()).expect_err(&case.file).to_string();
        println!("{}: {message}", case.file);
        for part in &case.message_holds {
            assert!(message.contains(part), "{}: no `{part}` in: {message}", case.file);
        }
    }
}

#[test]
fn the_backbone_keeps_what_it_needs_and_nothing_else() {
    for file in ["gemm_transb.onnx", "external.onnx", "named_features.onnx"] {
        let cut = cut_classifier(read_model(file), Some(&data_dir())).expect(file);
        let text = String::from_utf8_lossy(&cut.backbone).into_owned();
        for kept in ["conv.weight", "/conv/conv", "make_models", "trained_on", "features"] {
            assert!(text.contains(kept), "{file}: {kept} is gone");
        }
        for dropped in ["/gemm/", "logits", "weights.bin"] {
            assert!(!text.contains(dropped), "{file}: {dropped} is still there");
        }
    }
}

#[test]
fn external_weights_need_a_folder() {
    let err = cut_classifier(read_model("external.onnx"), None).map(|_| ()).expect_err("there is no folder");
    assert!(matches!(err, CutError::Tensor { .. }), "{err}");
    assert!(err.to_string().contains("without a folder"), "{err}");
}

#[cfg(unix)]
#[test]
fn external_weights_are_not_read_through_a_link_that_leaves_the_folder() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::symlink(data_dir().join("weights.bin"), dir.path().join("weights.bin")).expect("a link");
    let err = cut_classifier(read_model("external.onnx"), Some(dir.path())).map(|_| ()).expect_err("a link out");
    assert!(err.to_string().contains("link that leaves"), "{err}");
}

#[test]
fn a_wrong_head_is_not_proved() {
    let model = read_model("gemm_transb.onnx");
    let mut cut = cut_classifier(model.clone(), None).expect("a plain classifier");
    cut.weight[7] += 0.01;
    let err = prove_cut(model.clone(), &cut, None, (8, 8), &on_cpu()).expect_err("one weight is wrong");
    assert!(matches!(err, CutError::NotProved { .. }), "{err}");
}

#[test]
fn an_original_that_answers_something_else_than_its_file_says_is_not_proved() {
    let prove = |file| {
        let model = read_model(file);
        let cut = cut_classifier(model.clone(), None).expect(file);
        prove_cut(model, &cut, None, (8, 8), &on_cpu()).expect_err(file)
    };
    // A softmax over each five of ten classes.
    let err = prove("lying_groups.onnx");
    assert!(matches!(err, CutError::OtherAnswer { .. }), "{err}");
    // Two rows for each image.
    let err = prove("lying_rows.onnx");
    assert!(matches!(err, CutError::Run { which: "original", .. }), "{err}");
    // From each image's features those of the batch are taken, on average.
    let err = prove("batch_mean.onnx");
    assert!(matches!(err, CutError::MixedImages { .. }), "{err}");
}

#[test]
fn a_model_of_another_image_size_is_said_not_to_run() {
    let model = read_model("gemm_transb.onnx");
    let cut = cut_classifier(model.clone(), None).expect("a plain classifier");
    let err = prove_cut(model.clone(), &cut, None, (9, 8), &on_cpu()).expect_err("the model takes 8 x 8");
    assert_eq!(err.to_string(), "the original does not run");
}

#[test]
fn truncated_files_give_errors() {
    for file in ["gemm_transb.onnx", "subgraph_before.onnx", "external.onnx"] {
        let model = read_model(file);
        for len in 0..model.len() {
            // A few cuts fall between two parts of the file, and what is left may be a whole model.
            let _ = cut_classifier(model[..len].to_vec(), Some(&data_dir()));
        }
        assert!(cut_classifier(model[..model.len() / 2].to_vec(), Some(&data_dir())).is_err(), "{file}");
    }
    assert!(matches!(cut_classifier(Vec::new(), None), Err(CutError::NoGraph)));
    assert!(matches!(cut_classifier(b"not a model".to_vec(), None), Err(CutError::Malformed { .. })));
}

/// A node of a graph.
fn node(op: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|input| field(1, input.as_bytes())).collect();
    field(1, &[inputs, field(2, output.as_bytes()), field(4, op.as_bytes())].concat())
}

/// So many nodes Identity, from `v0` to the last.
fn chain() -> Vec<Vec<u8>> {
    (0..MANY).map(|i| node("Identity", &[&format!("v{i}")], &format!("v{}", i + 1))).collect()
}

/// The model of these nodes, with a weight `w`, an input and an output.
fn model_of(nodes: &[u8], input: &str, output: &str, more: &[u8]) -> Vec<u8> {
    let weight = [vec![1 << 3, 3, 1 << 3, 2, 2 << 3, 1], field(8, b"w"), field(9, &[0; 24])].concat(); // [3,2], float32
    let named = |name: &str| field(1, name.as_bytes());
    field(7, &[nodes, &field(5, &weight), &field(11, &named(input)), &field(12, &named(output)), more].concat())
}

#[test]
fn nodes_that_stand_back_to_front_are_all_found() {
    let mut nodes = chain();
    nodes.push(node("MatMul", &[&format!("v{MANY}"), "w"], "logits"));
    nodes.reverse();
    let cut = cut_classifier(model_of(&nodes.concat(), "v0", "logits", &[]), None).expect("a classifier");
    assert!(cut.notes.iter().any(|note| note.starts_with("removed 1 node")), "{:?}", cut.notes);
}

#[test]
fn a_shape_is_looked_for_once_behind_a_long_tail() {
    let mut nodes = vec![node("MatMul", &["image", "w"], "raw"), node("Reshape", &["raw", "shape"], "v0")];
    nodes.extend(chain());
    // Shapes of other values, of no dimension.
    let info =
        |i: usize| field(13, &[field(1, format!("x{i}").as_bytes()), field(2, &field(1, &field(2, &[])))].concat());
    let infos: Vec<u8> = (0..MANY).flat_map(info).collect();
    let model = model_of(&nodes.concat(), "image", &format!("v{MANY}"), &infos);
    let err = cut_classifier(model, None).map(|_| ()).expect_err("of no known shape");
    assert!(err.to_string().contains("not known to be [N,2]"), "{err}");
}

#[test]
fn nesting_without_end_is_refused() {
    // ModelProto.graph.node.attribute.g.node..., each level around the one before; kept below what a length needs.
    let mut inner: Vec<u8> = Vec::new();
    let mut wrap = |tag: u8| {
        let mut len = inner.len();
        let mut outer = vec![tag];
        while 0x80 <= len {
            outer.push((len & 0x7f) as u8 | 0x80);
            len >>= 7;
        }
        outer.push(len as u8);
        outer.append(&mut inner);
        inner = outer;
    };
    for _ in 0..5000 {
        [0x32, 0x2a, 0x0a].into_iter().for_each(&mut wrap); // g = 6, attribute = 5, node = 1
    }
    wrap(0x3a); // graph = 7
    assert!(matches!(cut_classifier(inner, None), Err(CutError::Malformed { .. })));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = cut_classifier(bytes, None);
    }

    #[test]
    fn damaged_models_never_panic(
        file in prop::sample::select(vec!["gemm_transb.onnx", "conv1x1_flatten.onnx", "float16_list.onnx", "external.onnx"]),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut model = read_model(file);
        for (place, byte) in damage {
            let place = place.index(model.len());
            model[place] = byte;
        }
        let _ = cut_classifier(model, Some(&data_dir()));
    }
}
