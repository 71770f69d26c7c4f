"""The demo's figures: what the owners of the store told, summed up, as an object and as a table.

Owns: the tally, the names of the report's fields and how people read them. Never touches a store.
Invariants: a figure is summed over all processes that owned the store; what a killed process did
is what it had told; a percentile is the nearest rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from keystow.demo_owner import Flushed, Opened, Told, written_bytes
from keystow.demo_replay import COUNTERS, Served, State
from keystow.trace import BLOCK_TOKENS

# What goes wrong with a device, and how people read it: a tier that was left alone shows no speed.
FAULTS = {
    "late": "requests took longer than the store waits",
    "io_errors": "requests failed",
    "bad_tags": "copies had other bytes than were written",
    "breaker_opened": "times the device was left alone",
    "dropped_waited": "blocks left RAM unwritten, a put had waited too long",
    "dropped_refused": "blocks left RAM unwritten, over the write budget",
    "dropped_off": "blocks left RAM unwritten, the device was left alone",
    "lost": "blocks could not be read back",
}
WINDOW_S = 0.2
"""What is written to SSD is looked at in windows of at least this length."""


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile; 0 of nothing is 0."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def share(part: float, whole: float) -> float:
    """Return part of whole; of nothing it is 0."""
    return part / whole if whole else 0.0


def calls_figures(seconds: Sequence[float], moved_bytes: int) -> dict[str, float]:
    """Return what the calls that took `seconds` did together, `moved_bytes` being what they copied.

    >>> calls_figures([0.25, 0.25], 10**9)["gb_per_s"]
    2.0
    """
    spent_s = sum(seconds)
    return {
        "calls": len(seconds),
        "bytes": moved_bytes,
        "seconds": round(spent_s, 6),
        "gb_per_s": round(share(moved_bytes, spent_s) / 1e9, 3),
        "p50_ms": round(percentile(seconds, 50) * 1e3, 4),
        "p99_ms": round(percentile(seconds, 99) * 1e3, 4),
    }


@dataclass
class WriteBehind:
    """What the SSD tier wrote by itself while requests were served."""

    moved_bytes: int = 0
    spent_s: float = 0.0
    rates: list[float] = field(default_factory=list)
    """Bytes a second of each window."""
    _from: State | None = None
    _last: State | None = None

    def begin(self, state: State) -> None:
        """A process has opened the store."""
        self._from = self._last = state

    def note(self, state: State) -> None:
        """The store stands here now."""
        self._last = state
        if self._from and state["at_s"] - self._from["at_s"] >= WINDOW_S:
            self.rates.append(self._close_window(self._from, state))
            self._from = state

    def finish(self) -> None:
        """The process serves no more requests."""
        if self._from and self._last:
            self._close_window(self._from, self._last)
        self._from = self._last = None

    def _close_window(self, first: State, last: State) -> float:
        """Take in what was written between two states; return bytes a second."""
        written = written_bytes(last) - written_bytes(first)
        span_s = last["at_s"] - first["at_s"]
        self.moved_bytes += written
        self.spent_s += span_s
        return share(written, span_s)

    def figures(self) -> dict[str, float]:
        """Return bytes, time and rates."""
        return {
            "bytes": self.moved_bytes,
            "seconds": round(self.spent_s, 3),
            "gb_per_s": round(share(self.moved_bytes, self.spent_s) / 1e9, 3),
            "window_s": WINDOW_S,
            "windows": len(self.rates),
            "p50_gb_per_s": round(percentile(self.rates, 50) / 1e9, 3),
            "p99_gb_per_s": round(percentile(self.rates, 99) / 1e9, 3),
        }


@dataclass
class Tally:
    """What the owners of the store have told so far."""

    requests: int = 0
    blocks: int = 0
    hits_ram: int = 0
    hits_ssd: int = 0
    blocks_stored: int = 0
    prompt_tokens: int = 0
    prompt_tokens_saved: int = 0
    wrong_blocks: int = 0
    wrong_bytes: int = 0
    first_wrong: str = ""
    put: list[float] = field(default_factory=list)
    get: list[tuple[float, int, int]] = field(default_factory=list)
    write_behind: WriteBehind = field(default_factory=WriteBehind)
    opened: Opened | None = None
    """The first one."""
    flushed: Flushed | None = None
    reopened: Opened | None = None
    killed_at_request: int | None = None
    blocks_before_kill: int = 0
    bad_tags_before_kill: int = 0
    fallbacks: list[str] = field(default_factory=list)
    _ended: dict[str, int] = field(default_factory=dict)
    _state: State | None = None

    @property
    def blocks_hit(self) -> int:
        """Blocks loaded from either tier."""
        return self.hits_ram + self.hits_ssd

    @property
    def dirty_blocks_lost(self) -> int:
        """Blocks the killed process had after its last request and its successor did not find."""
        found = self.reopened.recovered if self.reopened else 0
        return max(0, self.blocks_before_kill - found)

    @property
    def stale_blocks_read(self) -> int:
        """Blocks that the successor found by a record older than what stands in its place.

        Each was evicted shortly before the kill and its slot written anew; all are read, and found
        to be misses, when the successor verifies what it has. Bit rot since the kill would count
        here too.
        """
        return self.total("ssd_bad_tags") - self.bad_tags_before_kill

    def add(self, message: Told) -> None:
        """Take in what an owner told."""
        self._state = message.state
        self.fallbacks += [
            text for text in message.state["fallbacks"] if text not in self.fallbacks
        ]
        if isinstance(message, Opened):
            if self.killed_at_request is None:
                self.opened = message
            else:
                self.reopened = message
            self.write_behind.begin(message.state)
        elif isinstance(message, Flushed):
            self.flushed = message
            self.write_behind.finish()
        else:
            self._add_served(message)

    def _add_served(self, served: Served) -> None:
        loaded_ram = sum(ram for _, ram, _ in served.gets)
        loaded_ssd = sum(ssd for _, _, ssd in served.gets)
        self.requests += 1
        self.blocks += served.blocks
        self.hits_ram += loaded_ram
        self.hits_ssd += loaded_ssd
        self.blocks_stored += served.stored
        self.prompt_tokens += served.prompt_tokens
        saved = (loaded_ram + loaded_ssd) * BLOCK_TOKENS
        self.prompt_tokens_saved += min(saved, served.prompt_tokens)
        self.wrong_blocks += served.wrong_blocks
        self.wrong_bytes += served.wrong_bytes
        self.first_wrong = self.first_wrong or served.first_wrong
        self.put += served.puts
        self.get += served.gets
        self.write_behind.note(served.state)

    def end(self, *, killed: bool = False) -> None:
        """Note that the process that owned the store tells nothing more: its counters are final."""
        self.write_behind.finish()
        for name in COUNTERS:
            self._ended[name] = self.total(name)
        if killed:
            self.killed_at_request = self.requests
            self.blocks_before_kill = self._state["blocks"] if self._state else 0
            self.bad_tags_before_kill = self._ended["ssd_bad_tags"]
        self._state = None

    def total(self, name: str) -> int:
        """Return one of COUNTERS, over all processes that owned the store."""
        return self._ended.get(name, 0) + (self._state["counters"][name] if self._state else 0)


def figures(tally: Tally, block_bytes: int, *, tiers: int) -> dict[str, Any]:
    """Return the figures of the report; those of the SSD tier only if there are two tiers."""
    opened, flushed, reopened = tally.opened, tally.flushed, tally.reopened
    report: dict[str, Any] = {
        "frames": opened.frames if opened else 0,
        "requests": tally.requests,
        "blocks": tally.blocks,
        "blocks_hit": tally.blocks_hit,
        "hits_ram": tally.hits_ram,
        "hits_ssd": tally.hits_ssd,
        "prefix_hit_ratio": round(share(tally.blocks_hit, tally.blocks), 6),
        "prefill_tokens": tally.prompt_tokens,
        "prefill_tokens_saved": tally.prompt_tokens_saved,
        "put": calls_figures(tally.put, tally.total("bytes_in")),
        "get": calls_figures([s for s, _, _ in tally.get], tally.total("bytes_out")),
        "blocks_stored": tally.blocks_stored,
        "blocks_unstored": tally.blocks - tally.blocks_hit - tally.blocks_stored,
        "blocks_verified": tally.blocks_hit,
        "bytes_verified": tally.blocks_hit * block_bytes,
        "wrong_blocks": tally.wrong_blocks,
        "wrong_bytes": tally.wrong_bytes,
        "first_wrong": tally.first_wrong,
        "evictions": tally.total("evictions"),
        "fallbacks": tally.fallbacks,
        "engine": opened.engine if opened else "",
        "direct_io": bool(opened and opened.direct),
        "killed_at_request": tally.killed_at_request,
        "restart_s": round(reopened.open_s, 3) if reopened else None,
        "blocks_before_kill": tally.blocks_before_kill if reopened else None,
        "warm_blocks_after_kill": reopened.recovered if reopened else None,
        "dirty_blocks_lost": tally.dirty_blocks_lost if reopened else None,
        "stale_blocks_read": tally.stale_blocks_read if reopened else None,
    }
    if tiers > 1:
        from_ram = [call for call in tally.get if not call[2]]
        from_ssd = [call for call in tally.get if call[2]]
        report["get_ram"] = calls_figures(
            [call[0] for call in from_ram], block_bytes * sum(call[1] for call in from_ram)
        )
        # Their blocks from RAM take time too, but are not counted: no faster than the SSD is.
        report["get_ssd"] = calls_figures(
            [call[0] for call in from_ssd], block_bytes * sum(call[2] for call in from_ssd)
        )
        report["write_behind"] = tally.write_behind.figures()
        report["ssd_faults"] = {name: tally.total(f"ssd_{name}") for name in FAULTS}
    if flushed:
        report["flush"] = {
            "bytes": flushed.flush_bytes,
            "seconds": round(flushed.flush_s, 3),
            "gb_per_s": round(share(flushed.flush_bytes, flushed.flush_s) / 1e9, 3),
            "blocks_left": flushed.left,
        }
    return report


def size_text(count: float) -> str:
    """Return bytes for people: the largest binary unit of which there is at least one."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):,.4g} {unit}"
    return f"{count:.0f} B"


