"""Changes of the logits, and the report after the draw, against plain torch."""

import pytest
import torch

from paged.kernels import logits as logits_kernels
from paged.kernels import report_draws as report_kernels
from paged.kernels.control.columns import LOGIT_EDITS, NUM_LOGPROBS, STEP
from paged.kernels.logits import edit_logits
from paged.kernels.logits_ref import edit_logits_inputs, edit_logits_ref
from paged.kernels.report_draws import report_draws
from paged.kernels.report_draws_ref import report_draws_inputs, report_draws_ref
from paged.kernels.sampling_tiles import choose_tiles

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
VOCABULARIES = [1, 15, 17, 129, 2048]


@pytest.fixture(params=["whole", "cut"])
def cut(request, monkeypatch):
    """Once as it is, once with blocks so small that small rows have several."""
    if request.param == "cut":

        def small(rows, vocab_size):
            return choose_tiles(rows, vocab_size)._replace(edit_v=64)

        monkeypatch.setattr(logits_kernels, "choose_tiles", small)
        monkeypatch.setattr(report_kernels, "choose_tiles", small)


def poison(workspace):
    for part in workspace:
        part.fill_(float("nan"))


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_logits_are_changed_as_the_reference_changes_them(vocab_size, device, cut):
    inputs = edit_logits_inputs(device, vocab_size=vocab_size, max_len=120)
    poison(inputs["workspace"])
    expected = edit_logits_ref(**inputs)
    raw = inputs["logits"].clone()
    edit_logits(**inputs)
    torch.testing.assert_close(inputs["logits"], expected, rtol=1e-6, atol=1e-6)
    slots = inputs["slots"].long()
    changed = (inputs["columns"][LOGIT_EDITS.value][slots] & 15) > 0
    assert torch.equal(inputs["workspace"].raw[changed], raw[changed])
    assert torch.equal(inputs["logits"][~changed], raw[~changed])
    if vocab_size > 100:
        assert (expected[changed] != raw[changed]).any(dim=1).all()


def test_rows_past_the_live_ones_are_left_alone(device):
    inputs = edit_logits_inputs(device, rows=8)
    inputs["num_rows"][:] = 3
    raw = inputs["logits"].clone()
    edit_logits(**inputs)
    assert torch.equal(inputs["logits"][3:], raw[3:])
    assert not torch.equal(inputs["logits"][:3], raw[:3])
    edit_logits(**inputs | {"logits": raw[:0], "slots": inputs["slots"][:0]})


def test_a_row_does_not_depend_on_the_batch(device):
    together, alone = edit_logits_inputs(device, rows=8), edit_logits_inputs(device, rows=8)
    edit_logits(**together)
    for row in range(8):
        one = alone | {name: alone[name][row : row + 1].clone() for name in ("logits", "slots")}
        one["num_rows"] = torch.ones_like(alone["num_rows"])
        edit_logits(**one)
        assert torch.equal(one["logits"][0], together["logits"][row])


def words_of(report, num_top):
    """The pairs of one report, and whether every word has the tag."""
    words = report[: 2 * (1 + num_top)].cpu()
    tags = (words >> 48) & 0xFFFF
    floats = words[1::2].to(torch.int32).view(torch.float32)
    return [(int(w) & 0xFFFFFF, float(f)) for w, f in zip(words[::2], floats)], set(tags.tolist())


@pytest.mark.parametrize("vocab_size", [31, 129, 2048])
def test_draws_are_reported_of_the_raw_logits(vocab_size, device, cut):
    inputs = report_draws_inputs(device, vocab_size=vocab_size)
    columns, names = inputs["columns"], ("logits", "slots", "num_rows", "columns", "token_ids")
    # Equal logits: the lowest ids come first.
    inputs["logits"][:, 5:30] = inputs["logits"][:, 5:6]
    columns[NUM_LOGPROBS.value] = torch.tensor([0, 20, 1, 0, 3, 20, 5, 20], device=device)
    tokens, logprobs, pairs = report_draws_ref(**inputs)
    changes = edit_logits_inputs(device, vocab_size=vocab_size)
    changes |= {name: inputs[name] for name in (*names, "workspace")}
    poison(inputs["workspace"])
    edit_logits(**changes)
    report_draws(**inputs)
    assert inputs["tokens"].tolist() == tokens.tolist()
    settled = (columns[LOGIT_EDITS.value] > 0)[inputs["slots"].long()]
    torch.testing.assert_close(inputs["logprobs"][settled], logprobs[settled])
    step = int(inputs["counters"][STEP.value])
    entry = inputs["reports"][step % 4]
    assert len(pairs) == 6
    for slot, expected in pairs.items():
        found, tags = words_of(entry[slot], len(expected) - 1)
        assert tags == {(step + 1) & 0xFFFF}
        assert [place for place, _ in found] == [place for place, _ in expected]
        for (_, logprob), (_, known) in zip(found, expected):
            assert logprob == pytest.approx(known, rel=1e-5, abs=1e-5)
    silent = [slot for slot in range(8) if slot not in pairs]
    assert not entry[silent].any()


def test_broken_logits_draw_nothing(device):
    inputs = report_draws_inputs(device)
    inputs["columns"][LOGIT_EDITS.value] = 8
    for row, value in enumerate((float("nan"), float("inf"), 0.0)):
        inputs["logits"][row, 200] = value
    inputs["logits"][2, inputs["tokens"][2]] = float("-inf")
    changes = edit_logits_inputs(device)
    changes |= {name: inputs[name] for name in ("logits", "columns", "workspace")}
    edit_logits(**changes)
    report_draws(**inputs)
    assert inputs["tokens"][:3].tolist() == [-1, -1, -1]
    assert inputs["logprobs"][:3].tolist() == [0, 0, 0]
    assert (inputs["tokens"][3:] >= 0).all()


def test_penalties_are_those_of_transformers(device):
    from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

    inputs = edit_logits_inputs(device, rows=3)
    inputs["columns"][LOGIT_EDITS.value] = torch.tensor([1, 2, 1], device=device)
    inputs["sampling"][4:] = 0
    raw = inputs["logits"].clone()
    edit_logits(**inputs)
    for row, slot in enumerate(inputs["slots"].tolist()):
        ids = inputs["token_ids"][slot, : int(inputs["columns"][7, slot])][None].long()
        if slot == 1:
            count = int(inputs["edits"][1, 0])
            entries = inputs["edits"][1, 16:][:count].tolist()
            values = inputs["edits"][1, 528:][:count].view(torch.float32).tolist()
            bias = [[[token], value] for token, value in zip(entries, values)]
            processor = SequenceBiasLogitsProcessor(bias)
        else:
            processor = RepetitionPenaltyLogitsProcessor(float(inputs["sampling"][3, slot]))
        expected = processor(ids, raw[row : row + 1].clone())[0]
        torch.testing.assert_close(inputs["logits"][row], expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("edits", torch.zeros(8, 7, dtype=torch.int32), r"edits must have shape \[8, 3088\]"),
        ("token_mask", torch.zeros(8, 3, dtype=torch.int32), "token_mask must have shape"),
        ("logits", torch.zeros(8, 300).double(), "logits must be float32"),
    ],
)
def test_wrong_inputs_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        edit_logits(**edit_logits_inputs() | {name: value})
