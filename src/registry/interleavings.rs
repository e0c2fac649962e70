//! Changes of a model under a model checker: the code that serves, in many orders of its steps.
//!
//! Every change here adds one to the temperature of the only head, and a sixteenth to its tau. So at generation `g` the
//! temperature is `g` and tau `g / 16`, and a state that says otherwise is lost, mixed or out of order.
#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, sync::Arc};

use ndarray::array;
use object_store::memory::InMemory;
use shuttle::thread;
use tempfile::TempDir;

use super::{
    Author, Change, Changed, Edit, HeadId, IfMatch, Model, ModelState, RegistryError, Series, StateDir,
    builder::HeadBuilder, manifest::Manifest, model::Writer, replica::Replica,
};
use crate::{
    batcher::{Backbones, BatchLimits, Batcher, Occupancy},
    dataset::Shot,
    heads::{BiasMode, Digest, Head, HeadFile, HeadKind, Parameters, Settings},
    metrics::Metrics,
    onnx::{DeviceChoice, Provider, SessionOptions},
    preprocess::{DecodeLimits, Preprocessor},
    sync::{Mutex, Snapshot, in_many_orders},
};

/// Each has threads and folders of its own to make.
const N_ORDERS: usize = 300;

fn settings(generation: u64) -> Settings {
    let number = generation as f64;
    Settings { tau: Some(number / 16.0), bias: Some(BiasMode::Drop), temperature: number }
}

fn edit() -> Edit {
    Edit::by(Author::new("somebody"))
}

/// A model at its first generation, without a session, and the folder of its state.
fn model(shared: Option<&Arc<InMemory>>) -> (Arc<Model>, TempDir) {
    let folder = TempDir::new().unwrap();
    let mut dir = StateDir::open(folder.path()).unwrap();
    if let Some(store) = shared {
        dir = dir.sharing(Arc::clone(store) as Arc<dyn object_store::ObjectStore>, "memory:", None).unwrap();
    }
    let store = dir.model("m").unwrap();
    let metrics = Arc::new(Metrics::new());
    let session = SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::default() };
    let builder = HeadBuilder {
        model: "m".to_owned(),
        num_classes: 2,
        feature_dim: 1,
        n_workers: 0,
        session,
        metrics: Arc::clone(&metrics),
        pools: HashMap::new().into(),
    };
    let parameters = Parameters::Linear { weight: array![[1.0], [2.0]], bias: None, scale: None };
    let head = Head::new(HeadKind::TauNorm, parameters, None);
    let id = HeadId { head: "tau".to_owned(), version: 1 };
    let head = builder.of_file(id.clone(), HeadFile { head, digest: Digest::of(b"a file") }, settings(1)).unwrap();
    let series = Series { declared: None, declared_version: None, next_version: 2, versions: vec![Arc::new(head)] };
    let state = ModelState {
        generation: 1,
        time: None,
        default: id.clone(),
        declared_default: "tau".to_owned(),
        previous_defaults: Vec::new(),
        heads: [("tau".to_owned(), series)].into(),
        made_for: None,
    };
    let change = Change::Imported { published: Vec::new(), before: None, after: id };
    // Of several that start on one store, one writes it.
    store.create(&Manifest::of("m", &state, (None, &Author::server(), change))).unwrap();
    let id = store.manifest(1).unwrap().unwrap().id;
    let config = serde_json::from_str(r#"{"mean": [0, 0, 0], "std": [1, 1, 1]}"#).unwrap();
    let batcher = Batcher::start(
        Backbones { each: Vec::new(), lone: None, image_size: None, occupancy: Occupancy::default() },
        Arc::new(|| Err("there is none".into())),
        Preprocessor::new(config, DecodeLimits::default()).unwrap(),
        None,
        BatchLimits { queue_capacity: 1, max_batch_size: 1, max_queue_delay: std::time::Duration::ZERO },
        metrics.of_model("m"),
    );
    let model = Model {
        labels: vec!["a".to_owned(), "b".to_owned()],
        shots: vec![Shot::Unknown; 2],
        train_counts: None,
        provider: Provider::Cpu,
        threads: 1,
        lone_threads: 1,
        tuning: None,
        batcher: batcher.unwrap(),
        builder,
        state: Snapshot::new(state),
        writer: Mutex::new(Writer { highest: 1, id }),
        replica: Replica::new(metrics.of_state("m"), Default::default()),
        store: Some(store),
        feature_sets: None,
        fits: None,
    };
    (Arc::new(model), folder)
}

