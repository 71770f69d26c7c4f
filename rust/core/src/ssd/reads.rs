//! Positioned reads of a directory's files, in the caller's thread.
//!
//! Owns: memory that direct reads can go to, and the loop around a read. Never does: write, or know
//! what it reads. Invariants: a read never goes beyond the buffer it was given; it ends at the end
//! of the file, and after a bounded number of signals.

use crate::io::IO_ALIGN_BYTES;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Signals that may come during one read.
const INTERRUPTS_MAX: u32 = 16;

/// Memory that direct reads can go to.
#[derive(Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    /// The first `len` bytes, made if they are not there.
    pub(crate) fn get(&mut self, len: usize) -> &mut [u8] {
        let align = IO_ALIGN_BYTES as usize;
        let whole = len.next_multiple_of(align) + align;
        if self.0.len() < whole {
            self.0 = vec![0; whole];
        }
        let start = self.0.as_ptr().align_offset(align);
        &mut self.0[start..start + len]
    }
}

/// Reads until the buffer is full, the file ends or a direct read can't go on; how many bytes.
pub(crate) fn read_all(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let (mut moved, mut interrupts) = (0, 0);
    while moved < into.len() {
        match file.read_at(&mut into[moved..], offset + moved as u64) {
            Ok(0) => break,
            Ok(some) => moved += some,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                interrupts += 1;
                if interrupts == INTERRUPTS_MAX {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        if !moved.is_multiple_of(IO_ALIGN_BYTES as usize) {
            break;
        }
    }
    Ok(moved)
}
