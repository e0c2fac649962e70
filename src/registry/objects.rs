//! Where the state lies: a folder or a bucket, as a flat space of objects.
//!
//! Crate `object_store` knows both, and is asynchronous; a change of a model, a fit that publishes and the start of the
//! server are not. So its work is done on a thread of its own, and whoever asks waits for the answer, never longer than a
//! limit: a store that hangs holds nobody.

use std::{
    io,
    path::{Path as FilePath, PathBuf},
    pin::Pin,
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use object_store::{
    Error as ObjectError, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    local::LocalFileSystem, path::Path, prefix::PrefixStore,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{StateError, store::io_error};
use crate::sync::between_steps;

/// How long a store may take for one object, retries included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to list a folder, which is done in pages.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// Of a client of a cloud: one try.
const CLIENT_OPTIONS: [(&str, &str); 2] = [("timeout", "5s"), ("connect_timeout", "3s")];

/// Schemes of buckets.
const CLOUDS: [&str; 5] = ["s3", "gs", "az", "abfs", "abfss"];

/// What is wrong with a URL, where its client is none of this build.
fn of_client(error: &ObjectError) -> String {
    let text = error.to_string();
    match text.contains("not enabled") {
        true => "this build has no client for it: build with `--features cloud`".to_owned(),
        false => text,
    }
}

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The objects of a store, for threads that may wait. Not for async ones.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// What stands before an object's path when it is named to a person.
    place: String,
    is_local: bool,
    is_shared: bool,
    timeout: Duration,
    list_timeout: Duration,
    jobs: UnboundedSender<Job>,
}

impl Objects {
    /// The files of a folder, which must be there, and which nobody else changes.
    ///
    /// A file is synced before it gets its name, by rename or, where it must not be there yet, by link(2), and its folder
    /// after: `with_fsync` sees to both, and is not what the crate does by itself.
    pub(super) fn in_folder(folder: &FilePath) -> Result<Self, StateError> {
        let failed = |error: &dyn std::fmt::Display| StateError::Io {
            path: folder.to_owned(),
            source: io::Error::other(error.to_string()),
        };
        let files = LocalFileSystem::new_with_prefix(folder).map_err(|error| failed(&error))?.with_fsync(true);
        let objects = Self::start(Arc::new(files), folder.display().to_string())?;
        Ok(Self { is_local: true, is_shared: false, ..objects })
    }

    /// What a URL names: `file:///...`, or `s3://`, `gs://`, `az://` where the clients of these were built in. `options` are
    /// theirs: credentials, endpoints, regions.
    pub(super) fn at_url(text: &str, options: &[(String, String)]) -> Result<Self, StateError> {
        let failed = |problem: String| StateError::Url { url: text.to_owned(), problem };
        if let Some(folder) = folder_of_url(text)? {
            // One that is not there may be a wrong name, and is not to be made by whoever only looks or removes.
            std::fs::metadata(&folder).map_err(io_error(&folder))?;
            return Ok(Self { is_shared: true, ..Self::in_folder(&folder)? });
        }
        let url = url::Url::parse(text).map_err(|error| failed(error.to_string()))?;
        if !CLOUDS.contains(&url.scheme()) {
            return Err(failed(format!(
                "it must begin with file:// or one of {}",
                CLOUDS.map(|scheme| format!("{scheme}://")).join(", ")
            )));
        }
        let options = options.iter().map(|(key, value)| (key.as_str(), value.as_str())).chain(CLIENT_OPTIONS);
        let (store, prefix) = object_store::parse_url_opts(&url, options).map_err(|error| failed(of_client(&error)))?;
        let place = text.trim_end_matches('/').to_owned();
        Self::start(Arc::new(PrefixStore::new(store, prefix)), place)
    }

    /// Any other store. `place` is what it is called in errors.
    pub(super) fn of(store: Arc<dyn ObjectStore>, place: &str, timeout: Option<Duration>) -> Result<Self, StateError> {
        let objects = Self::start(store, place.to_owned())?;
        let timeout = timeout.unwrap_or(TIMEOUT);
        Ok(Self { timeout, list_timeout: timeout.max(objects.list_timeout.min(timeout * 6)), ..objects })
    }

    fn start(store: Arc<dyn ObjectStore>, place: String) -> Result<Self, StateError> {
        let (jobs, mut queue) = unbounded_channel::<Job>();
        let thread_failed = |source| StateError::Io { path: "the thread of the state".into(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(thread_failed)?;
        let work = move || {
            runtime.block_on(async {
                while let Some(job) = queue.recv().await {
                    tokio::spawn(job);
                }
            });
        };
        std::thread::Builder::new().name("state".to_owned()).spawn(work).map_err(thread_failed)?;
        let (timeout, list_timeout) = (TIMEOUT, LIST_TIMEOUT);
        Ok(Self { store, place, is_local: false, is_shared: true, timeout, list_timeout, jobs })
    }

    /// Whether it is a folder, which costs little to ask.
    pub(super) fn is_local(&self) -> bool {
        self.is_local
    }

    /// An object as it is named to a person: of a folder, its file.
    pub(super) fn name(&self, path: &str) -> String {
        format!("{}/{path}", self.place)
    }

    /// Lets the store's thread do something, and waits for it.
    fn wait<T: Send + 'static>(
        &self,
        path: &str,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<object_store::Result<T>, StateError> {
        self.wait_for(self.timeout, path, work)
    }

    fn wait_for<T: Send + 'static>(
        &self,
        timeout: Duration,
        path: &str,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<object_store::Result<T>, StateError> {
        between_steps();
        let (send, answer) = mpsc::sync_channel(1);
        let job = async move {
            // Nobody waits for the answer any more only if the process ends.
            let _ = send.send(tokio::time::timeout(timeout, work).await);
        };
        let gone = || StateError::Unreachable { object: self.name(path), problem: "its thread has ended".to_owned() };
        self.jobs.send(Box::pin(job)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?.map_err(|_| StateError::Unreachable {
            object: self.name(path),
            problem: format!("no answer within {} s", timeout.as_secs_f64()),
        })
    }

    fn failed(&self, path: &str, error: &ObjectError) -> StateError {
        if !self.is_local {
            return StateError::Unreachable { object: self.name(path), problem: error.to_string() };
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(this) = cause {
            if let Some(found) = this.downcast_ref::<io::Error>() {
                let source = match found.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(found.kind(), found.to_string()),
                };
                return StateError::Io { path: self.name(path).into(), source };
            }
            cause = this.source();
        }
        StateError::Io { path: self.name(path).into(), source: io::Error::other(error.to_string()) }
    }

    /// An object; `None` if there is none of that name.
    pub(super) fn get(&self, path: &str) -> Result<Option<Bytes>, StateError> {
        let (store, location) = (Arc::clone(&self.store), Path::from(path));
        match self.wait(path, async move { store.get(&location).await?.bytes().await })? {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(path, &error)),
        }
    }

    /// How long an object is, and when it was written, by the clock of the store; `None` if there is none of that name.
    pub(super) fn meta(&self, path: &str) -> Result<Option<ObjectMeta>, StateError> {
        let (store, location) = (Arc::clone(&self.store), Path::from(path));
        match self.wait(path, async move { store.head(&location).await })? {
            Ok(found) => Ok(Some(found)),
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(path, &error)),
        }
    }

    /// Writes an object, over another one of that name if there is one: whole or not at all.
    pub(super) fn put(&self, path: &str, bytes: Bytes) -> Result<(), StateError> {
        self.write(path, bytes, PutMode::Overwrite)?.map_err(|error| self.failed(path, &error))
    }

    /// Writes an object that must not be there yet, whole or not at all; `false` if one of that name is there and holds
    /// something else.
    ///
    /// # Errors
    /// [`StateError::Unreachable`]: then it may have been written. Every other error: then it has not.
    pub(super) fn create(&self, path: &str, bytes: Bytes) -> Result<bool, StateError> {
        let error = match self.write(path, bytes.clone(), PutMode::Create) {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(ObjectError::AlreadyExists { .. } | ObjectError::Precondition { .. })) => {
                // A client that tried twice may have met its own first try.
                return match self.get(path).map_err(StateError::into_unreachable)? {
                    Some(found) => Ok(found == bytes),
                    // In a folder something else has the name. In a bucket two writers met, and neither has it yet.
                    None if self.is_local => {
                        Err(StateError::Damaged { path: self.name(path).into(), problem: "it is no file".into() })
                    }
                    None => Ok(false),
                };
            }
            Ok(Err(error)) => self.failed(path, &error),
            Err(error) => error,
        };
        match self.get(path) {
            Ok(Some(found)) if !self.is_local => Ok(found == bytes),
            // It is there and the folder may not be synced. Alone nobody has seen it; others may have gone on from it.
            Ok(Some(found)) if found == bytes => match !self.is_shared && self.delete(path).is_ok() {
                true => Err(error),
                false => Err(error.into_unreachable()),
            },
            Ok(_) => Err(error),
            // Nor is it known whether it is there.
            Err(_) => Err(error.into_unreachable()),
        }
    }

    fn write(&self, path: &str, bytes: Bytes, mode: PutMode) -> Result<object_store::Result<()>, StateError> {
        let (store, location) = (Arc::clone(&self.store), Path::from(path));
        let options = PutOptions { mode, ..PutOptions::default() };
        self.wait(
            path,
            async move { store.put_opts(&location, PutPayload::from_bytes(bytes), options).await.map(|_| ()) },
        )
    }

    /// Removes an object; one that is not there is removed already.
    pub(super) fn delete(&self, path: &str) -> Result<(), StateError> {
        let (store, location) = (Arc::clone(&self.store), Path::from(path));
        match self.wait(path, async move { store.delete(&location).await })? {
            Ok(()) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(path, &error)),
        }
    }

    /// The objects of a folder, in the order of their names, without those of folders in it.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<Listed>, StateError> {
        let (store, prefix) = (Arc::clone(&self.store), Path::from(folder));
        let of_prefix = prefix.clone();
        let found = self.wait_for(self.list_timeout, folder, async move {
            store.list(Some(&prefix)).try_collect::<Vec<_>>().await
        })?;
        let found = found.map_err(|error| self.failed(folder, &error))?;
        let mut listed: Vec<Listed> = found.into_iter().filter_map(|meta| Listed::of(meta, &of_prefix)).collect();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// The folders in a folder.
    pub(super) fn folders(&self, folder: &str) -> Result<Vec<String>, StateError> {
        let (store, prefix) = (Arc::clone(&self.store), Path::from(folder));
        let found = self.wait(folder, async move { store.list_with_delimiter(Some(&prefix)).await })?;
        match found {
            Ok(found) => Ok(found
                .common_prefixes
                .iter()
                .filter_map(|path| path.parts().next_back().map(|part| part.as_ref().to_owned()))
                .collect()),
            Err(ObjectError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(self.failed(folder, &error)),
        }
    }
}

/// The folder that a URL names, if it names one.
pub(super) fn folder_of_url(text: &str) -> Result<Option<PathBuf>, StateError> {
    let failed = |problem: String| StateError::Url { url: text.to_owned(), problem };
    let url = url::Url::parse(text).map_err(|error| failed(error.to_string()))?;
    let folder = || url.to_file_path().map_err(|()| failed("it is no absolute path".to_owned()));
    (url.scheme() == "file").then(folder).transpose()
}

/// An object of a folder.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// Without its folder.
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) modified: DateTime<Utc>,
}

