"""What a model's ``config.json`` says about its KV cache.

Owns: reading the fields of dense and mixture-of-experts models whose every layer keeps plain keys
and values (multi-head or grouped-query attention), and refusing all others by name. Never does:
sizes, files. Invariant: a model that is not certainly of this kind is refused; a wrong layout
would mix blocks up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from keystow.config import did_you_mean
from keystow.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DTYPE_BYTES", "Attention", "dtype_name", "read_attention"]

# Bytes of one KV value by name.
DTYPE_BYTES = {
    "bf16": 2,
    "fp16": 2,
    "fp32": 4,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
    "int8": 1,
}

_DTYPE_ALIASES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "fp8": "fp8_e4m3",
    "fp8_e4m3fn": "fp8_e4m3",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e4m3": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
}

# A language model inside a larger one stands under one of these names.
_NESTED = ("text_config", "llm_config", "language_config")

# Families whose class gives as many KV heads as heads where the config has no such field.
_MHA_IF_ABSENT = frozenset(
    "arcee baichuan codegen cohere deepseek gpt_neox gptj granite granitemoe internlm internlm2 "
    "llama minicpm nemotron olmo olmo2 olmoe opt persimmon phi phi3 qwen stablelm xverse".split()
)

# Families that must say how many KV heads they have: their class default is another number.
_GQA = frozenset(
    "apertus aquila aya bailing_moe dots1 ernie4_5 ernie4_5_moe exaone flex_olmo gemma glm glm4 "
    "glm4_moe glm4v_moe_text glm4v_text helium hunyuan hunyuan_v1_dense hunyuan_v1_moe hyperclovax "
    "internlm3 minimax_m2 ministral mistral mixtral phimoe qwen2 qwen2_5_vl qwen2_5_vl_text "
    "qwen2_audio qwen2_moe qwen2_vl qwen2_vl_text qwen3 qwen3_moe qwen3_vl_moe_text qwen3_vl_text "
    "seed_oss smollm3 solar starcoder2".split()
)

# Families with field names of their own: (layers, heads, hidden size).
_RENAMED = {
    "bloom": ("n_layer", "n_head", "hidden_size"),
    "codegen": ("n_layer", "n_head", "n_embd"),
    "exaone": ("num_layers", "num_attention_heads", "hidden_size"),
    "gpt2": ("n_layer", "n_head", "n_embd"),
    "gpt_bigcode": ("n_layer", "n_head", "n_embd"),
    "gptj": ("n_layer", "n_head", "n_embd"),
}
_USUAL = ("num_hidden_layers", "num_attention_heads", "hidden_size")

# One KV head for all heads unless the config says otherwise.
_MULTI_QUERY = frozenset({"falcon", "gpt_bigcode"})

# Families whose class has a window although the config may not name one.
_WINDOW_BY_DEFAULT = frozenset({"mistral", "ministral"})

_SLIDING = "sliding-window attention"
_MLA = "multi-head latent attention (MLA)"
_HYBRID = "a hybrid of attention and recurrent (state-space, linear) layers"
_CHUNKED = "chunked attention"
_SEQ2SEQ = "an encoder-decoder"
_SHARED = "KV shared between layers or cross-attention"

# Families whose class defaults make them one of these, whatever fields the config leaves out.
_REFUSED_FAMILIES = {
    _SLIDING: "afmoe cohere2 exaone4 gemma2 gemma3 gemma3_text gemma3n gemma3n_text gemma4 "
    "gpt_neo gpt_oss mimo_v2_flash modernbert olmo3 step3",
    _MLA: "deepseek_v2 deepseek_v3 deepseek_v32 deepseek_vl_v2 glm4_moe_lite kimi_k2 kimi_vl "
    "longcat_flash minicpm3",
    _HYBRID: "bamba falcon_h1 falcon_mamba granitemoehybrid hymba jamba kimi_linear lfm2 lfm2_moe "
    "mamba mamba2 minimax minimax_text_01 nemotron_h plamo2 qwen3_5 qwen3_next recurrent_gemma "
    "rwkv rwkv6 rwkv7 xlstm zamba zamba2",
    _CHUNKED: "llama4 llama4_text",
    _SEQ2SEQ: "bart blenderbot fsmt led longt5 m2m_100 marian mbart mt5 pegasus speech_to_text "
    "t5 t5gemma umt5 whisper",
    _SHARED: "mllama mllama_text_model",
}

_HYBRID_PREFIXES = ("mamba", "ssm_", "linear_attn", "linear_conv", "linear_key", "lru_", "rwkv")
_HYBRID_FIELDS = (
    "attn_layer_period",
    "block_types",
    "conv_L_cache",
    "full_attention_interval",
    "hybrid_override_pattern",
    "layers_block_type",
    "state_size",
)
_WINDOW_FIELDS = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size")
_CHUNK_FIELDS = ("attention_chunk_size", "chunk_size_attention")


class Attention(NamedTuple):
    """Sizes of a model's KV cache."""

    model_type: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str


