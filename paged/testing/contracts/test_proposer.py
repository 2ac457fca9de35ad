"""Any proposer: stays within its places, and changes no answer."""

import torch

from paged.interfaces import Proposer
from paged.state import RequestTable, Sizes, StepPlan
from paged.testing.engines import VOCAB_SIZE, answer_all, oracle_engine, ragged_prompts

BUILT_IN = ["paged.proposers.ngram.NgramProposer", "paged.proposers.none.NoProposer"]
UNTOUCHED = -77


def test_proposals_are_tokens_in_their_places(device, proposer_component):
    proposer: Proposer = proposer_component()
    most = proposer.num_draft_tokens
    sizes = Sizes(
        num_slots=8, max_num_seqs=6, max_num_batched_tokens=16, max_model_len=64, page_size=16,
        num_pages=8, num_draft_tokens=most,
    )  # fmt: skip
    requests, plan = RequestTable(sizes, device), StepPlan(sizes, device)
    generator = torch.Generator().manual_seed(0)
    requests.token_ids.copy_(torch.randint(4, requests.token_ids.shape, generator=generator))
    requests.total_len.copy_(torch.tensor([1, 2, 3, 17, 40, 63, 64, 30]))
    plan.seq_slots.copy_(torch.tensor([7, 0, 5, 6, 3, 1]))
    plan.slot_sample.copy_(torch.tensor([0, 1, -1, 2, -1, 3, -1, -1]))
    plan.num_seqs.fill_(5)
    plan.num_drafts.fill_(UNTOUCHED)
    plan.draft_tokens.fill_(UNTOUCHED)
    proposer.propose(requests, plan)
    if most == 0:
        return
    assert plan.num_drafts[5] == UNTOUCHED
    for seq, count in enumerate(plan.num_drafts[:5].tolist()):
        assert 0 <= count <= most
        drafts = plan.draft_tokens[seq, :count].tolist()
        assert all(0 <= token < VOCAB_SIZE for token in drafts)


def test_answers_are_those_of_plain_decoding(device, proposer_component):
    engine = oracle_engine(device, proposer=proposer_component())
    answer_all(engine, ragged_prompts(5), num_tokens=12)
