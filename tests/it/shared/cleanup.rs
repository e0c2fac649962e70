//! Publications while a clean-up runs: what somebody else does between two of its steps.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use equipoise::{
    heads::Digest,
    registry::{Gc, GcOptions},
};
use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path as Key,
};

use super::{
    edit,
    place::{Place, audit_in_pages, patch, publish, share},
};
use crate::{app::copy_of_icons30, http::head_file};

/// A step of somebody who works on head files.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    AfterList,
    AfterRead,
    BeforeDelete,
    /// Of a generation, whose head files are there.
    BeforeCreate,
}

/// A store in which something else happens at a step, once.
#[derive(Clone)]
struct Interrupted {
    store: Arc<dyn ObjectStore>,
    event: Arc<Mutex<Option<Event>>>,
    /// From then on nobody is told when a head file was written.
    has_failed: Arc<AtomicBool>,
}

struct Event {
    step: Step,
    happen: Box<dyn FnOnce() + Send>,
}

impl Interrupted {
    fn around(store: &Arc<dyn ObjectStore>) -> Self {
        Self { store: Arc::clone(store), event: Arc::default(), has_failed: Arc::default() }
    }

    fn at(&self, step: Step, happen: impl FnOnce() + Send + 'static) {
        *self.event.lock().unwrap() = Some(Event { step, happen: Box::new(happen) });
    }

    fn has_happened(&self) -> bool {
        self.event.lock().unwrap().is_none()
    }

    fn reach(&self, step: Step, key: &Key) {
        let folder = if step == Step::BeforeCreate { "/generations" } else { "/blobs" };
        let is_now = |event: &mut Event| event.step == step && key.as_ref().contains(folder);
        let event = self.event.lock().unwrap().take_if(is_now);
        if let Some(event) = event {
            (event.happen)();
        }
    }
}

impl fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Interrupted {
    async fn put_opts(&self, key: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if options.mode == PutMode::Create {
            self.reach(Step::BeforeCreate, key);
        }
        self.store.put_opts(key, payload, options).await
    }

