//! The batcher under a model checker: the code that serves, in many orders of its steps.
//!
//! A request that is never answered, or a worker that never ends, is a deadlock, which the checker reports.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use shuttle::{future::block_on, sync::mpsc, thread};

use super::{
    Backbone, Backbones, BatchError, BatchLimits, Batcher, DecodePool, Inputs, Occupancy, Output, Outputs, Rebuild,
    Wanted, collect,
    queue::{Receiver, queue},
};
use crate::{
    metrics::Metrics,
    onnx::{Features, OnnxError},
    preprocess::{DecodeLimits, Preprocessor},
    sync::in_many_orders,
};

/// The pixel at which a backbone panics.
const POISON: u8 = 255;

const MANY: usize = 3000;
/// The checker takes its time over every panic, also over one that is caught.
const AFTER_A_PANIC: usize = 200;

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Gives the red pixel of each image as its feature, and tells when it is gone.
struct RedPixel(mpsc::Sender<()>);

impl Backbone for RedPixel {
    fn run(&mut self, pixels: &[f32], n: usize, height: usize, width: usize) -> Result<Features, OnnxError> {
        let red: Vec<f32> = pixels.chunks(3 * height * width).map(|image| image[0].round()).collect();
        assert!(!red.contains(&f32::from(POISON)), "poison");
        Features::from_host(red, n, 1)
    }
}

