"""A decode step of a real model with random weights, for the scripts that time its launches."""

import dataclasses
from collections.abc import Callable

import torch
from timing import BANDWIDTH, BF16

from paged.attention.triton import TritonAttention
from paged.interfaces import AttentionMeta
from paged.models import decoder as decoder_module
from paged.models.config import preset_config, spec_of
from paged.models.decoder import Decoder
from paged.models.dummy import dummy_weights
from paged.state import Sizes, StepPlan

CONTEXT, PAGE_SIZE, MAX_MODEL_LEN = 576, 16, 1024
CAPACITIES = {1: 16, 16: 16, 64: 64}  # of the step, by rows
LINEARS = ("qkv", "o", "gate_up", "down")


class Step:
    """One decode step of a model: its launches, and the logits they leave."""

    def __init__(self, model: str, rows: int, **changes: int) -> None:
        spec = spec_of(preset_config(model))
        self.spec = spec = dataclasses.replace(spec, max_model_len=MAX_MODEL_LEN, **changes)
        self.rows, self.capacity = rows, CAPACITIES[rows]
        pages = -(-CONTEXT // PAGE_SIZE)
        sizes = Sizes(
            self.capacity, self.capacity, self.capacity, MAX_MODEL_LEN, PAGE_SIZE, rows * pages
        )
        device = BF16["device"]
        self.decoder = Decoder(spec, dummy_weights(spec, **BF16))
        self.decoder.allocate(self.capacity, self.capacity, PAGE_SIZE, sizes.num_pages)
        self.decoder.pages.normal_()
        self.plan = plan = StepPlan(sizes, device)
        plan.counts[:3] = rows
        plan.input_ids.random_(spec.vocab_size)
        plan.positions.fill_(CONTEXT - 1)
        plan.cu_seqlens_q.copy_(torch.arange(self.capacity + 1))
        plan.seq_lens.fill_(CONTEXT)
        table = torch.randperm(rows * pages).view(rows, pages).to(device)
        plan.block_table[:rows, :pages] = table
        plan.slot_mapping[:rows] = table[:, -1].long() * PAGE_SIZE + (CONTEXT - 1) % PAGE_SIZE
        plan.logits_indices[:rows] = torch.arange(rows)
        self.attention = TritonAttention()
        self.meta = AttentionMeta(
            plan.block_table,
            plan.cu_seqlens_q,
            plan.seq_lens,
            plan.num_seqs,
            plan.num_tokens,
            page_size=PAGE_SIZE,
            max_num_tokens=self.capacity,
            max_seq_len=MAX_MODEL_LEN,
        )
        layer = self.decoder.layers[0]
        parts = (layer.qkv, layer.o, layer.up, layer.down)
        self.shapes = {name: tuple(part.weight.shape) for name, part in zip(LINEARS, parts)}

    def run(self) -> None:
        self.decoder.forward(self.plan, self.meta, self.attention, self.capacity)

    def logits(self) -> torch.Tensor:
        return self.decoder.logits[: self.rows].clone()

    def floor_us(self) -> float:
        read = sum(weight.nbytes for weight in self.decoder.weights.values())
        if self.decoder.lm_head is not self.decoder.embed:
            read -= self.decoder.embed.nbytes
        return read / BANDWIDTH * 1e6


def without(step: Step, name: str) -> Callable[[], None]:
    """Remove a kind of launch from the step; returns what puts it back."""
    kept = {key: getattr(decoder_module, key) for key in ("norm", "rope_kv", "linear")}
    kept_gated, attention = decoder_module.gated_linear, step.attention

    def all_but(launch: Callable, shape: tuple[int, int]) -> Callable:
        def chosen(x: torch.Tensor, weight: torch.Tensor, *args: object, **options: object) -> None:
            if tuple(weight.shape) != shape:
                launch(x, weight, *args, **options)

        return chosen

    if name == "attention":
        step.attention = NoAttention()
    elif name in kept:
        setattr(decoder_module, name, lambda *args, **options: None)
    else:
        decoder_module.linear = all_but(kept["linear"], step.shapes[name])
        decoder_module.gated_linear = all_but(kept_gated, step.shapes[name])

    def restore() -> None:
        for key, function in kept.items():
            setattr(decoder_module, key, function)
        decoder_module.gated_linear, step.attention = kept_gated, attention

    return restore


class NoAttention(TritonAttention):
    """Leaves `out` as it is."""

    def forward(self, *args: object) -> None:
        pass