def read_attention(config: Mapping[str, object]) -> Attention:
    """Sizes from a config, or LayoutError naming what it lacks or why it is refused."""
    _refuse_whole(config)
    inner = _language_model(config)
    model_type = _model_type(inner)
    _refuse_family(model_type)
    _refuse_fields(inner, model_type)
    if model_type not in _known():
        raise LayoutError(
            f"model_type {model_type!r} is not known to keep plain keys and values in every "
            f"layer.{did_you_mean(model_type, _known())}",
            code="KS-LAY-204",
            hint=_OPAQUE,
            context={"model_type": model_type},
        )
    layers, heads, _ = (_whole(inner, name) for name in _names(model_type))
    head_dim = _head_dim(inner, model_type)
    _refuse_window(inner, model_type, layers)
    stored = inner.get("dtype") or inner.get("torch_dtype")
    stored = stored or config.get("dtype") or config.get("torch_dtype")
    return Attention(
        model_type=model_type,
        layers=layers,
        kv_heads=_kv_heads(inner, model_type, heads),
        head_dim=head_dim,
        dtype="bf16" if stored in (None, "auto") else str(stored),
    )


def dtype_name(name: object) -> str:
    """The short name of a KV dtype: ``"bfloat16"``, ``torch.bfloat16`` and ``"bf16"`` are one.

    Raises LayoutError for names that are none.
    """
    text = str(name).removeprefix("torch.").lower()
    text = _DTYPE_ALIASES.get(text, text)
    if text not in DTYPE_BYTES:
        known = [*DTYPE_BYTES, *_DTYPE_ALIASES]
        raise LayoutError(
            f"kv_dtype {name!r} is unknown.{did_you_mean(text, known)}",
            code="KS-LAY-207",
            hint=f"use one of: auto, {', '.join(known)}.",
            context={"kv_dtype": str(name)},
        )
    return text


_OPAQUE = "Layout.opaque(name, block_bytes=...) takes any block whose size you know."


def _known() -> frozenset[str]:
    return _MHA_IF_ABSENT | _GQA | _RENAMED.keys() | _MULTI_QUERY | {"chatglm"}


def _language_model(config: Mapping[str, object]) -> Mapping[str, object]:
    for name in _NESTED:
        nested = config.get(name)
        if isinstance(nested, dict):
            return nested
    return config


def _model_type(config: Mapping[str, object]) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise _missing("model_type")
    return model_type


def _names(model_type: str) -> tuple[str, str, str]:
    return _RENAMED.get(model_type, _USUAL)


def _head_dim(config: Mapping[str, object], model_type: str) -> int:
    for name in ("head_dim", "kv_channels"):
        if config.get(name) is not None:
            return _whole(config, name)
    _, heads_name, hidden_name = _names(model_type)
    hidden, heads = _whole(config, hidden_name), _whole(config, heads_name)
    if hidden % heads:
        raise LayoutError(
            f"{hidden_name} {hidden} is not divisible by {heads_name} {heads}, and head_dim is "
            "not given.",
            code="KS-LAY-205",
            hint="give head_dim in the config.",
            context={hidden_name: hidden, heads_name: heads},
        )
    return hidden // heads


