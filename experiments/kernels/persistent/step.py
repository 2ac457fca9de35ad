"""A decoder step with random weights: its tensors, its launch, and what it should give.

`reference` is plain torch, in any dtype: with float32 the exact result, with the model's dtype what
rounding alone does to it.
"""

import math
from typing import NamedTuple

import torch
from decoder_step import decoder_step_kernel

from paged.kernels.launch import interpreted

PAGE_SIZE = 64
NUM_PHASES = 5
ALL_PHASES = (-1, NUM_PHASES)
POLL_LIMIT = 200_000  # of a launch: about 0.15 s


class Shape(NamedTuple):
    """Qwen3-0.6B by default."""

    hidden: int = 1024
    num_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int = 128
    intermediate: int = 3072
    eps: float = 1e-6


class Config(NamedTuple):
    """How the phases are cut, and when weights are asked for."""

    num_programs: int = 128
    num_warps: int = 8
    ahead: int = 1  # L2 is asked for weights: 0 never, 1 before the wait, 2 a phase earlier
    early: bool = False  # the first units are loaded into registers before the wait, not behind it
    in_flight: int = 2  # units under way in registers
    block_n: tuple[int, int, int, int] = (16, 8, 16, 8)  # rows a tile of qkv, o, gate_up, down
    block_k: int = 1024  # of o and down; the others take the hidden size
    stages: int = 3
    words: bool = False  # values with epochs instead of four of five barriers; one row
    empty: bool = False  # the barriers alone


