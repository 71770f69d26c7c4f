"""A layout says what a block is, for the models it knows, and refuses the others by name.

Method: published configs with their arithmetic done by hand; one config per refused kind; each
field that a size needs is left out in turn; the fingerprint is asked what it depends on.
"""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING

import pytest

from keystow import Layout, LayoutError

if TYPE_CHECKING:
    from pathlib import Path

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "vocab_size": 128256,
}
LLAMA_70B = {
    **LLAMA_8B,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}
QWEN3_8B = {
    "head_dim": 128,
    "hidden_size": 4096,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}
MIXTRAL = {
    "hidden_size": 4096,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
}
QWEN2_WINDOW_OFF = {
    "hidden_size": 3584,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "use_sliding_window": False,
}


def without(config: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in config.items() if key != name}


@pytest.mark.parametrize(
    ("config", "shape", "bytes_per_token"),
    [
        (LLAMA_8B, (32, 2, 16, 8, 128), 131072),
        (LLAMA_70B, (80, 2, 16, 8, 128), 327680),
        (QWEN3_8B, (36, 2, 16, 8, 128), 147456),
        (MIXTRAL, (32, 2, 16, 8, 128), 131072),
        (QWEN2_WINDOW_OFF, (28, 2, 16, 4, 128), 57344),
        ({"architectures": ["LlavaNext"], "model_type": "llava_next", "text_config": LLAMA_8B},
         (32, 2, 16, 8, 128), 131072),
        ({"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12},
         (12, 2, 16, 12, 64), 36864),
        ({"model_type": "gpt_bigcode", "n_embd": 6144, "n_head": 48, "n_layer": 40,
          "multi_query": True}, (40, 2, 16, 1, 128), 20480),
        ({"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71,
          "num_hidden_layers": 32, "multi_query": True}, (32, 2, 16, 1, 64), 8192),
        ({"model_type": "falcon", "hidden_size": 8192, "num_attention_heads": 128,
          "num_hidden_layers": 60, "num_kv_heads": 8, "new_decoder_architecture": True},
         (60, 2, 16, 8, 64), 122880),
        ({"model_type": "chatglm", "num_layers": 28, "num_hidden_layers": 28, "hidden_size": 4096,
          "num_attention_heads": 32, "kv_channels": 128, "multi_query_attention": True,
          "multi_query_group_num": 2}, (28, 2, 16, 2, 128), 28672),
        ({**without(LLAMA_8B, "num_key_value_heads"), "hidden_size": 4096},
         (32, 2, 16, 32, 128), 524288),
    ],
    ids=lambda it: it.get("model_type") if isinstance(it, dict) else "",
)  # fmt: skip
def test_known_models(
    config: dict[str, object], shape: tuple[int, ...], bytes_per_token: int
) -> None:
    layout = Layout.from_model(config)
    assert layout.shape == shape
    assert layout.bytes_per_token == bytes_per_token
    assert layout.block_bytes == bytes_per_token * 16
    assert layout.block_tokens == 16


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("auto", 2), ("bf16", 2), ("bfloat16", 2), ("torch.bfloat16", 2), ("fp16", 2), ("half", 2),
     ("fp32", 4), ("fp8", 1), ("fp8_e4m3", 1), ("float8_e5m2", 1), ("int8", 1)],
)  # fmt: skip
def test_kv_dtypes(dtype: str, size: int) -> None:
    assert Layout.from_model(LLAMA_8B, kv_dtype=dtype).bytes_per_token == 65536 * size


def test_one_dtype_by_any_name_is_one_layout() -> None:
    names = ("fp8", "fp8_e4m3", "float8_e4m3fn", "torch.float8_e4m3fn")
    assert len({Layout.from_model(LLAMA_8B, kv_dtype=name) for name in names}) == 1
    assert Layout.from_model(LLAMA_8B) == Layout.from_model(LLAMA_8B, kv_dtype="bf16")
    assert Layout.from_model({**LLAMA_8B, "torch_dtype": "float32"}).bytes_per_token == 262144
    with pytest.raises(LayoutError, match="Did you mean 'bf16'"):
        Layout.from_model(LLAMA_8B, kv_dtype="bf15")


