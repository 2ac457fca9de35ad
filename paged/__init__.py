"""paged: an LLM inference engine for researchers, in pure Triton.

Importing the package decides once where kernels run. Triton reads TRITON_INTERPRET when a kernel
is decorated, so the choice has to be made before any module that holds kernels is imported.
"""

import os
import sys
import time

# Interpreted kernels multiply small matrices: BLAS threads cost far more than they give there.
# NumPy reads this when it is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

IMPORTED_AT = time.perf_counter()  # start-up counts from here: torch comes next

import torch  # noqa: E402

__version__ = "0.1.0"

if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available():
    if "triton" in sys.modules:
        raise ImportError(
            "triton was imported before paged on a machine without a GPU, so its functions are "
            "bound to the compiler; import paged first or set TRITON_INTERPRET=1"
        )
    os.environ["TRITON_INTERPRET"] = "1"

if os.environ.get("TRITON_INTERPRET") == "1":
    from paged.kernels.interpreter import speed_up

    speed_up()
