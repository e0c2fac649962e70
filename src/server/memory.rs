//! Memory that the process holds and does not use.

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
