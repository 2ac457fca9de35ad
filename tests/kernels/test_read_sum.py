"""The kernel that measures bandwidth must have read everything."""

import pytest
import torch

from paged.kernels.read_sum import BLOCK, read_sum, read_sum_inputs, read_sum_ref
from paged.testing.tolerances import assert_close


@pytest.mark.parametrize("numel", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 17, 9 * BLOCK])
@pytest.mark.parametrize("programs", [1, 3, 5])
def test_the_parts_are_the_sums_of_their_blocks(device, numel, programs):
    inputs = read_sum_inputs(device, numel=numel, programs=programs)
    read_sum(**inputs)
    assert_close(inputs["out"], read_sum_ref(**inputs))


def test_what_does_not_fit_is_refused(device):
    huge = torch.zeros(1, device=device).expand(2**31)
    with pytest.raises(ValueError, match="contiguous"):
        read_sum(huge, torch.zeros(1, device=device))
    with pytest.raises(ValueError, match="float32"):
        read_sum(torch.zeros(4, dtype=torch.float16, device=device), torch.zeros(1, device=device))
