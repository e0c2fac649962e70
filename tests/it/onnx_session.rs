//! Backbones: the contract of the file, batches, sizes, and what cannot be run.

use equipoise::onnx::{Backbone, DeviceChoice, Features, OnnxError, Provider, Scorer, SessionOptions};

use crate::app::icons30;
use crate::onnx::{MANY, data_dir, field, golden, max_difference, on_cpu, pixels, read_model};

#[track_caller]
fn load(file: &str) -> Backbone {
    Backbone::load(&read_model(file), Some(&data_dir()), &on_cpu()).unwrap_or_else(|err| panic!("{file}: {err}"))
}

#[track_caller]
fn check_features(file: &str) {
    let mut backbone = load(file);
    let features = backbone.run(&pixels(3), 3, 8, 8).expect(file);
    assert_eq!((features.n(), features.feature_dim(), backbone.feature_dim()), (3, 6, 6), "{file}");
    let difference = max_difference(&features.to_host().expect(file), &golden().features);
    assert!(difference <= 1e-6, "{file}: {difference:e}");
}

#[test]
fn features_are_those_of_the_reference_evaluator() {
    let files = ["", "_fixed_batch", "_4d", "_two_outputs", "_symbolic", "_external", "_free"];
    for file in files {
        check_features(&format!("backbone{file}.onnx"));
    }
}

#[test]
fn a_batch_answers_what_its_images_answer_alone() {
    for file in ["backbone.onnx", "backbone_fixed_batch.onnx"] {
        let mut backbone = load(file);
        for n in [1, 2, 4, 5, 9] {
            let pixels = pixels(n);
            let batch = backbone.run(&pixels, n, 8, 8).expect(file).to_host().expect(file).into_owned();
            let mut alone = Vec::new();
            for image in pixels.chunks(3 * 8 * 8) {
                alone.extend_from_slice(&backbone.run(image, 1, 8, 8).expect(file).to_host().expect(file));
            }
            assert!(max_difference(&batch, &alone) <= 1e-6, "{file}, n={n}");
        }
    }
}

#[test]
fn copies_answer_to_the_last_bit_what_the_first_one_does() {
    let files = ["", "_fixed_batch", "_4d", "_two_outputs", "_symbolic", "_external", "_free"];
    for file in files.map(|file| format!("backbone{file}.onnx")) {
        let mut first = load(&file);
        let expected = first.run(&pixels(3), 3, 8, 8).expect(&file).to_host().expect(&file).into_owned();
        let model = read_model(&file);
        for size in [Some((8, 8)), None] {
            let sharing = SessionOptions { shares_arena: true, ..on_cpu() };
            let options = [on_cpu(), sharing.clone(), SessionOptions { threads: 2, spinning: true, ..sharing }];
            let copies = load(&file).replicate(&model, Some(&data_dir()), &options, size).expect(&file);
            assert_eq!(copies.len(), 3);
            for mut copy in copies {
                let found = copy.run(&pixels(3), 3, 8, 8).expect(&file);
                assert_eq!(found.to_host().expect(&file), expected.as_slice(), "{file}");
                assert_eq!((copy.feature_dim(), copy.provider()), (6, Provider::Cpu), "{file}");
            }
        }
    }
}

#[test]
fn sessions_that_share_an_arena_do_not_disturb_each_other() {
    let expected = load("backbone.onnx").run(&pixels(3), 3, 8, 8).expect("a run").to_host().expect("rows").into_owned();
    let model = read_model("backbone.onnx");
    let sharing = SessionOptions { shares_arena: true, ..on_cpu() };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut backbone = Backbone::load(&model, None, &sharing).expect("a backbone");
            let expected = &expected;
            scope.spawn(move || {
                for n in [3, 1, 2].into_iter().cycle().take(300) {
                    let features = backbone.run(&pixels(3)[..n * 192], n, 8, 8).expect("a run");
                    let rows = features.to_host().expect("rows");
                    assert!(max_difference(&rows, &expected[..n * 6]) <= 1e-6, "{n}");
                }
            });
        }
    });
}

#[test]
fn backbones_of_the_same_weights_agree_and_others_do_not() {
    let mut plain = load("backbone.onnx");
    assert!(plain.agrees_with(&mut load("backbone.onnx"), 8, 8).expect("runs"));
    let mut bytes = read_model("backbone.onnx");
    let is_weight = |four: &[u8]| four.try_into().is_ok_and(|four| (0.01..1.0).contains(&f32::from_le_bytes(four)));
    let weight = bytes.windows(4).rposition(is_weight).expect("a weight");
    // Half of its digits.
    bytes[weight + 1] ^= 0xff;
    let mut other = Backbone::load(&bytes, None, &on_cpu()).expect("a backbone");
    assert!(!plain.agrees_with(&mut other, 8, 8).expect("runs"));
}