#[track_caller]
fn check(state: &ModelState) -> u64 {
    assert_eq!(state.head("tau", None).unwrap().settings, settings(state.generation));
    state.generation
}

fn increment(model: &Model, edit: &Edit) -> Result<Changed<()>, RegistryError> {
    model.change(edit, |state| {
        let current = Arc::clone(state.head("tau", None)?);
        let after = settings(check(state) + 1);
        state.set_settings(&current, after);
        let before = current.settings;
        Ok(((), Change::Patched { head: "tau".to_owned(), version: 1, before, after }))
    })
}

/// Reads as requests do: what comes later is never older.
fn read(model: &Model) {
    let mut newest = 0;
    for _ in 0..4 {
        let seen = check(&model.state());
        assert!(seen >= newest, "generation {seen} after {newest}");
        newest = seen;
    }
}

/// Makes two changes, and sees each of them at once.
fn write(model: &Model) {
    for _ in 0..2 {
        let made = check(&increment(model, &edit()).unwrap().state);
        assert!(model.generation() >= made);
    }
}

fn in_threads<const N: usize>(work: [Box<dyn FnOnce() + Send>; N]) {
    work.map(|work| thread::spawn(work)).into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn no_change_is_lost_and_no_request_sees_half_of_one() {
    in_many_orders(N_ORDERS, || {
        let (model, _folder) = model(None);
        let [a, b, reader] = [(); 3].map(|()| Arc::clone(&model));
        in_threads([Box::new(move || write(&a)), Box::new(move || write(&b)), Box::new(move || read(&reader))]);
        assert_eq!(check(&model.state()), 5);
    });
}

#[test]
fn servers_on_one_store_lose_nothing_and_never_go_back() {
    in_many_orders(N_ORDERS, || {
        let store = Arc::new(InMemory::new());
        let [(a, _folder_a), (b, _folder_b)] = [model(Some(&store)), model(Some(&store))];
        let [writer_a, poller_a, reader_a] = [(); 3].map(|()| Arc::clone(&a));
        let [writer_b, reader_b] = [(); 2].map(|()| Arc::clone(&b));
        in_threads([
            Box::new(move || write(&writer_a)),
            Box::new(move || write(&writer_b)),
            Box::new(move || (0..2).for_each(|_| poller_a.refresh().unwrap())),
            Box::new(move || read(&reader_a)),
            Box::new(move || read(&reader_b)),
        ]);
        for model in [a, b] {
            model.refresh().unwrap();
            assert_eq!(check(&model.state()), 5);
        }
    });
}

#[test]
fn of_two_changes_on_condition_of_one_generation_one_is_made() {
    in_many_orders(N_ORDERS, || {
        let store = Arc::new(InMemory::new());
        let [(a, _folder_a), (b, _folder_b)] = [model(Some(&store)), model(Some(&store))];
        let made = [a, b].map(|model| {
            thread::spawn(move || increment(&model, &Edit { if_match: IfMatch::Generations(vec![1]), ..edit() }))
        });
        let made = made.map(|thread| thread.join().unwrap());
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
        for lost in made.into_iter().filter_map(Result::err) {
            assert!(matches!(lost, RegistryError::PreconditionFailed { generation: 2, .. }), "{lost}");
        }
    });
}
