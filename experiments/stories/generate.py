"""Let a small instruct model write many short stories.

    python generate.py --model SmolLM2-135M-Instruct --out stories.jsonl --seconds 235

`--model` is a Hugging Face folder of a Llama-family model with SmolLM2's chat format. Each line of
the output is a story that ended by itself, with its mean log-probability a token under the model.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from prompts import StoryPrompt, draw_prompt
from sampling import StorySampling
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

PREFILL_ROWS = 256


class BatchWriter:
    """Batched decoding of a Llama model over a contiguous KV cache.

    All rows have the same length, so attention needs neither mask nor padding. The query heads of
    one key-value head are handed to attention as the rows of one short query: its flash kernel
    then reads every key and value once, which is most of what a decoding step costs.
    """

    def __init__(
        self, model: torch.nn.Module, batch_size: int, max_tokens: int, allowed: torch.Tensor
    ):
        config = model.config
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.eps = config.rms_norm_eps
        self.embedding = model.model.embed_tokens.weight.data  # [V, H]
        self.allowed = allowed  # [A] ids that may be written; "choices" below are indices into it
        self.head = model.lm_head.weight.data[allowed]  # [A, H]
        self.final_norm = model.model.norm.weight.data
        self.layers = [_merged_weights(layer) for layer in model.model.layers]
        device, dtype = self.embedding.device, self.embedding.dtype
        shape = (len(self.layers), 2, batch_size, self.num_kv_heads, max_tokens, self.head_dim)
        self.kv_cache = torch.empty(shape, device=device, dtype=dtype)
        theta = config.rope_parameters["rope_theta"]
        frequencies = theta ** -(torch.arange(0, self.head_dim, 2).float() / self.head_dim)
        angles = (torch.arange(max_tokens).float()[:, None] * frequencies).repeat(1, 2)
        self.cos, self.sin = (t.to(device, dtype) for t in (angles.cos(), angles.sin()))

    def forward(self, ids: torch.Tensor, start: int, first_row: int = 0) -> torch.Tensor:
        """Logits [B, A] after ids [B, T] of rows first_row.. at start..; start is 0 or T is 1."""
        batch, length = ids.shape
        rows, end = slice(first_row, first_row + batch), start + length
        cos, sin = self.cos[start:end, None], self.sin[start:end, None]
        hidden = F.embedding(ids, self.embedding)  # [B, T, H]
        for layer, (k_cache, v_cache) in zip(self.layers, self.kv_cache, strict=True):
            x = F.rms_norm(hidden, hidden.shape[-1:], layer["input_norm"], self.eps)
            qkv = F.linear(x, layer["qkv"]).view(batch, length, -1, self.head_dim)
            q, k, v = qkv.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=2)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            k_cache[rows, :, start:end] = k.transpose(1, 2)
            v_cache[rows, :, start:end] = v.transpose(1, 2)
            keys, values = k_cache[rows, :, :end], v_cache[rows, :, :end]
            if length == 1:
                q = q.view(batch, self.num_kv_heads, -1, self.head_dim)
                out = F.scaled_dot_product_attention(q, keys, values)
            else:
                group = self.num_heads // self.num_kv_heads
                keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
                q = q.transpose(1, 2)
                out = F.scaled_dot_product_attention(q, keys, values, is_causal=True)
                out = out.transpose(1, 2)
            hidden = hidden + F.linear(out.reshape(batch, length, -1), layer["out"])
            x = F.rms_norm(hidden, hidden.shape[-1:], layer["mlp_norm"], self.eps)
            gate, up = F.linear(x, layer["gate_up"]).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer["down"])
        x = F.rms_norm(hidden[:, -1], hidden.shape[-1:], self.final_norm, self.eps)
        return F.linear(x, self.head)

    @torch.inference_mode()
    def write(
        self, prompts: torch.Tensor, max_new_tokens: int, sampling: StorySampling
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Continue prompts [B, P]: ids [B, <= max_new_tokens], end token after a row's end, and
        the mean log-probability [B] of a row's tokens under the unchanged model."""
        batch, prompt_length = prompts.shape
        device = prompts.device
        written = torch.empty((batch, max_new_tokens), dtype=torch.long, device=device)
        ended = torch.zeros(batch, dtype=torch.bool, device=device)
        total = torch.zeros(batch, device=device)
        # a prompt's activations are far larger than a step's, so the prompts go in slices
        slices = prompts.split(PREFILL_ROWS)
        logits = torch.cat([self.forward(ids, 0, i * PREFILL_ROWS) for i, ids in enumerate(slices)])
        for step in range(max_new_tokens):
            logits = logits.float()
            choice = sampling.draw(logits.clone(), written[:, :step])  # [B]
            choice = choice.masked_fill(ended, sampling.end)
            log_prob = logits.gather(1, choice[:, None])[:, 0] - logits.logsumexp(-1)
            total += log_prob.masked_fill(ended, 0.0)
            ended |= choice == sampling.end
            written[:, step] = choice
            if step % 16 == 15 and bool(ended.all()):
                written = written[:, : step + 1]
                break
            logits = self.forward(self.allowed[choice][:, None], prompt_length + step)
        lengths = (written != sampling.end).sum(1).clamp(min=1)
        return self.allowed[written], total / lengths


