//! The copies themselves: payload in, zeros after it, payload out.
//!
//! Owns: the choice of instructions. Never does: checking bounds; `Arena` did.
//!
//! A frame about to be written is cold: an arena is far larger than any cache. Ordinary stores
//! read each of its lines from memory first and push the caller's data out of the cache;
//! streaming stores do neither and move a block in about 2/3 of the time (`benches/README.md`).
//! Invariant: a streaming copy ends with a fence, so that a later Release covers its stores too.

use std::ptr;

/// From this length on a put streams; below, the fence costs what the stores win.
const STREAM_ROW_BYTES: usize = 16 << 10;
/// From this size of a whole call on a get streams: more than a core's own cache would keep for
/// the caller anyway.
pub(super) const STREAM_CALL_BYTES: usize = 4 << 20;

#[inline]
/// Copies `len` bytes into a frame and zeroes what lies behind them up to `dirty`.
///
/// # Safety
/// `source` is readable for `len` bytes, `frame` writable for `len` and for `dirty`, both without
/// overlap and without another user of the frame.
pub(super) unsafe fn into_frame(source: *const u8, frame: *mut u8, len: usize, dirty: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        if len >= STREAM_ROW_BYTES {
            stream(source, frame, len);
        } else {
            ptr::copy_nonoverlapping(source, frame, len);
        }
        if dirty > len {
            ptr::write_bytes(frame.add(len), 0, dirty - len);
        }
    }
}

#[inline]
/// Copies `len` bytes out of a frame; `streaming` if the target is not worth caching.
///
/// # Safety
/// `frame` is readable for `len` bytes and nobody writes them; `target` is writable for `len`
/// bytes; no overlap.
pub(super) unsafe fn out_of_frame(frame: *const u8, target: *mut u8, len: usize, streaming: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        if streaming && len >= STREAM_ROW_BYTES {
            stream(frame, target, len);
        } else {
            ptr::copy_nonoverlapping(frame, target, len);
        }
    }
}

/// Copies past the caches.
///
/// # Safety
/// As `ptr::copy_nonoverlapping` for `len` bytes.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(source: *const u8, target: *mut u8, len: usize) {
    use std::arch::x86_64::{
        __m128i, _MM_HINT_NTA, _mm_loadu_si128, _mm_prefetch, _mm_sfence, _mm_stream_si128,
    };
    const LINE_BYTES: usize = 64;
    const VECTOR_BYTES: usize = size_of::<__m128i>();
    /// Two lines a step, as many registers as the baseline has to spare.
    const STEP_BYTES: usize = 2 * LINE_BYTES;
    const PREFETCH_BYTES: usize = 2048;

    let head = target.align_offset(LINE_BYTES).min(len);
    let body = (len - head) / STEP_BYTES * STEP_BYTES;
    // SAFETY: head + body <= len, so all accesses stay inside both ranges of the contract; body
    // stores are on a line's boundary as streaming needs; SSE2 is part of every x86-64, and a
    // prefetch may name any address.
    unsafe {
        ptr::copy_nonoverlapping(source, target, head);
        for at in (head..head + body).step_by(STEP_BYTES) {
            let ahead = source.wrapping_add(at + PREFETCH_BYTES);
            _mm_prefetch::<_MM_HINT_NTA>(ahead.cast());
            _mm_prefetch::<_MM_HINT_NTA>(ahead.wrapping_add(LINE_BYTES).cast());
            let from = source.add(at).cast::<__m128i>();
            let to = target.add(at).cast::<__m128i>();
            let vectors: [__m128i; STEP_BYTES / VECTOR_BYTES] =
                std::array::from_fn(|i| _mm_loadu_si128(from.add(i)));
            for (i, vector) in vectors.into_iter().enumerate() {
                _mm_stream_si128(to.add(i), vector);
            }
        }
        let done = head + body;
        ptr::copy_nonoverlapping(source.add(done), target.add(done), len - done);
        _mm_sfence();
    }
}

/// Other machines decide in their own memcpy.
///
/// # Safety
/// As `ptr::copy_nonoverlapping` for `len` bytes.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY: the caller's contract.
    unsafe { ptr::copy_nonoverlapping(source, target, len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_copies_every_byte_and_no_other() {
        const ROOM: usize = 70_000;
        let source: Vec<u8> = (0..ROOM).map(|i| (i * 31 + i / 251) as u8 | 1).collect();
        for len in [0, 1, 15, 63, 64, 127, 128, 129, 4096, 16_384, 65_535, 65_537] {
            for (skip_source, skip_target) in [(0, 0), (1, 0), (0, 1), (17, 63), (64, 33)] {
                let mut target = vec![0_u8; ROOM];
                // SAFETY: both ranges lie in their vectors: 64 + 65,537 < ROOM.
                unsafe {
                    let from = source.as_ptr().add(skip_source);
                    stream(from, target.as_mut_ptr().add(skip_target), len);
                }
                let end = skip_target + len;
                let copied = source[skip_source..skip_source + len] == target[skip_target..end];
                assert!(copied, "{len} bytes from {skip_source} to {skip_target}");
                let rest = target[..skip_target].iter().chain(&target[end..]);
                assert!(rest.into_iter().all(|&b| b == 0), "{len} bytes to {skip_target}: rest");
            }
        }
    }
}
