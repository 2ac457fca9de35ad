import pytest
import torch
import triton

from paged.kernels import sampling, sampling_tiles
from paged.kernels.floor_search import keep_ref
from paged.kernels.launch import interpreted
from paged.kernels.philox import gumbel_noise_ref, philox_ref
from paged.kernels.sampling import greedy_score, sample
from paged.kernels.sampling_ref import sample_inputs, sample_ref
from paged.kernels.sampling_tiles import Tiles, sample_workspace

# Broken logits are the point of some tests, and numpy warns of them in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
FILTERS = [
    {},
    {"temperature": 0.6},
    {"top_k": 10},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
]
LARGE_FILTERS = [
    {"top_k": 50, "top_p": 0.9},
    {"top_p": 0.95},
    {"top_k": 5000, "top_p": 0.9},
    {"top_p": 0.97, "min_p": 1e-5},
]


@pytest.fixture(params=["whole", "cut"])
def cut(request, monkeypatch):
    """Once as it is, once with blocks and candidates so few that small rows are cut as large ones:
    rows whose filters keep at most 8 chunks of 16 tokens are drawn from these, others together."""
    if request.param == "cut":

        def choose_tiles(rows, vocab_size):
            part = triton.next_power_of_2(vocab_size) // 8
            return Tiles(
                block_v=max(512, part), block_warps=1, block_registers=0, strand=16, chunk=16,
                picked=8, spread_v=max(512, 2 * part), edit_v=512,
                rows=min(triton.next_power_of_2(rows), 64) if interpreted() else 1,
            )  # fmt: skip

        monkeypatch.setattr(sampling, "choose_tiles", choose_tiles)
        monkeypatch.setattr(sampling_tiles, "choose_tiles", choose_tiles)


@triton.jit
def least_score(logit, gumbel, temperature):
    return -logit


@triton.jit
def noise_score(logit, gumbel, temperature):
    return gumbel


def rows_of(logits, device, **columns):
    """Inputs with row i of `logits` in slot i, columns given as one number or a list; all off."""
    inputs = sample_inputs(device, rows=logits.shape[0], vocab_size=logits.shape[1])
    inputs["logits"] = logits.float().contiguous().to(device)
    inputs["slots"] = torch.arange(logits.shape[0], dtype=torch.int32, device=device)
    for name, value in (OFF | columns).items():
        inputs[name][:] = torch.as_tensor(value, device=device).to(inputs[name].dtype)
    return inputs


def draw(inputs, score=None):
    sample(**(inputs | ({"score": score} if score else {})))
    return inputs["out_tokens"].tolist()


@pytest.mark.parametrize("vocab_size", [1, 15, 16, 17, 129, 2048, 20000])
def test_tokens_equal_the_reference_given_the_same_noise(vocab_size, device, dtype, cut):
    inputs = sample_inputs(device, dtype, rows=12, vocab_size=vocab_size)
    for part in inputs["workspace"]:
        part.view(torch.int32).fill_(0x7FC00000)  # NaN: nothing in it may be read unwritten
    tokens, logprobs = sample_ref(**inputs)
    assert draw(inputs) == tokens.tolist()
    torch.testing.assert_close(inputs["out_logprobs"], logprobs, rtol=1e-5, atol=1e-5)


def test_offsets_move_a_row_on_in_its_sequence(device, cut):
    inputs = sample_inputs(device, rows=12, vocab_size=2048, offset=3)
    inputs["stop_ids"][:, 2] = inputs["logits"].argmax(dim=1).flip(0)
    inputs["min_len"][:] = inputs["position"] + torch.arange(12, device=device) % 6
    tokens, _ = sample_ref(**inputs)
    assert tokens.tolist() != sample_ref(**inputs | {"offsets": None})[0].tolist()
    assert draw(inputs) == tokens.tolist()


def test_reference_noise_is_philox_and_gumbel():
    # First vector of the known answers that come with Random123.
    assert philox_ref(0, 0, 1).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    noise = gumbel_noise_ref(seed=-3, position=9, count=200_000)
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.02)
    assert noise.var().item() == pytest.approx(1.64493, abs=0.04)


def test_noise_is_the_references_for_any_seed_and_position(device):
    inputs = rows_of(torch.zeros(64, 101), device)
    inputs["seed"][:] = torch.arange(64, device=device) * (2**57 + 12345) - 2**62
    inputs["position"][:] = torch.arange(64, device=device) * 33_000_000
    keys = zip(inputs["seed"].tolist(), inputs["position"].tolist())
    expected = [int(gumbel_noise_ref(*key, 101).argmax()) for key in keys]
    assert draw(inputs, score=noise_score) == expected


