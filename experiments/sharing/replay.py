"""Pages that beams share, counted from a plain beam search of transformers: no engine is run.

A beam takes over its parent's full pages and copies the page behind them, as in the engine; so a
full page is known by the beam that filled it.

Two counts of the same search. The engine's: after each step, the pages that tokens have been
written to. The published one, as in the scheduler of the paper's artifact: before each step, with
the page that the next token will go to; the prompt's step counts too, when all its pages, the last
one included, are still everybody's.
"""

from itertools import count

import torch
from transformers import AutoModelForCausalLM

from paged.models.config import find_model

BATCH = 32  # requests


class Pages:
    """The pages of one request's beams, when `computed` tokens of each have been computed.

    Args:
        published: count as the paper's artifact does.
    """

    def __init__(
        self, width: int, prompt_len: int, output_len: int, page_size: int, published: bool
    ) -> None:
        self.names = count()
        # Every row of the engine computes the prompt's last token, in a page of its own.
        shared = (prompt_len if published else prompt_len - 1) // page_size
        prompt = [next(self.names) for _ in range(shared)]
        self.full = [list(prompt) for _ in range(width)]
        self.computed, self.page_size, self.published = prompt_len, page_size, published
        self.steps_left = output_len - 1
        self.pages = -(-prompt_len // page_size) if published else 0
        self.references = width * self.pages

    def step(self, parents: list[int]) -> None:
        """Beam i goes on from beam parents[i]. The last token of a request holds nothing."""
        if self.steps_left < 1:
            return
        begun = self.published or self.computed % self.page_size > 0
        if self.computed // self.page_size > len(self.full[0]):
            for pages in self.full:
                pages.append(next(self.names))
        self.full = [list(self.full[parent]) for parent in parents]
        width = len(parents)
        self.references += width * (len(self.full[0]) + begun)
        self.pages += len(set().union(*self.full)) + width * begun
        self.computed += 1
        self.steps_left -= 1


@torch.no_grad()
def replay(
    model_name: str, requests: list[tuple[list[int], int]], width: int, page_size: int
) -> tuple[float, float]:
    """Share of the pages saved, as `measure` reports it and by the published count. No token ends a
    sequence."""
    path = find_model(model_name)
    given = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given).eval()
    requests = sorted(requests, key=lambda request: request[1])  # those of a batch end together
    held: tuple[list[Pages], list[Pages]] = ([], [])
    for start in range(0, len(requests), BATCH):
        some = requests[start : start + BATCH]
        now = [
            [Pages(width, len(prompt), output_len, page_size, how) for prompt, output_len in some]
            for how in (False, True)
        ]
        for parents in _search(model, [prompt for prompt, _ in some], width):
            for one, other, own in zip(*now, parents):
                one.step(own)
                other.step(own)
            if all(one.steps_left < 1 for one in now[0]):
                break
        for every, new in zip(held, now):
            every += new
    ours, published = (
        1 - sum(one.pages for one in every) / sum(one.references for one in every) for every in held
    )
    return ours, published


def _search(model, prompts: list[list[int]], width: int):
    """Yield each step's parents, [[parent of each beam] of each request]."""
    num, longest = len(prompts), max(map(len, prompts))
    ids = torch.zeros(num, longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
    cache = out.past_key_values
    cache.batch_repeat_interleave(width)
    mask = mask.repeat_interleave(width, 0)
    logprobs = out.logits[:, -1].log_softmax(-1).repeat_interleave(width, 0)
    scores = torch.full((num, width), -1e9)
    scores[:, 0] = 0  # all beams are equal before the first token
    first_rows = torch.arange(num)[:, None] * width
    while True:
        vocab_size = logprobs.shape[1]
        best = (scores[:, :, None] + logprobs.view(num, width, vocab_size)).flatten(1).topk(width)
        scores, parents = best.values, best.indices // vocab_size
        yield parents.tolist()
        cache.reorder_cache((parents + first_rows).flatten())
        mask = torch.cat([mask, torch.ones(num * width, 1, dtype=torch.long)], 1)
        out = model(
            (best.indices % vocab_size).view(-1, 1), attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1, past_key_values=cache, use_cache=True,
        )  # fmt: skip
        cache, logprobs = out.past_key_values, out.logits[:, -1].log_softmax(-1)
