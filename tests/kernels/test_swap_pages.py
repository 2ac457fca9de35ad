import pytest
import torch

from paged.kernels.swap_pages import swap_pages, swap_pages_inputs, swap_pages_ref


@pytest.mark.parametrize(("num_out", "num_in"), [(0, 0), (1, 0), (0, 1), (4, 3)])
@pytest.mark.parametrize(("num_planes", "page_elements"), [(1, 1), (2, 63), (3, 5000)])
def test_equals_reference_to_the_bit(device, dtype, num_planes, page_elements, num_out, num_in):
    shape = {"num_planes": num_planes, "page_elements": page_elements}
    inputs = swap_pages_inputs(device, dtype, num_out=num_out, num_in=num_in, **shape)
    inputs["pages"][0, 0] = inputs["host_pages"][0, 0] = float("nan")
    expected = swap_pages_ref(**inputs)
    swap_pages(**inputs)
    for mine, want in zip((inputs["pages"].cpu(), inputs["host_pages"]), expected):
        assert torch.equal(mine.isnan(), want.cpu().isnan())
        assert torch.equal(mine.nan_to_num(), want.cpu().nan_to_num())


def test_out_and_in_again_is_nothing(device):
    inputs = swap_pages_inputs(device, num_out=3, num_in=0)
    before = inputs["pages"].clone()
    swap_pages(**inputs)
    gone = inputs["out_source"][:3].long()
    inputs["pages"][:, gone] = float("nan")
    back = {"in_source": inputs["out_target"], "in_target": inputs["out_source"]}
    nothing, three = inputs["num_in"], inputs["num_out"]
    swap_pages(**inputs | back | {"num_out": nothing, "num_in": three})
    assert torch.equal(inputs["pages"], before)


def test_host_pages_of_another_dtype_are_refused(device):
    inputs = swap_pages_inputs(device)
    with pytest.raises(ValueError, match="host_pages must be float32"):
        swap_pages(**inputs | {"host_pages": inputs["host_pages"].double()})