def percent(part: float, whole: float) -> str:
    """Return part of whole as per cent for people."""
    return f"{100 * share(part, whole):.1f} %"


def calls_text(figures: dict[str, float]) -> str:
    """Return one verb's figures as a cell of the table."""
    return (
        f"{figures['gb_per_s']:.2f} GB/s   p50 {figures['p50_ms']:.3f} ms   "
        f"p99 {figures['p99_ms']:.3f} ms   {size_text(figures['bytes'])} "
        f"in {figures['calls']:,} calls"
    )


def faults_text(report: dict[str, Any]) -> str:
    """Return what went wrong with the device, without what is stale because of the kill."""
    stale = report["stale_blocks_read"] or 0
    counts = dict(report["ssd_faults"])
    for name in ("bad_tags", "lost"):
        counts[name] = max(0, counts[name] - stale)
    told = [f"{count:,} {FAULTS[name]}" for name, count in counts.items() if count]
    return "; ".join(told) or "none"


def ssd_rows(report: dict[str, Any]) -> dict[str, str]:
    """Return the rows of the SSD tier."""
    behind, flush = report["write_behind"], report["flush"]
    left = f"; {flush['blocks_left']:,} blocks left in RAM alone" if flush["blocks_left"] else ""
    rows = {
        "get, all from RAM": calls_text(report["get_ram"]),
        "get, some from SSD": calls_text(report["get_ssd"]),
        "write-behind": f"{behind['gb_per_s']:.2f} GB/s   p50 {behind['p50_gb_per_s']:.2f} GB/s   "
        f"p99 {behind['p99_gb_per_s']:.2f} GB/s   {size_text(behind['bytes'])} "
        f"in {behind['windows']:,} windows of {behind['window_s']} s",
        "flush at the end": f"{flush['gb_per_s']:.2f} GB/s   {size_text(flush['bytes'])} "
        f"in {flush['seconds']:.2f} s{left}",
        "SSD faults": faults_text(report),
    }
    if report["restart_s"] is not None:
        before, lost = report["blocks_before_kill"], report["dirty_blocks_lost"]
        rows["killed"] = (
            f"SIGKILL after {report['killed_at_request']:,} requests; "
            f"the next process opened the store in {report['restart_s']:.3f} s"
        )
        rows["warm after it"] = (
            f"{report['warm_blocks_after_kill']:,} of {before:,} blocks found and verified; "
            f"{lost:,} lost that were not safe on SSD yet; "
            f"{report['stale_blocks_read']:,} stale, each a miss"
        )
    return rows


