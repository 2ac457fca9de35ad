"""paged: an LLM inference engine for researchers, in pure Triton.

Importing the package decides once where kernels run. Triton reads TRITON_INTERPRET when a kernel
is decorated, so the choice has to be made before any module that holds kernels is imported.
"""

import os
import sys

import torch

__version__ = "0.1.0"

if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available():
    if "triton" in sys.modules:
        raise ImportError(
            "triton was imported before paged on a machine without a GPU, so its functions are "
            "bound to the compiler; import paged first or set TRITON_INTERPRET=1"
        )
    os.environ["TRITON_INTERPRET"] = "1"