@pytest.mark.parametrize("columns", FILTERS)
def test_draws_follow_the_filtered_distribution(columns, device):
    draws, vocab_size = (20_000 if columns.keys() <= {"temperature"} else 6_000), 50
    logits = 1.5 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(1))
    inputs = rows_of(logits.expand(draws, vocab_size), device, **columns)
    inputs["seed"][:] = torch.arange(draws, device=device) % 200
    inputs["position"][:] = torch.arange(draws, device=device) // 200
    counts = torch.bincount(torch.tensor(draw(inputs)), minlength=vocab_size)
    setting = OFF | columns
    kept = keep_ref(logits, **setting)
    assert not counts[~kept].any()
    expected = draws * torch.softmax((logits / setting["temperature"])[kept].double(), dim=0)
    chi_square = ((counts[kept] - expected).square() / expected).sum().item()
    freedom = int(kept.sum()) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def check_distribution(columns, draws, vocab_size, device):
    """Chi-square over random sets of tokens: a set's share of the draws is its probability."""
    logits = 2.5 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(3))
    sets = torch.randint(40, (vocab_size,), generator=torch.Generator().manual_seed(4))
    setting = OFF | columns
    probabilities = torch.softmax(logits.double() / setting["temperature"], dim=0)
    probabilities = torch.where(keep_ref(logits, **setting), probabilities, 0.0)
    expected = torch.zeros(40, dtype=torch.float64).index_add_(0, sets, probabilities)
    expected *= draws / expected.sum()
    counts = torch.zeros(40)
    for first in range(0, draws, 1000):
        inputs = rows_of(logits.expand(1000, vocab_size), device, **columns)
        inputs["seed"][:] = torch.arange(first, first + 1000, device=device)
        counts += torch.bincount(sets[torch.tensor(draw(inputs))], minlength=40)
    likely = expected > 5
    assert likely.sum() > 3
    chi_square = ((counts - expected).square() / expected)[likely].sum().item()
    freedom = int(likely.sum())
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_draws_follow_the_distribution_across_chunks(device, cut):
    check_distribution({"temperature": 0.7}, 1000, 600, device)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [32_000, 128_256, 151_936])
@pytest.mark.parametrize("columns", [{}, {"temperature": 0.7}, *LARGE_FILTERS])
def test_draws_follow_the_distribution_of_real_vocabularies(columns, vocab_size, device):
    check_distribution(columns, 4000, vocab_size, device)


def test_filters_keep_exactly_the_references_tokens(device, cut):
    # The least probable of the kept tokens names the floor.
    logits = torch.randn(60, 700, generator=torch.Generator().manual_seed(2)) * 4
    settings = [
        {"temperature": heat, "top_k": k, "top_p": p, "min_p": m}
        for heat in (0.3, 1.0, 5.0)
        for k in (0, 1, 2, 50, 699)
        for p, m in ((1.0, 0.0), (0.9, 0.0), (0.999, 0.01), (1e-6, 0.3))
    ]
    columns = {name: [setting[name] for setting in settings] for name in OFF}
    tokens = draw(rows_of(logits, device, **columns), score=least_score)
    for row, setting, token in zip(logits, settings, tokens):
        kept = keep_ref(row, **setting)
        assert token == int(row.where(kept, torch.inf).argmin()), setting


def test_equal_logits_at_a_threshold_are_all_kept(device):
    row = torch.tensor([1.0, 3.0, 0.0, 1.0, -0.0, 1.0])
    for columns, kept in (
        ({"top_k": 2}, {0, 1, 3, 5}),
        ({"top_k": 5}, {0, 1, 2, 3, 4, 5}),
        ({"top_p": 0.75}, {0, 1, 3, 5}),
        ({"top_k": 2, "top_p": 0.7}, {1}),
        ({"min_p": 1.0}, {1}),
    ):
        inputs = rows_of(row.expand(400, 6), device, temperature=3.0, **columns)
        inputs["seed"][:] = torch.arange(400, device=device)
        if columns.get("top_k") == 2 and "top_p" in columns:
            inputs["temperature"][:] = 0.5
        assert set(draw(inputs)) == kept, columns


def test_equal_logits_across_chunks_are_all_kept(device, cut):
    # More chunks share the largest logit than can be candidates; and the k-th largest is shared.
    row = torch.zeros(600)
    row[5:600:16] = 4.0
    inputs = rows_of(row.expand(300, 600), device, temperature=9.0, top_k=[3] * 150 + [40] * 150)
    inputs["seed"][:] = torch.arange(300, device=device)
    tokens = draw(inputs)
    assert {token % 16 for token in tokens[:150]} == {5}
    assert len(set(tokens[:150])) > 30
    assert len({token % 16 for token in tokens[150:]}) == 16


def test_greedy_takes_the_lowest_id_on_a_tie_and_ignores_filters(device):
    logits = torch.zeros(3, 129)
    logits[1, [77, 128]] = 2.0
    logits[2, 5] = -1.0
    inputs = rows_of(logits, device, temperature=0.0, top_k=3, top_p=0.1, min_p=0.9)
    assert draw(inputs) == [0, 77, 0]
    inputs["temperature"][:] = 1.0
    assert draw(inputs, score=greedy_score) == [0, 77, 0]