# ---- ranks ----


def test_tensor_parallel_ranks_split_heads() -> None:
    ranks = [Layout.from_model(LLAMA_8B, tp=(rank, 4)) for rank in range(4)]
    assert [rank.shape for rank in ranks] == [(32, 2, 16, 2, 128)] * 4
    heads = [json.loads(rank.describe())["kv_heads"] for rank in ranks]
    assert heads == [[0, 2], [2, 4], [4, 6], [6, 8]]
    assert len({rank.fingerprint for rank in ranks}) == 4
    assert Layout.from_model(LLAMA_8B, tp=(3, 8)).bytes_per_token == 16384


def test_more_ranks_than_heads_hold_replicas() -> None:
    ranks = [Layout.from_model(LLAMA_8B, tp=(rank, 16)) for rank in range(16)]
    assert {rank.shape for rank in ranks} == {(32, 2, 16, 1, 128)}
    heads = [json.loads(rank.describe())["kv_heads"][0] for rank in ranks]
    assert heads == [head for head in range(8) for _ in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[1] != ranks[2]
    for size in (3, 12, 6):
        with pytest.raises(LayoutError, match=f"8 KV heads can't be split over {size} ranks"):
            Layout.from_model(LLAMA_8B, tp=(0, size))


def test_pipeline_ranks_split_layers() -> None:
    assert Layout.from_model(LLAMA_70B, tp=(0, 8), pp=(1, 2)).bytes_per_token == 20480
    ranks = [Layout.from_model(LLAMA_8B, pp=(rank, 5)) for rank in range(5)]
    assert [rank.shape[0] for rank in ranks] == [7, 7, 6, 6, 6]
    layers = [json.loads(rank.describe())["layers"] for rank in ranks]
    assert layers == [[0, 7], [7, 14], [14, 20], [20, 26], [26, 32]]
    with pytest.raises(LayoutError, match="32 layers can't be split over 33 ranks"):
        Layout.from_model(LLAMA_8B, pp=(0, 33))


@pytest.mark.parametrize("pair", [(1, 1), (-1, 2), (0, 0), (2, 2)])
def test_a_rank_outside_its_group(pair: tuple[int, int]) -> None:
    for name in ("tp", "pp"):
        with pytest.raises(LayoutError, match=name):
            Layout.from_model(LLAMA_8B, **{name: pair})


# ---- refusals ----


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({**MIXTRAL, "model_type": "mistral", "sliding_window": 4096}, "sliding-window"),
        ({**QWEN2_WINDOW_OFF, "use_sliding_window": True, "max_window_layers": 21},
         "sliding-window"),
        ({**QWEN3_8B, "layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({**LLAMA_8B, "model_type": "gemma2"}, "sliding-window"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "sliding-window"),
        ({**LLAMA_8B, "model_type": "gpt_oss"}, "sliding-window"),
        ({**LLAMA_8B, "model_type": "deepseek_v3", "kv_lora_rank": 512}, "MLA"),
        ({**LLAMA_8B, "kv_lora_rank": 512}, "MLA"),
        ({**LLAMA_8B, "model_type": "jamba"}, "hybrid"),
        ({**LLAMA_8B, "model_type": "mamba2"}, "hybrid"),
        ({**LLAMA_8B, "mamba_d_state": 16}, "hybrid"),
        ({**QWEN3_8B, "model_type": "qwen3_next", "full_attention_interval": 4}, "hybrid"),
        ({**QWEN3_8B, "layer_types": ["full_attention", "linear_attention"]}, "hybrid"),
        ({**LLAMA_8B, "model_type": "llama4_text", "attention_chunk_size": 8192}, "chunked"),
        ({**LLAMA_8B, "attention_chunk_size": 8192}, "chunked"),
        ({**LLAMA_8B, "model_type": "t5"}, "encoder-decoder"),
        ({**LLAMA_8B, "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "mllama", "text_config": LLAMA_8B}, "shared"),
        ({**LLAMA_8B, "num_kv_shared_layers": 10}, "shared"),
        ({**LLAMA_8B, "v_head_dim": 64}, "different width"),
    ],
    ids=str,
)  # fmt: skip
def test_other_kinds_are_refused_by_name(config: dict[str, object], kind: str) -> None:
    with pytest.raises(LayoutError, match=kind) as caught:
        Layout.from_model(config)
    assert caught.value.code == "KS-LAY-203"
    assert "opaque" in caught.value.hint


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"'lama' is not known.*Did you mean 'llama'") as caught:
        Layout.from_model({**LLAMA_8B, "model_type": "lama"})
    assert caught.value.code == "KS-LAY-204"


@pytest.mark.parametrize(
    "config",
    [
        {**MIXTRAL, "model_type": "mistral"},
        {**QWEN2_WINDOW_OFF, "use_sliding_window": True},
        {**without(QWEN2_WINDOW_OFF, "use_sliding_window"), "max_window_layers": 21},
        {**QWEN3_8B, "layer_types": ["full_attention"] * 36, "sliding_window": 4096},
        {**MIXTRAL, "model_type": "phi3", "sliding_window": 32768},
    ],
)
def test_a_window_that_is_off_or_never_fills_is_no_window(config: dict[str, object]) -> None:
    assert Layout.from_model(config).block_bytes


@pytest.mark.parametrize(
    "name",
    ["model_type", "num_hidden_layers", "num_attention_heads", "hidden_size",
     "num_key_value_heads"],
)  # fmt: skip
def test_a_missing_field_is_named(name: str) -> None:
    config = {**MIXTRAL, "sliding_window": None}
    with pytest.raises(LayoutError, match=f"no {name}") as caught:
        Layout.from_model(without(config, name))
    assert caught.value.code == "KS-LAY-202"
    assert caught.value.context == {"field": name}


def test_a_mistral_must_say_whether_it_has_a_window() -> None:
    with pytest.raises(LayoutError, match="no sliding_window"):
        Layout.from_model({**without(MIXTRAL, "sliding_window"), "model_type": "mistral"})


@pytest.mark.parametrize("bad", [0, -1, 1.5, "32", True, [8] * 32])
def test_a_field_that_is_no_count_is_named(bad: object) -> None:
    with pytest.raises(LayoutError, match="num_key_value_heads"):
        Layout.from_model({**LLAMA_8B, "num_key_value_heads": bad})


def test_a_head_dim_that_does_not_divide() -> None:
    with pytest.raises(LayoutError, match="head_dim"):
        Layout.from_model({**LLAMA_8B, "hidden_size": 4097})
    layout = Layout.from_model({**LLAMA_8B, "hidden_size": 4097, "head_dim": 96})
    assert layout.shape[-1] == 96


# ---- files ----


def test_a_file_a_folder_and_a_mapping_are_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    layouts = {
        Layout.from_model(LLAMA_8B),
        Layout.from_model(tmp_path),
        Layout.from_model(str(tmp_path / "config.json")),
    }
    assert len(layouts) == 1


@pytest.mark.parametrize("bad", [None, 7, object()])
def test_what_is_no_config_at_all(bad: object) -> None:
    with pytest.raises(LayoutError) as caught:
        Layout.from_model(bad)
    assert caught.value.code == "KS-LAY-201"


@pytest.mark.parametrize("content", [None, "{", "[1]", "\x00\xff"])
def test_a_file_that_is_no_config(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(LayoutError, match=r"config\.json") as caught:
        Layout.from_model(tmp_path)
    assert caught.value.code == "KS-LAY-201"


# ---- identity ----


def test_what_the_fingerprint_depends_on() -> None:
    base = Layout.from_model(LLAMA_8B)
    others = [
        Layout.from_model(LLAMA_8B, block_tokens=32),
        Layout.from_model(LLAMA_8B, kv_dtype="fp16"),
        Layout.from_model(LLAMA_8B, tp=(0, 2)),
        Layout.from_model(LLAMA_8B, pp=(0, 2)),
        Layout.from_model(LLAMA_8B, revision="a1b2c3"),
        Layout.from_model({**LLAMA_8B, "rope_theta": 500000.0}),
        Layout.opaque("", block_bytes=base.block_bytes, block_tokens=16),
    ]
    prints = {layout.fingerprint for layout in [base, *others]}
    assert len(prints) == len(others) + 1
    assert all(len(one) == 16 for one in prints)


def test_what_it_does_not_depend_on() -> None:
    base = Layout.from_model(LLAMA_8B)
    same = {
        **dict(reversed(LLAMA_8B.items())),
        "_name_or_path": "/models/llama",
        "transformers_version": "5.0",
        "dtype": "bfloat16",
    }
    assert Layout.from_model(without(same, "torch_dtype")) == base
    assert Layout.from_model(LLAMA_8B, tp=(0, 1), pp=(0, 1), kv_dtype="bf16") == base


def test_a_golden_fingerprint_of_a_model() -> None:
    layout = Layout.from_model(LLAMA_8B, revision="main")
    assert json.loads(layout.describe()) == {
        "block_tokens": 16,
        "config": CONFIG_HASH,
        "format": 1,
        "head_dim": 128,
        "kind": "attention",
        "kv_dtype": "bf16",
        "kv_heads": [0, 8],
        "layers": [0, 32],
        "model_type": "llama",
        "order": "layer, key or value, token, head, dim",
        "revision": "main",
    }
    assert layout.fingerprint.hex() == MODEL_PRINT


CONFIG_HASH = "da1b32c9b0ccd61a64339edc11ed86e5"
MODEL_PRINT = "6a91bd6a79dcbb359961bc6b752cf365"


# ---- the object ----


def test_opaque() -> None:
    layout = Layout.opaque("mine/v3", block_bytes=2 << 20, block_tokens=64)
    assert layout.shape == (2 << 20,)
    assert layout.bytes_per_token == 32768
    assert Layout.opaque("x", block_bytes=100, block_tokens=3).bytes_per_token is None
    assert Layout.opaque("x", block_bytes=100).bytes_per_token is None
    assert Layout.opaque("x", block_bytes=100) != Layout.opaque("y", block_bytes=100)
    for bad in (0, -1, 1.5, True, None, "4096"):
        with pytest.raises(LayoutError, match="block_bytes"):
            Layout.opaque("x", block_bytes=bad)
    with pytest.raises(LayoutError, match="block_tokens"):
        Layout.opaque("x", block_bytes=1, block_tokens=0)
    with pytest.raises(LayoutError, match="block_tokens"):
        Layout.from_model(LLAMA_8B, block_tokens=0)


def test_frozen_hashable_picklable_shown() -> None:
    layout = Layout.from_model(LLAMA_8B)
    with pytest.raises(AttributeError):
        layout.block_bytes = 1
    assert pickle.loads(pickle.dumps(layout)) == layout  # noqa: S301 - our own bytes
    assert hash(layout) == hash(Layout.from_model(LLAMA_8B))
    assert repr(layout) == (
        "Layout(llama, 32 layers x 2 x 16 tokens x 8 heads x 128 x 2 bytes (bf16) = "
        "2,097,152 bytes a block)"
    )
    assert repr(Layout.opaque("x", block_bytes=4096)) == "Layout('x', 4,096 bytes a block)"
