"""What the outputs of one request save by sharing the pages of its prompt, in the simulator.

saved = (references - pages) / references over the pages that requests hold, where a page counts
once for each row that holds it as a reference: section 6.3 of Kwon et al., SOSP 2023.
"""

from dataclasses import replace

from systems import SYSTEMS, engine, workload

from paged.request import SamplingParams
from paged.simulator.simulation import arrivals, feed

SAMPLES = (2, 4, 6)
# So few that no memory is short: what is preempted shares no longer.
SAMPLES_PER_SECOND = {"Alpaca": 30.0, "ShareGPT": 1.0}


def samples_save(dataset: str, num_samples: int, num_requests: int, seed: int) -> float:
    """Share of the pages saved, averaged over the steps of a run."""
    simulated = engine(SYSTEMS["paged"]())
    references = pages = 0

    def look() -> None:
        nonlocal references, pages
        counts = simulated.stages.pool.ref_count
        references += int(counts.sum())
        pages += int((counts > 0).sum())

    simulated.on_launch = look
    requests = [
        replace(one, sampling={**one.sampling, "n": num_samples, "temperature": 1.0})
        for one in arrivals(
            workload(dataset, num_requests, SAMPLES_PER_SECOND[dataset] / num_samples, seed),
            SamplingParams(),
        )
    ]
    refused: list[str] = []
    for _ in feed(simulated, requests, lambda _, reason: refused.append(reason)):
        pass
    if refused:
        raise ValueError(refused[0])
    return (references - pages) / references
