//! Memory that the process holds and does not use: how glibc is kept from holding much. Other C libraries, and other systems,
//! do not, and nothing is done there.

/// From this size on a piece of memory is the system's again as soon as it is freed. glibc begins with 128 KiB, and raises it to
/// up to 32 MiB at each larger piece that is freed: then what ONNX Runtime takes for the activations of a session comes out of
/// the heap, and leaves holes there when the session ends. Decoded photos stay below, for they come and go with each request.
const MAPPED_BYTES: i32 = 4 << 20;
/// As much may be free at the end of a heap before it shrinks: what requests need does not go back and forth.
const KEPT_BYTES: i32 = 4 << 20;

/// Settles how memory is taken, before the first thread does.
///
/// How many heaps there are is left to glibc, which gives one to each thread, since there are few threads. Where two share one
/// they wait for each other: a heap for each core cost 5 % of what a small network answers, and saved nothing.
pub fn settle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: they take no pointer.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Gives back to the system what loading models has left free in the heap.
///
/// Reading and optimising a graph takes several times its size for a moment: 30 MB stay behind two sessions of a network of
/// 13 MB. Only glibc keeps it, and only glibc can be asked to return it.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: it takes no pointer, and may be called at any time on any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
