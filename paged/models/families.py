"""Families of models: how a configuration becomes a DecoderSpec, and what weights are called.

A family is data. In `names` a stored module's name stands left and ours right; `{i}` is the layer
and `qkv/q` the rows of q in the stacked weight `qkv`. `.weight` and `.bias` follow from the spec.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paged.models.spec import DecoderSpec, RopeSpec

ACTIVATION_NAMES = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Family:
    """One architecture: its spec, its names in a Hugging Face checkpoint, and their quirks."""

    spec_from_config: Callable[[Any], DecoderSpec]
    names: dict[str, str]
    prefix: str = "model."  # missing in checkpoints saved without the language model head
    ignored: str = r"rotary_emb\.inv_freq$"  # stored tensors that are not weights
    transposed: bool = False  # layers keep linear weights as [in_features, out_features]


def _activation(name: str) -> str:
    if name not in ACTIVATION_NAMES:
        supported = ", ".join(ACTIVATION_NAMES)
        raise ValueError(f"model activation must be one of {supported}, got {name!r}")
    return ACTIVATION_NAMES[name]


def _require(config: Any, **wanted: object) -> None:
    """Raise ValueError unless the config's entries have the only values that are supported."""
    for name, value in wanted.items():
        got = getattr(config, name, value)
        if got != value:
            raise ValueError(
                f"model config entry {name} is supported only as {value!r}, got {got!r}; "
                "another checkpoint of this family may not use it"
            )


def _rope(config: Any, head_dim: int) -> RopeSpec:
    scaling = dict(
        getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    )
    theta = scaling.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0
    fraction = scaling.get("partial_rotary_factor") or 1.0
    rope_type = scaling.get("rope_type") or scaling.get("type") or "default"
    return RopeSpec(rope_type, float(theta), int(head_dim * fraction), scaling)


def _sliding_window(config: Any) -> tuple[int | None, ...]:
    """The window of each layer, from layer_types where the config has them."""
    window = getattr(config, "sliding_window", None)
    if window is None:
        return ()
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _llama_like(config: Any, **particular: Any) -> DecoderSpec:
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    common = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": num_heads,
        "num_kv_heads": config.num_key_value_heads or num_heads,
        "head_dim": head_dim,
        "intermediate_size": config.intermediate_size,
        "max_model_len": config.max_position_embeddings,
        "norm": "rms",
        "norm_eps": config.rms_norm_eps,
        "activation": _activation(config.hidden_act),
        "gated": True,
        "rope": _rope(config, head_dim),
        "tied_embeddings": config.tie_word_embeddings,
    }
    return DecoderSpec(**common | particular)


def _llama(config: Any) -> DecoderSpec:
    bias = getattr(config, "attention_bias", False)
    mlp_bias = getattr(config, "mlp_bias", False)
    return _llama_like(config, qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)


def _mistral(config: Any) -> DecoderSpec:
    return _llama_like(config, sliding_window=_sliding_window(config))


def _qwen2(config: Any) -> DecoderSpec:
    window = _sliding_window(config) if config.use_sliding_window else ()
    return _llama_like(config, qkv_bias=True, sliding_window=window)


def _qwen3(config: Any) -> DecoderSpec:
    window = _sliding_window(config) if config.use_sliding_window else ()
    bias = config.attention_bias
    return _llama_like(config, qkv_bias=bias, o_bias=bias, qk_norm=True, sliding_window=window)


LLAMA_NAMES = {
    "model.embed_tokens": "embed",
    "model.layers.{i}.input_layernorm": "layers.{i}.attn_norm",
    "model.layers.{i}.self_attn.q_proj": "layers.{i}.qkv/q",
    "model.layers.{i}.self_attn.k_proj": "layers.{i}.qkv/k",
    "model.layers.{i}.self_attn.v_proj": "layers.{i}.qkv/v",
    "model.layers.{i}.self_attn.q_norm": "layers.{i}.q_norm",
    "model.layers.{i}.self_attn.k_norm": "layers.{i}.k_norm",
    "model.layers.{i}.self_attn.o_proj": "layers.{i}.o",
    "model.layers.{i}.post_attention_layernorm": "layers.{i}.mlp_norm",
    "model.layers.{i}.mlp.gate_proj": "layers.{i}.gate_up/gate",
    "model.layers.{i}.mlp.up_proj": "layers.{i}.gate_up/up",
    "model.layers.{i}.mlp.down_proj": "layers.{i}.down",
    "model.norm": "final_norm",
    "lm_head": "lm_head",
}


