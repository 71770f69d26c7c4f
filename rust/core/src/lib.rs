//! keystow-core: the KV-cache block store behind keystow, in pure Rust.
//!
//! # Data path
//! A [`store::Store`] takes blocks (the attention keys and values of a fixed run of tokens) under
//! 128-bit [`key::Key`]s that name their whole prefix, keeps them in a RAM arena, and gives back
//! the longest leading run of a chain that is there. With [`store::SsdConfig`] a second tier on SSD
//! takes what leaves RAM, brings it back verified, and is warm after any kind of stop.
//!
//! ```
//! use keystow_core::key::{Fingerprint, chain};
//! use keystow_core::store::{PutOptions, Rows, RowsMut, Store, StoreConfig};
//!
//! let store = Store::open(&StoreConfig::new(1 << 20, 4096))?;
//! let layout = Fingerprint::new(b"my layout", b"", b"");
//! let keys = chain(&[7; 48], 16, &layout, None, &[])?;
//! let put = store.put(&keys, &Rows::packed(&[1; 3 * 4096], 4096), &PutOptions::default())?;
//! let mut out = vec![0; 3 * 4096];
//! assert_eq!((put, store.get(&keys, &mut RowsMut::packed(&mut out, 4096))?), (3, 3));
//! assert!(out.iter().all(|byte| *byte == 1));
//! # Ok::<(), keystow_core::error::Error>(())
//! ```
//!
//! put: keys, match, pin what is there, take frames, copy without a lock, commit. get: match
//! (no lock, writes nothing), pin each linked piece, read the places again under the pins, copy,
//! unpin. Bookkeeping (child counts, recency, eviction) is told through a ring to the *keeper*,
//! whichever thread holds one lock, at most [`store::LOCK_BLOCKS_MAX`] blocks at a time. The SSD
//! tier is a state machine under the same lock; its I/O is on a thread's and an engine's side.
//!
//! # Consistency
//! - A get returns bytes that some put of exactly this key carried, or a miss. After `remove` has
//!   returned, only bytes committed after it; after `clear`, only bytes of puts begun after it.
//! - A block is visible from its commit, whole. A lookup that raced with a change of the same bin
//!   may miss a block that is there (counted as a spurious miss), never find one that is not.
//! - A block that a lease or a get in progress reads is not evicted, nor is any of its ancestors.
//! - What is read from SSD is shown only if all its bytes give the tag of its record; else it is a
//!   miss. After a crash the same holds: right bytes or a miss, and what a clear or a durable
//!   remove named stays gone.
//! - Batches are atomic per block, not per call.
//! - After a panic under the lock the store is poisoned: lookups miss, puts store nothing.
//!
//! # Memory per block
//! Beside its frame (`block_bytes` rounded up to 4 KiB): a 64-byte header for each frame, 1/8 more
//! for holes and 1,024 to spare; per header 18 bytes of bins and 4.6 of overflow units, 16 of the
//! policy's links; per frame 4 of the free list. For each SSD slot one more header, 16 bytes of the
//! tier's order and 96 of the table's image.
//!
//! # What it is bad at
//! Blocks under 4 KiB (a frame is a page at least); values that change (blocks are immutable);
//! keys that are not well mixed are fine, but a key is never read back as anything but 16 bytes.

// Off x86-64 Linux nothing here has been run.
pub mod arena;
#[doc(hidden)]
pub mod bench;
mod directory;
pub mod error;
pub mod event;
mod io;
pub mod key;
mod policy;
pub mod replay;
mod ssd;
pub mod stats;
pub mod store;
mod sync;
pub mod units;
