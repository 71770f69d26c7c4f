//! One simulated file: what reads see, what a power cut leaves, and the sectors in between.
//!
//! Owns: both images and the sets of sectors. Never does: decide what goes wrong. Invariants:
//! a sector in no set is alike in both images; what was pledged to a sync reaches the durable
//! image before it is overwritten, so that the sync's promise holds whatever is written meanwhile.

use super::rng::Rng;

/// What a disk writes whole or not at all.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Sectors whose fate at a power cut is drawn together, so that whole pages live and die too.
const PAGE_SECTORS: u64 = 8;

/// A set of sectors.
#[derive(Clone, Debug, Default)]
struct Sectors(Vec<u64>);

impl Sectors {
    fn cover(&mut self, sectors: u64) {
        self.0.resize(sectors.div_ceil(64) as usize, 0);
        if let Some(last) = self.0.last_mut().filter(|_| !sectors.is_multiple_of(64)) {
            *last &= (1 << (sectors % 64)) - 1;
        }
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }

    fn has(&self, sector: u64) -> bool {
        self.0[(sector / 64) as usize] >> (sector % 64) & 1 == 1
    }

    fn remove(&mut self, sector: u64) {
        self.0[(sector / 64) as usize] &= !(1 << (sector % 64));
    }

    /// The words of start..end and the bits of the range in each.
    fn spans(start: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
        (start / 64..end.div_ceil(64)).map(move |word| {
            let from = start.max(word * 64) - word * 64;
            let to = end.min(word * 64 + 64) - word * 64;
            let upto = if to == 64 { u64::MAX } else { (1 << to) - 1 };
            (word as usize, upto & !((1 << from) - 1))
        })
    }

    fn add_range(&mut self, start: u64, end: u64) {
        Self::spans(start, end).for_each(|(word, bits)| self.0[word] |= bits);
    }

    fn remove_range(&mut self, start: u64, end: u64) {
        Self::spans(start, end).for_each(|(word, bits)| self.0[word] &= !bits);
    }

    /// The first sector from `from` on that is in the set.
    fn next(&self, from: u64) -> Option<u64> {
        let mut word = (from / 64) as usize;
        let mut bits = *self.0.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.0.get(word)?;
        }
        Some(word as u64 * 64 + u64::from(bits.trailing_zeros()))
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// A file of a simulated disk.
#[derive(Debug)]
pub(super) struct Image {
    volatile: Vec<u8>,
    durable: Vec<u8>,
    /// Written and not synced: a power cut may leave either image.
    unsynced: Sectors,
    /// Unsynced ones that a sync in flight has promised to write.
    pledged: Sectors,
    /// Those that a failed sync marked clean: no later sync writes them, a power cut takes them.
    forgotten: Sectors,
    /// Syncs in flight; none of them where tests have put another file in its place.
    syncs: u32,
}

impl Image {
    pub(super) fn new(bytes: u64) -> Self {
        let mut image = Self {
            volatile: vec![0; bytes as usize],
            durable: vec![0; bytes as usize],
            unsynced: Sectors::default(),
            pledged: Sectors::default(),
            forgotten: Sectors::default(),
            syncs: 0,
        };
        image.cover();
        image
    }

    fn cover(&mut self) {
        let sectors = self.len().div_ceil(SECTOR_BYTES);
        for set in [&mut self.unsynced, &mut self.pledged, &mut self.forgotten] {
            set.cover(sectors);
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.volatile.len() as u64
    }

    /// Grows with zeros or cuts off. The length itself needs no sync.
    pub(super) fn resize(&mut self, bytes: u64) {
        let kept = self.len().min(bytes) as usize;
        for image in [&mut self.volatile, &mut self.durable] {
            // Fresh zeros cost nothing until they are touched; those of `Vec::resize` do.
            let old = std::mem::replace(image, vec![0; bytes as usize]);
            image[..kept].copy_from_slice(&old[..kept]);
        }
        self.cover();
    }

    /// The bytes that a read sees, as far as the file goes.
    pub(super) fn seen(&self, offset: u64, bytes: u64) -> &[u8] {
        let from = offset.min(self.len());
        let to = offset.saturating_add(bytes).min(self.len());
        &self.volatile[from as usize..to as usize]
    }

    /// The device takes bytes; they must lie inside the file.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        let (first, last) = (offset / SECTOR_BYTES, end.div_ceil(SECTOR_BYTES));
        if self.syncs > 0 {
            let mut from = first;
            while let Some(sector) = self.pledged.next(from).filter(|&sector| sector < last) {
                self.persist(sector);
                from = sector + 1;
            }
            self.pledged.remove_range(first, last);
        }
        self.volatile[offset as usize..end as usize].copy_from_slice(bytes);
        self.unsynced.add_range(first, last);
        self.forgotten.remove_range(first, last);
    }

    /// The medium changes below everyone: both images.
    pub(super) fn damage(&mut self, offset: u64, bytes: u64, change: impl Fn(&mut [u8])) {
        for image in [&mut self.volatile, &mut self.durable] {
            change(&mut image[offset as usize..(offset + bytes) as usize]);
        }
    }

    /// All of it is this, durably.
    pub(super) fn replace(&mut self, bytes: &[u8]) {
        *self = Self::new(bytes.len() as u64);
        self.volatile.copy_from_slice(bytes);
        self.durable.copy_from_slice(bytes);
    }

    /// A sync begins: it is about what is written by now.
    pub(super) fn sync_begins(&mut self) {
        self.syncs += 1;
        for (pledged, unsynced) in self.pledged.0.iter_mut().zip(&self.unsynced.0) {
            *pledged |= unsynced;
        }
    }

