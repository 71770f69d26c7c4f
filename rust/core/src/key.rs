//! Keys: 128-bit names of blocks, chained over token ids under one fingerprint.
//!
//! Owns: [`Key`], [`Fingerprint`], [`Extra`], the chain hash and the hash of an engine's own block
//! names. Never does: lookups, or anything that depends on the process, the machine's byte order,
//! the Python version or the run.
//!
//! Invariants: a key is a function of (fingerprint, parent, the block's token ids, the extras that
//! overlap the block) and of nothing else, so a chain cut at any block boundary and continued with
//! `parent` has the same keys. The bytes are a promise across releases: golden vectors below.
//!
//! The hash of one block:
//!
//! ```text
//! key32   = parent (16 bytes, zeros for a root) || fingerprint (16 bytes)
//! message = token ids as little-endian u32
//!           then per overlapping extra, ascending by (start, end, digest) as hashed:
//!           start u32 || end u32 (positions within the block, clipped) || length u8 || digest
//! key     = first 16 bytes of BLAKE3 keyed_hash(key32, message)
//! ```
//!
//! 16 tokens without extras are 64 bytes: one compression.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Error, ErrorKind};

/// Bytes of a key.
pub const KEY_BYTES: usize = 16;

/// Longest digest of an extra: enough for a 512-bit hash; its length is hashed as one byte.
pub const DIGEST_BYTES_MAX: usize = 64;

/// What makes this a keystow fingerprint; the number changes if the hash above ever does.
const FINGERPRINT_CONTEXT: &str = "keystow fingerprint v1: layout, namespace, salt";

/// Stands where a parent would for keys made from an engine's own hashes.
const FOREIGN_PARENT: Key = Key([0xFF; KEY_BYTES]);

/// The name of a block: 16 bytes, compared as bytes.
#[repr(transparent)]
#[derive(
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub struct Key(pub [u8; KEY_BYTES]);

impl Key {
    /// The key as two little-endian words, first bytes first.
    #[inline]
    pub fn words(&self) -> [u64; 2] {
        let number = u128::from_le_bytes(self.0);
        [number as u64, (number >> 64) as u64]
    }

    /// The key whose [`words`](Self::words) these are.
    #[inline]
    pub fn from_words(words: [u64; 2]) -> Self {
        let number = u128::from(words[0]) | (u128::from(words[1]) << 64);
        Self(number.to_le_bytes())
    }

    /// Packed bytes as keys, without a copy; `None` unless the length is a multiple of 16.
    #[inline]
    pub fn slice_of(bytes: &[u8]) -> Option<&[Self]> {
        <[Self]>::ref_from_bytes(bytes).ok()
    }

    /// Keys as packed bytes, without a copy.
    #[inline]
    pub fn bytes_of(keys: &[Self]) -> &[u8] {
        keys.as_bytes()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:032x})", u128::from_be_bytes(self.0))
    }
}

/// Identity of a layout, namespace and salt: keys of different fingerprints never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// The fingerprint of three byte strings; each is hashed with its length before it, so no
    /// part can pass for the end of another.
    pub fn new(layout: &[u8], namespace: &[u8], salt: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(FINGERPRINT_CONTEXT);
        for part in [layout, namespace, salt] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(first_half(hasher.finalize()))
    }
}

/// Something besides token ids that a block's contents depend on: an image, a LoRA, a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// First token position it covers, counted from the start of the call.
    pub start: u64,
    /// One past the last token position it covers; may lie beyond the tokens.
    pub end: u64,
    /// Identity of the thing: 1 to 64 bytes.
    pub digest: Vec<u8>,
}

/// Keys of the full blocks of `tokens`, each chained to the one before it.
///
/// `parent` is the key of the block before the first; a rest shorter than `block_tokens` has no
/// key. Extras enter exactly the blocks they overlap.
///
/// # Errors
/// KeyFormat: `block_tokens` is 0 or beyond u32; an extra is empty, or its digest is not 1 to 64
/// bytes.
pub fn chain(
    tokens: &[u32],
    block_tokens: usize,
    fingerprint: &Fingerprint,
    parent: Option<Key>,
    extras: &[Extra],
) -> Result<Vec<Key>, Error> {
    if block_tokens == 0 || u32::try_from(block_tokens).is_err() {
        return Err(bad_block_tokens(block_tokens));
    }
    let mut waiting = sorted(extras)?;
    let mut key32 = [0; 32];
    key32[16..].copy_from_slice(&fingerprint.0);
    if let Some(parent) = parent {
        key32[..16].copy_from_slice(&parent.0);
    }
    let mut keys = Vec::with_capacity(tokens.len() / block_tokens);
    let mut active = Active::default();
    let mut message = Vec::new();
    for (index, block) in tokens.chunks_exact(block_tokens).enumerate() {
        let hash = if extras.is_empty() && cfg!(target_endian = "little") {
            blake3::keyed_hash(&key32, block.as_bytes())
        } else {
            let start = (index * block_tokens) as u64;
            active.advance(&mut waiting, start, start + block_tokens as u64);
            message.clear();
            message.extend(block.iter().flat_map(|token| token.to_le_bytes()));
            active.append_to(&mut message);
            blake3::keyed_hash(&key32, &message)
        };
        let key = first_half(hash);
        key32[..16].copy_from_slice(&key);
        keys.push(Key(key));
    }
    Ok(keys)
}

