//! foyer's hybrid cache on a disk: write-behind and batched gets, a round each time it is asked.
//!
//! Run by `benches/ssd_rivals.py`, which holds the clock: `foyer_disk DIRECTORY BLOCK_BYTES
//! RAM_BYTES DISK_BYTES BATCH ROUND_BYTES psync|uring`. A line on the input is an order, `fill`,
//! `put`, `choose`, `get` or `verify`; its answer is one JSON object on one line. Never measures.
//! Invariants: only blocks that are in the disk's index after the flush count as written, and only
//! blocks whose entry says that it comes from the disk count as read; `lost` counts the others.
//!
//! How foyer is configured, and why:
//! - Block engine over `FsDevice`, which its authors advise in a file system: a file an eviction
//!   unit, a 64th of the disk and at least four entries; `O_DIRECT`, no throttle.
//! - `WriteOnInsertion`: each block is written behind when it is put, as a store does it; the
//!   default writes what RAM evicts, and leaves the last of it unwritten. All are admitted. No
//!   compression.
//! - foyer never makes an insert wait: what does not fit the flushers' buffers is dropped. So the
//!   caller waits for the chunk before the last one (a quarter of RAM each, two under way); each
//!   flusher's buffer takes both, however their hashes fall, and the queue's limit is above that.
//! - Four flushers, as many writes as a store's pool has under way; reclaimers and clean units for
//!   each, so that no flusher waits for room. Two worker threads; psync with at most as many
//!   blocking threads as a batch has blocks, or the ring at its own defaults.
//! - No recovery: the directory is new. A get's block is copied out of its entry into the caller's
//!   memory, where a store's is and LMCache's too.

use std::collections::VecDeque;
use std::error::Error;
use std::future::poll_fn;
use std::io::{BufRead, Write};
use std::pin::Pin;
use std::task::Poll;

use foyer::{
    BlockEngineConfig, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
    HybridCachePolicy, IoEngineConfig, PsyncIoEngineConfig, RecoverMode, Source,
    UringIoEngineConfig,
};
use futures_util::future::join_all;
use tokio::runtime::{Builder, Runtime};

const PAGE: usize = 4096;
const FLUSHERS: usize = 4;
const WORKERS: usize = 2;
/// Eviction units on the disk.
const UNITS: usize = 64;
const ENTRIES_A_UNIT_MIN: usize = 4;
/// Chunks under way at once: one that is written, one that is put.
const CHUNKS: usize = 2;

type Failure = Box<dyn Error>;
type Flush = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the command line asks for.
struct Asked {
    directory: String,
    block_bytes: usize,
    ram_bytes: usize,
    disk_bytes: usize,
    batch: usize,
    round_bytes: usize,
    ring: bool,
}

impl Asked {
    fn read() -> Result<Self, Failure> {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let [directory, numbers @ .., engine] = words.as_slice() else {
            return Err("too few arguments; the head of the source names them".into());
        };
        let numbers: Vec<usize> = numbers.iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
        let [block_bytes, ram_bytes, disk_bytes, batch, round_bytes] = numbers[..] else {
            return Err(format!("five numbers are asked for, not {}", numbers.len()).into());
        };
        let (directory, ring) = (directory.clone(), engine == "uring");
        Ok(Self { directory, block_bytes, ram_bytes, disk_bytes, batch, round_bytes, ring })
    }

    /// An entry on the disk: its header and the padding to whole pages.
    fn entry_bytes(&self) -> usize {
        self.block_bytes + PAGE
    }

    fn unit_bytes(&self) -> usize {
        (self.disk_bytes / UNITS).max(ENTRIES_A_UNIT_MIN * self.entry_bytes() + PAGE)
    }

    /// Batches put between two waits.
    fn chunk(&self) -> usize {
        (self.ram_bytes / 4 / self.block_bytes / self.batch).max(1)
    }

    fn batches(&self) -> usize {
        self.round_bytes / self.block_bytes / self.batch
    }
}

/// Keys as random as hashes (splitmix64); the seed is fixed.
struct Keys(u64);

impl Keys {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn batch(&mut self, count: usize) -> Vec<u128> {
        (0..count).map(|_| u128::from(self.word()) << 64 | u128::from(self.word())).collect()
    }
}

