"""Runs the continuous batching of transformers on a job of `peers.py`; imports nothing of paged."""

import json
import random
import statistics
import sys
import time

PAGE_SIZE = 256  # its default


def load(job):
    """The model on the GPU, or the CPU; random weights as the engine's if the job wants dummies."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, job["dtype"])
    if not job["dummy"]:
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
        return model.eval().to(device=device)
    config = AutoConfig.from_pretrained(job["model"])
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    generator = torch.Generator(device=device).manual_seed(job["seed"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, job["std"], generator=generator)
    return model


def main(path):
    with open(path) as file:
        job = json.load(file)
    began = time.perf_counter()
    try:
        import transformers
        from transformers import ContinuousBatchingConfig, GenerationConfig
    except ImportError as error:
        why = f"transformers with continuous batching is not installed for {sys.executable}"
        print(json.dumps({"missing": f"{why} ({error})"}))
        return
    model = load(job)
    sampling = job["sampling"]
    drawing = sampling["temperature"] > 0
    generation = GenerationConfig(
        do_sample=drawing, eos_token_id=-1, pad_token_id=0, **(sampling if drawing else {})
    )
    # On a CPU its share of memory would be most of the host's: as many tokens as ours instead.
    on_cpu = model.device.type == "cpu"
    num_blocks = -(-job["kv_tokens"] // PAGE_SIZE) if on_cpu else None
    fields = ContinuousBatchingConfig.__dataclass_fields__
    settings = {
        "page_size" if "page_size" in fields else "block_size": PAGE_SIZE,  # older than 5.17
        "num_blocks": num_blocks,
        "max_batch_tokens": job["max_num_batched_tokens"],
        "max_requests_per_batch": job["max_num_seqs"],
        "max_memory_percent": job["memory_fraction"],
        "allow_block_sharing": job["prefix_caching"],
        "use_cuda_graph": False if job["eager"] else None,
    }
    batching = ContinuousBatchingConfig(**settings)
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=batching
    ) as manager:
        init_seconds = time.perf_counter() - began

        def seconds(requests):
            start = time.perf_counter()
            expected = {
                manager.add_request(ids, max_new_tokens=most, eos_token_id=-1): most
                for ids, most in requests
            }
            while expected:
                result = manager.get_result(timeout=60)
                assert result is not None, "no result within a minute"
                if result.is_finished():
                    drawn, most = len(result.generated_tokens), expected.pop(result.request_id)
                    assert drawn == most, f"a request ended with {drawn} of {most} tokens"
            return time.perf_counter() - start

        passes = [seconds(requests) for requests in job["passes"]]
        rng, ids, grid = random.Random(job["seed"]), range(job["vocab_size"]), []
        for batch, context, output_len in job["grid"]:

            def median(most, batch=batch, context=context):
                times = [
                    seconds([[rng.choices(ids, k=context), most] for _ in range(batch)])
                    for _ in range(job["runs"] + 1)
                ]
                return statistics.median(times[1:])  # the first warms up

            first, full = median(1), median(output_len)
            grid.append({"ttft": first, "decode_ms": 1e3 * (full - first) / (output_len - 1)})
    answer = {
        "name": "transformers",
        "version": transformers.__version__,
        "init_seconds": init_seconds,
        "passes": passes,
        "grid": grid,
        "details": {"attention": str(model.config._attn_implementation)},
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
