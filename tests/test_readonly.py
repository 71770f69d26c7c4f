"""`keystow.open_readonly`: a frozen view; right bytes or a miss, whatever the owner does.

Method: views of small real directories, closed, in use by a process of its own, or changed behind
them; every block read is compared with what was put under its key.
"""

from __future__ import annotations

import pickle
import threading
import time
from typing import TYPE_CHECKING

import pytest

import keystow
from disk import (
    BLOCK_BYTES,
    LAYOUT,
    block,
    child,
    files_below,
    keys_of,
    member_folder,
    open_store,
    put,
    said,
    there,
)
from keystow.inspection import read_layout

if TYPE_CHECKING:
    from pathlib import Path

BLOCKS = 40
MODEL = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 256,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one closed store of 40 blocks."""
    with open_store(tmp_path) as store:
        assert put(store, range(BLOCKS)) == BLOCKS
    return tmp_path


def test_a_closed_store_is_read(root: Path) -> None:
    with keystow.open_readonly(root) as view:
        keys = keys_of(range(BLOCKS + 5))
        assert (view.match(keys), view.match_prefix(keys)) == (BLOCKS, BLOCKS)
        assert view.contains(keys_of([3, 99, 4])) == [True, False, True]
        out = bytearray(BLOCK_BYTES * (BLOCKS + 5))
        assert view.get(keys, out) == BLOCKS
        assert out[: BLOCK_BYTES * BLOCKS] == b"".join(map(block, range(BLOCKS)))
        assert there(view, range(BLOCKS + 5)) == dict.fromkeys(range(BLOCKS), 0)
        assert (view.layout, view.block_bytes) == (LAYOUT, BLOCK_BYTES)
        assert view.fingerprint == LAYOUT.fingerprint
        assert view.path == str(member_folder(root).resolve())
        assert view.warnings == []
        assert repr(view) == f"ReadOnlyStore(40 blocks, {view.path}, open)"
    stats = view.stats()
    assert stats == {
        "state": "closed",
        "blocks": BLOCKS,
        "bytes": BLOCKS * BLOCK_BYTES,
        "hits": 2 * BLOCKS,
        "misses": 10,
        "bad": 0,
        "lookup_hits": 2 * BLOCKS + 2,
        "lookup_misses": 11,
        "bytes_out": 2 * BLOCKS * BLOCK_BYTES,
        "pages_unreadable": 0,
    }


def test_nothing_is_changed_and_no_lock_is_taken(root: Path) -> None:
    (member_folder(root) / "LOCK").unlink()
    before = files_below(root)
    with keystow.open_readonly(str(root)) as view, keystow.open_readonly(member_folder(root)):
        there(view, range(BLOCKS))
        assert files_below(root) == before
        with open_store(root) as store:
            assert there(store, range(BLOCKS)).keys() == set(range(BLOCKS))


def test_keys_are_made_under_the_fingerprint_of_the_directory(tmp_path: Path) -> None:
    layout = keystow.Layout.from_model(MODEL, block_tokens=4)
    ssd = keystow.Ssd(tmp_path, "4MiB")
    tokens = list(range(19))
    options = {"layout": layout, "namespace": "tenant", "salt": b"salt"}
    with keystow.Store(ram="1MiB", ssd=ssd, **options) as store:
        keys = store.keys(tokens)
        rows = [bytes([n]) * layout.block_bytes for n in range(len(keys))]
        assert store.put(keys, rows) == len(keys) == 4
    with keystow.open_readonly(tmp_path) as view:
        assert view.layout == layout
        assert view.layout is not None
        assert (view.layout.shape, view.layout.block_bytes) == (layout.shape, layout.block_bytes)
        assert view.keys(tokens) == keys
        assert view.match(view.keys(tokens)) == 4
        assert view.keys_of([b"a"]) == store.keys_of([b"a"])
        other = keystow.block_keys(tokens, layout=layout)
        with pytest.raises(keystow.KeyFormatError):
            view.match(other)


def test_layouts_come_back_from_their_description() -> None:
    for layout in (
        keystow.Layout.opaque("mine", block_bytes=5000, block_tokens=16),
        keystow.Layout.opaque("mine", block_bytes=5000),
        keystow.Layout.from_model(MODEL, kv_dtype="fp8", tp=(1, 2), pp=(0, 2), revision="a1"),
    ):
        assert read_layout(layout.describe()) == layout
    for text in ("", "[]", "{}", '{"kind":"opaque"}', '{"kind":"later","block_tokens":16}', "1"):
        assert read_layout(text) is None


def test_a_layout_that_is_not_understood_is_none(root: Path) -> None:
    (member_folder(root) / "layout.json").write_text("{}")
    with keystow.open_readonly(root) as view:
        assert view.layout is None
        assert "layout.json" in view.warnings[0]
        with pytest.raises(keystow.LayoutError):
            view.keys([1, 2, 3])
        assert there(view, range(BLOCKS)).keys() == set(range(BLOCKS))


def test_it_is_frozen(root: Path) -> None:
    with keystow.open_readonly(root) as view, open_store(root) as store:
        put(store, range(100, 110))
        assert store.flush() == 0
        assert store.remove(keys_of([BLOCKS - 1])) == 1
        assert view.match(keys_of(range(100, 110))) == 0
        assert there(view, range(BLOCKS)).keys() == set(range(BLOCKS))
        with keystow.open_readonly(root) as later:
            assert there(later, [*range(BLOCKS), *range(100, 110)]).keys() == {
                *range(BLOCKS - 1),
                *range(100, 110),
            }
        store.clear()
        with keystow.open_readonly(root) as later:
            assert later.stats()["blocks"] == 0


def test_right_bytes_or_a_miss_while_the_owner_writes(root: Path) -> None:
    script = """