#[cfg(target_os = "linux")]
#[test]
fn copies_hold_their_weights_in_pages_of_one_file() {
    let path = icons30().join("backbone.onnx");
    let model = std::fs::read(&path).expect("the model that ships");
    let first = Backbone::load(&model, None, &on_cpu()).expect("a backbone");
    let copies = first.replicate(&model, None, &[on_cpu(), on_cpu(), on_cpu()], Some((32, 32))).expect("copies");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("what is mapped");
    let is_of = |line: &&str| line.contains("weights.bin") && line.ends_with("(deleted)");
    let inodes: Vec<&str> = maps.lines().filter(is_of).filter_map(|line| line.split_whitespace().nth(4)).collect();
    // Other tests may have mapped theirs at the same time.
    let is_shared = |inode: &&&str| inodes.iter().filter(|other| other == inode).count() >= 3;
    assert!(inodes.iter().any(|inode| is_shared(&inode)), "{inodes:?}");
    assert_eq!(copies.len(), 3);
}

#[test]
fn the_file_tells_sizes() {
    let plain = load("backbone.onnx");
    assert_eq!((plain.input_size(), plain.fixed_batch(), plain.feature_dim()), ((Some(8), Some(8)), None, 6));
    assert_eq!((plain.provider(), plain.fallback()), (Provider::Cpu, None));
    assert_eq!(load("backbone_fixed_batch.onnx").fixed_batch(), Some(4));
    assert_eq!(load("backbone_symbolic.onnx").feature_dim(), 6, "found by a run at load");
    let mut free = load("backbone_free.onnx");
    assert_eq!((free.input_size(), free.feature_dim()), ((None, None), 0));
    free.warm_up(&[1, 2], 12, 20).expect("any size will do");
    assert_eq!(free.feature_dim(), 6);
    free.run(&vec![0.0; 2 * 3 * 5 * 7], 2, 5, 7).expect("another size");
}

#[track_caller]
fn check_refused(file: &str, parts: &[&str]) {
    let err = Backbone::load(&read_model(file), None, &on_cpu()).map(|_| ()).expect_err(file);
    let message = err.to_string();
    println!("{file}: {message}");
    for part in parts {
        assert!(message.contains(part), "{file}: no `{part}` in: {message}");
    }
}

#[test]
fn a_file_that_is_no_backbone_is_refused_with_what_it_has() {
    check_refused("backbone_no_choice.onnx", &["`relu` float32 [N,6,4,4]", "`pooled` float32 [N,6,1,1]", "`features`"]);
    check_refused("backbone_map.onnx", &["float32 [N,D]", "`relu` float32 [N,6,4,4]"]);
    check_refused("backbone_two_inputs.onnx", &["one input", "`image` float32 [N,3,8,8]", "`extra` float32 [N,6,1,1]"]);
    check_refused("backbone_double.onnx", &["`image` float64 [N,3,8,8]"]);
    check_refused("backbone_gray.onnx", &["`image` float32 [N,1,8,8]"]);
    check_refused("backbone_sequence.onnx", &["`seq` (not a dense tensor"]);
    check_refused("backbone_external.onnx", &["`conv.weight`", "`weights.bin`", "without a folder"]);
    check_refused("backbone_negative.onnx", &["`features`", "no sensible shape"]);
    check_refused("backbone_bad_call.onnx", &["`Twice`", "more inputs or outputs"]);
    check_refused("backbone_vast.onnx", &["50000000 pixels", "`image` float32 [N,3,1000000,1000000]"]);
    check_refused("backbone_vast_batch.onnx", &["1000000000 a batch", "`image` float32 [2000000000,3,8,8]"]);
    check_refused("every_field.onnx", &[]);
    check_refused("absurd_dims.onnx", &[]);
    check_refused("circle.onnx", &[]);
    let folder = data_dir();
    let outside = Backbone::load(&read_model("external_parent.onnx"), Some(&folder), &on_cpu());
    assert!(matches!(outside, Err(OnnxError::ExternalData { .. })));
}

#[test]
fn bytes_that_are_no_model_are_refused() {
    let load = |bytes: &[u8]| Backbone::load(bytes, None, &on_cpu());
    assert!(matches!(load(&[]), Err(OnnxError::NoGraph)));
    assert!(matches!(load(b"not a model"), Err(OnnxError::Malformed { .. })));
    assert!(load(b"\x89PNG\r\n\x1a\n0000").is_err());
    let model = read_model("backbone.onnx");
    for len in (1..model.len()).step_by(7) {
        assert!(load(&model[..len]).is_err(), "the first {len} bytes of a model");
    }
}