def _kv_heads(config: Mapping[str, object], model_type: str, heads: int) -> int:
    if model_type == "falcon" and config.get("new_decoder_architecture"):
        return _whole(config, "num_kv_heads")
    if model_type in _MULTI_QUERY:
        return 1 if config.get("multi_query", True) else heads
    if model_type == "chatglm":
        many = not config.get("multi_query_attention")
        return heads if many else _whole(config, "multi_query_group_num")
    if config.get("num_key_value_heads") is None and (
        model_type in _MHA_IF_ABSENT or model_type in _RENAMED
    ):
        return heads
    return _whole(config, "num_key_value_heads")


def _whole(config: Mapping[str, object], name: str) -> int:
    value = config.get(name)
    if value is None:
        raise _missing(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LayoutError(
            f"the config's {name} is {value!r}, not a whole number above 0.",
            code="KS-LAY-206",
            hint=f"correct it. {_OPAQUE}",
            context={name: value},
        )
    return value


def _missing(name: str) -> LayoutError:
    return LayoutError(
        f"the config has no {name}.",
        code="KS-LAY-202",
        hint=f"add {name}: what it is by default depends on the model's class. {_OPAQUE}",
        context={"field": name},
    )


def _refused(kind: str, because: str) -> LayoutError:
    return LayoutError(
        f"this model is or has {kind} ({because}), which this version does not lay out.",
        code="KS-LAY-203",
        hint=_OPAQUE,
        context={"kind": kind, "because": because},
    )


def _refuse_whole(config: Mapping[str, object]) -> None:
    if config.get("is_encoder_decoder"):
        raise _refused(_SEQ2SEQ, "is_encoder_decoder is true")
    outer = config.get("model_type")
    if isinstance(outer, str):
        _refuse_family(outer)


def _refuse_family(model_type: str) -> None:
    for kind, families in _REFUSED_FAMILIES.items():
        if model_type in families.split():
            raise _refused(kind, f"model_type {model_type}")


def _refuse_fields(config: Mapping[str, object], model_type: str) -> None:
    """Fields that only models of another kind have."""
    if config.get("is_encoder_decoder"):
        raise _refused(_SEQ2SEQ, "is_encoder_decoder is true")
    if config.get("kv_lora_rank") is not None:
        raise _refused(_MLA, f"kv_lora_rank {config['kv_lora_rank']}")
    for name in _CHUNK_FIELDS:
        if config.get(name):
            raise _refused(_CHUNKED, f"{name} {config[name]}")
    for name, value in config.items():
        hybrid = name in _HYBRID_FIELDS or name.startswith(_HYBRID_PREFIXES)
        if hybrid and value not in (None, False):
            raise _refused(_HYBRID, f"the config has {name}")
    for name in ("num_kv_shared_layers", "cross_attention_layers", "use_cla", "index_topk"):
        if config.get(name):
            raise _refused(_SHARED, f"{name} {config[name]}")
    width = config.get("v_head_dim")
    if width is not None and width != _head_dim(config, model_type):
        raise _refused("keys and values of different width", f"v_head_dim {width}")
    # minimax: 1 is softmax attention, 0 linear.
    kinds = config.get("attn_type_list")
    if isinstance(kinds, list) and set(kinds) != {1}:
        raise _refused(_HYBRID, "attn_type_list")


def _refuse_window(config: Mapping[str, object], model_type: str, layers: int) -> None:
    """A window that is on, is given and can fill up."""
    types = config.get("layer_types")
    if isinstance(types, list):
        for kind in types:
            if kind not in ("full_attention", "attention"):
                sliding = "sliding" in str(kind)
                chunked = "chunked" in str(kind)
                family = _SLIDING if sliding else _CHUNKED if chunked else _HYBRID
                raise _refused(family, f"layer_types has {kind}")
        if types:
            return
    used = config.get("use_sliding_window", not model_type.startswith("qwen"))
    if not used:
        return
    full = config.get("max_window_layers")
    if model_type.startswith("qwen") and isinstance(full, int) and full >= layers:
        return
    if model_type in _WINDOW_BY_DEFAULT and "sliding_window" not in config:
        raise _missing("sliding_window")
    longest = config.get("max_position_embeddings")
    for name in _WINDOW_FIELDS:
        window = config.get(name)
        if not window:
            continue
        fills = not (isinstance(window, int) and isinstance(longest, int) and window >= longest)
        if fills:
            raise _refused(_SLIDING, f"{name} {window}")
