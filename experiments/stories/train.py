"""Train the story tokenizer and model on a corpus of stories.

    python train.py corpus.txt --out model --seconds 70

The corpus has one story a paragraph, empty lines between. Training stops by the clock, and the
learning rate follows a cosine over that time. `--out` becomes a Hugging Face folder in float16.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

END = "<|endoftext|>"
VOCAB_SIZE = 2048
CONTEXT = 1024
TOKENIZER_SAMPLE = 30_000  # stories
# a story model has no roles: a conversation is the text so far, and the model goes on from there
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)
PROMPTS = (
    "Once upon a time",
    "The little dog",
    "Tom and his mother went to the",
    "One day, a small bird found a red ball.",
    "It was a cold day. Anna wanted to",
)


def train_tokenizer(stories: list[str]) -> Tokenizer:
    """Byte-level BPE with exactly VOCAB_SIZE entries; a text is encoded with END in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, end)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, stories: list[str]) -> torch.Tensor:
    """One stream of ids [N]: END before every story, and after the last."""
    ids = [i for encoding in tokenizer.encode_batch(stories) for i in encoding.ids]
    return torch.tensor([*ids, tokenizer.token_to_id(END)])


def build_model(num_layers: int, end: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=num_layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return LlamaForCausalLM(config)


def build_optimizer(model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def windows(stream: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Windows [B, length] of the stream [N] from the given starts [B]."""
    return stream[starts[:, None] + torch.arange(length, device=stream.device)]


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with torch.autocast(ids.device.type, dtype=dtype, enabled=ids.device.type == "cuda"):
        return model(input_ids=ids, labels=ids).loss


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, stream: torch.Tensor, batch_size: int) -> float:
    """Mean loss a token over the stream, in windows of half the context, at most 512 of them."""
    length = min(CONTEXT // 2, len(stream))
    starts = torch.arange(0, len(stream) - length + 1, length, device=stream.device)[:512]
    losses = [
        loss_of(model, windows(stream, part, length), torch.bfloat16) * len(part)
        for part in starts.split(batch_size)
    ]
    return float(sum(losses) / len(starts))


def train(model: LlamaForCausalLM, stream: torch.Tensor, held_out: torch.Tensor, args) -> list:
    """Train until args.seconds are over or args.epochs are done; the log, one dict an entry."""
    optimizer = build_optimizer(model, args.lr)
    length = min(CONTEXT, len(stream) - 1)
    tokens_in_all = args.epochs * len(stream)
    start, step, running, log, next_log = time.monotonic(), 0, 0.0, [], 0.0
    while True:
        seconds, tokens = time.monotonic() - start, step * args.batch_size * length
        progress = min(1.0, max(seconds / args.seconds, tokens / tokens_in_all))
        if progress >= next_log:
            entry = {
                "step": step,
                "seconds": round(seconds, 1),
                "epochs": round(tokens / len(stream), 2),
                "train_loss": round(float(running), 4),
                "held_out_loss": round(evaluate(model, held_out, args.batch_size), 4),
            }
            log.append(entry)
            print(json.dumps(entry), flush=True)
            next_log += 0.1
        if progress == 1.0:
            return log
        lr = (
            args.lr
            * min(1.0, (step + 1) / 200)
            * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        starts = torch.randint(len(stream) - length + 1, (args.batch_size,), device=stream.device)
        loss = loss_of(model, windows(stream, starts, length), torch.bfloat16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running = loss.detach() if step == 0 else torch.lerp(running, loss.detach(), 0.02)
        step += 1


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """The Hugging Face folder: weights in float16, tokenizer, generation defaults."""
    end = tokenizer.token_to_id(END)
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    model.half().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def show(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Print greedy and sampled continuations of a few openings."""
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids], device=model.device)
        for options in ({"do_sample": False}, {"do_sample": True, "temperature": 0.8, "top_k": 0}):
            out = model.generate(ids, max_new_tokens=120, **options)[0].tolist()
            print(f"{options}\n{tokenizer.decode(out)}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=70.0)
    parser.add_argument("--epochs", type=float, default=14.0, help="stop after this many, too")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    stories = args.corpus.read_text().strip().split("\n\n")
    random.Random(args.seed).shuffle(stories)
    num_held_out = max(1, min(1000, len(stories) // 50))
    tokenizer = train_tokenizer(stories[num_held_out:][:TOKENIZER_SAMPLE])
    held_out = encode(tokenizer, stories[:num_held_out]).to(args.device)
    stream = encode(tokenizer, stories[num_held_out:]).to(args.device)
    model = build_model(args.layers, tokenizer.token_to_id(END)).to(args.device)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{len(stories)} stories, {len(stream)} tokens to train on, {len(held_out)} held out;"
        f" {tokenizer.get_vocab_size()} entries, {num_parameters} parameters",
        flush=True,
    )
    log = train(model, stream, held_out, args)
    save(model, tokenizer, args.out)
    (args.out / "log.json").write_text(json.dumps(log, indent=2) + "\n")
    show(model.float().eval(), tokenizer)


if __name__ == "__main__":
    main()
