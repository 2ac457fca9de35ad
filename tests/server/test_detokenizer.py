"""Stop strings and characters across tokens, against a search in the whole text."""

import random

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paged.detokenizer import Detokenizer, StopStrings
from paged.server.token_text import TokenText
from paged.tokenizer import Tokenizer

TEXT = "The dog, na\u00efve caf\u00e9, \u4f60\u597d \U0001f600\U0001f600 end"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token a byte, so that characters fall apart, and one special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Fast(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|end|>"))


def run(detokenizer: Detokenizer, pieces: list[list[int]]) -> tuple[str, int, list[str]]:
    """(text, tokens taken, what each piece brought)."""
    shown, taken = [], 0
    for piece in pieces:
        text, number = detokenizer.add(piece)
        shown.append(text)
        taken += number
        if detokenizer.stop_met is not None:
            break
    shown.append(detokenizer.finish())
    return "".join(shown), taken, shown


def test_no_piece_holds_half_a_character(tokenizer):
    ids = tokenizer.encode(TEXT)
    text, taken, shown = run(Detokenizer(tokenizer, []), [[token] for token in ids])
    assert (text, taken) == (TEXT, len(ids))
    assert not any("\ufffd" in piece for piece in shown)


@pytest.mark.parametrize("include", [False, True])
def test_stops_are_found_wherever_tokens_are_cut(tokenizer, include):
    rng = random.Random(0)
    ids = tokenizer.encode(TEXT)
    for stop in (["dog"], ["zebra", "e caf\u00e9,"], ["\U0001f600 e"], ["\u597d", "end"], ["T"]):
        ends = {TEXT.find(one): one for one in stop if one in TEXT}
        first = min(ends)
        expected = TEXT[: first + len(ends[first])] if include else TEXT[:first]
        consumed = len(TEXT[: first + len(ends[first])].encode())
        for _ in range(20):
            cuts = sorted(rng.sample(range(len(ids)), 6))
            pieces = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)]) if a < b]
            detokenizer = Detokenizer(tokenizer, [], stop=stop, include_stop=include)
            text, taken, _ = run(detokenizer, pieces)
            assert (text, taken) == (expected, consumed)
            assert detokenizer.stop_met == ends[first]


def test_what_looks_like_a_stop_comes_out_once_it_is_none(tokenizer):
    detokenizer = Detokenizer(tokenizer, [], stop=["ababc"])
    ids = tokenizer.encode("xabab")
    text, _, shown = run(detokenizer, [[token] for token in ids])
    assert text == "xabab"
    assert shown == ["x", "", "", "", "", "abab"]


def test_stop_search_agrees_with_the_whole_text():
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choice("ab") for _ in range(12))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randrange(2, 5))) for _ in range(2)]
        search, shown = StopStrings(stops), ""
        for character in text:
            shown += search.add(character)
            if search.met is not None:
                break
        shown += "" if search.met else search.finish()
        # The stop that is complete first ends the text; of two, the one that began first.
        complete = {
            text.find(s) + len(s): text.find(s) for s in sorted(stops, key=len) if s in text
        }
        assert shown == (text[: complete[min(complete)]] if complete else text)


def test_stops_wait_for_the_least_number_of_tokens(tokenizer):
    ids = tokenizer.encode("a.b.c")
    detokenizer = Detokenizer(tokenizer, [], stop=["."], min_tokens=3)
    assert run(detokenizer, [ids])[0] == "a.b"


def test_special_tokens_are_shown_on_request(tokenizer):
    ids = [*tokenizer.encode("a"), tokenizer.eos_id]
    assert run(Detokenizer(tokenizer, []), [ids])[0] == "a"
    shown = Detokenizer(tokenizer, [], skip_special_tokens=False)
    assert run(shown, [ids])[0] == "a<|end|>"


def test_a_model_without_a_tokenizer_has_no_text():
    assert run(Detokenizer(None, []), [[1, 2], [3]])[:2] == ("", 3)


def test_tokens_have_bytes_that_join_to_the_text(tokenizer):
    tokens = TokenText(tokenizer)
    ids = tokenizer.encode(TEXT)
    assert b"".join(tokens.bytes_of(token) for token in ids).decode() == TEXT
    assert tokens.text_of(tokenizer.encode("T")[0]) == "T"
    assert tokens.text_of(tokenizer.encode("\u00e9")[0]) == "bytes:\\xc3"
    assert tokens.text_of(tokenizer.eos_id) == "<|end|>"
    assert tokens.bytes_of(999_999) == b""


@pytest.mark.parametrize("skip", [True, False])
def test_the_byte_decoder_agrees_with_the_tokenizer(tokenizer, skip):
    rng = random.Random(2)
    tokens = TokenText(tokenizer)
    valid = tokenizer.encode(TEXT)
    for _ in range(100):
        noise = [rng.randrange(257) for _ in range(rng.randrange(30))]  # 256 is special
        ids = noise + rng.choice([[], valid]) + noise[:3]
        decoder = tokens.decoder([], skip_special_tokens=skip)
        pieces = [decoder.add([token]) for token in ids]
        assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids, skip)


def test_the_byte_decoder_ends_a_character_that_the_prompt_began(tokenizer):
    ids = tokenizer.encode("a\U0001f600b")
    decoder = TokenText(tokenizer).decoder(ids[:3], skip_special_tokens=True)
    assert decoder.add(ids[3:]) == "\U0001f600b"
