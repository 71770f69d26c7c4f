//! What it costs to verify the tags of blocks that were just read: XXH3-128 over bytes in memory.
//!
//! Run by `benches/run.py`, or alone: `cargo bench -p keystow-core --bench tags`. Prints one JSON
//! object: name and milliseconds per GB, round by round. Each round passes over memory that is
//! larger than the processor's cache, block by block, as bytes come from a disk.

use std::hint::black_box;
use std::time::Instant;

use keystow_core::bench::digest;

const BLOCK_BYTES: usize = 1 << 20;

/// Milliseconds per GB of one pass over all blocks.
fn pass(memory: &[u8]) -> f64 {
    let start = Instant::now();
    for (seed, block) in (0..).zip(memory.chunks_exact(BLOCK_BYTES)) {
        black_box(digest(seed, black_box(block)));
    }
    start.elapsed().as_secs_f64() * 1e3 / (memory.len() as f64 / 1e9)
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (blocks, rounds) = if quick { (4, 2) } else { (1024, 9) };
    let memory: Vec<u8> = (0..blocks * BLOCK_BYTES).map(|at| ((at * 31) >> 3) as u8).collect();
    // The first pass is not counted: it takes the page faults that filling has left.
    let ms_per_gb: Vec<f64> = (0..=rounds).map(|_| pass(&memory)).skip(1).collect();
    println!("{{\"name\": \"tag verification, 1 MiB\", \"ms_per_gb\": {ms_per_gb:?}}}");
}
