//! What the kernel is told: how a ring is set up, and what an entry of one says.
//!
//! Owns: flags and opcodes. Never does: submit.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};

use super::super::{Op, Request};
use super::Shared;
use super::transfer::Piece;
use crate::arena::Region;

/// A ring for one thread alone, with the best flags that this kernel knows.
pub(super) fn own_ring(entries: u32) -> io::Result<IoUring> {
    type Flags = fn(&mut io_uring::Builder);
    let best: [Flags; 3] = [
        |builder| {
            builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        },
        |builder| {
            builder.setup_coop_taskrun();
        },
        |_| (),
    ];
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for flags in best {
        let mut builder = IoUring::builder();
        builder.dontfork();
        flags(&mut builder);
        match builder.build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            other => return other,
        }
    }
    Err(refused)
}

/// A ring that many threads use, one at a time. Its completions show whichever thread looks: no
/// flag that leaves them with the one that submitted.
pub(super) fn shared_ring(entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork();
    builder.build(entries)
}

/// The entry that moves a piece, or what is left of it. `registered`: the number of the registered
/// buffer that the whole request lies in.
pub(super) fn entry(
    shared: &Shared,
    request: &Request,
    piece: &Piece,
    registered: Option<u16>,
) -> squeue::Entry {
    let file = types::Fd(shared.files[request.file.0 as usize].as_raw_fd());
    let (from, len) = piece.rest();
    let offset = request.offset + u64::from(from);
    let at = request.region.offset + u64::from(from);
    if request.op == Op::Sync {
        return opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build();
    }
    let bytes = shared.memory.at(Region { offset: at, len, ..request.region });
    match (request.op, registered) {
        (Op::Read, Some(index)) => {
            opcode::ReadFixed::new(file, bytes, len, index).offset(offset).build()
        }
        (Op::Read, None) => opcode::Read::new(file, bytes, len).offset(offset).build(),
        (_, Some(index)) => opcode::WriteFixed::new(file, bytes, len, index).offset(offset).build(),
        (_, None) => opcode::Write::new(file, bytes, len).offset(offset).build(),
    }
}
