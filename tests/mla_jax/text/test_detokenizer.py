import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mla_jax.text import Detokenizer

TEXTS = [
    "hello world",
    "  two leading spaces",
    "深度求索，中文。",
    "👩‍👩‍👧‍👦 family 🇨🇭 😀😀😀",
    "e\u0301 combining, \u200b zero width, \ufeff mark",
    "العربية עברית ไทย 한국어",
    "a\x00b\x01\ufffdc\ufffd\ufffd",
    "\ufffd" * 40,
    "😀" * 100,
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢\r\n\t",
    "",
]


class Counting:
    """Only what the protocol has, and a record of how much `decode` was given."""

    eos_token_id = None

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.longest = self.total = 0

    def encode(self, text, *, add_special_tokens=True):
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids, *, skip_special_tokens=True):
        self.longest = max(self.longest, len(ids))
        self.total += len(ids)
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


class CountingBytes(Counting):
    @property
    def byte_token_ids(self):
        return self._tokenizer.byte_token_ids


def pieces(tokenizer, ids, **options):
    detokenizer = Detokenizer(tokenizer, **options)
    return [*(detokenizer.feed(i) for i in ids), detokenizer.flush()]


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", [text for text in TEXTS if "\ufffd" not in text])
def test_text_comes_back_through_decode_alone(tokenizer, text):
    ids = tokenizer.encode(text)
    assert "".join(pieces(Counting(tokenizer), ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", [text for text in TEXTS if "\ufffd" not in text])
def test_no_piece_ends_inside_a_character(tokenizer, text):
    for plain in (tokenizer, Counting(tokenizer)):
        assert not any("\ufffd" in piece for piece in pieces(plain, tokenizer.encode(text)))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-2, 300), max_size=60), st.booleans())
def test_random_ids_byte_level(byte_level, ids, skip):
    counting = Counting(byte_level)
    expected = byte_level.decode(ids, skip_special_tokens=skip)
    assert "".join(pieces(counting, ids, skip_special_tokens=skip)) == expected


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_broken_characters_byte_level(byte_level, data):
    """Ids above 255 hold fragments; among bytes only those that can begin or continue a character."""
    parts = st.one_of(
        st.integers(256, byte_level.vocab_size), st.sampled_from([0xE4, 0xB8, 0xAD, 0xF0, 0x9F])
    )
    ids = data.draw(st.lists(parts, max_size=60))
    assert "".join(pieces(byte_level, ids)) == byte_level.decode(ids)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-2, 285), max_size=60), st.booleans())
@example([0, 68, 258, 259], False)
def test_random_ids_byte_fallback(byte_fallback, ids, skip):
    expected = byte_fallback.decode(ids, skip_special_tokens=skip)
    assert "".join(pieces(byte_fallback, ids, skip_special_tokens=skip)) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 2, 68, 258, 259, 260, 269, 270, 271]), max_size=40))
def test_spaces_and_special_tokens_byte_fallback(byte_fallback, ids):
    """Where a lone ▁ comes first its space is stripped, and nowhere else."""
    assert "".join(pieces(byte_fallback, ids)) == byte_fallback.decode(ids)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text(byte_level, byte_fallback, text):
    for tokenizer in (byte_level, byte_fallback):
        ids = tokenizer.encode(text)
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_complete_text_is_not_held_back(byte_level):
    detokenizer = Detokenizer(byte_level)
    ids = byte_level.encode("a中")
    assert [detokenizer.feed(i) for i in ids] == ["a", "", "", "中"]
    assert detokenizer.flush() == ""


def test_flush_shows_an_unfinished_character_and_starts_anew(byte_level):
    detokenizer = Detokenizer(byte_level)
    first, second, _ = byte_level.encode("中")
    assert detokenizer.feed(first) + detokenizer.feed(second) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""
    assert "".join(map(detokenizer.feed, byte_level.encode("中"))) == "中"


@pytest.mark.parametrize("invalid", range(30))
def test_characters_after_many_invalid_bytes(byte_level, invalid):
    """Wherever the window is cut, what follows is read as if it were not."""
    for text in ("中a", "😀中", "é😀"):
        ids = byte_level.encode(text)
        for start in range(len(ids)):
            broken = [0xFF] * invalid + ids[:start] + [0xE4] * invalid + ids
            assert "".join(pieces(byte_level, broken)) == byte_level.decode(broken)


def test_special_token_does_not_split_a_character(byte_level):
    first, second, third = byte_level.encode("中")
    ids = [first, byte_level.bos_token_id, second, third]
    assert "".join(pieces(byte_level, ids)) == "中"


@pytest.mark.parametrize("kind", ["text", "invalid", "special", "fragments", "replacement"])
def test_cost_does_not_grow_with_the_text(byte_level, kind):
    n = 3000
    lead, middle, last = byte_level.encode("中")
    broken = next(i for i in range(256, byte_level.vocab_size) if byte_level.decode([lead, i]) == "中\ufffd")
    ids = {
        "text": byte_level.encode("中a文😀") * (n // 11),
        "invalid": [lead] * n,
        "special": [*byte_level.encode("a"), *[byte_level.bos_token_id] * n],
        "fragments": [lead, *[broken] * n, middle, last],
        "replacement": byte_level.encode("\ufffd") * (n // 3),
    }[kind]
    counting = Counting(byte_level)
    assert "".join(pieces(counting, ids)) == byte_level.decode(ids)
    assert counting.longest <= 40
    assert counting.total <= 40 * len(ids)


def test_long_runs_of_bytes_are_decoded_once(byte_fallback):
    ids = [i for i in byte_fallback.encode("😀" * 1000) if i in byte_fallback.byte_token_ids]
    counting = CountingBytes(byte_fallback)
    assert "".join(pieces(counting, [*ids, 260, *ids, 260])) == byte_fallback.decode([*ids, 260, *ids, 260])
    assert counting.total <= 5 * 2 * len(ids)


def test_special_tokens_shown_on_request(byte_level):
    ids = [byte_level.bos_token_id, *byte_level.encode("a")]
    assert "".join(pieces(byte_level, ids)) == "a"
    assert "".join(pieces(byte_level, ids, skip_special_tokens=False)) == "<｜begin｜>a"