impl Listed {
    fn of(meta: ObjectMeta, folder: &Path) -> Option<Self> {
        let mut parts = meta.location.prefix_match(folder)?;
        let name = parts.next()?.as_ref().to_owned();
        parts.next().is_none().then_some(Self { name, bytes: meta.size, modified: meta.last_modified })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream::BoxStream;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, PutMultipartOptions, PutResult, Result,
        memory::InMemory,
    };

    use super::*;

    /// Writes, and then fails: a folder that has the file and cannot be synced.
    #[derive(Debug)]
    struct NotSynced {
        store: InMemory,
        is_taken: bool,
        can_be_read: bool,
        can_be_removed: bool,
    }

    fn failure() -> ObjectError {
        ObjectError::Generic { store: "not synced", source: Box::new(io::Error::from_raw_os_error(5)) }
    }

    impl std::fmt::Display for NotSynced {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("not synced")
        }
    }

    #[async_trait::async_trait]
    impl ObjectStore for NotSynced {
        async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
            self.store.put_opts(path, payload, options).await?;
            Err(match self.is_taken {
                true => ObjectError::AlreadyExists { path: path.to_string(), source: "its own first try".into() },
                false => failure(),
            })
        }

        async fn put_multipart_opts(
            &self,
            path: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.store.put_multipart_opts(path, options).await
        }

        async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
            if self.can_be_read { self.store.get_opts(path, options).await } else { Err(failure()) }
        }

        fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            if self.can_be_removed {
                return self.store.delete_stream(paths);
            }
            Box::pin(futures_util::stream::once(async { Err(failure()) }))
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.store.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.store.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.store.copy_opts(from, to, options).await
        }
    }

    #[test]
    fn what_others_may_have_seen_in_a_folder_is_not_taken_back() {
        for is_shared in [false, true] {
            let store = NotSynced { store: InMemory::new(), is_taken: false, can_be_read: true, can_be_removed: true };
            let objects = Objects::of(Arc::new(store), "folder", None).unwrap();
            let objects = Objects { is_local: true, is_shared, ..objects };
            let error = objects.create("new", Bytes::from_static(b"content")).unwrap_err();
            // Alone nothing has changed; with others it is not known whether it has.
            assert_eq!(error.is_unreachable(), is_shared, "{error}");
            assert_eq!(objects.get("new").unwrap().is_some(), is_shared);
        }
    }

    #[test]
    fn nothing_is_said_not_to_be_written_that_may_be() {
        for is_shared in [false, true] {
            for (is_taken, can_be_read, can_be_removed) in
                [(false, true, false), (false, false, true), (true, false, true)]
            {
                let store = NotSynced { store: InMemory::new(), is_taken, can_be_read, can_be_removed };
                let objects = Objects::of(Arc::new(store), "folder", None).unwrap();
                let objects = Objects { is_local: true, is_shared, ..objects };
                let error = objects.create("new", Bytes::from_static(b"content")).unwrap_err();
                assert!(error.is_unreachable(), "{error}");
            }
        }
    }
}