/// The key of a block that an engine names by a hash of its own, of any length.
///
/// The engine's chain is inside its hash, so the key has no parent part.
pub fn of_hash(hash: &[u8], fingerprint: &Fingerprint) -> Key {
    let mut key32 = [0; 32];
    key32[..16].copy_from_slice(&FOREIGN_PARENT.0);
    key32[16..].copy_from_slice(&fingerprint.0);
    Key(first_half(blake3::keyed_hash(&key32, hash)))
}

/// Extras that overlap the current block, each clipped to it.
#[derive(Default)]
struct Active<'a> {
    extras: Vec<&'a Extra>,
    clipped: Vec<(u32, u32, &'a [u8])>,
}

impl<'a> Active<'a> {
    /// Moves to the block `start..end`; `waiting` yields the others by ascending start. Positions
    /// within a block fit u32 because `block_tokens` does.
    fn advance(
        &mut self,
        waiting: &mut std::iter::Peekable<std::vec::IntoIter<&'a Extra>>,
        start: u64,
        end: u64,
    ) {
        self.extras.retain(|extra| extra.end > start);
        while let Some(extra) = waiting.next_if(|extra| extra.start < end) {
            if extra.end > start {
                self.extras.push(extra);
            }
        }
        self.clipped.clear();
        self.clipped.extend(self.extras.iter().map(|extra| {
            let from = extra.start.max(start) - start;
            let to = extra.end.min(end) - start;
            (from as u32, to as u32, extra.digest.as_slice())
        }));
        // By what is hashed, not by where the extra began: a chain cut before this block and
        // continued with clipped extras must order them the same way.
        self.clipped.sort_unstable();
    }

    fn append_to(&self, message: &mut Vec<u8>) {
        for (from, to, digest) in &self.clipped {
            message.extend_from_slice(&from.to_le_bytes());
            message.extend_from_slice(&to.to_le_bytes());
            message.push(digest.len() as u8);
            message.extend_from_slice(digest);
        }
    }
}

/// The extras by ascending start, each checked.
fn sorted(extras: &[Extra]) -> Result<std::iter::Peekable<std::vec::IntoIter<&Extra>>, Error> {
    for (index, extra) in extras.iter().enumerate() {
        if extra.start >= extra.end {
            return Err(bad_extra_range(index, extra));
        }
        if extra.digest.is_empty() || extra.digest.len() > DIGEST_BYTES_MAX {
            return Err(bad_digest(index, extra));
        }
    }
    let mut order: Vec<&Extra> = extras.iter().collect();
    order.sort_by_key(|extra| extra.start);
    Ok(order.into_iter().peekable())
}

fn first_half(hash: blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}

fn bad_block_tokens(block_tokens: usize) -> Error {
    Error::new(
        ErrorKind::KeyFormat,
        "KS-KEY-001",
        format!("{block_tokens} tokens a block: it must be 1 to {}.", u32::MAX),
        "give the layout a block_tokens in that range.",
    )
    .with("block_tokens", block_tokens)
}

fn bad_extra_range(index: usize, extra: &Extra) -> Error {
    let Extra { start, end, .. } = extra;
    Error::new(
        ErrorKind::KeyFormat,
        "KS-KEY-002",
        format!("extra {index} covers no token: start {start}, end {end}."),
        "extras are half-open token positions from the start of the call: start < end.",
    )
    .with("index", index)
    .with("start", start)
    .with("end", end)
}

