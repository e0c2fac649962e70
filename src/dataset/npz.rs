//! Feature sets in NumPy's `.npz`: a zip archive with an `.npy` for each array.

use std::io::{Read, Seek};

use ndarray::Array2;
use zip::{CompressionMethod, ZipArchive, read::ZipFile, result::ZipError};

use super::{
    FeatureSetError,
    elements::{Budget, FEATURES, LABELS, Layout, damaged},
    npy_header,
};

/// A member of the archive that is an array of ours.
struct Member {
    name: &'static str,
    index: usize,
    unpacked_bytes: u64,
}

/// Reads features and labels; see `FeatureSet::read`.
pub(super) fn read(
    source: impl Read + Seek,
    num_classes: Option<usize>,
    max_bytes: u64,
) -> Result<(Array2<f32>, Vec<u32>), FeatureSetError> {
    let mut archive = ZipArchive::new(source).map_err(|error| container(&error))?;
    // Of members with one name the library keeps the last; another reader may keep the first.
    if archive.has_duplicate_names() {
        return Err(FeatureSetError::DuplicateNames);
    }
    let features = match (find(&archive, FEATURES[0])?, find(&archive, FEATURES[1])?) {
        (Some(_), Some(_)) => return Err(FeatureSetError::BothNames),
        (features, feats) => features.or(feats),
    };
    let features = features.ok_or(FeatureSetError::MissingFeatures)?;
    let labels = find(&archive, LABELS)?.ok_or(FeatureSetError::MissingLabels)?;

    // What the archive declares, before any of it is read. The library holds the unpacked bytes to that size.
    let mut unpacked = Budget::new(max_bytes);
    unpacked.take(labels.name, labels.unpacked_bytes.into())?;
    unpacked.take(features.name, features.unpacked_bytes.into())?;

    let mut held = Budget::new(max_bytes);
    let (layout, n_bytes, mut data) = open(&mut archive, &labels)?;
    let checked = layout.check_labels(n_bytes, &mut held)?;
    let n_labels = checked.rows();
    let labels = checked.read_labels(&mut data, num_classes)?;
    drop(data);

    let (layout, n_bytes, mut data) = open(&mut archive, &features)?;
    let features = layout.check_features(n_labels, n_bytes, &mut held)?.read_features(&mut data)?;
    Ok((features, labels))
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
