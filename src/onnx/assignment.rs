//! Which provider runs which nodes of a session.
//!
//! `ort` has no wrapper for this part of ONNX Runtime's interface (1.24), so the calls are made here by hand; every
//! pointer read belongs to the session, which outlives the reading.
#![expect(unsafe_code, reason = "ort does not wrap Session_GetEpGraphAssignmentInfo")]

use std::ffi::{CStr, c_char};
use std::{ptr, slice};

use ort::AsPointer;
use ort::session::Session;

/// The session setting without which ONNX Runtime forgets the assignment.
pub(super) const RECORD_ASSIGNMENT: &str = "session.record_ep_graph_assignment_info";

/// The nodes that one provider runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    pub provider: String,
    pub n_nodes: usize,
}

/// Nodes by provider, one entry for each group of nodes.
///
/// # Errors
/// What ONNX Runtime says; among others when the session was built without [`RECORD_ASSIGNMENT`].
pub(super) fn assignment(session: &Session) -> ort::Result<Vec<Assigned>> {
    let api = ort::api();
    let mut groups = ptr::null();
    let mut n_groups = 0;
    // SAFETY: the session pointer is valid while `session` is borrowed; both places to write to are ours.
    check(unsafe { (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut groups, &raw mut n_groups) })?;
    if groups.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: ONNX Runtime wrote an array of this length, which the session owns.
    let groups = unsafe { slice::from_raw_parts(groups, n_groups) };
    groups
        .iter()
        .map(|&group| {
            let mut name: *const c_char = ptr::null();
            // SAFETY: `group` is one of the session's; the place to write to is ours.
            check(unsafe { (api.EpAssignedSubgraph_GetEpName)(group, &raw mut name) })?;
            let provider = if name.is_null() {
                String::new()
            } else {
                // SAFETY: a C string that the session owns.
                unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
            };
            let mut nodes = ptr::null();
            let mut n_nodes = 0;
            // SAFETY: as above; the nodes themselves are not read.
            check(unsafe { (api.EpAssignedSubgraph_GetNodes)(group, &raw mut nodes, &raw mut n_nodes) })?;
            Ok(Assigned { provider, n_nodes })
        })
        .collect()
}

fn check(status: ort::sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the status comes straight from a call of the interface and is handed over.
    unsafe { ort::Error::result_from_status(status) }
}
