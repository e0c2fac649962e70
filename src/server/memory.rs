//! Memory that the process holds and does not use: how glibc is kept from holding much. Other C libraries, and other systems,
//! do not, and nothing is done there.

/// From this size on a piece of memory is the system's again as soon as it is freed. glibc begins with 128 KiB, and raises it to
/// up to 32 MiB at each larger piece that is freed: then what ONNX Runtime takes for the activations of a session comes out of
/// the heap, and leaves holes there when the session ends. Decoded photos stay below, for they come and go with each request.
const MAPPED_BYTES: i32 = 4 << 20;
/// As much may be free at the end of a heap before it shrinks, once models are loaded: what requests need does not go back and
/// forth. Before that glibc's own 128 KiB count, because each thread that `--tune` measures with would leave as much in its heap,
/// 5 MB in all with EfficientNet-Lite0.
const KEPT_BYTES: i32 = 4 << 20;

/// Settles how memory is taken, before the first thread does.
///
/// How many heaps there are is left to glibc, which gives one to each thread, since there are few threads. Where two share one
/// they wait for each other: a heap for each core cost 5 % of what a small network answers, and saved nothing.
pub fn settle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: it takes no pointer.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
    }
}

/// Gives back to the system what loading models has left free in the heap, and settles how much requests may leave.
///
/// Reading and optimising a graph takes several times its size for a moment: 30 MB stay behind two sessions of a network of
/// 13 MB. Only glibc keeps it, and only glibc can be asked to return it.
pub(super) fn settle_after_loading() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: they take no pointer. glibc locks its heap for both; the setting is one word, and threads that free memory
    // meanwhile see its old or its new value.
    unsafe {
        libc::malloc_trim(0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}
