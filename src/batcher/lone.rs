//! The session for images that come one at a time.
//!
//! Under load a session of few threads for each core is best: none waits for another thread, and the cores are full. An image that
//! comes while no other is worked on, by any model, then has one core, and the others have nothing to do. So there may be one more
//! session, of more threads, and whichever worker has the only image takes it.
//!
//! The image before must have been alone as well. With two or three requests always under way it happens that the rest end
//! together and one is alone for a moment: the next would come while all cores work on that one, and both would take longer.
//! Two connections to EfficientNet-Lite0 on two cores had a p99 of 17 ms without this condition, and with it the 13 ms that they
//! have without such a session.

use std::sync::{Arc, PoisonError};

use super::Backbone;
use crate::{
    metrics::ModelMetrics,
    onnx::Features,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// The sessions of a model.
pub struct Backbones {
    /// One for each worker.
    pub each: Vec<Box<dyn Backbone>>,
    /// One for images that come one at a time, if it is worth it: the same features, sooner, on cores that have nothing else to do.
    pub lone: Option<Box<dyn Backbone>>,
    /// Height and width of the images that they have run already, if that is known before the first.
    pub image_size: Option<(usize, usize)>,
    /// Of the cores that they run on.
    pub occupancy: Occupancy,
}

/// How many batches are worked on at the moment, by all models that have been given a clone: they share the cores.
#[derive(Clone, Debug, Default)]
pub struct Occupancy(Arc<AtomicUsize>);

/// A batch that counts until this is dropped.
pub(super) struct Occupying<'a>(&'a Occupancy);

impl Occupancy {
    pub(super) fn begin(&self) -> Occupying<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        Occupying(self)
    }

    /// Whether there is no batch but the one of whoever asks.
    pub(super) fn is_of_one(&self) -> bool {
        self.0.load(Ordering::Acquire) == 1
    }
}

impl Drop for Occupying<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where the session for lone images lies while nobody uses it.
pub(super) struct Lone {
    session: Mutex<Option<Box<dyn Backbone>>>,
    was_alone: AtomicBool,
}

impl Lone {
    pub(super) fn new(session: Option<Box<dyn Backbone>>) -> Self {
        Self { session: Mutex::new(session), was_alone: AtomicBool::new(false) }
    }

    /// The features of an image `[1, 3, height, width]`; `is_alone` says whether no other is worked on.
    ///
    /// `None` if this image or the one before is not alone, if there is no such session, if another worker has it, or if it fails,
    /// so that the worker's own session has the last word. A session that fails otherwise than by the numbers of an image, or
    /// panics, is not used again.
    pub(super) fn run(
        &self,
        pixels: &[f32],
        (height, width): (usize, usize),
        is_alone: bool,
        metrics: &ModelMetrics,
    ) -> Option<Features> {
        let was_alone = self.was_alone.swap(is_alone, Ordering::Relaxed);
        let mut session = if was_alone && is_alone { self.session().take() } else { None }?;
        let features = session.run(pixels, 1, height, width);
        match &features {
            Err(error) if error.is_of_the_session() => {
                tracing::error!(%error, "the session for lone images failed, and is not used any more");
            }
            _ => *self.session() = Some(session),
        }
        let features = features.ok()?;
        metrics.lone_images.inc();
        Some(features)
    }

    // Nothing is done under the lock that could panic.
    fn session(&self) -> MutexGuard<'_, Option<Box<dyn Backbone>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::{metrics::Metrics, onnx::OnnxError};

    /// Gives the first pixel as the feature: no number at NaN, broken below 0, a panic above 9.
    struct FirstPixel;

    impl Backbone for FirstPixel {
        fn run(&mut self, pixels: &[f32], n: usize, _: usize, _: usize) -> Result<Features, OnnxError> {
            match pixels[0] {
                red if red.is_nan() => Err(OnnxError::NotFinite { image: 0 }),
                red if red < 0.0 => Err(OnnxError::OutputShape { found: Vec::new(), n, feature_dim: 1 }),
                red => {
                    assert!(red <= 9.0, "a pixel too large");
                    Features::from_host(vec![red], n, 1)
                }
            }
        }
    }

    /// Lets images come, each with whether it is alone, and tells which of them the session answered.
    fn answered<const N: usize>(lone: &Lone, metrics: &ModelMetrics, images: [(f32, bool); N]) -> [bool; N] {
        images.map(|(red, is_alone)| {
            let features = lone.run(&[red; 3], (1, 1), is_alone, metrics);
            if let Some(features) = &features {
                assert_eq!(*features.to_host().expect("on the host"), [red]);
            }
            features.is_some()
        })
    }

    #[test]
    fn a_batch_counts_until_its_worker_is_done_or_has_panicked() {
        let (occupancy, of_another_model) = (Occupancy::default(), Occupancy::default());
        let one = occupancy.begin();
        assert!(occupancy.is_of_one());
        let same_cores = occupancy.clone();
        let panics = std::panic::AssertUnwindSafe(|| {
            let _second = same_cores.begin();
            assert!(occupancy.is_of_one(), "there are two");
        });
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(occupancy.is_of_one() && !of_another_model.is_of_one());
        drop(one);
        assert!(!occupancy.is_of_one());
    }

    #[test]
    fn it_is_for_images_that_come_one_at_a_time() {
        let metrics = Metrics::new().of_model("m");
        let lone = Lone::new(Some(Box::new(FirstPixel)));
        let images = [(1.0, true), (2.0, true), (3.0, true), (4.0, false), (5.0, true), (6.0, true)];
        assert_eq!(answered(&lone, &metrics, images), [false, true, true, false, false, true]);
        assert_eq!(metrics.lone_images.get(), 3);
        assert_eq!(answered(&Lone::new(None), &metrics, images), [false; 6]);
    }

    #[test]
    fn what_is_wrong_with_an_image_is_not_the_sessions_fault_and_what_breaks_is_not_used_again() {
        let metrics = Metrics::new().of_model("m");
        let lone = Lone::new(Some(Box::new(FirstPixel)));
        let images = [(1.0, true), (f32::NAN, true), (2.0, true), (-1.0, true), (3.0, true)];
        assert_eq!(answered(&lone, &metrics, images), [false, false, true, false, false]);

        let lone = Lone::new(Some(Box::new(FirstPixel)));
        assert_eq!(answered(&lone, &metrics, [(1.0, true), (2.0, true)]), [false, true]);
        let panics = std::panic::AssertUnwindSafe(|| lone.run(&[10.0; 3], (1, 1), true, &metrics));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(answered(&lone, &metrics, [(1.0, true)]), [false]);
    }
}
