"""A hash function in the place of the model, to test everything around it.

What it keeps of a token in a page is a word of the token and its position; a row draws from the sum
of the words found through its block table. So a page that holds the wrong tokens changes what is
drawn, and `oracle` knows what a request must get however it was chunked, preempted or shared.
"""

from dataclasses import dataclass, field

import torch

from paged.beams import BeamGroup
from paged.kernels.control.budget import PageBudget
from paged.kernels.control.compress import Drops
from paged.kernels.control.hashing import mix_ref
from paged.kernels.control.swap import SwapSpace
from paged.kernels.swap_pages import swap_pages_ref
from paged.state import PagePool, RequestTable, Sizes, StepPlan

VOCAB = 64
NAN_WORD = -(2**62)  # stands for KV that is NaN


@dataclass
class Tracked:
    """A request as the host sees it."""

    arrival: int
    prompt: list[int]
    max_len: int
    min_len: int = 0
    stop_ids: tuple[int, ...] = ()
    priority: int = 0
    predicted_len: int = 0
    nan_at: int | None = None  # this row's KV at this position comes out NaN
    parent: "Tracked | None" = None  # the sample whose prompt this one shares
    num_forks: int = 0  # samples that share this one's
    salt: int = 0  # stands for the seed of a sample
    search: BeamGroup | None = None  # of a beam
    index: int = 0  # which beam
    beams: list["Tracked"] = field(default_factory=list)  # all of its search
    slot: int = -1
    tokens: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)  # tokens taken from the cache, by admission
    num_preemptions: int = 0
    reason: str | None = None
    expected: tuple[list[int], str] = field(default_factory=lambda: ([], ""))  # of the oracle


def kv_word(token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """What the stand-in model keeps of a token; unrelated to the keys of the prefix table."""
    return mix_ref(token.long() * 7919 + 13, position.long() + 104729)


def draw(total: int) -> int:
    """The token after a prefix whose words add up to `total`."""
    return ((total ^ (total >> 29)) & (2**64 - 1)) % VOCAB


def page_score(words: torch.Tensor) -> torch.Tensor:
    """Of pages with these words [..., page_size], for compression; float32."""
    return (words & 0xFFFF).sum(-1).float()


def oracle(
    request: Tracked, budget: PageBudget | None = None, page_size: int = 16
) -> tuple[list[int], str]:
    """What the request gets when nothing ever disturbs it, NaN aside."""
    words = kv_word(torch.tensor(request.prompt), torch.arange(len(request.prompt)))
    tokens: list[int] = []
    while True:
        length = len(request.prompt) + len(tokens)
        tokens.append(draw(int(words.sum()) + request.salt))
        if tokens[-1] in request.stop_ids and length >= request.min_len:
            return tokens, "stop"
        if length + 1 >= request.max_len:
            return tokens, "length"
        if budget is not None and (not tokens[1:] or length % page_size == 0):
            words = compressed(words, length, budget, page_size)
        words = torch.cat([words, kv_word(torch.tensor([tokens[-1]]), torch.tensor([length]))])


def compressed(
    words: torch.Tensor, length: int, budget: PageBudget, page_size: int
) -> torch.Tensor:
    """What a sequence of `length` tokens keeps of the words it has, [kept]."""
    full = len(words) // page_size
    recent = -(-max(budget.recent - length % page_size, 0) // page_size)
    count = min(full + 1 - budget.kept(length, page_size), full - recent - budget.sink_pages)
    if count <= 0:
        return words
    pages = words[: full * page_size].view(full, page_size)
    score = page_score(pages)
    score[: budget.sink_pages] = score[full - recent :] = float("inf")
    kept = score.sort(stable=True).indices[count:].sort().values
    return torch.cat([pages[kept].flatten(), words[full * page_size :]])


class HashModel:
    """Draws the tokens of a step, as a model and a sampler would; on the host."""

    def __init__(self, sizes: Sizes) -> None:
        self.page_size = sizes.page_size
        self.kv = torch.full((sizes.num_pages, sizes.page_size), NAN_WORD)
        self.host_kv = torch.full((sizes.num_host_pages, sizes.page_size), NAN_WORD)
        self.sums: dict[int, int] = {}  # by slot: what its last draw was from

    def step(self, plan: StepPlan, nan_at: dict[int, int], salt: dict[int, int]) -> None:
        """Write this step's KV, then `sampled_tokens` and `sampled_logprobs` of the plan.

        `nan_at`: {slot: position} of tokens whose KV comes out NaN; `salt`: {slot: added to the
        sum that its tokens are drawn from}.
        """
        self.copy(plan.copy_source, plan.copy_target, plan.num_copies)
        num_tokens, num_seqs, num_samples = plan.counts[:3].tolist()
        position = plan.positions[:num_tokens].cpu()
        word = kv_word(plan.input_ids[:num_tokens].cpu(), position)
        begins, slots = plan.cu_seqlens_q.tolist(), plan.seq_slots.tolist()
        for seq in range(num_seqs):
            tokens = slice(begins[seq], begins[seq + 1])
            word[tokens][position[tokens] == nan_at.get(slots[seq], -1)] = NAN_WORD
        self.kv.view(-1)[plan.slot_mapping[:num_tokens].cpu()] = word
        for sample, slot in enumerate(plan.sample_slots[:num_samples].tolist()):
            seq = slots.index(slot)
            behind = begins[seq + 1] - 1 - int(plan.logits_indices[sample])
            at = torch.arange(int(plan.seq_lens[seq]) - behind)
            pages = plan.block_table[seq].cpu()[at // self.page_size].long()
            seen = self.kv[pages, at % self.page_size]
            token = -1 if bool((seen == NAN_WORD).any()) else draw(int(seen.sum()) + salt[slot])
            self.sums[slot] = int(seen.sum())
            plan.sampled_tokens[sample] = token
            plan.sampled_logprobs[sample] = -0.125 * (token + 1)

    def copy(self, source: torch.Tensor, target: torch.Tensor, num_copies: torch.Tensor) -> None:
        """Copy pages, as `copy_pages` does."""
        count = int(num_copies)
        self.kv[target[:count].cpu().long()] = self.kv[source[:count].cpu().long()]

    def swap(self, swaps: SwapSpace) -> None:
        """Copy pages to host memory and back, as `swap_pages` does."""
        lists = (
            swaps.out_source, swaps.out_target, swaps.num_out,
            swaps.in_source, swaps.in_target, swaps.num_in,
        )  # fmt: skip
        cpu = (tensor.cpu() for tensor in lists)
        pages, host = swap_pages_ref(self.kv[None], self.host_kv[None], *cpu)
        self.kv, self.host_kv = pages[0], host[0]

    def score(self, requests: RequestTable, drops: Drops) -> None:
        """Write the scores of a compression policy that looks at what pages hold."""
        for row, slot in enumerate(drops.slots[: int(drops.num_rows)].tolist()):
            end = int(drops.ends[row])
            pages = requests.block_table[slot, :end].cpu().long()
            drops.scores[row, :end] = page_score(self.kv[pages]).to(drops.scores.device)

    def poison_free_pages(self, pool: PagePool) -> None:
        """What is free must never be read again before it is written."""
        head, tail = pool.counters[:2].tolist()
        ring = pool.free_ring.cpu()
        self.kv[ring[torch.arange(head, tail) % ring.shape[0]].long()] = NAN_WORD
        if pool.swaps is not None:
            head, tail = pool.swaps.counters.tolist()
            ring = pool.swaps.free_ring.cpu()
            self.host_kv[ring[torch.arange(head, tail) % ring.shape[0]].long()] = NAN_WORD
