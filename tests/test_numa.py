"""`Store(numa=)`: the policy of the arena's memory, as the kernel tells it of the mapping itself.

Method: a lease's address leads to the mapping's line in /proc/self/numa_maps. One node is enough:
the policy stands there all the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import keystow

if TYPE_CHECKING:
    from typing import Any

BLOCK_BYTES = 1 << 16
NUMA_MAPS = Path("/proc/self/numa_maps")


def nodes() -> str:
    """The nodes that this process may use."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Mems_allowed_list:"):
            return line.split()[1]
    return ""


def policy_of(store: keystow.Store) -> str:
    """What the kernel says of the mapping in which a block lies."""
    keys = store.keys_of([b"a block"])
    assert store.put(keys, bytes(BLOCK_BYTES)) == 1
    with store.lease(keys, min_blocks=1) as lease:
        address = np.frombuffer(lease[0], np.uint8).ctypes.data
        lines = [line.split() for line in NUMA_MAPS.read_text().splitlines()]
        below = [line for line in lines if int(line[0], 16) <= address]
        return max(below, key=lambda line: int(line[0], 16))[1]


def open_store(**options: Any) -> keystow.Store:
    return keystow.Store(block_bytes=BLOCK_BYTES, ram=64 * BLOCK_BYTES, **options)


@pytest.mark.skipif(not NUMA_MAPS.exists(), reason="this kernel knows no memory nodes")
@pytest.mark.parametrize("prefault", ["background", "now"])
def test_the_mapping_has_the_policy(prefault: str) -> None:
    with open_store(prefault=prefault) as store:
        assert policy_of(store) == "default"
        assert store.stats().numa == ""
    with open_store(prefault=prefault, numa="interleave") as store:
        in_force = store.stats().numa
        assert in_force == f"interleave:{nodes()}"
        assert policy_of(store) == in_force
    with open_store(prefault=prefault, numa="local") as store:
        name, _, node = store.stats().numa.partition(":")
        assert (name, node.isdecimal()) == ("local", True)
        assert policy_of(store) == f"prefer:{node}"


@pytest.mark.parametrize("numa", ["local", "interleave"])
def test_one_node_is_accepted_and_said(numa: str) -> None:
    with open_store(numa=numa) as store:
        stats = store.stats()
        said = [text for text in stats.fallbacks if text.startswith(f'numa="{numa}"')]
        one = nodes().isdecimal()
        assert len(said) == int(one or not stats.numa)
        assert store.stats().as_dict()["numa"] == stats.numa


@pytest.mark.parametrize("numa", ["locale", "", 0, True, ["local"]])
def test_other_values_are_refused(numa: object) -> None:
    with pytest.raises(keystow.ConfigError) as caught:
        open_store(numa=numa)
    assert caught.value.code == "KS-CFG-204"
    assert "local, interleave" in caught.value.hint
    assert caught.value.context == {"numa": numa}


def test_none_is_the_default() -> None:
    with open_store(numa=None) as store:
        assert store.stats().numa == ""
        assert not [text for text in store.stats().fallbacks if "numa" in text]
