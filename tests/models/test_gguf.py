import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import write_gguf
from tokenizers import pre_tokenizers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from paged.attention.reference import ReferenceAttention
from paged.models import load_model
from paged.testing.scoring import score_tokens
from paged.testing.tiny_models import tiny_model
from paged.tokenizer import load_tokenizer


@pytest.mark.parametrize("case", ["llama_biased", "qwen2", "qwen3", "gpt2"])
def test_unquantised_gguf_equals_safetensors(case, tmp_path, saved_tiny):
    folder, _ = saved_tiny(case)
    expected = load_model(folder, torch.float32, "cpu").decoder.weights
    write_gguf(tmp_path / "tiny.gguf", tiny_model(case))
    loaded = load_model(tmp_path / "tiny.gguf", torch.float32, "cpu")
    assert loaded.decoder.weights.keys() == expected.keys()
    for name, weight in loaded.decoder.weights.items():
        assert torch.equal(weight, expected[name]), name
    assert loaded.eos_ids == (2,)


def test_rotary_divisors_of_the_file_are_used(tmp_path, saved_tiny, token_ids, device):
    _, expected = saved_tiny("llama")
    model = tiny_model("llama")
    theta = model.config.rope_parameters["rope_theta"]
    plain = 1.0 / theta ** (torch.arange(0, 16, 2) / 16)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))
    write_gguf(tmp_path / "tiny.gguf", model, rope_divisors=(plain / scaled).tolist())
    decoder = load_model(tmp_path / "tiny.gguf", torch.float32, device).decoder
    logprobs = score_tokens(decoder, ReferenceAttention(), token_ids)
    torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "error"), [(Kind.F16, 1e-3), (Kind.Q8_0, 4e-3)])
def test_quantised_matrices_are_dequantised(kind, error, tmp_path, saved_tiny):
    folder, _ = saved_tiny("mistral")  # widths are multiples of a quantisation block, 32
    expected = load_model(folder, torch.float32, "cpu").decoder.weights
    model = tiny_model("mistral")
    model.config.model_type = "llama"  # as llama.cpp has it
    write_gguf(tmp_path / "tiny.gguf", model, kind)
    weights = load_model(tmp_path / "tiny.gguf", torch.float32, "cpu").decoder.weights
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], atol=error, rtol=0)


def test_the_tokenizer_of_the_file_is_used(tmp_path):
    characters = list(
        dict.fromkeys([*"!?", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    )
    tokens, merges = [*characters[:255], "th", "the"], ["t h", "th e"]
    write_gguf(tmp_path / "tiny.gguf", tiny_model("qwen2"), tokens=tokens, merges=merges)
    loaded = load_model(tmp_path / "tiny.gguf", torch.float32, "cpu")
    tokenizer = load_tokenizer(loaded.tokenizer_path)
    ids = tokenizer.encode("the hat!")
    assert [tokens[i] for i in ids] == ["the", "\u0120", "h", "a", "t", "!"]
    assert tokenizer.decode([*ids, 2]) == "the hat!"
    assert tokenizer.eos_id == 2
    assert tokenizer.chat_ids([{"role": "user", "content": "the"}]) == tokenizer.encode("the:")


def test_truncated_file_is_named(tmp_path):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_model("qwen2"))
    file.write_bytes(file.read_bytes()[:-20000])
    with pytest.raises(ValueError, match=r"tiny\.gguf: corrupt or truncated"):
        load_model(file, torch.float32, "cpu")


def test_missing_tensor_is_named(tmp_path):
    model = tiny_model("qwen3")
    del model.model.layers[1].self_attn.k_norm
    write_gguf(tmp_path / "tiny.gguf", model)
    with pytest.raises(ValueError, match=r"1 missing tensors: blk\.1\.attn_k_norm\.weight"):
        load_model(tmp_path / "tiny.gguf", torch.float32, "cpu")


def test_unsupported_architecture_names_the_supported_ones(tmp_path):
    model = tiny_model("qwen3")
    model.config.model_type = "qwen3moe"
    write_gguf(tmp_path / "tiny.gguf", model)
    with pytest.raises(ValueError, match="one of llama, qwen2, qwen3, gpt2, got 'qwen3moe'"):
        load_model(tmp_path / "tiny.gguf", torch.float32, "cpu")
