//! What a history is to be: drawn from its seed, all of it before the first operation.
//!
//! Owns: sizes, the forest of keys, the disk's character, when crashes come. Never does: touch a
//! store. Invariant: equal seeds give equal plans, in every version that draws alike.

use crate::io::{PPM, Rng, SimFaults};
use crate::key::Key;
use crate::ssd::format::slots_for;
use crate::store::{EngineKind, PolicyKind, SsdConfig, SsdPlace, StoreConfig};
use std::cmp::Ordering;
use std::time::Duration;

const KEYS_MAX: u64 = 40;
const FRAMES_MAX: u64 = 12;
/// Enough for several table pages.
const SLOTS_MAX: u64 = 130;
const CRASHES_MAX: u64 = 5;
/// Fewest and most operations.
const OPS: (u64, u64) = (50, 2000);
const LENGTHS: [u32; 6] = [0, 1, 17, 600, 4096, 8192];
const BLOCK_BYTES: [u64; 8] = [4096, 4096, 4096, 4096, 8192, 600, 17, 5000];

/// Where a seed says how many further devices there are.
pub(super) const DEVICES_SHIFT: u32 = 60;

/// What the disk may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    /// What it is asked to.
    Honest,
    /// Fail, hang, rot; but what it confirmed it has.
    Flaky,
    /// Confirm what it does not have, or have old files put in its place: what was removed may
    /// come back after a restart.
    Liar,
}

/// A history's plan.
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) ops: u32,
    pub(super) nature: Nature,
    pub(super) keys: Vec<Key>,
    /// The key before each one in its natural chain.
    pub(super) parents: Vec<Option<usize>>,
    pub(super) lengths: Vec<u32>,
    pub(super) config: StoreConfig,
    pub(super) frames: usize,
    /// Of all devices that are there.
    pub(super) slots: usize,
    /// Devices left out for the life of one store.
    pub(super) away: Vec<SsdPlace>,
    /// Before which operations the store crashes, ascending.
    pub(super) crashes: Vec<u32>,
    /// What the disk does while it is at its worst.
    pub(super) storm: SimFaults,
    pub(super) calm: SimFaults,
    /// One recount in so many operations.
    pub(super) recount_every: u64,
    /// Weights of hints, of deletions and of time passing, in percent of the usual.
    pub(super) deletes: u64,
    pub(super) leases: bool,
    /// Keys are also put in orders that contradict each other.
    pub(super) tangled: bool,
}

/// The number of a key, which its second word is.
pub(super) fn number_of(key: Key) -> usize {
    key.words()[1] as usize
}

fn key(number: u64) -> Key {
    Key::from_words([(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15), number])
}

fn any<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u64) as usize]
}

impl Plan {
    /// The top four bits of a seed say how many further devices there are.
    pub(super) fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed & !(u64::MAX << DEVICES_SHIFT));
        let rng = &mut rng;
        let nature = match rng.below(10) {
            0..=5 => Nature::Honest,
            6..=7 => Nature::Flaky,
            _ => Nature::Liar,
        };
        let (least, most) = OPS;
        let ops = (least + rng.below(most - least + 1)) as u32;
        let count = 1 + if rng.one_in(3) { rng.below(8) } else { rng.below(KEYS_MAX) };
        let parents = (0..count).map(|n| {
            let root = n == 0 || rng.one_in(6);
            let chain = !rng.one_in(3);
            (!root).then(|| if chain { n - 1 } else { rng.below(n) } as usize)
        });
        let parents = parents.collect();
        let frames = if rng.one_in(8) { 0 } else { 1 + rng.below(FRAMES_MAX) };
        let slots = match rng.below(4) {
            0 => count + 6,
            1 => 1 + rng.below(8),
            2 => 1 + rng.below(50),
            _ => 1 + rng.below(SLOTS_MAX),
        };
        let calm = calm(rng);
        let crashes = rng.below(CRASHES_MAX + 1);
        let mut crashes: Vec<u32> =
            (0..crashes).map(|_| 1 + rng.below(u64::from(ops)) as u32).collect();
        crashes.sort_unstable();
        crashes.dedup();
        let mut config = config(rng, frames, slots, seed);
        let mut all_slots = slots;
        for device in 0..seed >> DEVICES_SHIFT {
            all_slots += config.add_device(rng, device, slots);
        }
        let longest = config.block_bytes as u32;
        let lengths: Vec<u32> = LENGTHS.into_iter().filter(|len| *len <= longest).collect();
        let lengths = if rng.one_in(3) { vec![any(rng, &lengths)] } else { lengths };
        Self {
            seed,
            ops,
            nature,
            keys: (0..count).map(key).collect(),
            parents,
            lengths,
            config,
            frames: frames as usize,
            slots: all_slots as usize,
            away: Vec::new(),
            crashes,
            storm: storm(rng, nature, &calm),
            calm,
            recount_every: any(rng, &[1, 256, 256, 256, 256, 256, 256, 256]),
            deletes: any(rng, &[0, 1, 1, 4]),
            leases: !rng.one_in(3),
            tangled: rng.one_in(3),
        }
    }

    /// The sizes, for people.
    pub(super) fn describe(&self) -> String {
        let StoreConfig { policy, block_bytes, put_wait, io_timeout, ssd, .. } = &self.config;
        let budget = ssd.as_ref().and_then(|ssd| ssd.write_bytes_per_s);
        format!(
            "{:?}, {} keys, {} frames of {block_bytes}, {} slots, {policy:?}, \
             put_wait {put_wait:?}, io_timeout {io_timeout:?}, budget {budget:?}",
            self.nature,
            self.keys.len(),
            self.frames,
            self.slots
        )
    }

    /// Whether every key has room on the SSD, and nothing is held back by a budget: then nothing
    /// is ever dropped.
    pub(super) fn is_plentiful(&self) -> bool {
        let budget = self.config.ssd.as_ref().is_some_and(|ssd| ssd.write_bytes_per_s.is_some());
        let patient = self.config.put_wait >= Duration::from_millis(200);
        self.slots >= self.keys.len() + 6 && !budget && patient && self.frames > 0
    }
}

