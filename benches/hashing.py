"""`block_keys`: chain keys of token ids, 16 a block, from integer buffers and from a list.

Method: one long prompt of random token ids, the whole of it hashed in each call; the forms of the
same ids take turns.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

import keystow
from timing import Figure, Work, interleave, scaled

BLOCK_TOKENS = 16
VOCABULARY = 128_256
LEAST_MILLION_TOKENS = 100.0
Tokens = list[int] | npt.NDArray[np.int64] | npt.NDArray[np.uint32]


def figures(*, quick: bool) -> Iterator[Figure]:
    """One figure for each form of the tokens."""
    tokens, calls, rounds = (1024, 2, 2) if quick else (131_072, 32, 9)
    layout = keystow.Layout.opaque("bench/v1", block_bytes=4096, block_tokens=BLOCK_TOKENS)
    ids = np.random.default_rng(3).integers(0, VOCABULARY, tokens)
    forms: dict[str, Tokens] = {
        "int64 buffer": ids,
        "uint32 buffer": ids.astype(np.uint32),
        "list": ids.tolist(),
    }
    expected = bytes(keystow.block_keys(ids, layout=layout))

    def work_of(form: Tokens) -> Work:
        if bytes(keystow.block_keys(form, layout=layout)) != expected:
            raise AssertionError("the keys depend on the form of the tokens")

        def work() -> float:
            for _ in range(calls):
                keystow.block_keys(form, layout=layout)
            return float(calls * tokens)

        return work

    samples = interleave({name: work_of(form) for name, form in forms.items()}, rounds)
    for name, sample in samples.items():
        least = None if name == "list" else LEAST_MILLION_TOKENS
        yield Figure(f"block_keys, {name}", "M tokens/s", scaled(sample, 1e6), least=least)