def _merged_weights(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    attention, mlp = layer.self_attn, layer.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    return {
        "input_norm": layer.input_layernorm.weight.data,
        "qkv": torch.cat([projection.weight.data for projection in qkv]),
        "out": attention.o_proj.weight.data,
        "mlp_norm": layer.post_attention_layernorm.weight.data,
        "gate_up": torch.cat([mlp.gate_proj.weight.data, mlp.up_proj.weight.data]),
        "down": mlp.down_proj.weight.data,
    }


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def prose_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end token and every token that is plain English prose: ASCII, no digits, no symbols."""
    pieces = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    return [
        index
        for index, piece in enumerate(pieces)
        if index == tokenizer.eos_token_id
        or (piece and all(c.isascii() and (c.isalpha() or c in " \n.,!?'\"-") for c in piece))
    ]


def prompt_batches(
    tokenizer: PreTrainedTokenizerBase, batch_size: int, rng: random.Random
) -> Iterator[tuple[list[StoryPrompt], list[list[int]]]]:
    """Batches of prompts of one token length each, for ever."""
    by_length: dict[int, list[tuple[StoryPrompt, list[int]]]] = defaultdict(list)
    while True:
        prompts = [draw_prompt(rng) for _ in range(batch_size)]
        encoded = tokenizer([prompt.chat() for prompt in prompts], add_special_tokens=False)
        for prompt, ids in zip(prompts, encoded["input_ids"], strict=True):
            waiting = by_length[len(ids)]
            waiting.append((prompt, ids))
            if len(waiting) == batch_size:
                yield [p for p, _ in waiting], [i for _, i in waiting]
                waiting.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=235.0, help="start no batch after this")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--max-new-tokens", type=int, default=208)
    parser.add_argument("--max-prompt-tokens", type=int, default=224)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device)
    allowed = prose_ids(tokenizer)
    pieces = tokenizer.batch_decode([[index] for index in allowed])
    end = allowed.index(tokenizer.eos_token_id)
    sampling = StorySampling(pieces, end, args.device, temperature=args.temperature)
    max_tokens = args.max_prompt_tokens + args.max_new_tokens
    allowed = torch.tensor(allowed, device=args.device)
    writer = BatchWriter(model, args.batch_size, max_tokens, allowed)

    start, num_tokens, num_stories = time.monotonic(), 0, 0
    # without cuDNN, which would plan anew for each of the lengths that a growing cache passes
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with args.out.open("w") as out, sdpa_kernel(backends):
        for prompts, ids in prompt_batches(tokenizer, args.batch_size, random.Random(args.seed)):
            if time.monotonic() - start > args.seconds:
                break
            ids = torch.tensor(ids, device=args.device)
            stories, scores = writer.write(ids, args.max_new_tokens, sampling)
            ended = (stories == tokenizer.eos_token_id).any(1).tolist()
            num_tokens += int((stories != tokenizer.eos_token_id).sum())
            texts = tokenizer.batch_decode(stories, skip_special_tokens=True)
            for prompt, text, score, end in zip(
                prompts, texts, scores.tolist(), ended, strict=True
            ):
                if end:
                    line = {"story": prompt.opening + text, "score": round(score, 4)}
                    out.write(json.dumps(line) + "\n")
            num_stories += sum(ended)
            seconds = time.monotonic() - start
            print(
                f"{seconds:6.1f} s  {num_tokens / 1e6:6.2f} M tokens  {num_stories} stories ended"
                f"  {num_tokens / seconds:9.0f} tokens/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