fn bad_digest(index: usize, extra: &Extra) -> Error {
    let length = extra.digest.len();
    Error::new(
        ErrorKind::KeyFormat,
        "KS-KEY-003",
        format!("extra {index} has a digest of {length} bytes: 1 to {DIGEST_BYTES_MAX} are taken."),
        "hash longer identities first, for example with hashlib.blake2b.",
    )
    .with("index", index)
    .with("digest_bytes", length)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn golden_fingerprint() -> Fingerprint {
        Fingerprint::new(b"layout", b"namespace", b"salt")
    }

    fn hex(keys: &[Key]) -> Vec<String> {
        keys.iter().map(|key| format!("{:032x}", u128::from_be_bytes(key.0))).collect()
    }

    fn extra(start: u64, end: u64, digest: &[u8]) -> Extra {
        Extra { start, end, digest: digest.to_vec() }
    }

    /// Fixed bytes, made by another BLAKE3: a red test here means that every cache goes cold.
    #[test]
    fn golden_vectors() {
        let print = golden_fingerprint();
        assert_eq!(hex(&[Key(print.0)]), ["b32f352d7d07a355a28ac789a6801473"]);
        let nothing = Fingerprint::new(b"", b"", b"");
        assert_eq!(hex(&[Key(nothing.0)]), ["339277e5af4995213f01a0d8b4d0aaf0"]);

        let tokens: Vec<u32> = (0..64).collect();
        let keys = chain(&tokens[..40], 16, &print, None, &[]).expect("legal");
        let expected = ["dc2c89b8663fc70d246e02215252f502", "be61e6edab502d53fe32ba5282a1208e"];
        assert_eq!(hex(&keys), expected);

        let large = [0, 1, 1 << 31, u32::MAX].repeat(5);
        let parent = Key::from_words([0x0706_0504_0302_0100, 0x0F0E_0D0C_0B0A_0908]);
        let keys = chain(&large, 5, &print, Some(parent), &[]).expect("legal");
        let expected = [
            "6895be91e444729713adbcbe455755f4",
            "f82b06dd344362ef7414fae81e8925e5",
            "eefe63f5dbbc2b5166bb7a00cea41ded",
            "10960c190d3636336ffa283c0e698268",
        ];
        assert_eq!(hex(&keys), expected);

        let extras = [extra(20, 40, b"image"), extra(0, 1 << 63, b"lora")];
        let keys = chain(&tokens, 16, &print, None, &extras).expect("legal");
        let expected = [
            "91ed6a3c092129a9faffbcf049e96353",
            "3bb1887f3cd0e24efc0759a27d47303c",
            "526f1d36c7eef568488d9eb39cd58c1e",
            "65fa45014e9da28a94dd58fa2951f9a1",
        ];
        assert_eq!(hex(&keys), expected);

        let foreign = [of_hash(b"engine block 7", &print), of_hash(b"", &print)];
        let expected = ["37900a5cf7f2ab53d25b3b32c6222f16", "7a563c43ea9c34cdc414a1c03b738fc3"];
        assert_eq!(hex(&foreign), expected);
    }

    #[test]
    fn fingerprint_parts_do_not_run_together() {
        let split = Fingerprint::new(b"ab", b"c", b"");
        assert_ne!(split, Fingerprint::new(b"a", b"bc", b""));
        assert_ne!(split, Fingerprint::new(b"ab", b"", b"c"));
        assert_ne!(split, Fingerprint::new(b"abc", b"", b""));
    }

    #[test]
    fn packed_bytes_are_keys_only_in_whole_keys() {
        let bytes: Vec<u8> = (0..48).collect();
        let keys = Key::slice_of(&bytes).expect("48 = 3 x 16");
        assert_eq!(keys.len(), 3);
        assert_eq!(keys[1].0[0], 16);
        assert_eq!(Key::bytes_of(keys).as_ptr_range(), bytes.as_ptr_range());
        assert!(Key::slice_of(&bytes[..47]).is_none());
        assert_eq!(Key::slice_of(&[]), Some(&[][..]));
    }

    #[test]
    fn bad_arguments_are_named() {
        let print = golden_fingerprint();
        let code = |block_tokens, extras: &[Extra]| {
            let error = chain(&[1, 2], block_tokens, &print, None, extras).expect_err("illegal");
            assert_eq!(error.kind, ErrorKind::KeyFormat);
            error.code
        };
        assert_eq!(code(0, &[]), "KS-KEY-001");
        assert_eq!(code(1 << 32, &[]), "KS-KEY-001");
        assert_eq!(code(2, &[extra(1, 1, b"x")]), "KS-KEY-002");
        assert_eq!(code(2, &[extra(2, 1, b"x")]), "KS-KEY-002");
        assert_eq!(code(2, &[extra(0, 1, b"")]), "KS-KEY-003");
        assert_eq!(code(2, &[extra(0, 1, &[7; 65])]), "KS-KEY-003");
        assert!(chain(&[1, 2], 2, &print, None, &[extra(0, 1, &[7; 64])]).is_ok());
    }

    /// The message of a block written out from the definition, without an active set.
    fn plain(tokens: &[u32], size: usize, parent: Option<Key>, extras: &[Extra]) -> Vec<Key> {
        let print = golden_fingerprint();
        let mut parent = parent.unwrap_or(Key([0; 16]));
        let mut keys = Vec::new();
        for (index, block) in tokens.chunks_exact(size).enumerate() {
            let (from, to) = ((index * size) as u64, ((index + 1) * size) as u64);
            let mut over: Vec<(u32, u32, Vec<u8>)> = extras
                .iter()
                .filter(|extra| extra.start < to && extra.end > from)
                .map(|extra| {
                    let clip = |position: u64| (position.clamp(from, to) - from) as u32;
                    (clip(extra.start), clip(extra.end), extra.digest.clone())
                })
                .collect();
            over.sort();
            let mut message: Vec<u8> = block.iter().flat_map(|token| token.to_le_bytes()).collect();
            for (start, end, digest) in over {
                message.extend([start.to_le_bytes(), end.to_le_bytes()].concat());
                message.push(digest.len() as u8);
                message.extend(digest);
            }
            let mut key32 = [0; 32];
            key32[..16].copy_from_slice(&parent.0);
            key32[16..].copy_from_slice(&print.0);
            parent = Key(first_half(blake3::keyed_hash(&key32, &message)));
            keys.push(parent);
        }
        keys
    }

    /// The extras as a caller would pass them who starts `by` tokens later.
    fn shifted(extras: &[Extra], by: u64) -> Vec<Extra> {
        extras
            .iter()
            .filter(|extra| extra.end > by)
            .map(|e| extra(e.start.saturating_sub(by), e.end - by, &e.digest))
            .collect()
    }

    fn extras_strategy() -> impl Strategy<Value = Vec<Extra>> {
        let one = (0..70_u64, 1..40_u64, proptest::collection::vec(0..3_u8, 1..4))
            .prop_map(|(start, length, digest)| extra(start, start + length, &digest));
        proptest::collection::vec(one, 0..6)
    }

    proptest! {
        #[test]
        fn words_round_trip(bytes: [u8; 16]) {
            let key = Key(bytes);
            prop_assert_eq!(Key::from_words(key.words()), key);
            let [first, second] = key.words().map(u64::to_le_bytes);
            prop_assert_eq!([first, second].concat(), bytes);
        }

        #[test]
        fn chain_is_its_definition(
            tokens in proptest::collection::vec(any::<u32>(), 0..70),
            size in 1..20_usize,
            parent in proptest::option::of(any::<[u8; 16]>()),
            extras in extras_strategy(),
        ) {
            let parent = parent.map(Key);
            let keys = chain(&tokens, size, &golden_fingerprint(), parent, &extras).expect("legal");
            prop_assert_eq!(keys, plain(&tokens, size, parent, &extras));
        }

        /// Cutting a chain at a block boundary and going on with `parent` changes no key.
        #[test]
        fn a_cut_chain_goes_on(
            tokens in proptest::collection::vec(any::<u32>(), 0..70),
            size in 1..10_usize,
            cut in 0..70_usize,
            extras in extras_strategy(),
        ) {
            let print = golden_fingerprint();
            let cut = cut % (tokens.len() / size + 1);
            let whole = chain(&tokens, size, &print, None, &extras).expect("legal");
            let (head, tail) = tokens.split_at(cut * size);
            let mut keys = chain(head, size, &print, None, &extras).expect("legal");
            let later = shifted(&extras, head.len() as u64);
            let parent = keys.last().copied();
            keys.extend(chain(tail, size, &print, parent, &later).expect("legal"));
            prop_assert_eq!(keys, whole);
        }

        /// An extra changes the key of every block it overlaps; blocks before it keep theirs, and
        /// blocks behind it differ only through their parent.
        #[test]
        fn extras_enter_exactly_the_blocks_they_overlap(
            size in 1..10_usize, start in 0..80_u64, length in 1..40_u64,
        ) {
            let print = golden_fingerprint();
            let tokens: Vec<u32> = (0..64).collect();
            let with = [extra(start, start + length, b"image")];
            let keys = chain(&tokens, size, &print, None, &with).expect("legal");
            for (index, block) in tokens.chunks_exact(size).enumerate() {
                let parent = index.checked_sub(1).map(|before| keys[before]);
                let bare = chain(block, size, &print, parent, &[]).expect("legal")[0];
                let (from, to) = ((index * size) as u64, ((index + 1) * size) as u64);
                let overlaps = start < to && start + length > from;
                prop_assert_eq!(bare != keys[index], overlaps);
            }
        }

        #[test]
        fn order_of_extras_does_not_matter(extras in extras_strategy(), turn in 0..6_usize) {
            let print = golden_fingerprint();
            let tokens: Vec<u32> = (0..64).collect();
            let keys = chain(&tokens, 16, &print, None, &extras).expect("legal");
            let mut turned = extras.clone();
            turned.rotate_left(turn % extras.len().max(1));
            turned.reverse();
            prop_assert_eq!(chain(&tokens, 16, &print, None, &turned).expect("legal"), keys);
        }
    }
}
