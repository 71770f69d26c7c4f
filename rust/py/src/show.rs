//! How things look: the text of a store, and a recount as a dict.
//!
//! Owns: rounding and units. Never does: anything a program should rely on.

use keystow_core::store::Recount;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::stats::Stats;

const UNITS: [(&str, u64); 4] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// `Store(2.1 of 4.0 GiB in RAM, 1,034 blocks, hits 87.2 %, lru, open)`, or with an SSD tier
/// `Store(90 of 128 blocks in RAM, 27 of 1,024 on SSD, hits 87.2 %, lru, open)`.
pub fn store(stats: &Stats, ram_bytes: u64, policy: &str) -> String {
    let asked = stats.hits + stats.misses;
    let hits = match asked {
        0 => "no gets yet".to_owned(),
        _ => format!("hits {:.1} %", 100.0 * stats.hits as f64 / asked as f64),
    };
    let room = if stats.ssd_state.is_empty() { in_ram(stats, ram_bytes) } else { in_tiers(stats) };
    format!("Store({room}, {hits}, {policy}, {})", stats.state)
}

fn in_ram(stats: &Stats, ram_bytes: u64) -> String {
    let (unit, scale) =
        UNITS.into_iter().find(|(_, scale)| ram_bytes >= *scale).unwrap_or(("bytes", 1));
    let of = |bytes: u64| bytes as f64 / scale as f64;
    let (used, ram) = (of(stats.bytes_resident), of(ram_bytes));
    format!("{used:.1} of {ram:.1} {unit} in RAM, {} blocks", grouped(stats.blocks))
}

fn in_tiers(stats: &Stats) -> String {
    let (ram, frames) = (grouped(stats.blocks_ram), grouped(stats.frames_total));
    let (ssd, slots) = (grouped(stats.ssd_blocks), grouped(stats.ssd_slots_total));
    format!("{ram} of {frames} blocks in RAM, {ssd} of {slots} on SSD")
}

/// A recount by name.
pub fn recount<'py>(py: Python<'py>, recount: &Recount) -> PyResult<Bound<'py, PyDict>> {
    let named = PyDict::new(py);
    named.set_item("blocks", recount.blocks)?;
    named.set_item("frames_free", recount.frames_free)?;
    named.set_item("frames_pinned", recount.frames_pinned)?;
    named.set_item("evictable", recount.evictable)?;
    named.set_item("resident", recount.resident)?;
    named.set_item("holes", recount.holes)?;
    named.set_item("hidden", recount.hidden)?;
    named.set_item("pins", recount.pins)?;
    Ok(named)
}

/// 1034 as 1,034.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