def table(report: dict[str, Any]) -> str:
    """Return the report for people."""
    hits, blocks = report["blocks_hit"], report["blocks"]
    saved, tokens = report["prefill_tokens_saved"], report["prefill_tokens"]
    tiers = f": {report['hits_ram']:,} from RAM, {report['hits_ssd']:,} from SSD"
    on_disk = report["ssd_bytes"] > 0
    rows = {
        "requests": f"{report['requests']:,} of the {report['trace']} trace "
        f"in {report['seconds']:.1f} s",
        "prefix hits": f"{percent(hits, blocks)}   {hits:,} of {blocks:,} blocks"
        f"{tiers if on_disk else ''}",
        "prefill tokens saved": f"{percent(saved, tokens)}   {saved:,} of {tokens:,}",
        "put": calls_text(report["put"]),
    }
    rows |= ssd_rows(report) if on_disk else {"get": calls_text(report["get"])}
    rows |= {
        "bytes verified": f"{report['bytes_verified']:,}   every byte of every loaded block",
        "wrong bytes": f"{report['wrong_bytes']:,}",
        "evictions": f"{report['evictions']:,} blocks; {report['blocks_unstored']:,} found no room",
        "fell back": "; ".join(report["fallbacks"]) or "nothing",
    }
    if report["wrong_blocks"]:
        rows["WRONG"] = f"{report['wrong_blocks']:,} blocks; {report['first_wrong']}"
    head = (
        f"keystow demo: {size_text(report['ram_bytes'])} of RAM, {report['frames']:,} frames of "
        f"{size_text(report['block_bytes'])}, policy {report['policy']}"
    )
    if on_disk:
        head += (
            f"\n{size_text(report['ssd_bytes'])} of SSD, engine {report['engine']}, "
            f"{'O_DIRECT' if report['direct_io'] else 'buffered'}"
        )
    width = max(map(len, rows))
    return "\n".join([head, "", *(f"  {name:<{width}}   {cell}" for name, cell in rows.items())])
