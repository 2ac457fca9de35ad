import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from paged.models import load_model
from paged.testing.tiny_models import save_tiny_model, tiny_model


@pytest.fixture
def folder(tmp_path, saved_tiny):
    """A copy of the tiny Llama that a test may damage."""
    return shutil.copytree(saved_tiny("llama")[0], tmp_path / "model")


def load(folder, **options):
    return load_model(folder, torch.float32, "cpu", **options)


def rewrite(folder, change):
    """Apply `change` to the checkpoint's dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def assert_same_weights(folder, expected):
    weights = load(folder).decoder.weights
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_fused_weights_hold_their_parts(folder):
    stored = load_file(folder / "model.safetensors")
    weights = load(folder).decoder.weights
    q, k, v = (stored[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv")
    assert torch.equal(weights["layers.1.qkv.weight"], torch.cat([q, k, v]))
    gate, up = (stored[f"model.layers.0.mlp.{x}_proj.weight"] for x in ("gate", "up"))
    assert torch.equal(weights["layers.0.gate_up.weight"], torch.cat([gate, up]))


def test_shards_equal_one_file(tmp_path, folder):
    save_tiny_model("llama", tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    assert_same_weights(tmp_path / "sharded", load(folder).decoder.weights)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_base_model_names_and_old_format(case, tmp_path, saved_tiny):
    """Checkpoints without the "model." in front, in pytorch_model.bin, with buffers."""
    folder, _ = saved_tiny(case)
    state = tiny_model(case).state_dict()
    if case == "gpt2":
        state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    else:
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    prefix = {"llama": "model.", "gpt2": "transformer."}[case]
    shutil.copy(folder / "config.json", tmp_path)
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same_weights(tmp_path, load(folder).decoder.weights)


def test_missing_and_unexpected_tensors_are_named_together(folder):
    def change(tensors):
        tensors["model.layers.0.mlp.extra.weight"] = tensors.pop("model.norm.weight")

    rewrite(folder, change)
    with pytest.raises(ValueError, match="does not fit its configuration") as error:
        load(folder)
    assert "1 missing tensors: model.norm.weight" in str(error.value)
    assert "1 unexpected tensors: model.layers.0.mlp.extra.weight" in str(error.value)
    assert "model.safetensors" in str(error.value)


def test_wrong_shape_names_file_and_tensor(folder):
    def change(tensors):
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = tensors[name].T.contiguous()

    rewrite(folder, change)
    with pytest.raises(
        ValueError, match=r"model\.safetensors: tensor .*1\.mlp\.down_proj"
    ) as error:
        load(folder)
    assert "must have shape [40, 72], got [72, 40]" in str(error.value)


def test_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: corrupt or truncated"):
        load(folder)


def test_missing_shard_is_named(tmp_path):
    save_tiny_model("llama", tmp_path, max_shard_size="40KB")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ValueError, match=gone.name):
        load(tmp_path)


def test_folder_without_weights_loads_only_as_dummy(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no weights.*load=dummy"):
        load(folder)
    assert load(folder, load="dummy").spec.num_layers == 2


def edit_config(folder, **entries):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_unsupported_architecture_names_the_supported_ones(folder):
    edit_config(folder, architectures=["MambaForCausalLM"])
    with pytest.raises(ValueError, match=r"LlamaForCausalLM, .*GPT2LMHeadModel; got 'Mamba"):
        load(folder)


def test_quantised_safetensors_are_refused(folder):
    edit_config(folder, quantization_config={"quant_method": "awq"})
    with pytest.raises(ValueError, match="GGUF only, got quant_method 'awq'"):
        load(folder)


def test_damaged_or_absent_config_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load(folder)


def test_post_norm_opt_is_refused(tmp_path, saved_tiny):
    folder = shutil.copytree(saved_tiny("opt")[0], tmp_path / "model")
    edit_config(folder, do_layer_norm_before=False)
    with pytest.raises(ValueError, match="do_layer_norm_before is supported only as True"):
        load(folder)


def test_end_tokens_of_the_generation_config_win(folder):
    assert load(folder).eos_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert load(folder).eos_ids == (7, 9)


def test_tokenizer_path_is_none_without_a_tokenizer(folder):
    assert load(folder).tokenizer_path is None
    (folder / "tokenizer.json").write_text("{}")
    assert load(folder).tokenizer_path == folder


def test_unknown_model_says_what_a_model_can_be(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"folder, a \.gguf file, a hub id .*'no-such-model'"):
        load("no-such-model")
    with pytest.raises(ValueError, match="this preset needs load=dummy"):
        load("llama-3.1-8b")
    with pytest.raises(ValueError, match="absent does not exist"):
        load(tmp_path / "absent")


def test_unknown_load_mode_is_refused(folder):
    with pytest.raises(ValueError, match="load must be one of auto, dummy, got 'fast'"):
        load(folder, load="fast")
