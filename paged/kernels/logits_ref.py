"""The reference of logits.py in plain torch, and the inputs that its tests share."""

import torch

from paged.kernels.control.columns import (
    LOGIT_EDITS,
    NUM_COLUMNS,
    NUM_LOGPROBS,
    PROMPT_LEN,
    TOTAL_LEN,
)  # fmt: skip
from paged.kernels.logit_edits import (
    BAD_WORD_TOKENS,
    BAD_WORDS,
    BIAS,
    BIAS_IDS,
    EDIT_BAD_WORDS,
    EDIT_BIAS,
    EDIT_MASK,
    EDIT_PENALTIES,
    MAX_LOGPROBS,
    WORDS,
    mask_words,
)  # fmt: skip
from paged.kernels.logits import FREQUENCY, PRESENCE, REPETITION, logits_workspace


def edit_logits_ref(
    logits, slots, num_rows, columns, sampling, token_ids, edits, token_mask,
    workspace=None, keep_all=False,
) -> torch.Tensor:  # fmt: skip
    """The changed logits [B, V], row by row; what is given is left alone."""
    changed = logits.clone()
    for row in range(int(num_rows)):
        slot = int(slots[row])
        asked, logit = int(columns[LOGIT_EDITS.value, slot]), changed[row]
        prompt_len = int(columns[PROMPT_LEN.value, slot])
        tokens = token_ids[slot, : int(columns[TOTAL_LEN.value, slot])].tolist()
        output = tokens[prompt_len:]
        words = edits[slot].cpu()
        if asked & EDIT_BIAS.value:
            count = int(words[0])
            ids = words[BIAS_IDS.value :][:count].tolist()
            for token, bias in zip(ids, words[BIAS.value :][:count].view(torch.float32)):
                logit[token] += bias
        if asked & EDIT_PENALTIES.value:
            repetition = sampling[REPETITION.value, slot]
            for token in set(tokens):
                logit[token] *= 1 / repetition if logit[token] > 0 else repetition
            for token in set(output):
                logit[token] -= sampling[FREQUENCY.value, slot] * output.count(token)
                logit[token] -= sampling[PRESENCE.value, slot]
        if asked & EDIT_MASK.value:
            for token in range(logit.shape[0]):
                if not (int(token_mask[slot, token // 32]) >> (token % 32)) & 1:
                    logit[token] = float("-inf")
        if asked & EDIT_BAD_WORDS.value:
            table = words[BAD_WORDS.value :].view(-1, BAD_WORD_TOKENS.value)
            for line in table[: int(words[1])].tolist():
                *begin, last = [token for token in line if token >= 0]
                if len(output) >= len(begin) and output[len(output) - len(begin) :] == begin:
                    logit[last] = float("-inf")
    return changed


def edit_logits_inputs(
    device="cpu", dtype=torch.float32, rows=8, vocab_size=300, max_len=200, keep_all=False
):
    """Rows that ask for nothing, for each edit alone, for all of them, and for log-probabilities.

    Token ids come from a few, so that they repeat; bad words are the tails of outputs.
    """
    generator = torch.Generator().manual_seed(vocab_size)

    def rand(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    logits = (3 * torch.randn(rows, vocab_size, generator=generator)).to(dtype).float()
    columns = torch.zeros(NUM_COLUMNS, rows, dtype=torch.int32)
    everything = 15
    asked = torch.tensor([0, 1, 2, 4, 8, everything, 0, everything])[torch.arange(rows) % 8]
    columns[LOGIT_EDITS.value] = asked
    columns[NUM_LOGPROBS.value] = torch.tensor([0, 0, 0, 0, 0, 0, 5, 20])[torch.arange(rows) % 8]
    columns[PROMPT_LEN.value] = rand(1, max_len // 2, rows)
    columns[TOTAL_LEN.value] = columns[PROMPT_LEN.value] + rand(0, max_len // 2, rows)
    sampling = torch.ones(6, rows)
    sampling[3:] = torch.rand(3, rows, generator=generator) * 2 - 0.5
    sampling[REPETITION.value] += 0.7
    token_ids = rand(0, min(vocab_size, 40), rows, max_len) * max(1, vocab_size // 40) % vocab_size
    edits = torch.full((rows, WORDS), -1, dtype=torch.int32)
    for slot in range(rows):
        total, count = int(columns[TOTAL_LEN.value, slot]), min(vocab_size, 3 + 20 * slot)
        edits[slot, 0], edits[slot, 1] = count, 4
        ids = torch.randperm(vocab_size, generator=generator)[:count].int()
        edits[slot, BIAS_IDS.value :][:count] = ids
        bias = 4 * torch.randn(count, generator=generator)
        edits[slot, BIAS.value :][:count] = bias.view(torch.int32)
        table = edits[slot, BAD_WORDS.value :].view(-1, BAD_WORD_TOKENS.value)
        table[0, -1] = 0
        for line, length in enumerate((1, 2, BAD_WORD_TOKENS.value - 1), start=1):
            begin = token_ids[slot, max(0, total - length) : total]
            table[line, -1] = line % vocab_size
            table[line, -1 - len(begin) : -1] = begin
    mask = rand(-(2**31), 2**31 - 1, rows, mask_words(vocab_size))
    assert int(columns[NUM_LOGPROBS.value].max()) <= MAX_LOGPROBS.value
    return {
        "logits": logits.to(device),
        "slots": torch.arange(rows, dtype=torch.int32, device=device).flip(0),
        "num_rows": torch.tensor([rows], dtype=torch.int32, device=device),
        "columns": columns.to(device),
        "sampling": sampling.to(device),
        "token_ids": token_ids.to(device),
        "edits": edits.to(device),
        "token_mask": mask.to(device),
        "workspace": logits_workspace(rows, vocab_size, device),
        "keep_all": keep_all,
    }


EDIT_LOGITS_VARIANTS = ({"vocab_size": 5000}, {"keep_all": True})