def test_extreme_logits_and_settings(device, cut):
    logits = torch.full((4, 40), -3e38)
    logits[:, 30:] = torch.linspace(-60.0, 60.0, 10)
    logits[:, :5] = float("-inf")
    inputs = rows_of(logits, device, temperature=[2e-5, 1.0, 1e6, 1.0], top_p=[1.0, 1e-9, 1.0, 1.0])
    inputs["top_k"][2] = 1
    inputs["min_p"][3] = 1.0
    assert draw(inputs) == [39] * 4
    assert inputs["out_logprobs"].abs().max() < 1e-4


@pytest.mark.parametrize("columns", [{"temperature": 0.0}, *FILTERS])
def test_broken_rows_draw_minus_one_and_leave_others_alone(columns, device):
    logits = torch.randn(6, 17, generator=torch.Generator().manual_seed(3))
    whole = draw(rows_of(logits, device, **columns))
    logits[1, 16] = float("nan")
    logits[2] = float("-inf")
    logits[3] = float("inf")
    logits[4, 0] = float("inf")
    inputs = rows_of(logits, device, **columns)
    assert draw(inputs) == [whole[0], -1, -1, -1, -1, whole[5]]
    assert inputs["out_logprobs"][1:5].tolist() == [0.0] * 4


@pytest.mark.parametrize("columns", [{"temperature": 0.0}, {}, {"top_k": 2}, {"top_p": 0.9}])
def test_stop_ids_are_masked_until_min_len(columns, device):
    logits = torch.zeros(4, 20)
    logits[:, 3], logits[:, 7], logits[:, 11] = 50.0, 90.0, 10.0
    inputs = rows_of(logits, device, position=9, min_len=[0, 9, 10, 100], **columns)
    inputs["stop_ids"][:, 0], inputs["stop_ids"][:, 7] = 7, 3
    assert draw(inputs) == [7, 7, 11, 11]
    # The reported probability is of the raw distribution, stop ids included.
    assert inputs["out_logprobs"].tolist() == pytest.approx([0, 0, -80, -80], abs=1e-4)


def test_a_row_with_nothing_but_stop_ids_draws_minus_one(device):
    inputs = rows_of(torch.zeros(1, 1), device, position=1, min_len=5)
    inputs["stop_ids"][0, 0] = 0
    assert draw(inputs) == [-1]


@pytest.mark.parametrize("num_rows", [0, 1, 4])
def test_rows_past_num_rows_stay_untouched(num_rows, device):
    inputs = sample_inputs(device, rows=6, vocab_size=33)
    inputs["num_rows"][:] = num_rows
    inputs["slots"][num_rows:] = 2**30  # a stale slot must not be followed
    inputs["logits"][num_rows:] = float("nan")
    tokens = draw(inputs)
    assert all(token >= 0 for token in tokens[:num_rows])
    assert tokens[num_rows:] == [-7] * (6 - num_rows)
    assert inputs["out_logprobs"][num_rows:].isnan().all()


def test_a_draw_depends_on_its_slot_alone(device, cut):
    inputs = sample_inputs(device, rows=12, vocab_size=400)
    tokens = draw(inputs)
    logprobs = inputs["out_logprobs"].clone()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4)).to(device)[:7]
    some = inputs | {name: inputs[name][order] for name in ("logits", "slots", "out_tokens")}
    some |= {"out_logprobs": logprobs[order] * 0, "num_rows": inputs["num_rows"] * 0 + 7}
    assert draw(some) == [tokens[row] for row in order.tolist()]
    assert torch.equal(some["out_logprobs"], logprobs[order])


def test_bits_do_not_depend_on_how_many_programs_share_the_work(device, monkeypatch, cut):
    inputs = sample_inputs(device, rows=12, vocab_size=1500)
    inputs["top_p"][inputs["top_p"] == 0.8] = 0.99
    draws = []
    for processors in (1, 132):
        monkeypatch.setattr(sampling, "multiprocessors", lambda device, n=processors: n)
        inputs["out_logprobs"].fill_(float("nan"))
        draws.append((draw(inputs), inputs["out_logprobs"].clone()))
    assert draws[0][0] == draws[1][0]
    assert torch.equal(draws[0][1], draws[1][1])


def test_wrong_arguments_are_named(device):
    inputs = sample_inputs(device)
    with pytest.raises(ValueError, match=r"stop_ids must have shape \[6, 8\]"):
        sample(**inputs | {"stop_ids": inputs["stop_ids"][:, :4]})
    with pytest.raises(ValueError, match="top_k must be int32, got int64"):
        sample(**inputs | {"top_k": inputs["top_k"].long()})
    with pytest.raises(ValueError, match=r"workspace must be for 6 rows or more, got 5"):
        sample(**inputs | {"workspace": sample_workspace(5, 300, device)})
    with pytest.raises(ValueError, match=r"workspace\.partials must have shape"):
        sample(**inputs | {"workspace": sample_workspace(6, 70_000, device)})