    /// A sync has done what it promised. What a later one has pledged may go along with it.
    pub(super) fn sync_ends(&mut self) {
        self.syncs = self.syncs.saturating_sub(1);
        let mut from = 0;
        while let Some(sector) = self.pledged.next(from) {
            self.persist(sector);
            self.unsynced.remove(sector);
            from = sector + 1;
        }
        self.pledged.clear();
    }

    /// A sync has failed: as file systems do, it wrote some of the sectors and marked all of them
    /// clean. Returns how many it lost. Beside another sync it leaves them unsynced: whose promise
    /// would be broken is not told.
    pub(super) fn sync_fails(&mut self, rng: &mut Rng) -> u64 {
        self.syncs = self.syncs.saturating_sub(1);
        if self.syncs > 0 {
            return 0;
        }
        let (mut from, mut lost) = (0, 0);
        while let Some(sector) = self.pledged.next(from) {
            if rng.one_in(2) {
                self.persist(sector);
            } else {
                self.forgotten.add_range(sector, sector + 1);
                lost += 1;
            }
            self.unsynced.remove(sector);
            from = sector + 1;
        }
        self.pledged.clear();
        lost
    }

    /// Nobody waits for a sync any more: its sectors stay unsynced.
    pub(super) fn sync_vanishes(&mut self) {
        self.syncs = self.syncs.saturating_sub(1);
        if self.syncs == 0 {
            self.pledged.clear();
        }
    }

    /// The power has gone: of each page with unsynced sectors all, none or some survive. Returns
    /// how many sectors did not.
    pub(super) fn power_cut(&mut self, rng: &mut Rng) -> u64 {
        self.pledged.clear();
        let mut dropped = self.forgotten.count();
        let mut from = 0;
        while let Some(sector) = self.forgotten.next(from) {
            self.revert(sector);
            from = sector + 1;
        }
        let mut page = u64::MAX;
        let mut survivors = 0;
        from = 0;
        while let Some(sector) = self.unsynced.next(from) {
            if page != sector / PAGE_SECTORS {
                page = sector / PAGE_SECTORS;
                survivors = some_of_a_page(rng);
            }
            if survivors >> (sector % PAGE_SECTORS) & 1 == 1 {
                self.persist(sector);
            } else {
                self.revert(sector);
                dropped += 1;
            }
            from = sector + 1;
        }
        self.unsynced.clear();
        self.forgotten.clear();
        dropped
    }

    /// Whether a power cut could take back what reads see here.
    pub(super) fn at_risk(&self, offset: u64) -> bool {
        let sector = offset / SECTOR_BYTES;
        self.unsynced.has(sector) || self.forgotten.has(sector)
    }

    fn bounds(&self, sector: u64) -> std::ops::Range<usize> {
        let start = sector * SECTOR_BYTES;
        start as usize..(start + SECTOR_BYTES).min(self.len()) as usize
    }

    fn persist(&mut self, sector: u64) {
        let at = self.bounds(sector);
        self.durable[at.clone()].copy_from_slice(&self.volatile[at]);
    }

    fn revert(&mut self, sector: u64) {
        let at = self.bounds(sector);
        self.volatile[at.clone()].copy_from_slice(&self.durable[at]);
    }
}

/// Which sectors of a page make it, a bit each: all, none, or any of them.
pub(super) fn some_of_a_page(rng: &mut Rng) -> u64 {
    match rng.below(4) {
        0 => u64::MAX,
        1 => 0,
        _ => rng.bits(),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_set_of_sectors_is_a_set() {
        const SECTORS: u64 = 200;
        let mut rng = Rng::new(1);
        let (mut sectors, mut model) = (Sectors::default(), BTreeSet::new());
        sectors.cover(SECTORS);
        for _ in 0..500 {
            let start = rng.below(SECTORS);
            let end = start + rng.below(SECTORS - start + 1);
            if rng.one_in(2) {
                sectors.add_range(start, end);
                model.extend(start..end);
            } else {
                sectors.remove_range(start, end);
                model.retain(|sector| !(start..end).contains(sector));
            }
            let from = rng.below(SECTORS);
            assert_eq!(sectors.next(from), model.range(from..).next().copied());
            assert_eq!(sectors.count(), model.len() as u64);
            assert!((0..SECTORS).all(|sector| sectors.has(sector) == model.contains(&sector)));
        }
        sectors.add_range(0, SECTORS);
        sectors.cover(100);
        sectors.cover(SECTORS);
        assert_eq!(sectors.count(), 100);
    }

    #[test]
    fn sectors_in_no_set_are_alike_in_both_images() {
        let mut rng = Rng::new(2);
        let mut image = Image::new(40 * 512 + 100); // The last sector is cut.
        for step in 0..2000 {
            let start = rng.below(image.len());
            let bytes = vec![step as u8; rng.below(image.len() - start + 1) as usize];
            match rng.below(9) {
                0 => image.sync_begins(),
                8 => image.damage(start, bytes.len() as u64, |at| at.fill(0xEE)),
                1 if image.syncs > 0 => image.sync_ends(),
                2 if image.syncs > 0 => drop(image.sync_fails(&mut rng)),
                3 if image.syncs > 0 => image.sync_vanishes(),
                4 if rng.one_in(8) => drop(image.power_cut(&mut rng)),
                _ => image.write(start, &bytes),
            }
            let pairs = image.volatile.chunks(512).zip(image.durable.chunks(512));
            for (sector, (seen, durable)) in (0..).zip(pairs) {
                assert!(image.at_risk(sector * 512) || seen == durable, "{sector} after {step}");
                assert!(!image.pledged.has(sector) || image.unsynced.has(sector));
                assert!(!image.forgotten.has(sector) || !image.unsynced.has(sector));
            }
        }
    }
}