class Step:
    """One token each of `lens` sequences, whose length counts it; `capacity` rows, 1 or 16."""

    def __init__(
        self,
        lens: list[int],
        num_layers: int,
        shape: Shape | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: str = "cuda",
    ) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
            x = torch.empty(size, dtype=dtype, device=device)
            return x.normal_(mean, scale, generator=generator)

        shape = shape or Shape()
        self.shape, self.num_layers, self.dtype, self.device = shape, num_layers, dtype, device
        h, d, i = shape.hidden, shape.head_dim, shape.intermediate
        q_size, kv_size = shape.num_heads * d, shape.num_kv_heads * d
        layers, rows, count = num_layers, 1 if len(lens) == 1 else 16, len(lens)
        self.attn_norm = normal(layers, h, scale=0.1, mean=1.0)
        self.mlp_norm = normal(layers, h, scale=0.1, mean=1.0)
        self.q_norm = normal(layers, d, scale=0.1, mean=1.0)
        self.k_norm = normal(layers, d, scale=0.1, mean=1.0)
        self.qkv_weight = normal(layers, q_size + 2 * kv_size, h, scale=h**-0.5)
        self.o_weight = normal(layers, h, q_size, scale=q_size**-0.5)
        self.up_weight = normal(layers, 2 * i, h, scale=h**-0.5)
        self.down_weight = normal(layers, h, i, scale=i**-0.5)

        self.lens, self.rows = lens, rows
        max_pages = -(-max(lens) // PAGE_SIZE)
        pages = torch.randperm(count * max_pages, generator=torch.Generator().manual_seed(0))
        self.block_table = pages.view(count, max_pages).int().to(device)
        self.cache_start = normal(layers, 2, count * max_pages, shape.num_kv_heads, PAGE_SIZE, d)
        self.cache = self.cache_start.clone()
        self.seq_lens = torch.tensor(lens, dtype=torch.int32, device=device)
        self.num_tokens = torch.tensor([count], dtype=torch.int32, device=device)
        angles = torch.arange(max(lens))[:, None] * 1e6 ** -(torch.arange(d // 2) / (d // 2))
        self.cos_sin = torch.cat([angles.cos(), angles.sin()], -1).float().to(device)

        self.splits = min(8, max(1, 16 // 2 ** math.ceil(math.log2(count))))
        nan = {"fill_value": float("nan"), "dtype": dtype, "device": device}
        self.residual_start = normal(rows, h)
        self.residual = self.residual_start.clone()
        self.qkv = torch.full((rows, q_size + 2 * kv_size), **nan)
        self.partial = torch.full((rows, self.splits, shape.num_heads, d), **nan)
        self.lse = torch.full(self.partial.shape[:3], float("nan"), device=device)
        self.activated = torch.full((rows, i), **nan)
        self.counter = torch.zeros(4, dtype=torch.int32, device=device)
        width = 2 * h + self.qkv.shape[1] + i
        self.words = torch.zeros(width, dtype=torch.int64, device=device)
        self.zeros = torch.zeros(max(h, 8 * d), dtype=torch.int32, device=device)

    def reset(self) -> None:
        """The residual and the cache as before the step."""
        self.residual.copy_(self.residual_start)
        self.cache.copy_(self.cache_start)

    def launch(
        self,
        config: Config,
        phases: tuple[int, int] = ALL_PHASES,
        layers: tuple[int, int] | None = None,
        barrier: bool = True,
        warmup: bool = False,
    ) -> object:
        """Phases [first, end) of layers [first, end); several phases want the barrier.

        Returns the compiled kernel, which `warmup` does not launch.
        """
        shape, first_layer, end_layer = self.shape, *(layers or (0, self.num_layers))
        hidden, d = shape.hidden, shape.head_dim
        widths = self.qkv_weight.shape[1], hidden, 2 * shape.intermediate, hidden
        depths = hidden, shape.num_heads * d, hidden, shape.intermediate
        shapes = [
            (n, k, i == 2, config.block_n[i], hidden if k == hidden else config.block_k)
            for i, (n, k) in enumerate(zip(widths, depths))
        ]
        if config.words and (self.rows > 1 or config.num_programs * config.block_n[3] < hidden):
            raise ValueError("words: one row, and a program for each tile of the residual")
        threads = 32 * config.num_warps
        compiled = not interpreted()
        segments = 0 if self.rows == 1 else min(8, config.num_warps)
        return decoder_step_kernel.run(
            self.residual, self.qkv, self.partial, self.lse, self.activated, self.cache,
            self.attn_norm, self.qkv_weight, self.q_norm, self.k_norm, self.o_weight,
            self.mlp_norm, self.up_weight, self.down_weight, self.cos_sin, self.block_table,
            self.seq_lens, self.num_tokens, self.counter, self.words, self.zeros, first_layer,
            end_layer,
            self.cache[0, 0].numel(), self.block_table.shape[1],
            math.log2(math.e) * d**-0.5, shape.eps, POLL_LIMIT,
            PHASES=phases, QKV=shapes[0], OUT=shapes[1], UP=shapes[2], DOWN=shapes[3],
            HEADS=(
                shape.num_heads, shape.num_kv_heads, d, PAGE_SIZE, self.splits, config.stages,
                compiled,
            ),
            GRID=(config.num_programs, threads, self.rows, segments, config.in_flight, compiled),
            AHEAD=config.ahead, EARLY=config.early, WORDS=config.words,
            EMPTY=config.empty, BARRIER=barrier,
            num_warps=config.num_warps, grid=(config.num_programs,), warmup=warmup,
        )  # fmt: skip

    def launch_by_phase(self, config: Config) -> None:
        """The same programs, a launch a phase and no barrier: for the interpreter and for bugs."""
        self.launch(config, (-1, 0), (0, 0), barrier=False)
        for layer in range(self.num_layers):
            for phase in range(NUM_PHASES):
                self.launch(config, (phase, phase + 1), (layer, layer + 1), barrier=False)

    def result(self) -> torch.Tensor:
        return self.residual[: len(self.lens)].float()

    def written(self) -> torch.Tensor:
        """The step's own keys and values as the cache has them, [layers, 2, tokens, heads, D]."""
        position = self.seq_lens.long() - 1
        page = self.block_table.long().gather(1, position[:, None] // PAGE_SIZE)[:, 0]
        return self.cache[:, :, page, :, position % PAGE_SIZE].movedim(0, 2).float()

    def reference(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What `result` and `written` should be, computed and rounded in dtype."""
        shape, count = self.shape, len(self.lens)
        d, group = shape.head_dim, shape.num_heads // shape.num_kv_heads
        residual = self.residual_start[:count].to(dtype)
        written = []

        def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            y = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + shape.eps)
            return (y.to(dtype).float() * weight.float()).to(dtype)

        def rotated(x: torch.Tensor) -> torch.Tensor:
            cos, sin = self.cos_sin[self.seq_lens.long() - 1][:, None].chunk(2, -1)
            a, b = x.float().chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(dtype)

        for layer in range(self.num_layers):
            x = norm(residual, self.attn_norm[layer])
            heads = (x @ self.qkv_weight[layer].to(dtype).T).view(count, -1, d)
            q, k, v = heads.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], 1)
            q = rotated(norm(q, self.q_norm[layer]))
            k = rotated(norm(k, self.k_norm[layer]))
            written.append(torch.stack([k, v]))
            attended = []
            for row, length in enumerate(self.lens):
                pages, before = self.block_table[row].long(), length - 1
                keys, values = (
                    torch.cat([x[pages].transpose(1, 2).flatten(0, 1)[:before], new[row, None]])
                    for x, new in zip(self.cache_start[layer], (k, v))
                )
                keys, values = (x.repeat_interleave(group, 1).float() for x in (keys, values))
                scores = torch.einsum("hd,khd->hk", q[row].float(), keys) * d**-0.5
                attended.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values).flatten())
            x = torch.stack(attended).to(dtype)
            residual = residual + x @ self.o_weight[layer].to(dtype).T
            x = norm(residual, self.mlp_norm[layer])
            gate, up = (x @ self.up_weight[layer].to(dtype).T).float().chunk(2, -1)
            x = (torch.nn.functional.silu(gate) * up).to(dtype)
            residual = residual + x @ self.down_weight[layer].to(dtype).T
        return residual.float(), torch.stack(written).float()