def _opt(config: Any) -> DecoderSpec:
    # OPT-350m alone normalises after each block and projects its embeddings
    _require(
        config,
        do_layer_norm_before=True,
        word_embed_proj_dim=config.hidden_size,
        _remove_final_layer_norm=False,
        layer_norm_elementwise_affine=True,
    )
    return DecoderSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        intermediate_size=config.ffn_dim,
        max_model_len=config.max_position_embeddings,
        norm="layer",
        norm_eps=1e-5,
        activation=_activation(config.activation_function),
        gated=False,
        qkv_bias=config.enable_bias,
        o_bias=config.enable_bias,
        mlp_bias=config.enable_bias,
        position_offset=2,  # rows 0 and 1 are for padding
        tied_embeddings=config.tie_word_embeddings,
    )


OPT_NAMES = {
    "model.decoder.embed_tokens": "embed",
    "model.decoder.embed_positions": "positions",
    "model.decoder.layers.{i}.self_attn_layer_norm": "layers.{i}.attn_norm",
    "model.decoder.layers.{i}.self_attn.q_proj": "layers.{i}.qkv/q",
    "model.decoder.layers.{i}.self_attn.k_proj": "layers.{i}.qkv/k",
    "model.decoder.layers.{i}.self_attn.v_proj": "layers.{i}.qkv/v",
    "model.decoder.layers.{i}.self_attn.out_proj": "layers.{i}.o",
    "model.decoder.layers.{i}.final_layer_norm": "layers.{i}.mlp_norm",
    "model.decoder.layers.{i}.fc1": "layers.{i}.up",
    "model.decoder.layers.{i}.fc2": "layers.{i}.down",
    "model.decoder.final_layer_norm": "final_norm",
    "lm_head": "lm_head",
}


def _gpt2(config: Any) -> DecoderSpec:
    _require(config, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return DecoderSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        num_layers=config.n_layer,
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        intermediate_size=config.n_inner or 4 * config.n_embd,
        max_model_len=config.n_positions,
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        activation=_activation(config.activation_function),
        gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        position_offset=0,
        tied_embeddings=config.tie_word_embeddings,
        softmax_scale=None if config.scale_attn_weights else 1.0,
    )


GPT2_NAMES = {
    "transformer.wte": "embed",
    "transformer.wpe": "positions",
    "transformer.h.{i}.ln_1": "layers.{i}.attn_norm",
    "transformer.h.{i}.attn.c_attn": "layers.{i}.qkv",
    "transformer.h.{i}.attn.c_proj": "layers.{i}.o",
    "transformer.h.{i}.ln_2": "layers.{i}.mlp_norm",
    "transformer.h.{i}.mlp.c_fc": "layers.{i}.up",
    "transformer.h.{i}.mlp.c_proj": "layers.{i}.down",
    "transformer.ln_f": "final_norm",
    "lm_head": "lm_head",
}

FAMILIES = {
    "LlamaForCausalLM": Family(_llama, LLAMA_NAMES),
    "MistralForCausalLM": Family(_mistral, LLAMA_NAMES),
    "Qwen2ForCausalLM": Family(_qwen2, LLAMA_NAMES),
    "Qwen3ForCausalLM": Family(_qwen3, LLAMA_NAMES),
    "OPTForCausalLM": Family(_opt, OPT_NAMES),
    "GPT2LMHeadModel": Family(
        _gpt2,
        GPT2_NAMES,
        prefix="transformer.",
        ignored=r"\.attn\.(masked_)?bias$",  # causal masks
        transposed=True,
    ),
}


def family_of(architecture: str) -> Family:
    """The family of a configuration's `architectures` entry; ValueError if there is none."""
    if architecture not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise ValueError(f"model architecture must be one of {supported}; got {architecture!r}")
    return FAMILIES[architecture]