impl Drop for RedPixel {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// A batcher whose workers decode, and where each of its backbones says that it is gone.
fn batcher(n_workers: usize, queue_capacity: usize, can_rebuild: bool) -> (Batcher, mpsc::Receiver<()>) {
    batcher_with(None, false, n_workers, queue_capacity, can_rebuild)
}

fn batcher_with(
    decode_pool: Option<DecodePool>,
    has_lone: bool,
    n_workers: usize,
    queue_capacity: usize,
    can_rebuild: bool,
) -> (Batcher, mpsc::Receiver<()>) {
    let (gone, ends) = mpsc::channel();
    let make = move || Box::new(RedPixel(gone.clone())) as Box<dyn Backbone>;
    let each = (0..n_workers).map(|_| make()).collect();
    let backbones = Backbones { each, lone: has_lone.then(&make), image_size: None, occupancy: Occupancy::default() };
    let make = shuttle::sync::Mutex::new(make);
    let rebuild: Rebuild = Arc::new(move || match can_rebuild {
        true => Ok(make.lock().unwrap()()),
        false => Err("no memory is left".into()),
    });
    let config = serde_json::from_str(r#"{"mean": [0, 0, 0], "std": [0.003921569, 1, 1]}"#).unwrap();
    let preprocessor = Preprocessor::new(config, DecodeLimits::default()).unwrap();
    let limits = BatchLimits { queue_capacity, max_batch_size: 2, max_queue_delay: Duration::ZERO };
    let batcher = Batcher::start(backbones, rebuild, preprocessor, decode_pool, limits, METRICS.of_model("m")).unwrap();
    (batcher, ends)
}

/// An image of one pixel, as a BMP.
fn image(red: u8) -> Inputs {
    let mut bmp = b"BM".to_vec();
    let (n_bytes, offset) = (58, 54);
    bmp.extend([n_bytes, 0, offset, 40, 1, 1].iter().flat_map(|word: &u32| word.to_le_bytes()));
    let (planes, bits) = (1, 24);
    bmp.extend([planes, bits].iter().flat_map(|half: &u16| half.to_le_bytes()));
    bmp.extend([0; 24]);
    bmp.extend([0, 0, red, 0]);
    Inputs::Images(vec![Bytes::from(bmp)])
}

fn ask(batcher: &Batcher, red: u8) -> Result<Outputs, BatchError> {
    let deadline = Instant::now() + Duration::from_secs(3600);
    block_on(collect(batcher.submit(image(red), Wanted::Features, deadline)?))
}

/// Lets a client for each of these pixels ask at the same time, and look at its answer.
fn clients<const N: usize>(
    batcher: &Batcher,
    reds: [u8; N],
    look: fn(u8, Result<Outputs, BatchError>),
) -> [thread::JoinHandle<()>; N] {
    reds.map(|red| {
        let batcher = batcher.clone();
        thread::spawn(move || look(red, ask(&batcher, red)))
    })
}

fn join<const N: usize>(threads: [thread::JoinHandle<()>; N]) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[track_caller]
fn assert_is_of(outputs: &Outputs, red: u8) {
    let [Output::Features(features)] = outputs.rows.as_slice() else { panic!("{outputs:?}") };
    assert_eq!(features.as_slice(), [f32::from(red)]);
}

fn each_request_gets_its_own_answer((batcher, ends): (Batcher, mpsc::Receiver<()>), n_workers: usize) {
    let clients = clients(&batcher, [10, 20, 30], |red, answer| assert_is_of(&answer.unwrap(), red));
    drop(batcher);
    join(clients);
    (0..n_workers).for_each(|_| ends.recv().unwrap());
}

#[test]
fn each_request_gets_its_own_answer_and_the_workers_end_with_the_last_handle() {
    in_many_orders(MANY, || each_request_gets_its_own_answer(batcher(2, 8, true), 2));
}

#[test]
fn each_request_gets_its_own_answer_through_a_decode_pool_too() {
    in_many_orders(MANY, || {
        let decode_pool = Some(DecodePool::start(1).unwrap());
        each_request_gets_its_own_answer(batcher_with(decode_pool, false, 1, 8, true), 1);
    });
}

#[test]
fn each_request_gets_its_own_answer_alone_or_not_and_the_session_for_lone_images_ends_too() {
    in_many_orders(MANY, || each_request_gets_its_own_answer(batcher_with(None, true, 2, 8, true), 3));
}

#[test]
fn places_come_back_whoever_hangs_up_and_more_than_there_are_is_refused() {
    in_many_orders(MANY, || {
        let (batcher, ends) = batcher(1, 2, true);
        let waiting = clients(&batcher, [10, 20], |red, answer| match answer {
            Ok(outputs) => assert_is_of(&outputs, red),
            Err(error) => assert!(matches!(error, BatchError::QueueFull { capacity: 2 }), "{error}"),
        });
        // Asks and does not wait.
        drop(batcher.submit(image(30), Wanted::Features, Instant::now() + Duration::from_secs(3600)));
        join(waiting);
        let places = Arc::clone(&batcher.places);
        drop(batcher);
        ends.recv().unwrap();
        assert_eq!(places.available_permits(), 2);
    });
}

#[test]
fn after_a_panic_the_worker_begins_anew_and_nobody_waits_for_ever() {
    in_many_orders(AFTER_A_PANIC, || {
        let (batcher, ends) = batcher(2, 8, true);
        join(clients(&batcher, [10, POISON, 30], |red, answer| match answer {
            Ok(outputs) => assert_is_of(&outputs, red),
            // What was in the same batch shares its end.
            Err(error) => assert!(matches!(error, BatchError::WorkerLost), "{error}"),
        }));
        assert_is_of(&ask(&batcher, 40).unwrap(), 40);
        assert!(batcher.is_working());
        drop(batcher);
        // The two of now, and the one that panicked.
        (0..3).for_each(|_| ends.recv().unwrap());
    });
}

#[test]
fn without_any_session_left_requests_are_refused_and_the_worker_still_ends() {
    in_many_orders(AFTER_A_PANIC, || {
        let (batcher, ends) = batcher(1, 8, false);
        join(clients(&batcher, [POISON, 20], |red, answer| match answer {
            Ok(outputs) => assert_is_of(&outputs, red),
            Err(error) => assert!(matches!(error, BatchError::WorkerLost | BatchError::Unavailable), "{error}"),
        }));
        assert!(matches!(ask(&batcher, 30), Err(BatchError::Unavailable)));
        drop(batcher);
        ends.recv().unwrap();
    });
}

fn receive_all(mut receiver: Receiver<u32>) -> thread::JoinHandle<Vec<u32>> {
    thread::spawn(move || std::iter::from_fn(|| receiver.recv()).collect())
}

#[test]
fn the_queue_keeps_the_order_and_then_ends_in_every_order_there_is() {
    shuttle::check_dfs(
        || {
            let (sender, receiver) = queue();
            let receiving = receive_all(receiver);
            sender.send(1).unwrap();
            sender.send(2).unwrap();
            drop(sender);
            assert_eq!(receiving.join().unwrap(), [1, 2]);
        },
        None,
    );
}

#[test]
fn of_two_receivers_one_gets_it_and_both_end() {
    in_many_orders(MANY, || {
        let (sender, receiver) = queue();
        let receiving = [receiver.clone(), receiver].map(receive_all);
        sender.send(1).unwrap();
        drop(sender);
        let received: Vec<u32> = receiving.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(received, [1]);
    });
}

#[test]
fn what_waits_when_the_last_receiver_goes_is_dropped_or_given_back_in_every_order_there_is() {
    shuttle::check_dfs(
        || {
            let (sender, receiver) = queue();
            let item = Arc::new(());
            let going = thread::spawn(move || drop(receiver));
            let kept = sender.send(Arc::clone(&item));
            going.join().unwrap();
            sender.send(Arc::clone(&item)).unwrap_err();
            drop(kept);
            assert_eq!(Arc::strong_count(&item), 1);
        },
        None,
    );
}
