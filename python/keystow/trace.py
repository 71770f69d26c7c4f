"""Traces of production requests that come with the package, read with the standard library.

Owns: the form of a trace line and where the packaged files are. Never touches a store. Invariant:
an id stands for its whole prefix, so equal ids in two requests mean equal leading tokens. Where
the traces come from is in `data/NOTICE`.
"""

import json
import lzma
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

TRACES = ("conversation", "synthetic")
BLOCK_TOKENS = 512
"""Tokens that one id of a packaged trace stands for."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it came (ms), its prompt and answer in tokens, its blocks by id."""

    arrival_ms: int
    prompt_tokens: int
    answer_tokens: int
    blocks: list[int]


def packaged_file(name: str) -> AbstractContextManager[Path]:
    """Return the file of a packaged trace, one of `TRACES`: JSON lines packed by xz."""
    if name not in TRACES:
        raise ValueError(f"no packaged trace {name!r}; there are {', '.join(TRACES)}")
    return resources.as_file(resources.files("keystow") / "data" / f"{name}.jsonl.xz")


def packaged(name: str) -> Iterator[Request]:
    """Yield the requests of a packaged trace, one of `TRACES`, in the order they came."""
    with packaged_file(name) as path, lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            yield Request(
                arrival_ms=entry["timestamp"],
                prompt_tokens=entry["input_length"],
                answer_tokens=entry["output_length"],
                blocks=entry["hash_ids"],
            )
