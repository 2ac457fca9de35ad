"""Times the change of logits and the report after the draw, after a check of both.

    python experiments/kernels/logits/bench.py

The floor reads the logits of the changed rows once and writes them twice (in place, and the raw
copy) at the bandwidth measured on an H200. Times are medians of replays of a graph whose launches
rotate through more logits than L2 holds.
"""

import torch

from paged.kernels.control.columns import LOGIT_EDITS, NUM_LOGPROBS, PROMPT_LEN, TOTAL_LEN
from paged.kernels.logits import edit_logits, logits_workspace
from paged.kernels.logits_ref import edit_logits_inputs, edit_logits_ref
from paged.kernels.report_draws import report_draws
from paged.kernels.report_draws_ref import report_draws_inputs
from paged.tasks.bench.hardware import graph_seconds

BANDWIDTH = 4.55e12  # bytes a second, read, measured on an H200
ROTATE_BYTES = 150e6
CASES = {  # name: (edits, logprobs)
    "nobody asks": (0, 0),
    "penalties": (1, 0),
    "bias": (2, 0),
    "bad words": (4, 0),
    "mask": (8, 0),
    "everything": (15, 0),
    "logprobs 5": (0, 5),
    "logprobs 20": (0, 20),
}


def check(vocab_size: int) -> None:
    inputs = edit_logits_inputs("cuda", vocab_size=vocab_size)
    expected = edit_logits_ref(**inputs)
    edit_logits(**inputs)
    torch.testing.assert_close(inputs["logits"], expected, rtol=1e-6, atol=1e-6)


def measure(rows: int, vocab_size: int, context: int, asked: int, num_top: int):
    """(us of the change, us of the report)."""
    drawn = report_draws_inputs("cuda", rows=rows, vocab_size=vocab_size)
    given = edit_logits_inputs("cuda", rows=rows, vocab_size=vocab_size, max_len=context)
    columns = given["columns"]
    columns[LOGIT_EDITS.value], columns[NUM_LOGPROBS.value] = asked, num_top
    columns[PROMPT_LEN.value], columns[TOTAL_LEN.value] = context // 2, context - 1
    workspace = logits_workspace(rows, vocab_size, "cuda")
    copies = max(2, int(ROTATE_BYTES / given["logits"].nbytes))
    logits = [torch.randn(rows, vocab_size, device="cuda") for _ in range(copies)]
    shared = {"columns": columns, "workspace": workspace, "token_ids": given["token_ids"]}
    edits = [lambda one=one: edit_logits(**given | shared | {"logits": one}) for one in logits]
    reports = [lambda one=one: report_draws(**drawn | shared | {"logits": one}) for one in logits]
    return 1e6 * graph_seconds(edits), 1e6 * graph_seconds(reports)


def main() -> None:
    for vocab_size in (32000, 128256):
        check(vocab_size)
    print(f"{'case':<14} rows  vocab context  edit us  floor us  report us")
    for vocab_size in (32000, 128256, 151936):
        for rows in (1, 64, 256):
            for case, (asked, num_top) in CASES.items():
                for context in (600, 8000) if asked & 1 else (600,):
                    edit, report = measure(rows, vocab_size, context, asked, num_top)
                    passes = 0 if not (asked or num_top) else 3 if asked else 1
                    floor = passes * 4 * rows * vocab_size / BANDWIDTH * 1e6
                    line = f"{rows:4} {vocab_size:6} {context:7} {edit:8.1f} {floor:9.1f}"
                    print(f"{case:<14} {line} {report:10.1f}")


if __name__ == "__main__":
    main()