impl Plan {
    /// Other sizes for the next store on the same disk; whether its SSD has less room.
    pub(super) fn resize(&mut self, rng: &mut Rng) -> Ordering {
        let stride = self.config.block_bytes.next_multiple_of(4096);
        let was = self.slots;
        if rng.one_in(2) {
            self.frames = rng.below(FRAMES_MAX + 1) as usize;
            self.config.ram_bytes = self.frames as u64 * stride;
        }
        if let Some(ssd) = self.config.ssd.as_mut().filter(|_| rng.one_in(2)) {
            let slots = 1 + rng.below(SLOTS_MAX);
            let before = slots_for(ssd.capacity_bytes, stride as u32) as usize;
            self.slots = self.slots - before + slots as usize;
            ssd.capacity_bytes = capacity_bytes(slots, stride);
        }
        self.slots.cmp(&was)
    }
}

impl Plan {
    /// Devices that may be there, or are left out now.
    pub(super) fn devices(&self) -> u32 {
        1 + (self.seed >> DEVICES_SHIFT) as u32
    }

    /// The further devices are left out, or there again; whether it was the former.
    pub(super) fn leave_out(&mut self) -> bool {
        let Some(ssd) = &mut self.config.ssd else { return false };
        let stride = self.config.block_bytes.next_multiple_of(4096) as u32;
        let slots = |places: &[SsdPlace]| -> u32 {
            places.iter().map(|place| slots_for(place.capacity_bytes, stride)).sum()
        };
        if self.away.is_empty() {
            self.slots -= slots(&ssd.others) as usize;
        } else {
            self.slots += slots(&self.away) as usize;
        }
        std::mem::swap(&mut self.away, &mut ssd.others);
        !self.away.is_empty()
    }
}

impl StoreConfig {
    /// One device more; how many slots it has.
    fn add_device(&mut self, rng: &mut Rng, device: u64, slots: u64) -> u64 {
        let Some(ssd) = &mut self.ssd else { return 0 };
        let stride = self.block_bytes.next_multiple_of(4096);
        let slots = 1 + rng.below(slots.max(2));
        let (path, capacity_bytes) = (format!("{device}").into(), capacity_bytes(slots, stride));
        ssd.others.push(SsdPlace { path, capacity_bytes });
        ssd.slots_a_file = ssd.slots_a_file.max(2);
        ssd.stretch_bytes = stride * (1 + rng.below(6));
        slots
    }
}

fn config(rng: &mut Rng, frames: u64, slots: u64, seed: u64) -> StoreConfig {
    let block_bytes = any(rng, &BLOCK_BYTES);
    let stride = block_bytes.next_multiple_of(4096);
    let mut ssd = SsdConfig::new("", capacity_bytes(slots, stride));
    ssd.engine = EngineKind::Sim;
    ssd.seed = seed;
    ssd.slots_a_file = if rng.one_in(3) { 1 + rng.below(16) as u32 } else { 0 };
    ssd.write_bytes_per_s = rng.one_in(6).then(|| stride * (1 + rng.below(40)));
    StoreConfig {
        deterministic: true,
        manual_clock: true,
        policy: if rng.one_in(3) { PolicyKind::Arc } else { PolicyKind::Lru },
        put_wait: Duration::from_millis(any(rng, &[1000, 1000, 1000, 1000, 20, 0])),
        io_timeout: Duration::from_millis(any(rng, &[1000, 1000, 200])),
        ssd: Some(ssd),
        ..StoreConfig::new(frames * stride, block_bytes)
    }
}

/// The capacity that holds exactly so many slots.
pub(super) fn capacity_bytes(slots: u64, stride: u64) -> u64 {
    16_384 + slots * stride + slots.div_ceil(42) * 4096
}

fn calm(rng: &mut Rng) -> SimFaults {
    let mut faults = SimFaults::default();
    match rng.below(4) {
        0 => faults.latency_us = [(1000, 20_000), (1000, 30_000), (2000, 40_000)],
        1 => faults.latency_us = [(0, 10), (0, 10), (0, 10)],
        _ => {}
    }
    faults
}

fn storm(rng: &mut Rng, nature: Nature, calm: &SimFaults) -> SimFaults {
    let mut faults = calm.clone();
    let some = |rng: &mut Rng| {
        let most = if rng.one_in(4) { PPM / 4 } else { PPM / 50 };
        if rng.one_in(2) { rng.below(u64::from(most)) as u32 } else { 0 }
    };
    if nature == Nature::Honest {
        return faults;
    }
    faults.short_ppm = some(rng);
    faults.eio_read_ppm = some(rng);
    faults.eio_write_ppm = some(rng);
    faults.eio_sync_ppm = some(rng);
    faults.enospc_ppm = some(rng);
    faults.hang_ppm = some(rng) / 8;
    faults.rot_ppm = some(rng);
    if nature == Nature::Liar {
        faults.lost_write_ppm = some(rng);
        faults.misdirected_write_ppm = some(rng);
        faults.torn_write_ppm = some(rng);
        faults.duplicate_ppm = some(rng);
    }
    faults
}
