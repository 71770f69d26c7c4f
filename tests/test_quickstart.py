"""The README's quickstart runs as it is written.

Method: its first Python block that opens a store is executed as it stands, but for the place and
size of its disk, in a folder with the config.json of a small model of the Llama kind, with a
stand-in for the engine's prefill.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

if TYPE_CHECKING:
    from collections.abc import Iterator

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK_TOKENS = 16
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


class Engine:
    """Computes what is missing: numbers that depend on the token alone."""

    def __init__(self) -> None:
        self.computed = 0

    def prefill(self, tokens: Any, past: Any) -> Any:
        todo = torch.tensor(tokens[len(past) * BLOCK_TOKENS :])
        todo = todo[: len(todo) // BLOCK_TOKENS * BLOCK_TOKENS].reshape(-1, BLOCK_TOKENS)
        self.computed += len(todo)
        values = todo.to(torch.bfloat16).reshape(len(todo), 1, 1, BLOCK_TOKENS, 1, 1)
        return values.expand(len(todo), *past.shape[1:])


DISK = '"/nvme/kv:100GiB"'


def quickstart() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    block = next(block for block in blocks if "keystow.Store(" in block)
    assert block.count(DISK) == 1
    return block.replace(DISK, '"kv:64MiB"')


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    monkeypatch.chdir(tmp_path)
    engine = Engine()
    names = {"tokens": list(range(1000, 1000 + 330)), "prefill": engine.prefill, "engine": engine}
    exec(compile(quickstart(), str(README), "exec"), names)  # noqa: S102 - our own README
    yield names
    names["store"].close()


def test_it_computes_everything_once_and_stores_it(ran: dict[str, Any]) -> None:
    store, keys, kv = ran["store"], ran["keys"], ran["kv"]
    assert len(keys) == 20, "full blocks only"
    assert (int(ran["hit"]), ran["n"], ran["engine"].computed) == (0, 0, 20)
    assert kv.shape == (20, 4, 2, 16, 2, 32)
    again = torch.zeros_like(kv)
    assert store.get(keys, again) == int(store.match(keys)) == 20
    assert torch.equal(again, kv)
    assert kv[19, 0, 0, 15, 0, 0] == torch.tensor(1000 + 319).to(torch.bfloat16)
    assert store.stats().bytes_resident == kv.nbytes == 20 * ran["layout"].block_bytes


def test_a_longer_prompt_computes_only_what_is_new(ran: dict[str, Any]) -> None:
    """The lines after the store's opening, once more, for a prompt with the same prefix."""
    lines = quickstart().splitlines()
    opened = next(i for i, line in enumerate(lines) if "keystow.Store(" in line)
    ran["tokens"] = list(range(1000, 1000 + 480))
    exec("\n".join(lines[opened + 1 :]), ran)  # noqa: S102 - our own README
    assert (int(ran["hit"]), ran["n"]) == (20, 20)
    assert ran["engine"].computed == 20 + 10
    assert ran["store"].match_prefix(ran["keys"]) == 30


def test_the_next_process_finds_it_all(ran: dict[str, Any]) -> None:
    assert ran["store"].close().left == 0
    ran["tokens"] = list(range(1000, 1000 + 330))
    kv = ran["kv"]
    exec(quickstart(), ran)  # noqa: S102 - our own README
    assert (int(ran["hit"]), ran["hit"].ssd, ran["n"]) == (20, 20, 20)
    assert ran["engine"].computed == 20
    assert torch.equal(ran["kv"], kv)