    async fn put_multipart_opts(&self, key: &Key, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        let is_read = !options.head;
        if !is_read && self.has_failed.load(Ordering::SeqCst) && key.as_ref().contains("/blobs") {
            return Err(Error::Generic { store: "interrupted", source: "503 slow down".into() });
        }
        let found = self.store.get_opts(key, options).await;
        if is_read {
            self.reach(Step::AfterRead, key);
        }
        found
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        let this = self.clone();
        let keys = keys.inspect(move |key| key.iter().for_each(|key| this.reach(Step::BeforeDelete, key)));
        self.store.delete_stream(keys.boxed())
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        let whole = async move {
            let listed: Vec<_> = this.store.list(Some(&prefix)).collect().await;
            this.reach(Step::AfterList, &prefix);
            futures_util::stream::iter(listed)
        };
        futures_util::stream::once(whole).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

fn clean_up(store: Arc<dyn ObjectStore>, grace: Duration) {
    let gc = Gc::of_store(store, "store:", grace).unwrap();
    gc.run(GcOptions { keep_generations: 1, is_dry_run: false }).unwrap();
}

fn blob(seed: usize) -> Key {
    Key::from(format!("models/icons30/blobs/{}", Digest::of(&head_file(seed, None)).to_hex()))
}

/// As if all had been written two hours ago.
fn make_old(place: &Place) {
    let two_hours_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    for key in place.keys("models") {
        let path = place.folder.as_ref().unwrap().path().join(key.as_ref());
        std::fs::File::options().write(true).open(path).unwrap().set_modified(two_hours_ago).unwrap();
    }
}

/// The head file is in the store, and a server that has no copy serves it.
#[track_caller]
fn assert_served(place: &Place, seed: usize) {
    assert!(place.keys("models/icons30/blobs").contains(&blob(seed)));
    assert_eq!(place.serve().model.state().head("mine", None).unwrap().id.version, 2);
}

#[test]
fn a_head_file_that_is_published_again_while_a_clean_up_removes_it_is_there_in_the_end() {
    for step in [Step::AfterList, Step::BeforeDelete] {
        let place = Place::folder();
        let server = place.serve();
        let model = Arc::clone(&server.model);
        publish(&model, 1).unwrap();
        model.delete(&edit(), "mine", None).unwrap();
        make_old(&place);
        let store = Interrupted::around(&place.store);
        store.at(step, move || publish(&model, 1).unwrap());
        clean_up(Arc::new(store.clone()), Duration::from_secs(3600));
        assert!(store.has_happened(), "{step:?}");
        assert_served(&place, 1);
    }
}

#[test]
fn what_a_clean_up_removed_and_somebody_needs_is_there_also_if_it_ends_with_an_error() {
    let place = Place::folder();
    let model = place.serve().model;
    publish(&model, 1).unwrap();
    publish(&model, 2).unwrap();
    model.delete(&edit(), "mine", None).unwrap();
    make_old(&place);
    let store = Interrupted::around(&place.store);
    let has_failed = Arc::clone(&store.has_failed);
    // Before the first of them goes both are published; the second is never looked at.
    store.at(Step::BeforeDelete, move || {
        publish(&model, 1).unwrap();
        publish(&model, 2).unwrap();
        has_failed.store(true, Ordering::SeqCst);
    });
    let gc = Gc::of_store(Arc::new(store.clone()), "store:", Duration::from_secs(3600)).unwrap();
    let error = gc.run(GcOptions { keep_generations: 1, is_dry_run: false }).unwrap_err().to_string();
    assert!(store.has_happened() && error.contains("503 slow down"), "{error}");
    let there = place.keys("models/icons30/blobs");
    assert!(there.contains(&blob(1)) && there.contains(&blob(2)), "{there:?}");
}

#[test]
fn a_head_file_that_goes_before_its_generation_is_there_is_written_again() {
    let place = Place::bucket();
    let store = Interrupted::around(&place.store);
    let clean_up_before_the_generation = || {
        let bucket = Arc::clone(&place.store);
        store.at(Step::BeforeCreate, move || clean_up(bucket, Duration::ZERO));
    };
    let server = share(Arc::new(store.clone()), &place.directory).unwrap();
    publish(&server.model, 1).unwrap();
    server.model.delete(&edit(), "mine", None).unwrap();
    clean_up_before_the_generation();
    publish(&server.model, 1).unwrap();
    assert!(store.has_happened());
    assert_served(&place, 1);
    // Of a server that starts with a new head.
    let copy = copy_of_icons30();
    std::fs::write(copy.path().join("heads/joint.safetensors"), head_file(3, None)).unwrap();
    clean_up_before_the_generation();
    share(Arc::new(store.clone()), copy.path()).unwrap();
    assert!(store.has_happened());
    assert!(place.keys("models/icons30/blobs").contains(&blob(3)));
}

#[test]
fn half_of_what_a_clean_up_was_to_keep_for_the_audit_is_written_again() {
    let place = Place::bucket();
    let model = place.serve().model;
    for number in 0..3 {
        patch(&model, f64::from(number) / 10.0).unwrap();
    }
    let whole = audit_in_pages(&model, 1000);
    let copy = place.copy();
    copy.clean_up(1);
    let kept = copy.keys("models/icons30/history");
    assert_eq!(kept.len(), 1);
    place.put(&kept[0], copy.get(&kept[0]).slice(..100));
    place.clean_up(1);
    assert_eq!(audit_in_pages(&model, 1000), whole);
}

#[test]
fn a_head_file_that_goes_while_a_publication_is_tried_again_is_written_again() {
    let place = Place::bucket();
    let store = Interrupted::around(&place.store);
    let (a, b) = (share(Arc::new(store.clone()), &place.directory).unwrap(), place.serve());
    publish(&a.model, 1).unwrap();
    // The second one finds the file there; then another server removes all that needs it, and is faster.
    let (model, bucket) = (Arc::clone(&b.model), Arc::clone(&place.store));
    store.at(Step::AfterRead, move || {
        model.delete(&edit(), "mine", None).unwrap();
        clean_up(bucket, Duration::ZERO);
    });
    publish(&a.model, 1).unwrap();
    assert!(store.has_happened());
    assert_served(&place, 1);
}
