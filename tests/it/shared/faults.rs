//! Stores that hang, fail, lie, or lose their answers.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use equipoise::{
    heads::SettingsPatch,
    registry::{Author, Change, Edit, IfMatch, LoadError, Model, RegistryError, audit},
};
use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path as Key,
};
use tempfile::TempDir;

use super::{
    edit,
    place::{Place, audit_in_pages},
};
use crate::http::head_file;

const TIMEOUT: Duration = Duration::from_millis(200);

/// What the store does.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
enum Mood {
    Well,
    /// Answers nothing.
    Hangs,
    /// Answers with an error, and does nothing.
    Fails,
    /// Answers with an error, and has done it.
    LosesAnswers,
    /// Answers with what was never written.
    Lies,
    /// Answers with half of what was written.
    Tears,
}

/// A store in memory that is in a mood.
#[derive(Debug)]
struct Moody {
    store: InMemory,
    mood: AtomicU8,
    n_reads: AtomicUsize,
}

impl Moody {
    fn new() -> Arc<Self> {
        Arc::new(Self { store: InMemory::new(), mood: AtomicU8::new(0), n_reads: AtomicUsize::new(0) })
    }

    fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    fn mood(&self) -> Mood {
        use Mood::*;
        [Well, Hangs, Fails, LosesAnswers, Lies, Tears][usize::from(self.mood.load(Ordering::SeqCst))]
    }

    async fn suffer(&self) -> Result<()> {
        match self.mood() {
            Mood::Hangs => std::future::pending().await,
            Mood::Fails => Err(failure()),
            _ => Ok(()),
        }
    }
}

fn failure() -> Error {
    Error::Generic { store: "moody", source: "503 slow down".into() }
}

impl fmt::Display for Moody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("moody")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Moody {
    async fn put_opts(&self, key: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.suffer().await?;
        let done = self.store.put_opts(key, payload, options).await?;
        match self.mood() {
            Mood::LosesAnswers => Err(failure()),
            _ => Ok(done),
        }
    }

