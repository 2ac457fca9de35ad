"""One request longer than every tile of the control kernels, against the references."""


def test_prompt_of_many_tiles(build):
    length = 17000  # 1,063 pages; tiles are 1,024 pages or tokens, 8,192 tokens in `ingest`
    sizes = {
        "num_slots": 2, "max_num_seqs": 2, "max_num_batched_tokens": 2 * length,
        "max_model_len": length + 40, "num_pages": 2200,
    }  # fmt: skip
    steps = build(sizes=sizes, budget=2 * length, chunk=length, num_buckets=2**18)
    prompt = [(11 * i * i + i) % 64 for i in range(length)]
    first = steps.submit(prompt, 4)
    while first.reason is None:
        steps.step()
    published = int((steps.state.pool.serial > 0).sum())
    assert published == length // 16
    second = steps.submit(prompt, 2)
    steps.finish()
    assert second.cached == [length // 16 * 16]
    steps.evict(2200)
    assert steps.state.pool.num_free() == 2200