#[test]
fn many_calls_and_many_functions_are_looked_at_once() {
    let call = field(1, &[field(4, b"Other"), field(7, b"own")].concat());
    let function = field(25, &[field(1, b"Twice"), field(10, b"own")].concat());
    let model = [field(7, &call.repeat(MANY)), function.repeat(MANY)].concat();
    let err = Backbone::load(&model, None, &on_cpu()).map(|_| ()).expect_err("it has no inputs");
    assert!(matches!(err, OnnxError::Input { .. }), "{err}");
}

#[test]
fn a_run_is_refused_when_the_numbers_do_not_fit() {
    let mut backbone = load("backbone.onnx");
    let cases = [
        (pixels(1), 0, 8, 8),
        (pixels(1), 2, 8, 8),
        (pixels(1), 1, 8, 7),
        (pixels(1), 1, 4, 16),
        (Vec::new(), 1, 8, 8),
        (pixels(1), usize::MAX, 8, 8),
    ];
    for (pixels, n, height, width) in cases {
        let err = backbone.run(&pixels, n, height, width).map(|_| ()).expect_err("the numbers do not fit");
        assert!(err.to_string().contains("[3,8,8]"), "{err}");
        assert!(matches!(err, OnnxError::ImageShape { .. }));
    }
    assert!(backbone.warm_up(&[usize::MAX], 8, 8).is_err());
    backbone.run(&pixels(1), 1, 8, 8).expect("it still works");
}

#[test]
fn features_that_are_not_finite_are_of_their_image_alone() {
    let mut backbone = load("backbone_log.onnx");
    let mut images = vec![1.0; 4 * 3 * 8 * 8];
    backbone.run(&images, 4, 8, 8).expect("every image is bright");
    images[2 * 3 * 8 * 8..3 * 3 * 8 * 8].fill(-1.0);
    let features = backbone.run(&images, 4, 8, 8).expect("image 2 is dark");
    let rows = features.to_host().expect("on the host");
    let are_finite: Vec<bool> =
        rows.chunks(features.feature_dim()).map(|row| row.iter().all(|value| value.is_finite())).collect();
    assert_eq!(are_finite, [true, true, false, true]);
    backbone.warm_up(&[1], 8, 8).expect("a black image is not a request");
}

#[test]
fn features_from_the_caller_are_checked() {
    assert!(Features::from_host(vec![1.0; 6], 2, 3).is_ok());
    assert!(matches!(Features::from_host(vec![1.0; 6], 2, 4), Err(OnnxError::FeatureShape { .. })));
    assert!(matches!(Features::from_host(Vec::new(), 0, 4), Err(OnnxError::FeatureShape { .. })));
    assert!(matches!(Features::from_host(vec![1.0; 6], usize::MAX, 4), Err(OnnxError::FeatureShape { .. })));
    assert!(matches!(Features::from_host(vec![0.0, f32::NAN], 2, 1), Err(OnnxError::NotFinite { image: 1 })));
}

#[test]
fn auto_takes_the_cpu_and_cuda_says_why_not_where_there_is_none() {
    let model = read_model("backbone.onnx");
    let auto = SessionOptions { device: DeviceChoice::Auto, ..on_cpu() };
    let mut backbone = Backbone::load(&model, None, &auto).expect("auto always finds a device");
    backbone.run(&pixels(2), 2, 8, 8).expect("and it works");
    if backbone.provider() == Provider::Cpu {
        let cuda = SessionOptions { device: DeviceChoice::Cuda { index: 0 }, ..on_cpu() };
        let err = Backbone::load(&model, None, &cuda).map(|_| ()).expect_err("there is no CUDA here");
        println!("{err}");
        assert!(err.to_string().contains("cuda"), "{err}");
    }
}

#[test]
fn device_names_round_trip_and_others_are_refused() {
    for name in ["auto", "cpu", "cuda", "cuda:1", "cuda:12"] {
        assert_eq!(name.parse::<DeviceChoice>().expect(name).to_string(), name);
    }
    assert_eq!("cuda:0".parse(), Ok(DeviceChoice::Cuda { index: 0 }));
    for name in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:+1", "cuda:01", "cuda:4294967295", "cuda:1 "] {
        assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
    }
}

#[test]
fn sessions_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<Backbone>();
    is_send::<Scorer>();
    is_send::<Features>();
    let mut backbone = load("backbone.onnx");
    let features =
        std::thread::spawn(move || backbone.run(&pixels(3), 3, 8, 8)).join().expect("no panic").expect("runs");
    assert!(max_difference(&features.to_host().expect("on the host"), &golden().features) <= 1e-6);
}
