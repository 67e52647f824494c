//! Memory that was freed but not given back.
//!
//! glibc returns only the end of its heap to the system. Lists from the API server and a first pass leave tens of
//! megabytes of holes between long-lived objects; `malloc_trim` gives their pages back. It walks all free blocks, which
//! takes milliseconds, so it is for the end of something large.

/// For `main`, before there are threads: one heap for all of them, and large blocks outside of it. By default each
/// thread fills a heap of its own, and after the first large block is freed the next ones are cut out of the heaps; with
/// 10,000 services that is a third more memory. Threads that wait for each other's locks here are few.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the C library has no safe interface")]
pub fn keep_small() {
    // SAFETY: mallopt takes two numbers; the values are in the range that mallopt(3) gives.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 * 1024);
    }
}

/// One heap for all threads. Does nothing where the C library is not glibc.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_small() {}

/// Gives free pages back to the system. Does nothing where the C library is not glibc.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the C library has no safe interface")]
pub fn give_back() {
    // SAFETY: malloc_trim takes no pointer and may be called at any time from any thread (it locks each arena).
    unsafe { libc::malloc_trim(0) };
}

/// Gives free pages back to the system. Does nothing where the C library is not glibc.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
