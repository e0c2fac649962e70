//! Clocks that are wrong, or jump. What is told by them is for people to read; what is decided, and in which order it stands,
//! does not depend on them.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use equipoise::{
    heads::Digest,
    registry::{AuditEntry, Author, Change},
};
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path as Key,
};
use serde_json::{Value, json};

use super::place::{Place, audit_in_pages, patch, publish};
use crate::{app::copy_of_icons30, http::head_file};

fn text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn generation(number: u64) -> Key {
    Key::from(format!("models/icons30/generations/{number:011}.json"))
}

/// Writes the generation after `newest`, as a server does whose clock says `time`.
fn write_generation(place: &Place, newest: u64, time: DateTime<Utc>) {
    let written: Value = serde_json::from_slice(&place.get(&generation(newest))).unwrap();
    let mut manifest = written["manifest"].clone();
    manifest["generation"] = json!(newest + 1);
    manifest["parent"] = json!(newest);
    manifest["time"] = json!(text(time));
    let (manifest, format) = (manifest.to_string(), &written["format"]);
    let digest = Digest::of(manifest.as_bytes()).to_hex();
    let bytes = format!("{{\"format\": {format}, \"sha256\": \"{digest}\", \"manifest\": {manifest}}}");
    place.put(&generation(newest + 1), bytes);
}

/// Writes down that a feature set was deleted, as a server does whose clock says `time`.
fn write_event(place: &Place, time: DateTime<Utc>) {
    let entry = AuditEntry {
        model: "icons30".to_owned(),
        generation: None,
        parent: None,
        author: Some(Author::new("somebody")),
        time: Some(time),
        change: Some(Change::FeatureSetDeleted { id: text(time) }),
    };
    let bytes = serde_json::to_vec(&entry).unwrap();
    let (milliseconds, id) = (time.timestamp_millis().max(0), Digest::of(&bytes).to_hex());
    place.put(&Key::from(format!("models/icons30/events/{milliseconds:015}-{}.json", &id[..16])), bytes);
}

/// The clock of one server jumps; it makes a change, and the clock is right again.
fn check_jump(ahead: TimeDelta) {
    let mut place = Place::bucket();
    let follower = place.serve();
    patch(&follower.model, 0.1).unwrap();
    let time = follower.model.state().time.unwrap() + ahead;
    write_generation(&place, 2, time);
    // One that was there, one that starts, and one that finds a new head when it starts.
    patch(&follower.model, 0.2).unwrap();
    patch(&place.serve().model, 0.3).unwrap();
    let copy = copy_of_icons30();
    std::fs::write(copy.path().join("heads/joint.safetensors"), head_file(3, None)).unwrap();
    place.directory = copy.path().to_owned();
    let model = place.serve().model;
    assert_eq!(model.generation(), 6);
    // These have the times that they have.
    let now = Utc::now();
    for moment in
        [DateTime::UNIX_EPOCH - TimeDelta::days(1), DateTime::UNIX_EPOCH, now, time, time + TimeDelta::hours(1)]
    {
        write_event(&place, moment);
    }
    let audit = audit_in_pages(&model, 1000);
    let generations: Vec<&AuditEntry> = audit.iter().filter(|entry| entry.generation.is_some()).collect();
    assert_eq!(generations.iter().filter_map(|entry| entry.generation).collect::<Vec<_>>(), [6, 5, 4, 3, 2, 1]);
    assert!(generations.is_sorted_by(|a, b| a.time >= b.time), "{generations:#?}");
    assert_eq!(audit.len(), 6 + 5);
    for limit in 1..=audit.len() {
        assert_eq!(audit_in_pages(&model, limit), audit, "in pages of {limit}");
    }
    // Cleaned up, all is told as before.
    place.clean_up(1);
    for limit in [1, 4, 1000] {
        assert_eq!(audit_in_pages(&model, limit), audit, "in pages of {limit}");
    }
}

#[test]
fn after_a_clock_that_was_ahead_no_generation_is_earlier_than_the_one_before() {
    // Less than two changes are apart, an hour, and what a clock without a battery may say.
    for ahead in [TimeDelta::milliseconds(1), TimeDelta::hours(1), TimeDelta::days(365 * 70)] {
        check_jump(ahead);
    }
}

/// A bucket with a clock of its own.
#[derive(Debug)]
struct Clocked {
    store: InMemory,
    clock: Arc<Mutex<Clock>>,
}

#[derive(Debug)]
struct Clock {
    now: DateTime<Utc>,
    written: HashMap<Key, DateTime<Utc>>,
}

impl Clock {
    fn dated(&self, meta: ObjectMeta) -> ObjectMeta {
        ObjectMeta { last_modified: self.written[&meta.location], ..meta }
    }
}

impl fmt::Display for Clocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("clocked")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Clocked {
    async fn put_opts(&self, key: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let done = self.store.put_opts(key, payload, options).await?;
        let mut clock = self.clock.lock().unwrap();
        let now = clock.now;
        clock.written.insert(key.clone(), now);
        Ok(done)
    }

    async fn put_multipart_opts(&self, key: &Key, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        let found = self.store.get_opts(key, options).await?;
        Ok(GetResult { meta: self.clock.lock().unwrap().dated(found.meta.clone()), ..found })
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        self.store.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        let clock = Arc::clone(&self.clock);
        self.store.list(prefix).map_ok(move |meta| clock.lock().unwrap().dated(meta)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

#[test]
fn how_old_an_object_is_the_clean_up_asks_of_the_store_and_not_of_its_own_clock() {
    const GRACE: Duration = Duration::from_secs(3600);
    let orphan = Key::from(format!("models/icons30/blobs/{}", "0".repeat(64)));
    for wrong_by in [TimeDelta::zero(), TimeDelta::hours(-2), TimeDelta::hours(2), TimeDelta::days(-365 * 30)] {
        let clock = Arc::new(Mutex::new(Clock { now: Utc::now() + wrong_by, written: HashMap::new() }));
        let jump = |by: TimeDelta| clock.lock().unwrap().now += by;
        let place = Place::of(Arc::new(Clocked { store: InMemory::new(), clock: Arc::clone(&clock) }));
        let model = place.serve().model;
        publish(&model, 1).unwrap();
        patch(&model, 0.1).unwrap();
        // It looks like a head file whose generation is still to come.
        place.put(&orphan, "of no state yet");
        jump(TimeDelta::minutes(59));
        assert_eq!(place.clean_up_older(1, GRACE), 0, "{wrong_by}");
        // What was written in a future that the clock has left is not old, and nothing panics.
        jump(TimeDelta::hours(-2));
        assert_eq!(place.clean_up_older(1, GRACE), 0, "{wrong_by}");
        jump(TimeDelta::hours(2) + TimeDelta::minutes(2));
        assert_eq!(place.clean_up_older(1, GRACE), 3, "{wrong_by}");
        assert!(!place.keys("models/icons30/blobs").contains(&orphan));
    }
}
