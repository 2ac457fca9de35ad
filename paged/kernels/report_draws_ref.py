"""The reference of report_draws.py in plain torch, and the inputs that its tests share."""

import torch

from paged.kernels.control.columns import FORCED_LEN, LOGIT_EDITS, NUM_LOGPROBS, TOTAL_LEN
from paged.kernels.logit_edits import EDIT_FORCED, REPORT_WORDS
from paged.kernels.logits_ref import edit_logits_inputs


def report_draws_ref(
    logits, slots, num_rows, columns, counters, token_ids, tokens, logprobs, workspace=None,
    reports=None, keep_all=False,
) -> tuple[torch.Tensor, torch.Tensor, dict[int, list[tuple[int, float]]]]:  # fmt: skip
    """(tokens, logprobs, {slot: pairs}) with `logits` the raw ones, row by row."""
    tokens, logprobs, pairs = tokens.clone(), logprobs.clone(), {}
    for row in range(int(num_rows)):
        slot, raw = int(slots[row]), logits[row].double()
        asked = int(columns[LOGIT_EDITS.value, slot])
        num_top = int(columns[NUM_LOGPROBS.value, slot])
        if not (asked or num_top or keep_all):
            continue
        total = int(columns[TOTAL_LEN.value, slot])
        if asked & EDIT_FORCED.value and total < int(columns[FORCED_LEN.value, slot]):
            tokens[row] = token_ids[slot, total]
        token = int(tokens[row])
        if token < 0 or not raw.logsumexp(0).isfinite() or raw[token] == float("-inf"):
            tokens[row], logprobs[row] = -1, 0
            continue
        known = raw.log_softmax(0)
        logprobs[row] = known[token]
        if num_top:
            order = raw.sort(descending=True, stable=True).indices[:num_top].tolist()
            rank = int((raw >= raw[token]).sum())
            pairs[slot] = [(rank, float(known[token])), *((i, float(known[i])) for i in order)]
    return tokens, logprobs, pairs


def report_draws_inputs(device="cpu", dtype=torch.float32, rows=8, vocab_size=300, keep_all=False):
    """Rows that ask for nothing, force a token, are changed, report, or do all of it."""
    given = edit_logits_inputs(device, dtype, rows, vocab_size)
    columns = given["columns"]
    kinds = torch.arange(rows, device=device)
    columns[LOGIT_EDITS.value] += EDIT_FORCED.value * (kinds % 3 == 1)
    columns[FORCED_LEN.value] = columns[TOTAL_LEN.value] + kinds % 2
    names = ("logits", "slots", "num_rows", "columns", "token_ids", "workspace")
    return {name: given[name] for name in names} | {
        "counters": torch.arange(7, device=device) + 65531,
        "tokens": (kinds * 31 % vocab_size).int(),
        "logprobs": torch.full((rows,), -0.5, device=device),
        "reports": torch.zeros(4, rows, REPORT_WORDS, dtype=torch.int64, device=device),
        "keep_all": keep_all,
    }


REPORT_DRAWS_VARIANTS = ({"vocab_size": 5000}, {"keep_all": True})
