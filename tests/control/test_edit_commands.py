"""What changes a request's logits, on its way from the host's rings into its row."""

import numpy as np
import torch

from paged.edits import TokenMask, edits_of, mask_of
from paged.kernels.control.ingest import ingest
from paged.kernels.control.ingest_ref import ingest_ref
from paged.mailbox import Mailbox
from paged.request import SamplingParams
from paged.state import PagePool, RequestTable, Sizes
from paged.submission import Submission

VOCAB_SIZE = 70
SIZES = Sizes(
    num_slots=4, max_num_seqs=2, max_num_batched_tokens=32, max_model_len=100, page_size=16,
    num_pages=8,
)  # fmt: skip
PARAMS = SamplingParams(
    repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=-0.5, bad_words=[[1, 2], [3]],
    logit_bias={5: 2.5, 69: -1.0}, allowed_token_ids=[0, 31, 32, 69],
)  # fmt: skip


def submission(slot: int, prompt: list[int], num_forced: int = 0, **fields) -> Submission:
    return Submission(
        slot=slot, prompt=np.array(prompt, np.int32), num_forced=num_forced, arrival=slot,
        arrival_ms=0, max_len=99, min_len=0, predicted_len=50, deadline_ms=0, priority=0, client=0,
        top_k=3, top_p=0.5, min_p=0.25, temperature=0.75, seed=-9, stop_ids=(4,), **fields,
    )  # fmt: skip


def commands():
    """The commands of two steps: (submissions, masks)."""
    edits = edits_of(PARAMS, VOCAB_SIZE)
    penalties = (1.5, 0.25, -0.5)
    prompt = list(range(40))
    yield (
        [
            submission(2, prompt, 7, edits=edits, penalties=penalties, mask_len=33, num_logprobs=6),
            submission(0, [5, 6], total_len=1),
        ],
        [],
    )
    yield [submission(1, prompt[:20])], [TokenMask(2, 34, mask_of([1], VOCAB_SIZE))]


def test_rows_are_filled_as_the_reference_fills_them(device):
    sides = []
    for where, run in ((device, ingest), ("cpu", ingest_ref)):
        mailbox = Mailbox(SIZES, torch.device(where), vocab_size=VOCAB_SIZE)
        requests, pool = RequestTable(SIZES, where, VOCAB_SIZE), PagePool(SIZES, where)
        for step, (submissions, masks) in enumerate(commands()):
            count = mailbox.post(step, 0, submissions, [], masks)
            pool.counters[3] = step
            run(requests, pool, mailbox.commands, count)
        sides.append(requests)
    mine, reference = sides
    for name, tensor in vars(mine).items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor.cpu(), getattr(reference, name)), name
    assert mine.prompt_len.tolist() == [2, 20, 33, 0]
    assert mine.total_len.tolist() == [1, 20, 33, 0]
    assert mine.forced_len.tolist() == [2, 20, 40, 0]
    assert mine.mask_len.tolist() == [0, 0, 34, 0]
    assert mine.num_logprobs.tolist() == [0, 0, 6, 0]
    assert mine.token_ids[2, :41].tolist() == [*range(40), 0]
    assert mine.token_mask[2].tolist() == [2, 0, 0]
    assert mine.sampling[:, 2].tolist() == [0.75, 0.5, 0.25, 1.5, 0.25, -0.5]
    assert mine.edits[2, :2].tolist() == [2, 2]
    assert not mine.edits[:2].any()


def test_masks_have_a_bit_for_each_token():
    mask = mask_of([0, 31, 32, 69], VOCAB_SIZE)
    assert mask.tolist() == [1 - 2**31, 1, 32]
    assert mask_of((), VOCAB_SIZE).tolist() == [0, 0, 0]