store = open_store(sys.argv[1], capacity=capacity_for(84))
print("open", flush=True)
version = 0
while True:
    version += 1
    numbers = [*range(version % 7 * 10, version % 7 * 10 + 10)]
    store.remove(keys_of(numbers))
    put(store, numbers, version % 50)
"""
    with child(script, root) as owner:
        assert said(owner) == "open"
        hits = misses = views = 0
        began_s = time.monotonic()
        while time.monotonic() - began_s < 3:
            with keystow.open_readonly(root) as view:
                for _ in range(3):
                    there(view, range(70), versions=50)
                stats = view.stats()
                hits, misses, views = hits + stats["hits"], misses + stats["bad"], views + 1
        assert hits
        assert misses, "nothing was overwritten: this tests nothing"
        assert owner.poll() is None


def test_rotten_bytes_are_misses(root: Path) -> None:
    slots = member_folder(root) / "slots.0000"
    with keystow.open_readonly(root) as view:
        rotten = bytearray(slots.read_bytes())
        for at in range(0, len(rotten), 2 * BLOCK_BYTES):
            rotten[at] ^= 1
        slots.write_bytes(rotten)
        found = there(view, range(BLOCKS))
        assert len(found) == BLOCKS // 2
        assert view.stats()["bad"] == BLOCKS // 2
        slots.write_bytes(b"")
        assert there(view, range(BLOCKS)) == {}


def test_refusals(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    for path, code in ((empty, "KS-CFG-404"), (empty / "absent", "KS-CFG-401")):
        with pytest.raises(keystow.ConfigError) as refused:
            keystow.open_readonly(path)
        assert refused.value.code == code
    with open_store(root, member="second"):
        pass
    with pytest.raises(keystow.ConfigError) as refused:
        keystow.open_readonly(root)
    assert refused.value.code == "KS-CFG-405"
    assert refused.value.context["stores"] == 2
    (member_folder(root) / "SUPER").write_bytes(b"mine")
    with pytest.raises(keystow.FormatError):
        keystow.open_readonly(member_folder(root))
    with pytest.raises(TypeError):
        keystow.open_readonly(3)  # type: ignore[arg-type] # that is the test


def test_arguments_are_checked_and_nothing_is_written(root: Path) -> None:
    with keystow.open_readonly(root) as view:
        out = bytearray(BLOCK_BYTES)
        with pytest.raises(keystow.LayoutError):
            view.get(keys_of([1]), bytes(BLOCK_BYTES))
        with pytest.raises(keystow.LayoutError):
            view.get(keys_of([1]), bytearray(100))
        with pytest.raises(keystow.LayoutError):
            view.get(keys_of([1, 2, 3]), [out, out])
        with pytest.raises(keystow.KeyFormatError):
            view.get(b"short", out)
        assert out == bytes(BLOCK_BYTES)
        with pytest.raises(TypeError):
            pickle.dumps(view)
        view.close()
        view.close()
        assert view.closed
        for call in (view.match, view.match_prefix, view.contains):
            with pytest.raises(keystow.StoreClosedError):
                call(keys_of([1]))
        with pytest.raises(keystow.StoreClosedError):
            view.get(keys_of([1]), out)
        with pytest.raises(keystow.StoreClosedError):
            view.get_each(keys_of([1]), out)
        with pytest.raises(keystow.StoreClosedError), view:
            pass


def test_threads_share_a_view(root: Path) -> None:
    wrong: list[object] = []
    with keystow.open_readonly(root) as view:

        def read(first: int) -> None:
            for turn in range(30):
                numbers = range((first + turn) % 30, (first + turn) % 30 + 10)
                if there(view, numbers).keys() != set(numbers):
                    wrong.append(numbers)

        threads = [threading.Thread(target=read, args=(n * 7,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert view.stats()["hits"] == 1200
