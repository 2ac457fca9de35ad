"""The reference of ingest.py: a command at a time, in plain torch."""

import torch

from paged.kernels.control.columns import (
    FINISHED,
    FORKING,
    NOW_MS,
    REASON_ABORT,
    RUNNING,
    STEP,
    WAITING,
)  # fmt: skip
from paged.kernels.control.hashing import mix_ref
from paged.kernels.control.ingest import (
    ABORT,
    KIND,
    MASK,
    NUM_FLOATS,
    PROMPT_AT,
    SLOT,
    W_ARRIVAL,
    W_ARRIVAL_MS,
    W_BEAM_INDEX,
    W_BEAM_WIDTH,
    W_CLIENT,
    W_DEADLINE_MS,
    W_EARLY_STOPPING,
    W_LENGTH_PENALTY,
    W_LOGIT_EDITS,
    W_MASK_LEN,
    W_MAX_LEN,
    W_MIN_LEN,
    W_NUM_FORCED,
    W_NUM_FORKS,
    W_NUM_LOGPROBS,
    W_PARENT,
    W_PARENT_ARRIVAL,
    W_PREDICTED_LEN,
    W_PRIORITY,
    W_PROMPT_LEN,
    W_SEED,
    W_STOP_IDS,
    W_TEMPERATURE,
    W_TOP_K,
    W_TOTAL_LEN,
    WORST_SCORE,
    Commands,
)  # fmt: skip
from paged.kernels.logit_edits import EDIT_BAD_WORDS, EDIT_BIAS, EDIT_MASK


def ingest_ref(requests, pool, commands: Commands, num_commands: int) -> None:
    """What `ingest` does."""
    del num_commands
    entry = int(pool.counters[STEP.value]) % commands.words.shape[0]
    count, now_ms = commands.headers[entry].tolist()
    pool.counters[NOW_MS.value] = now_ms
    page_size = requests.sizes.page_size
    for word in commands.words[entry, :count]:
        slot = int(word[SLOT.value])
        if int(word[KIND.value]) == ABORT.value:
            if int(requests.status[slot]) in (WAITING.value, RUNNING.value, FORKING.value):
                requests.status[slot] = FINISHED.value
                requests.finish_reason[slot] = REASON_ABORT.value
            continue
        asked = int(word[W_LOGIT_EDITS.value])
        if asked & EDIT_MASK.value:
            requests.token_mask[slot] = commands.masks[slot]
        if int(word[KIND.value]) == MASK.value:
            requests.mask_len[slot] = word[W_MASK_LEN.value]
            continue
        if asked & (EDIT_BIAS.value | EDIT_BAD_WORDS.value):
            requests.edits[slot] = commands.edits[slot]
        length = int(word[W_PROMPT_LEN.value])
        requests.columns[:, slot] = 0
        requests.status[slot] = WAITING.value
        requests.arrival[slot] = word[W_ARRIVAL.value]
        requests.arrival_ms[slot] = word[W_ARRIVAL_MS.value]
        requests.priority[slot] = word[W_PRIORITY.value]
        requests.client[slot] = word[W_CLIENT.value]
        requests.prompt_len[slot] = length
        requests.total_len[slot] = word[W_TOTAL_LEN.value]
        requests.num_hashed[slot] = length // page_size
        requests.max_len[slot] = word[W_MAX_LEN.value]
        requests.min_len[slot] = word[W_MIN_LEN.value]
        requests.predicted_len[slot] = word[W_PREDICTED_LEN.value]
        requests.deadline_ms[slot] = word[W_DEADLINE_MS.value]
        requests.top_k[slot] = word[W_TOP_K.value]
        requests.parent[slot] = word[W_PARENT.value]
        requests.parent_arrival[slot] = word[W_PARENT_ARRIVAL.value]
        requests.num_forks[slot] = word[W_NUM_FORKS.value]
        width, index = int(word[W_BEAM_WIDTH.value]), int(word[W_BEAM_INDEX.value])
        if width:
            requests.beam_width[slot], requests.beam_index[slot] = width, index
            requests.early_stopping[slot] = word[W_EARLY_STOPPING.value]
            bits = word[W_LENGTH_PENALTY.value].to(torch.int32)
            requests.length_penalty[slot] = bits.view(torch.float32)
            requests.beam_score[slot] = WORST_SCORE.value if index else 0.0
            first = int(word[W_PARENT.value]) - 1 if word[W_PARENT.value] > 0 else slot
            requests.beam_slots[first, index] = slot
            requests.beam_finished[slot] = WORST_SCORE.value
        requests.seed[slot] = word[W_SEED.value]
        requests.logit_edits[slot] = asked
        known = length + int(word[W_NUM_FORCED.value])
        requests.forced_len[slot] = known
        requests.mask_len[slot] = word[W_MASK_LEN.value]
        requests.num_logprobs[slot] = word[W_NUM_LOGPROBS.value]
        bits = word[W_TEMPERATURE.value :][: NUM_FLOATS.value].to(torch.int32)
        requests.sampling[:, slot] = bits.view(torch.float32).to(requests.sampling.device)
        requests.stop_ids[slot] = word[W_STOP_IDS.value :].to(torch.int32)
        position = torch.arange(known)
        ring = commands.prompts.shape[0]
        tokens = commands.prompts[(int(word[PROMPT_AT.value]) + position) % ring]
        requests.token_ids[slot, :known] = tokens
        prefix = mix_ref(tokens, position).cumsum(0)
        full = length // page_size
        requests.page_hash[slot, :full] = prefix[page_size - 1 :: page_size][:full]
