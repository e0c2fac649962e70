//! Feature sets in NumPy's `.npz`: a zip archive with an `.npy` for each array.

use std::io::{self, Read, Seek, SeekFrom};

use zip::{
    CompressionMethod, ZipArchive,
    read::{Config, ZipFile},
    result::ZipError,
    unstable::read::ZipIterable,
};

use super::{
    Expected, FeatureSetError,
    elements::{Budget, FEATURES, LABELS, Layout, damaged},
    npy_header,
    sink::Sink,
};

/// A few hundred bytes are kept for each.
const MAX_MEMBERS: usize = 10_000;

/// The record at the end of an archive without a comment.
const END_BYTES: usize = 22;

/// A member of the archive that is an array of ours.
struct Member {
    name: &'static str,
    index: usize,
    unpacked_bytes: u64,
}

/// Reads features and labels into `sink`; see `FeatureSet::read`.
pub(super) fn read(
    mut source: impl Read + Seek,
    expected: &Expected,
    sink: &mut impl Sink,
) -> Result<(), FeatureSetError> {
    check_directory(&mut source)?;
    let end = End::read(&mut source)?;
    let mut archive = ZipArchive::new(source).map_err(|error| container(&error))?;
    // Of members with one name the library keeps the last; another reader may keep the first.
    if archive.has_duplicate_names() {
        return Err(FeatureSetError::DuplicateNames);
    }
    end.check(&archive)?;
    let features = match (find(&archive, FEATURES[0])?, find(&archive, FEATURES[1])?) {
        (Some(_), Some(_)) => return Err(FeatureSetError::BothNames),
        (features, feats) => features.or(feats),
    };
    let features = features.ok_or(FeatureSetError::MissingFeatures)?;
    let labels = find(&archive, LABELS)?.ok_or(FeatureSetError::MissingLabels)?;

    // What the archive declares, before any of it is read. The library holds the unpacked bytes to that size.
    let mut unpacked = Budget::new(expected.max_bytes);
    unpacked.take(labels.name, labels.unpacked_bytes.into())?;
    unpacked.take(features.name, features.unpacked_bytes.into())?;

    let mut held = Budget::new(expected.max_bytes);
    let (layout, n_bytes, _) = open(&mut archive, &labels)?;
    let checked_labels = layout.check_labels(n_bytes, &mut held)?;
    let (layout, n_bytes, _) = open(&mut archive, &features)?;
    let checked = layout.check_features(checked_labels.rows(), n_bytes, expected, &mut held)?;

    sink.begin(checked.shape()?)?;
    let (_, _, mut data) = open(&mut archive, &labels)?;
    checked_labels.read_labels(&mut data, expected.num_classes, sink)?;
    drop(data);
    let (_, _, mut data) = open(&mut archive, &features)?;
    checked.read_features(&mut data, sink)
}

/// Counts the members before the library keeps something for each of them: an archive may declare a hundred million.
fn check_directory(source: &mut (impl Read + Seek)) -> Result<(), FeatureSetError> {
    let mut archive = ZipIterable::try_new(source, Config::default()).map_err(|error| container(&error))?;
    if archive.len() > MAX_MEMBERS {
        let reason = format!("it has {} members, and the limit is {MAX_MEMBERS}", archive.len());
        return Err(FeatureSetError::Container { format: "npz", reason });
    }
    // Where a record cannot be read, the library would go on with another directory, which has not been counted.
    for member in archive.files().map_err(|error| container(&error))? {
        member.map_err(|error| container(&error))?;
    }
    Ok(())
}

/// The last bytes of the file, which should be the last of the archive.
struct End {
    record: [u8; END_BYTES],
    start: u64,
}

impl End {
    fn read(source: &mut (impl Read + Seek)) -> io::Result<Self> {
        let start = source.seek(SeekFrom::End(-(END_BYTES as i64)))?;
        let mut record = [0; END_BYTES];
        source.read_exact(&mut record)?;
        Ok(Self { record, start })
    }

    /// Refuses what stands before the first member or behind the end: the library passes over it, and it may be another
    /// archive whose rows somebody would miss. A comment is refused with it, which nobody writes.
    fn check<R: Read + Seek>(&self, archive: &ZipArchive<R>) -> Result<(), FeatureSetError> {
        let number = |at: usize| self.record[at..at + 4].try_into().map_or(u32::MAX, u32::from_le_bytes);
        let (size, directory) = (number(12), number(16));
        // In a large archive both stand elsewhere.
        let is_zip64 = size == u32::MAX || directory == u32::MAX;
        let is_last = self.record.starts_with(b"PK\x05\x06")
            && self.record.ends_with(&[0, 0])
            && (is_zip64 || u64::from(directory) + u64::from(size) == self.start);
        let starts = (0..archive.len()).filter_map(|index| archive.by_index_data(index).ok());
        let first = starts.map(|member| member.header_start()).min().unwrap_or(0);
        if is_last && archive.offset() == 0 && first == 0 {
            return Ok(());
        }
        let reason = "there are bytes before or behind the archive, or a comment at its end".to_owned();
        Err(FeatureSetError::Container { format: "npz", reason })
    }
}

fn find<R: Read + Seek>(archive: &ZipArchive<R>, name: &'static str) -> Result<Option<Member>, FeatureSetError> {
    let Some(index) = archive.index_for_name(&format!("{name}.npy")) else { return Ok(None) };
    let entry = archive.by_index_data(index).map_err(|error| container(&error))?;
    if entry.encrypted() {
        return Err(FeatureSetError::Encrypted { member: name });
    }
    match entry.compression() {
        CompressionMethod::Stored | CompressionMethod::Deflated => {
            Ok(Some(Member { name, index, unpacked_bytes: entry.size() }))
        }
        method => Err(FeatureSetError::Compression { member: name, method: method.to_string() }),
    }
}

/// The header of a member, how many bytes of data are declared to follow it, and those.
fn open<'a, R: Read + Seek>(
    archive: &'a mut ZipArchive<R>,
    member: &Member,
) -> Result<(Layout, u64, ZipFile<'a, R>), FeatureSetError> {
    let mut data = archive.by_index(member.index).map_err(|error| damaged(member.name, &error))?;
    let (layout, header_bytes) = npy_header::read(&mut data, member.name)?;
    Ok((layout, member.unpacked_bytes.saturating_sub(header_bytes), data))
}

fn container(error: &ZipError) -> FeatureSetError {
    FeatureSetError::Container { format: "npz", reason: error.to_string() }
}
