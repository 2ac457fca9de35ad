"""Tiny random models of every family, made with transformers: something to be equal to.

The shapes are odd on purpose (uneven GQA, heads that do not multiply to the hidden size, odd
vocabularies), and every weight is random, biases and norms too, so that no term can be forgotten.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA_LIKE = {
    "vocab_size": 257,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# name of the case -> entries of its configuration
TINY_CONFIGS: dict[str, dict] = {
    "llama": LLAMA_LIKE
    | {
        "model_type": "llama",
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama_biased": LLAMA_LIKE
    | {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 50,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "mistral": LLAMA_LIKE
    | {
        "model_type": "mistral",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 9,
    },
    "qwen2": LLAMA_LIKE
    | {
        "model_type": "qwen2",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,  # full attention, then a window
    },
    "qwen3": LLAMA_LIKE
    | {
        "model_type": "qwen3",
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "opt": {
        "model_type": "opt",
        "vocab_size": 259,
        "hidden_size": 48,
        "word_embed_proj_dim": 48,
        "ffn_dim": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 251,
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 3,
        "n_positions": 64,
        "bos_token_id": 250,
        "eos_token_id": 250,
    },
}


def tiny_config(case: str) -> Any:
    """The transformers configuration of a case, in fp32."""
    return AutoConfig.for_model(**TINY_CONFIGS[case])


def tiny_model(case: str, seed: int = 0) -> Any:
    """A transformers model of the case on the CPU in fp32, every weight random."""
    model = AutoModelForCausalLM.from_config(tiny_config(case), attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_norm = weight.dim() == 1 and name.endswith("weight")
            weight.copy_(1.0 + 0.2 * noise if is_norm else 0.15 * noise)
    return model.float().eval()


def save_tiny_model(case: str, folder: str | Path, seed: int = 0, **options: Any) -> Any:
    """Save `tiny_model` as a Hugging Face folder (config.json, safetensors) and return it.

    `options` go to `save_pretrained`, such as max_shard_size="20KB" for several files.
    """
    model = tiny_model(case, seed)
    model.save_pretrained(folder, **options)
    return model


@torch.no_grad()
def transformers_logprobs(model: Any, token_ids: list[int]) -> torch.Tensor:
    """log p(token i + 1 | tokens 0..i) by transformers, [len(token_ids) - 1] float32."""
    ids = torch.tensor([token_ids])
    logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0]
