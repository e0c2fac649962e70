//! A store whose server ends while it writes: before, in the middle of, or after the write that a test chooses.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path as Key,
};

/// A way of changing what is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// Of what must not be there yet.
    Create,
    Overwrite,
    Delete,
}

/// Where in a write the server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Nothing of it was done.
    Before,
    /// Beside the place of the object a file has half of it.
    Half,
    /// That file is whole, and the object is not there yet.
    Whole,
    /// The object is there, and that file still too.
    Linked,
    /// All of it was done, and the answer never came.
    After,
}

impl Moment {
    /// Those that a write passes through in a folder: a file is renamed, or linked where it must be new.
    pub(super) fn in_a_folder(write: Write) -> &'static [Self] {
        use Moment::*;
        match write {
            Write::Create => &[Before, Half, Whole, Linked, After],
            Write::Overwrite => &[Before, Half, Whole, After],
            Write::Delete => &[Before, After],
        }
    }

    /// Those of a bucket, where nothing is half there.
    pub(super) fn in_a_bucket(_: Write) -> &'static [Self] {
        &[Self::Before, Self::After]
    }

    /// Whether what was written is there.
    pub(super) fn has_written(self) -> bool {
        matches!(self, Self::Linked | Self::After)
    }
}

/// A store as a server has it that may end. From its end on nothing reaches the store.
#[derive(Clone, Debug)]
pub(super) struct Mortal {
    store: Arc<dyn ObjectStore>,
    fate: Arc<Mutex<Fate>>,
}

#[derive(Debug, Default)]
struct Fate {
    writes: Vec<Write>,
    /// The number of the last write, from 0, and where in it the end comes.
    end: Option<(usize, Moment)>,
    is_dead: bool,
}

fn gone() -> Error {
    Error::Generic { store: "mortal", source: "the server is gone".into() }
}

/// A write that nobody makes, and that would escape the count.
fn not_counted(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "mortal".to_owned() }
}

impl Mortal {
    pub(super) fn around(store: &Arc<dyn ObjectStore>) -> Self {
        Self { store: Arc::clone(store), fate: Arc::default() }
    }

    /// From now on writes are counted.
    pub(super) fn begins(&self) {
        self.fate.lock().unwrap().writes.clear();
    }

    /// From now on writes are counted, and the server ends at that one.
    pub(super) fn ends_at(&self, number: usize, moment: Moment) {
        self.begins();
        self.fate.lock().unwrap().end = Some((number, moment));
    }

    pub(super) fn writes(&self) -> Vec<Write> {
        self.fate.lock().unwrap().writes.clone()
    }

    pub(super) fn is_dead(&self) -> bool {
        self.fate.lock().unwrap().is_dead
    }

    fn breathe(&self) -> Result<()> {
        if self.is_dead() { Err(gone()) } else { Ok(()) }
    }

    /// Counts a write; says where in it the end comes, if it does.
    fn begin(&self, write: Write) -> Result<Option<Moment>> {
        self.breathe()?;
        let mut fate = self.fate.lock().unwrap();
        let number = fate.writes.len();
        fate.writes.push(write);
        let moment = fate.end.filter(|(last, _)| *last == number).map(|(_, moment)| moment);
        fate.is_dead = moment.is_some();
        Ok(moment)
    }

    /// Leaves the file behind that comes before an object, by the name that the store itself has for it.
    async fn leave_staged(&self, key: &Key, payload: PutPayload, is_whole: bool) -> Result<()> {
        let bytes = bytes::Bytes::from(payload);
        let n = if is_whole { bytes.len() } else { bytes.len() / 2 };
        let mut upload = self.store.put_multipart_opts(key, PutMultipartOptions::default()).await?;
        upload.put_part(bytes.slice(..n).into()).await?;
        // What has ended removes nothing.
        std::mem::forget(upload);
        Ok(())
    }

    async fn remove(&self, key: Key) -> Result<Key> {
        let moment = self.begin(Write::Delete)?;
        if moment != Some(Moment::Before) {
            self.store.delete(&key).await?;
        }
        if moment.is_some() { Err(gone()) } else { Ok(key) }
    }
}

impl fmt::Display for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mortal")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(&self, key: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let write = if options.mode == PutMode::Create { Write::Create } else { Write::Overwrite };
        let Some(moment) = self.begin(write)? else { return self.store.put_opts(key, payload, options).await };
        if moment.has_written() {
            self.store.put_opts(key, payload.clone(), options).await?;
        }
        if matches!(moment, Moment::Half | Moment::Whole | Moment::Linked) {
            self.leave_staged(key, payload, moment != Moment::Half).await?;
        }
        Err(gone())
    }

    async fn put_multipart_opts(&self, _: &Key, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(not_counted("a write in parts"))
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        self.breathe()?;
        self.store.get_opts(key, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        let mortal = self.clone();
        let remove = move |key: Result<Key>| {
            let mortal = mortal.clone();
            async move { mortal.remove(key?).await }
        };
        keys.then(remove).boxed()
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.breathe() {
            Ok(()) => self.store.list(prefix),
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.breathe()?;
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Key, _: &Key, _: CopyOptions) -> Result<()> {
        Err(not_counted("a copy"))
    }
}
