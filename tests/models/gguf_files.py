"""Write tiny GGUF files out of transformers models, as llama.cpp's converter would."""

from pathlib import Path

import gguf
import numpy as np
import torch

# written out here, not taken from the loader, so that a wrong name there shows
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OTHER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}


def gguf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in OTHER_NAMES:
        return f"{OTHER_NAMES[module]}.{kind}"
    _, layer, inner = module.removeprefix("model.").removeprefix("transformer.").split(".", 2)
    return f"blk.{layer}.{LAYER_NAMES[inner]}.{kind}"


def interleave_pairs(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Llama's q or k with the two halves of each head interleaved, as llama.cpp rotates them."""
    halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def write_gguf(
    file: Path,
    model: torch.nn.Module,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    rope_divisors: list[float] | None = None,
    tokens: list[str] | None = None,
    merges: list[str] | None = None,
) -> None:
    """Matrices in `quantization`, vectors in F32, the metadata that describes the model.

    With `tokens` and `merges` also a byte-level tokenizer, whose token 2 is special.
    """
    config = model.config
    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 16)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_eos_token_id(2)
    if tokens is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_merges(merges)
        writer.add_token_types([3 if i == 2 else 1 for i in range(len(tokens))])
        writer.add_chat_template("{{ messages[0]['content'] }}:")
    if rope_divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(rope_divisors, dtype=np.float32))
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if config.model_type == "llama" and ".q_proj." in name:
            weight = interleave_pairs(weight, config.num_attention_heads)
        elif config.model_type == "llama" and ".k_proj." in name:
            weight = interleave_pairs(weight, config.num_key_value_heads)
        elif config.model_type == "gpt2" and ".h." in name:
            weight = weight.T if weight.dim() == 2 else weight
        kind = quantization if weight.dim() == 2 else gguf.GGMLQuantizationType.F32
        values = gguf.quants.quantize(weight.contiguous().numpy(), kind)
        writer.add_tensor(gguf_name(name), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
