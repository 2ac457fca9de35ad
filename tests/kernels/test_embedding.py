import pytest
import torch

from paged.kernels.embedding import embedding, embedding_inputs, embedding_ref
from paged.testing.tolerances import assert_close


@pytest.mark.parametrize("learned_positions", [False, True])
@pytest.mark.parametrize(("num_tokens", "hidden_size"), [(1, 1), (15, 16), (17, 129), (129, 63)])
def test_equals_reference(num_tokens, hidden_size, learned_positions, device, dtype):
    shape = {"num_tokens": num_tokens, "capacity": num_tokens + 3, "hidden_size": hidden_size}
    inputs = embedding_inputs(device, dtype, **shape, learned_positions=learned_positions)
    embedding(**inputs)
    assert_close(inputs["out"][:num_tokens], embedding_ref(**inputs))


def test_plain_lookup_copies_rows_exactly(device, dtype):
    inputs = embedding_inputs(device, dtype) | {"scale": 1.0}
    embedding(**inputs)
    assert torch.equal(inputs["out"][:17], inputs["weight"][inputs["ids"][:17].long()])


@pytest.mark.parametrize("num_tokens", [0, 1, 16, 70])
def test_rows_past_num_tokens_stay_untouched(num_tokens, device, dtype):
    shape = {"num_tokens": num_tokens, "capacity": 70}
    inputs = embedding_inputs(device, dtype, **shape, learned_positions=True)
    embedding(**inputs)
    assert inputs["out"][:num_tokens].isfinite().all()
    assert inputs["out"][num_tokens:].isnan().all()


def test_ids_and_positions_outside_their_tables_read_as_zero(device, dtype):
    inputs = embedding_inputs(device, dtype, learned_positions=True)
    inputs["ids"][:3] = torch.tensor([-1, 301, 2**31 - 1], dtype=torch.int32)
    inputs["positions"][:3] = torch.tensor([-3, 20, 2**31 - 1], dtype=torch.int32)
    embedding(**inputs)
    assert (inputs["out"][:3] == 0).all()
    assert inputs["out"][3:17].isfinite().all()


def test_empty_capacity_is_allowed(device, dtype):
    embedding(**embedding_inputs(device, dtype, num_tokens=0, capacity=0))


def test_positions_without_their_table_are_refused(device, dtype):
    inputs = embedding_inputs(device, dtype, learned_positions=True) | {"position_weight": None}
    with pytest.raises(ValueError, match="must be given together"):
        embedding(**inputs)
