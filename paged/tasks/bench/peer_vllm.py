"""Runs vLLM on a job of `peers.py`. A script of its own: imports nothing of paged."""

import json
import os
import random
import statistics
import sys
import time

# Offline, on one host, with the sampler that needs no compilation at run time.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # `refill` goes to the process of the engine
}.items():
    os.environ.setdefault(name, value)


def refill(std):
    """A function that gives a model weights of a realistic size: vLLM's dummies are tiny."""

    def fill(model):
        import torch

        generator = torch.Generator(device="cuda").manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.is_floating_point():
                    if "norm" in name:
                        weight.fill_(1.0)
                    else:
                        weight.normal_(0.0, std, generator=generator)
        torch.cuda.synchronize()

    return fill


def main(path):
    with open(path) as file:
        job = json.load(file)
    try:
        import vllm
        from vllm import LLM, SamplingParams, TokensPrompt
    except ImportError as error:
        print(json.dumps({"missing": f"vllm is not installed for {sys.executable} ({error})"}))
        return
    began = time.perf_counter()
    llm = LLM(
        model=job["model"],
        load_format="dummy" if job["dummy"] else "auto",
        skip_tokenizer_init=True,
        dtype=job["dtype"],
        seed=job["seed"],
        max_model_len=job["max_model_len"],
        max_num_seqs=job["max_num_seqs"],
        max_num_batched_tokens=job["max_num_batched_tokens"],
        gpu_memory_utilization=job["memory_fraction"],
        enable_prefix_caching=job["prefix_caching"],
        enforce_eager=job["eager"],
        generation_config="vllm",
        disable_log_stats=True,
    )
    init_seconds = time.perf_counter() - began
    if job["dummy"]:
        llm.apply_model(refill(job["std"]))

    def seconds(requests, sampling):
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids, _ in requests]
        params = [
            SamplingParams(max_tokens=most, ignore_eos=True, detokenize=False, **sampling)
            for _, most in requests
        ]
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        taken = time.perf_counter() - start
        drawn = [len(output.outputs[0].token_ids) for output in outputs]
        assert drawn == [most for _, most in requests], "a request ended early"
        return taken

    passes = [seconds(requests, job["sampling"]) for requests in job["passes"]]
    rng, ids, greedy = random.Random(job["seed"]), range(job["vocab_size"]), {"temperature": 0.0}
    grid = []
    for batch, context, output_len in job["grid"]:

        def median(most, batch=batch, context=context):
            times = [
                seconds([[rng.choices(ids, k=context), most] for _ in range(batch)], greedy)
                for _ in range(job["runs"] + 1)
            ]
            return statistics.median(times[1:])  # the first warms up

        first, full = median(1), median(output_len)
        grid.append({"ttft": first, "decode_ms": 1e3 * (full - first) / (output_len - 1)})
    config = llm.llm_engine.vllm_config
    cache = config.cache_config
    answer = {
        "name": "vllm",
        "version": vllm.__version__,
        "init_seconds": init_seconds,
        "passes": passes,
        "grid": grid,
        "details": {
            "kv_tokens": (cache.num_gpu_blocks or 0) * cache.block_size,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
        },
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
