import pytest
import torch

from paged.kernels.copy_pages import copy_pages, copy_pages_inputs, copy_pages_ref


@pytest.mark.parametrize("num_copies", [0, 1, 4])
@pytest.mark.parametrize(("num_planes", "page_elements"), [(1, 1), (2, 63), (3, 5000)])
def test_equals_reference_to_the_bit(device, dtype, num_planes, page_elements, num_copies):
    shape = {"num_planes": num_planes, "page_elements": page_elements, "num_copies": num_copies}
    inputs = copy_pages_inputs(device, dtype, **shape)
    inputs["pages"][0, 0] = float("nan")
    expected = copy_pages_ref(**inputs)
    copy_pages(**inputs)
    assert torch.equal(inputs["pages"].isnan(), expected.isnan())
    assert torch.equal(inputs["pages"].nan_to_num(), expected.nan_to_num())


def test_one_page_goes_to_many(device):
    inputs = copy_pages_inputs(device, num_copies=5)
    inputs["source"][:5] = inputs["source"][0].item()
    before = inputs["pages"].clone()
    copy_pages(**inputs)
    for target in inputs["target"][:5].tolist():
        assert torch.equal(inputs["pages"][:, target], before[:, inputs["source"][0].item()])


def test_pages_that_are_not_contiguous_are_refused(device):
    inputs = copy_pages_inputs(device)
    with pytest.raises(ValueError, match="contiguous"):
        copy_pages(**inputs | {"pages": inputs["pages"].transpose(0, 1)})
