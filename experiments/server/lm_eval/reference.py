"""What lm-eval must find: `endings` and `stories` computed by transformers on the same weights.

python reference.py ../../../paged/models/stories
"""

import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])

    def ids_of(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    @torch.no_grad()
    def log_likelihood(context: list[int], continuation: list[int]) -> float:
        ids = torch.tensor([*context, *continuation])
        log_probs = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        drawn = log_probs.gather(1, ids[1:, None])[:, 0]
        return drawn[len(context) - 1 :].sum().item()

    lines = Path(__file__).with_name("endings.jsonl").read_text().splitlines()
    total, num_words, num_right = 0.0, 0, 0
    for item in map(json.loads, lines):
        text = f"{item['begin']} {item['endings'][item['right']]}"
        total += log_likelihood([tokenizer.eos_token_id], ids_of(text))
        num_words += len(text.split())
        begin = ids_of(item["begin"])
        scores = [log_likelihood(begin, ids_of(f" {ending}")) for ending in item["endings"]]
        num_right += scores.index(max(scores)) == item["right"]
    print(f"endings acc {num_right / len(lines):.4f}")
    print(f"stories word_perplexity {math.exp(-total / num_words):.4f}")


if __name__ == "__main__":
    main()