/// What came of an order.
#[derive(Default)]
struct Done {
    blocks: usize,
    lost: usize,
}

/// The cache, what is put into it, and memory that gets write to.
struct Disk {
    asked: Asked,
    runtime: Runtime,
    cache: HybridCache<u128, Vec<u8>>,
    keys: Keys,
    source: Vec<u8>,
    /// Batches put, oldest first; after `choose` those that are on the disk alone, in random order.
    put: VecDeque<Vec<u128>>,
    /// As large as RAM: a destination that stays in the processor's cache is no destination.
    memory: Vec<u8>,
    at: usize,
}

impl Disk {
    fn open(asked: Asked) -> Result<Self, Failure> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(asked.batch.max(FLUSHERS))
            .enable_all()
            .build()?;
        let device = FsDeviceBuilder::new(&asked.directory)
            .with_capacity(asked.disk_bytes)
            .with_direct(true)
            .build()?;
        // One page of header an entry, of at least sixteen pages; the index's pages beside.
        let under_way = CHUNKS * asked.chunk() * asked.batch * asked.entry_bytes();
        let engine = BlockEngineConfig::new(device)
            .with_block_size(asked.unit_bytes().next_multiple_of(PAGE))
            .with_flushers(FLUSHERS)
            .with_reclaimers(FLUSHERS)
            .with_clean_block_threshold(FLUSHERS)
            .with_buffer_pool_size(FLUSHERS * (under_way + PAGE))
            .with_submit_queue_size_threshold(2 * under_way);
        let ring: Box<dyn IoEngineConfig> = if asked.ring {
            UringIoEngineConfig::new().boxed()
        } else {
            PsyncIoEngineConfig::new().boxed()
        };
        let building = HybridCacheBuilder::new()
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .with_flush_on_close(false)
            .memory(asked.ram_bytes)
            .with_weighter(|_: &u128, block: &Vec<u8>| block.len())
            .storage()
            .with_io_engine_config(ring)
            .with_engine_config(engine)
            .with_recover_mode(RecoverMode::None)
            .with_spawner(runtime.handle().clone().into())
            .build();
        let cache = runtime.block_on(building)?;
        let mut keys = Keys(13);
        let words = asked.batch * asked.block_bytes / 8;
        let source = (0..words).flat_map(|_| keys.word().to_le_bytes()).collect();
        let memory = vec![1; asked.ram_bytes];
        let put = VecDeque::new();
        Ok(Self { asked, runtime, cache, keys, source, put, memory, at: 0 })
    }

    /// A flush of all that has been put, already under way; none if there was nothing to do.
    fn flush(&self) -> Option<Flush> {
        let store = self.cache.storage().clone();
        let mut flush: Flush = Box::pin(async move { store.wait().await });
        // foyer marks the end of its queues when the future is polled first.
        let asked = poll_fn(|context| Poll::Ready(flush.as_mut().poll(context).is_ready()));
        (!self.runtime.block_on(asked)).then_some(flush)
    }

    fn on_disk(&self, key: &u128) -> bool {
        self.cache.storage().may_contains(key)
    }

    /// New blocks until all are written; those that foyer has dropped are lost.
    fn put(&mut self) -> Result<Done, Failure> {
        let written_before = self.cache.statistics().disk_write_bytes();
        let batches: Vec<Vec<u128>> =
            (0..self.asked.batches()).map(|_| self.keys.batch(self.asked.batch)).collect();
        let mut under_way: Option<Flush> = None;
        for chunk in batches.chunks(self.asked.chunk()) {
            for (key, row) in
                chunk.iter().flat_map(|b| b.iter().zip(self.source.chunks(self.asked.block_bytes)))
            {
                self.cache.insert(*key, row.to_vec());
            }
            let flush = self.flush();
            if let Some(earlier) = under_way.take() {
                self.runtime.block_on(earlier);
            }
            under_way = flush;
        }
        if let Some(last) = under_way {
            self.runtime.block_on(last);
        }
        let all = batches.len() * self.asked.batch;
        let blocks = batches.iter().flatten().filter(|key| self.on_disk(key)).count();
        let written = self.cache.statistics().disk_write_bytes() - written_before;
        if written < blocks * self.asked.block_bytes {
            return Err(format!("{written} bytes written for {blocks} blocks").into());
        }
        self.put.extend(batches);
        Ok(Done { blocks, lost: all - blocks })
    }

    /// Puts until the disk has been written once and a quarter.
    fn fill(&mut self) -> Result<Done, Failure> {
        let mut done = Done::default();
        while done.blocks * self.asked.block_bytes < self.asked.disk_bytes / 4 * 5 {
            let round = self.put()?;
            if round.blocks == 0 {
                return Err("foyer writes nothing".into());
            }
            done.blocks += round.blocks;
            done.lost += round.lost;
        }
        Ok(done)
    }

    /// Keeps the batches that are wholly on the disk and not in RAM, in random order.
    fn choose(&mut self) -> Result<Done, Failure> {
        let all = self.put.len();
        let mut there: Vec<Vec<u128>> = std::mem::take(&mut self.put)
            .into_iter()
            .filter(|b| b.iter().all(|k| self.on_disk(k) && !self.cache.memory().contains(k)))
            .collect();
        for left in (1..there.len()).rev() {
            there.swap(left, (self.keys.word() % (left as u64 + 1)) as usize);
        }
        let blocks = there.len() * self.asked.batch;
        if blocks * self.asked.block_bytes < 2 * self.asked.ram_bytes {
            return Err(format!("only {} of {all} batches are on the disk", there.len()).into());
        }
        self.put = there.into();
        Ok(Done { blocks, lost: all * self.asked.batch - blocks })
    }

    /// Gets the next batch into `memory`; the blocks that came from the disk.
    fn get_batch(&mut self) -> Result<usize, Failure> {
        let batch = self.put.pop_front().ok_or("nothing was chosen")?;
        let gets: Vec<_> = batch.iter().map(|key| self.cache.get(key)).collect();
        let mut from_disk = 0;
        for entry in self.runtime.block_on(join_all(gets)) {
            let Some(entry) = entry? else { continue };
            if self.at + self.asked.block_bytes > self.memory.len() {
                self.at = 0;
            }
            let to = &mut self.memory[self.at..self.at + self.asked.block_bytes];
            to.copy_from_slice(entry.value());
            self.at += self.asked.block_bytes;
            from_disk += usize::from(entry.source() == Source::Disk);
        }
        self.put.push_back(batch);
        Ok(from_disk)
    }

    fn get(&mut self) -> Result<Done, Failure> {
        let read_before = self.cache.statistics().disk_read_bytes();
        let mut done = Done::default();
        for _ in 0..self.asked.batches() {
            let from_disk = self.get_batch()?;
            done.blocks += from_disk;
            done.lost += self.asked.batch - from_disk;
        }
        let read = self.cache.statistics().disk_read_bytes() - read_before;
        if read < done.blocks * self.asked.block_bytes {
            return Err(format!("{read} bytes read for {} blocks", done.blocks).into());
        }
        Ok(done)
    }

    /// Compares one batch from the disk whole.
    fn verify(&mut self) -> Result<Done, Failure> {
        self.at = 0;
        let blocks = self.get_batch()?;
        if blocks != self.asked.batch || self.memory[..self.source.len()] != self.source[..] {
            return Err(format!("wrong bytes, or only {blocks} blocks from the disk").into());
        }
        Ok(Done { blocks, lost: 0 })
    }
}

fn main() -> Result<(), Failure> {
    let mut disk = Disk::open(Asked::read()?)?;
    for order in std::io::stdin().lock().lines() {
        let done = match order?.as_str() {
            "fill" => disk.fill(),
            "put" => disk.put(),
            "choose" => disk.choose(),
            "get" => disk.get(),
            "verify" => disk.verify(),
            other => Err(format!("no order: {other:?}").into()),
        }?;
        let bytes = done.blocks * disk.asked.block_bytes;
        println!("{{\"bytes\": {bytes}, \"lost\": {}}}", done.lost);
        std::io::stdout().flush()?;
    }
    disk.runtime.block_on(disk.cache.close())?;
    Ok(())
}