    async fn put_multipart_opts(&self, key: &Key, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        self.n_reads.fetch_add(1, Ordering::SeqCst);
        self.suffer().await?;
        let is_head = options.head;
        let found = self.store.get_opts(key, options).await?;
        let bytes = match self.mood() {
            _ if is_head => return Ok(found),
            Mood::Lies => bytes::Bytes::from_static(b"<html>please log in to this network</html>"),
            Mood::Tears => {
                let whole = found.bytes().await?;
                whole.slice(..whole.len() / 2)
            }
            _ => return Ok(found),
        };
        let other = InMemory::new();
        other.put_opts(key, bytes.into(), PutOptions::default()).await?;
        other.get_opts(key, GetOptions::default()).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        self.store.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.mood() {
            Mood::Fails => futures_util::stream::once(async { Err(failure()) }).boxed(),
            Mood::Hangs => futures_util::stream::pending().boxed(),
            _ => self.store.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.suffer().await?;
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

/// A model that shares the store, as one server has it.
fn load(store: &Arc<Moody>, state: &Path) -> std::result::Result<Arc<Model>, LoadError> {
    super::load(Arc::clone(store) as Arc<dyn ObjectStore>, state, Some(TIMEOUT))
}

fn tau(model: &Model) -> f64 {
    model.state().head("tau", None).unwrap().settings.tau.unwrap()
}

fn patch(model: &Model, tau: f64) -> std::result::Result<u64, RegistryError> {
    let patch = SettingsPatch { tau: Some(tau), ..SettingsPatch::default() };
    Ok(model.patch(&edit(), "tau", None, patch)?.state.generation)
}

#[test]
fn a_store_that_hangs_fails_or_lies_holds_nobody_and_loses_nothing() {
    let (store, states) = (Moody::new(), [TempDir::new().unwrap(), TempDir::new().unwrap()]);
    let [a, b] = states.each_ref().map(|state| load(&store, state.path()).unwrap());
    let mut generation = patch(&a, 0.25).unwrap();
    b.refresh().unwrap();
    for mood in [Mood::Hangs, Mood::Fails, Mood::Lies, Mood::Tears] {
        // One is at the newest generation and one is not: neither takes what is not there.
        generation = patch(&a, generation as f64 / 10.0).unwrap();
        let (of_a, of_b) = (tau(&a), tau(&b));
        store.set(mood);
        let start = std::time::Instant::now();
        for model in [&a, &b] {
            let error = patch(model, 4.0).unwrap_err();
            assert!(matches!(&error, RegistryError::State(error) if error.is_unreachable()), "{mood:?}: {error}");
        }
        b.refresh().unwrap_err();
        assert!(start.elapsed() < TIMEOUT * 20, "{mood:?} took {:?}", start.elapsed());
        assert_eq!((tau(&a), tau(&b)), (of_a, of_b), "{mood:?}");
        let text = load(&store, TempDir::new().unwrap().path()).unwrap_err().to_string();
        assert!(text.contains("store:/models/icons30"), "{mood:?}: {text}");
        store.set(Mood::Well);
        b.refresh().unwrap();
        assert_eq!((b.generation(), tau(&b)), (generation, of_a), "{mood:?}");
    }
    a.refresh().unwrap();
    assert_eq!(patch(&b, 3.0).unwrap(), a.generation() + 1);
    assert_eq!(audit(&[a], None, 100).unwrap().entries.len() as u64, b.generation());
}

#[test]
fn requests_that_wait_for_a_store_that_hangs_do_not_heap_up_looks_at_it() {
    let (store, state) = (Moody::new(), TempDir::new().unwrap());
    let model = load(&store, state.path()).unwrap();
    store.set(Mood::Hangs);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let ask = || runtime.block_on(model.reaches(99, std::time::Instant::now() + TIMEOUT / 4));
    assert!((0..20).all(|_| !ask()));
    store.set(Mood::Well);
    let before = store.n_reads.load(Ordering::SeqCst);
    // Waits for the looks that were begun.
    drop(runtime);
    let after = store.n_reads.load(Ordering::SeqCst);
    assert!(after - before <= 2, "{} looks were still to come", after - before);
}

#[test]
fn a_lost_answer_makes_no_second_change() {
    let (store, state) = (Moody::new(), TempDir::new().unwrap());
    let model = load(&store, state.path()).unwrap();
    store.set(Mood::LosesAnswers);
    // It is there: the store is asked, and the change is told as made.
    assert_eq!(patch(&model, 0.25).unwrap(), 2);
    store.set(Mood::Well);
    assert_eq!(patch(&model, 0.5).unwrap(), 3);
    let entries = audit(&[model], None, 100).unwrap().entries;
    assert_eq!(entries.len(), 3);
    assert!(entries[..2].iter().all(|entry| entry.author.as_ref().is_some_and(|author| author.name() == "somebody")));
}

#[test]
fn a_head_file_that_is_not_whole_is_not_served_and_asked_for_again() {
    let (store, states) = (Moody::new(), [TempDir::new().unwrap(), TempDir::new().unwrap()]);
    let [a, b] = states.each_ref().map(|state| load(&store, state.path()).unwrap());
    let file = head_file(1, None);
    let digest = equipoise::heads::Digest::of(&file).to_hex();
    let key = Key::from(format!("models/icons30/blobs/{digest}"));
    a.publish_file(&edit(), "mine", &file).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let put = |bytes: Vec<u8>| {
        runtime.block_on(store.store.put_opts(&key, bytes.into(), PutOptions::default())).unwrap();
    };
    for bad in [file[..100].to_vec(), Vec::new(), vec![0; file.len()]] {
        put(bad);
        let error = b.refresh().unwrap_err().to_string();
        assert!(error.contains(&digest), "{error}");
        b.state().head("mine", None).unwrap_err();
    }
    put(file);
    b.refresh().unwrap();
    assert_eq!(b.state().head("mine", None).unwrap().id.version, 1);
}

#[test]
fn what_one_server_was_promised_by_condition_another_cannot_take() {
    let (store, states) = (Moody::new(), [TempDir::new().unwrap(), TempDir::new().unwrap()]);
    let [a, b] = states.each_ref().map(|state| load(&store, state.path()).unwrap());
    patch(&a, 0.25).unwrap();
    let stale = Edit { if_match: IfMatch::Generations(vec![1]), ..edit() };
    let error = b.activate(&stale, "crt", None).unwrap_err();
    assert!(matches!(error, RegistryError::PreconditionFailed { generation: 2, .. }), "{error}");
    assert_eq!(b.generation(), 2);
}

#[test]
fn what_cannot_be_read_does_not_end_the_audit() {
    let place = Place::bucket();
    let model = place.serve().model;
    let check = |n_entries: usize| {
        let whole = audit_in_pages(&model, 1000);
        assert_eq!(whole.len(), n_entries);
        for limit in 1..=n_entries {
            assert_eq!(audit_in_pages(&model, limit), whole, "in pages of {limit}");
        }
    };
    for number in 0..4 {
        patch(&model, f64::from(number) / 10.0).unwrap();
    }
    place.put(&Key::from("models/icons30/generations/00000000003.json"), "damaged");
    check(4);
    for number in 0..4 {
        model.record(&Author::new("somebody"), Change::FeatureSetDeleted { id: format!("fs_{number}") });
    }
    for event in &place.keys("models/icons30/events")[1..3] {
        place.put(event, "damaged");
    }
    check(4 + 2);
}
