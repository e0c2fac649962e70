//! The NumPy array format, version 1.0: what `extract` writes and `/features` answers on request.

use std::io::{self, Write};

/// Writes the header of a C-ordered array. `descr` is NumPy's name of the element type, `<f4` or `<i8`.
///
/// # Errors
/// Those of `out`.
///
/// # Reference
/// NumPy Enhancement Proposal 1: magic, version, header length, a Python dict padded so that the data begin at a multiple of 64.
pub fn write_header(out: &mut impl Write, descr: &str, shape: &[usize]) -> io::Result<()> {
    let dims: String = shape.iter().map(|dim| format!("{dim},")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    const PREFIX: usize = 10;
    while !(PREFIX + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(header.as_bytes())
}

/// The bytes of a float32 array file.
pub fn f32_file(values: &[f32], shape: &[usize]) -> Vec<u8> {
    let mut file = Vec::with_capacity(128 + values.len() * 4);
    // Writing to a vector does not fail, and the header of an array of few dimensions is short.
    if write_header(&mut file, "<f4", shape).is_ok() {
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    file
}
