"""The packaged traces are whole: known counts, and ids that stand for their prefix."""

import pytest

from keystow.trace import TRACES, packaged


@pytest.mark.parametrize(
    ("name", "requests", "refs", "unique"),
    [("conversation", 12_031, 288_500, 182_790), ("synthetic", 3_993, 121_877, 43_924)],
)
def test_counts(name: str, requests: int, refs: int, unique: int) -> None:
    chains = [request.blocks for request in packaged(name)]
    assert len(chains) == requests
    assert sum(map(len, chains)) == refs
    assert len({block for chain in chains for block in chain}) == unique


@pytest.mark.parametrize("name", TRACES)
def test_an_id_stands_for_its_prefix(name: str) -> None:
    parent: dict[int, int | None] = {}
    last_ms = 0
    for request in packaged(name):
        assert request.arrival_ms >= last_ms
        last_ms = request.arrival_ms
        assert len(set(request.blocks)) == len(request.blocks)
        before = None
        for block in request.blocks:
            assert parent.setdefault(block, before) == before
            before = block


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="conversation, synthetic"):
        next(packaged("nobody"))
