//! Where the numbers of a feature set lie: in memory, or in a file that is mapped and not loaded.
#![expect(unsafe_code, reason = "a map of a file, and the numbers in it as a slice")]

use std::{
    fmt,
    fs::File,
    io::{self, ErrorKind},
    sync::Arc,
};

use memmap2::{Mmap, MmapMut};
use ndarray::ArrayView2;

use super::FeatureSetError;

/// A number of four bytes of which every pattern of bits is a value.
pub(super) trait Word: Copy + 'static + sealed::Sealed {}
impl Word for f32 {}
impl Word for u32 {}

mod sealed {
    pub(crate) trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u32 {}
}

/// Numbers in memory or in a mapped file.
pub(super) enum Values<T: Word> {
    Owned(Vec<T>),
    /// `length` values from byte `start` of the map: both were checked by [`Values::mapped`].
    Mapped {
        map: Arc<Mmap>,
        start: usize,
        length: usize,
        _type: std::marker::PhantomData<T>,
    },
}

impl<T: Word> Values<T> {
    /// The `length` values from byte `start` of `map`; `None` if they are not all there, do not begin at a multiple of
    /// four bytes, or this machine keeps its numbers the other way round.
    pub(super) fn mapped(map: &Arc<Mmap>, start: u64, length: u64) -> Option<Self> {
        let n_bytes = usize::try_from(length.checked_mul(4)?).ok()?;
        let start = usize::try_from(start).ok()?;
        let bytes = map.get(start..start.checked_add(n_bytes)?)?;
        let is_aligned = bytes.as_ptr().align_offset(align_of::<T>()) == 0;
        (is_aligned && cfg!(target_endian = "little")).then(|| Self::Mapped {
            map: Arc::clone(map),
            start,
            length: n_bytes / 4,
            _type: std::marker::PhantomData,
        })
    }

    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            Self::Mapped { map, start, length, _type } => {
                // SAFETY: `mapped` made sure that `length` values of four bytes lie in the map from `start` on, and that
                // they are aligned for T; every pattern of bits is a T. The map lives as long as `self`.
                unsafe { std::slice::from_raw_parts(map.as_ptr().add(*start).cast::<T>(), *length) }
            }
        }
    }
}

impl<T: Word> fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self {
            Self::Owned(_) => "in memory",
            Self::Mapped { .. } => "mapped",
        };
        write!(f, "{} values, {place}", self.as_slice().len())
    }
}

/// Maps a file to be read. It must not be cut short or written to while it is mapped.
pub(super) fn map(file: &File) -> io::Result<Arc<Mmap>> {
    // SAFETY: the file is one of ours, which is written once and never again, or one that the caller promises to leave
    // alone (the documentation of `FeatureSet::map` says so). Its bytes are taken for numbers of which every pattern is
    // one, so that a broken promise changes numbers and not types.
    Ok(Arc::new(unsafe { Mmap::map(file) }?))
}

/// A file whose rows are written out of order.
pub(super) struct Scatter {
    map: MmapMut,
    start: usize,
}

impl Scatter {
    /// Maps a file of which everything from byte `start` on is to be written. Its blocks must have been written before:
    /// a write through a map that finds the disk full ends the process.
    pub(super) fn new(file: &File, start: u64) -> io::Result<Self> {
        let start = usize::try_from(start).map_err(|_| io::Error::from(ErrorKind::OutOfMemory))?;
        // SAFETY: the file is a temporary one that this process has just made under a name of its own, and nobody else
        // writes to it.
        Ok(Self { map: unsafe { MmapMut::map_mut(file) }?, start })
    }

    /// Writes the value at place `index`.
    pub(super) fn put(&mut self, index: usize, value: f32) -> Result<(), FeatureSetError> {
        let place = index.checked_mul(4).and_then(|offset| offset.checked_add(self.start));
        let target = place.and_then(|place| self.map.get_mut(place..place.checked_add(4)?));
        // The file is as long as the shape asks for.
        let target = target.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
        target.copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    pub(super) fn flush(self) -> io::Result<()> {
        self.map.flush()
    }
}

/// Features `[N, D]` in row-major order.
#[derive(Debug)]
pub(super) struct Matrix {
    values: Values<f32>,
    rows: usize,
    columns: usize,
}

impl Matrix {
    /// `None` unless the values are N · D.
    pub(super) fn new(values: Values<f32>, rows: usize, columns: usize) -> Option<Self> {
        (rows.checked_mul(columns) == Some(values.as_slice().len())).then_some(Self { values, rows, columns })
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        self.values.as_slice()
    }

    pub(super) fn is_mapped(&self) -> bool {
        matches!(self.values, Values::Mapped { .. })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn view(&self) -> ArrayView2<'_, f32> {
        // SAFETY: `new` made sure that the values are as many as the shape asks for, and a slice of them is no longer than
        // `isize::MAX` bytes. They are borrowed as long as the view is.
        unsafe { ArrayView2::from_shape_ptr((self.rows, self.columns), self.as_slice().as_ptr()) }
    }
}
