//! Builders of `.npz` and safetensors files, right and wrong ones.

use std::io::{Cursor, Write};

use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// An array file with this text as its header.
pub(crate) fn npy_with_header(version: [u8; 2], header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend(version);
    match version[0] {
        1 => bytes.extend((header.len() as u16).to_le_bytes()),
        _ => bytes.extend((header.len() as u32).to_le_bytes()),
    }
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

pub(crate) fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    npy_with_header([1, 0], &header, data)
}

pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn i64_bytes(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Two rows of two features, a zero among them.
pub(crate) fn good_features() -> Vec<u8> {
    npy("<f4", "(2, 2)", &f32_bytes(&[1.0, 2.0, 0.0, -4.5]))
}

/// Two labels below 3.
pub(crate) fn good_labels() -> Vec<u8> {
    npy("<i8", "(2,)", &i64_bytes(&[2, 0]))
}

pub(crate) fn zip_of(members: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    zip_with(members, SimpleFileOptions::default().compression_method(method))
}

/// An archive whose members have 64-bit sizes, as NumPy writes them whatever the size.
pub(crate) fn zip64_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip_with(members, options.large_file(true))
}

fn zip_with(members: &[(&str, &[u8])], options: SimpleFileOptions) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in members {
        writer.start_file(*name, options).unwrap();
        writer.write_all(data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

pub(crate) fn npz(features: &[u8], labels: &[u8]) -> Vec<u8> {
    zip_of(&[("features.npy", features), ("labels.npy", labels)], CompressionMethod::Stored)
}

pub(crate) fn good_npz() -> Vec<u8> {
    npz(&good_features(), &good_labels())
}

/// Where in `archive` the record of `name` begins: in the central directory, or before the data.
pub(crate) fn record(archive: &[u8], name: &str, central: bool) -> usize {
    let (magic, name_at) = if central { (b"PK\x01\x02", 46) } else { (b"PK\x03\x04", 30) };
    (0..archive.len())
        .find(|&at| {
            archive[at..].starts_with(magic)
                && archive[at..].get(name_at..).is_some_and(|rest| rest.starts_with(name.as_bytes()))
        })
        .unwrap()
}

/// `archive` with bytes of the central record of `name` replaced, and those of the local record where it has them too.
pub(crate) fn patched(archive: &[u8], name: &str, offset: usize, value: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    let central = record(&archive, name, true) + offset;
    archive[central..central + value.len()].copy_from_slice(value);
    // The local record is the central one less `version made by`.
    let local = record(&archive, name, false) + offset - 2;
    archive[local..local + value.len()].copy_from_slice(value);
    archive
}

/// `archive` with the name `from` changed to `to` everywhere, which must be as long.
pub(crate) fn renamed(archive: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut archive = archive.to_vec();
    for at in 0..archive.len() - from.len() {
        if archive[at..].starts_with(from.as_bytes()) {
            archive[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
    }
    archive
}

/// A safetensors file with this text as its header.
pub(crate) fn tensor_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A safetensors file of these tensors: name, dtype, shape, data.
pub(crate) fn tensors(list: &[(&str, &str, &str, &[u8])]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in list {
        let (start, end) = (data.len(), data.len() + bytes.len());
        entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#));
        data.extend_from_slice(bytes);
    }
    tensor_file(&format!("{{{}}}", entries.join(",")), &data)
}
