import random

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from paged.tokenizer import IncrementalDecoder, Tokenizer, load_tokenizer

TEXT = "The little dog, the cat and the bird: naïve café, 你好 world, 😀😀 done. It's fine ."
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def saved(fast: Fast, folder, **options) -> Tokenizer:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|end|>", **options)
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Tokenizer:
    """256 bytes and some merges, as GPT-2, Llama 3 and Qwen have it."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=alphabet, special_tokens=["<|end|>"]
    )
    fast.train_from_iterator(["the little dog and the cat"] * 3, trainer)
    return saved(fast, tmp_path_factory.mktemp("byte_level"), chat_template=CHAT)


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory) -> Tokenizer:
    """Words with a mark for the space and bytes for the rest, as Llama 2 and Mistral have it."""
    words = ["<|end|>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127)), "▁"]
    vocab = {word: i for i, word in enumerate(words)}
    fast = Fast(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return saved(fast, tmp_path_factory.mktemp("byte_fallback"))


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


def test_text_survives_encode_and_decode(tokenizer):
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.eos_id == 0


def test_pieces_join_to_the_text_and_split_no_character(tokenizer):
    decoder = IncrementalDecoder(tokenizer)
    pieces = [decoder.add([token]) for token in tokenizer.encode(TEXT)]
    assert "".join(pieces) + decoder.finish() == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_continuation_keeps_its_first_space(tokenizer):
    ids = tokenizer.encode("the cat and the dog")
    prompt = tokenizer.encode("the cat")
    assert ids[: len(prompt)] == prompt
    decoder = IncrementalDecoder(tokenizer, prompt)
    assert decoder.add(ids[len(prompt) :]) + decoder.finish() == " and the dog"


def test_a_continuation_inside_a_run_of_bytes_is_whole(tokenizer):
    decoder = IncrementalDecoder(tokenizer, tokenizer.encode("naïve 你好"))
    ids = tokenizer.encode("x😀😀")[1:]
    assert decoder.add(ids[-8:]) + decoder.finish() == "😀😀"


def test_an_incomplete_character_comes_out_at_the_end_only(tokenizer):
    ids = tokenizer.encode("a😀")
    decoder = IncrementalDecoder(tokenizer)
    assert "".join(decoder.add([token]) for token in ids[:-1]) == "a"
    assert set(decoder.finish()) == {"\ufffd"}
    assert decoder.finish() == ""


def test_pieces_of_random_tokens_join_to_their_decoding(byte_level):
    rng = random.Random(0)
    for length in (1, 15, 16, 17, 129, 400):
        ids = [rng.randrange(1, 280) for _ in range(length)]
        decoder = IncrementalDecoder(byte_level)
        pieces = [decoder.add([token]) for token in ids] + [decoder.finish()]
        assert "".join(pieces) == byte_level.decode(ids)


@pytest.mark.parametrize("seed", range(4))
def test_many_tokens_at_once_have_the_text_they_have_one_by_one(tokenizer, seed):
    """Whole characters and bytes that are none, in any pieces, with more behind them."""
    rng = random.Random(seed)
    prompt = tokenizer.encode("the cat")
    whole = tokenizer.encode(" " + TEXT * 5)
    garbage = [rng.randrange(1, 257) for _ in range(100)]
    for tokens in (whole, garbage, whole + garbage + whole):
        one_by_one = IncrementalDecoder(tokenizer, prompt)
        expected = "".join(one_by_one.add([token]) for token in tokens) + one_by_one.finish()
        decoder, at, text = IncrementalDecoder(tokenizer, prompt), 0, ""
        while at < len(tokens):
            count = rng.choice((1, 2, 17, 40, 1000))
            text += decoder.add(tokens[at : at + count])
            at += count
        assert text + decoder.finish() == expected


def test_the_window_stays_short(byte_level):
    decoder = IncrementalDecoder(byte_level)
    longest = 0
    for token in byte_level.encode(TEXT * 20):
        decoder.add([token])
        longest = max(longest, len(decoder._window))
    assert longest <= 12


def test_special_and_unknown_tokens_have_no_text(byte_level):
    ids = byte_level.encode("the end")
    decoder = IncrementalDecoder(byte_level)
    assert decoder.add([*ids, byte_level.eos_id, 99999]) + decoder.finish() == "the end"


def test_chat_ends_where_the_answer_begins(byte_level):
    ids = byte_level.chat_ids([{"role": "user", "content": "the dog"}])
    assert byte_level.decode(ids) == "user: the dog\nassistant:"


def test_chat_without_a_template_says_what_to_do(byte_fallback):
    with pytest.raises(ValueError, match="this model's has none; use an instruction-tuned"):
        byte_fallback.chat_ids([{"role": "user", "content": "hi"}])


def test_bad_messages_are_refused(byte_level):
    with pytest.raises(ValueError, match="role and content"):
        byte_level.chat_ids(["hi"])


def test_no_path_is_no_tokenizer_and_a_damaged_one_is_named(tmp_path):
    assert load_tokenizer(None) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot load the tokenizer of"):
        load_tokenizer(tmp_path)
