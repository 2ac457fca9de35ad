"""GGUF files: the configuration from the metadata, and the tensors, dequantised one at a time."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from paged.models.spec import DecoderSpec
from paged.models.weights import StoredTensor, Target

# GGUF architecture -> model type of transformers
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}

NAMES = {
    "token_embd": "embed",
    "position_embd": "positions",
    "blk.{i}.attn_norm": "layers.{i}.attn_norm",
    "blk.{i}.attn_qkv": "layers.{i}.qkv",
    "blk.{i}.attn_q": "layers.{i}.qkv/q",
    "blk.{i}.attn_k": "layers.{i}.qkv/k",
    "blk.{i}.attn_v": "layers.{i}.qkv/v",
    "blk.{i}.attn_q_norm": "layers.{i}.q_norm",
    "blk.{i}.attn_k_norm": "layers.{i}.k_norm",
    "blk.{i}.attn_output": "layers.{i}.o",
    "blk.{i}.ffn_norm": "layers.{i}.mlp_norm",
    "blk.{i}.ffn_gate": "layers.{i}.gate_up/gate",
    "blk.{i}.ffn_up": "layers.{i}.gate_up/up",
    "blk.{i}.ffn_down": "layers.{i}.down",
    "output_norm": "final_norm",
    "output": "lm_head",
}
# GPT-2 stacks q, k and v and has no gate
STACKED = ("blk.{i}.attn_q", "blk.{i}.attn_k", "blk.{i}.attn_v", "blk.{i}.ffn_gate")


class GGUFCheckpoint:
    """One GGUF file, memory-mapped. ValueError if it is damaged or of an unsupported kind."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            reader = GGUFReader(file)
        except Exception as error:  # numpy raises whatever the bytes lead it to
            raise ValueError(
                f"{file}: corrupt or truncated GGUF file ({error}); copy it again"
            ) from error
        self.fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = self._metadata("general.architecture")
        if self.architecture not in MODEL_TYPES:
            raise ValueError(
                f"{file}: GGUF architecture must be one of {', '.join(MODEL_TYPES)}, "
                f"got {self.architecture!r}"
            )

    def _metadata(self, key: str, default: Any = None) -> Any:
        return self.fields[key].contents() if key in self.fields else default

    def _entry(self, key: str, default: Any = None) -> Any:
        """A metadata entry of the architecture; ValueError if it is missing without a default."""
        value = self._metadata(f"{self.architecture}.{key}", default)
        if value is None:
            raise ValueError(f"{self.file}: GGUF metadata lacks {self.architecture}.{key}")
        return value

    def config(self) -> Any:
        """The transformers configuration that the metadata describes."""
        from transformers import AutoConfig

        tied = "output.weight" not in self.tensors
        vocab_size = int(self.tensors["token_embd.weight"].shape[1])
        model_type = MODEL_TYPES[self.architecture]
        num_heads = self._entry("attention.head_count")
        hidden_size = self._entry("embedding_length")
        tokens = {
            f"{name}_token_id": self._metadata(f"tokenizer.ggml.{name}_token_id")
            for name in ("bos", "eos")
        }
        if model_type == "gpt2":
            return AutoConfig.for_model(
                model_type,
                vocab_size=vocab_size,
                n_embd=hidden_size,
                n_layer=self._entry("block_count"),
                n_head=num_heads,
                n_inner=self._entry("feed_forward_length"),
                n_positions=self._entry("context_length"),
                layer_norm_epsilon=self._entry("attention.layer_norm_epsilon"),
                tie_word_embeddings=tied,
                **tokens,
            )
        rope = {"rope_type": "default"} | self._rope_scaling()
        return AutoConfig.for_model(
            model_type,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=self._entry("block_count"),
            num_attention_heads=num_heads,
            num_key_value_heads=self._entry("attention.head_count_kv", num_heads),
            head_dim=self._entry("attention.key_length", hidden_size // num_heads),
            intermediate_size=self._entry("feed_forward_length"),
            max_position_embeddings=self._entry("context_length"),
            rms_norm_eps=self._entry("attention.layer_norm_rms_epsilon"),
            rope_parameters={"rope_theta": self._entry("rope.freq_base", 10000.0)} | rope,
            attention_bias="blk.0.attn_q.bias" in self.tensors,
            mlp_bias="blk.0.ffn_up.bias" in self.tensors,
            tie_word_embeddings=tied,
            **tokens,
        )

    def _rope_scaling(self) -> dict:
        kind = self._entry("rope.scaling.type", "none")
        if kind == "none":
            return {}
        scaling = {"rope_type": kind, "factor": self._entry("rope.scaling.factor", 1.0)}
        original = self._entry("rope.scaling.original_context_length", 0)
        return scaling | ({"original_max_position_embeddings": original} if original else {})

    def adapt(self, spec: DecoderSpec) -> DecoderSpec:
        """The spec with the file's own rotary frequencies (Llama 3.1 files carry divisors)."""
        if "rope_freqs.weight" not in self.tensors or spec.rope is None:
            return spec
        divisors = self._read("rope_freqs.weight").tolist()
        rope = replace(spec.rope, type="divided", scaling={"divisors": divisors})
        return replace(spec, rope=rope)

    def names(self) -> dict[str, str]:
        """The table of names of this file's architecture."""
        if self.architecture != "gpt2":
            return {stored: ours for stored, ours in NAMES.items() if stored != "blk.{i}.attn_qkv"}
        names = {stored: ours for stored, ours in NAMES.items() if stored not in STACKED}
        return names | {"blk.{i}.ffn_up": "layers.{i}.up"}

    def stored_tensors(self) -> list[StoredTensor]:
        """Every tensor of the file, unread."""
        return [
            StoredTensor(
                name,
                self.file,
                tuple(int(size) for size in reversed(tensor.shape)),
                partial(self._read, name),
            )
            for name, tensor in self.tensors.items()
        ]

    def _read(self, name: str) -> torch.Tensor:
        tensor = self.tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.file}: tensor {name} has the unsupported type {tensor.tensor_type.name}; "
                "quantise the file to another one, such as Q4_K or Q8_0"
            ) from error
        # F32 data are the mapped file itself, which must not be written
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    def convert(self, spec: DecoderSpec, target: Target, values: torch.Tensor) -> torch.Tensor:
        """Undo llama.cpp's order of the rows of Llama's q and k: rotary pairs lie side by side."""
        if self.architecture != "llama" or target.part not in ("q", "k"):
            return values
        heads = spec.num_heads if target.part == "q" else spec.num_kv_heads
        pairs = values.reshape(heads, spec.head_dim // 2, 2, *values.shape[1:])
        return pairs.transpose(1, 2).reshape(values.shape)
