"""`TextSequence`: tokens in, text out; every way of ending, with a tokenizer whose tokens are bytes."""

import pytest

from mla_jax.completion import TextSequence
from mla_jax.engine import Event


class Bytes:
    """Ids below 256 are UTF-8 bytes; 256 is the end token."""

    eos_token_id = 256

    def encode(self, text, *, add_special_tokens=True):
        return list(text.encode())

    def decode(self, ids, *, skip_special_tokens=True):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def run(ids, *, stop=(), ends=frozenset({256}), tokenizer=True, limit=None, logprobs=None):
    """Feeds ids as the engine would, until the sequence ends; (sequence, its pieces)."""
    sequence = TextSequence([1, 2, 3], Bytes() if tokenizer else None, stop, ends)
    pieces = []
    for count, token_id in enumerate(ids, start=1):
        reason = "stop" if token_id in ends else "length" if count == (limit or len(ids)) else None
        pieces.append(sequence.take(Event(0, token_id, logprobs, reason)))
        if sequence.finish_reason is not None:
            break
    return sequence, pieces


def joined(pieces):
    return "".join(piece.text for piece in pieces)


def ids_of(text):
    return list(text.encode())


TEXTS = ["plain", "größer", "文字", "🙂🙃", "a\u0301b", "", "x" * 50]


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_text_comes_back_whole(text):
    sequence, pieces = run(ids_of(text))
    done = sequence.completion()
    assert done.text == joined(pieces) == text
    assert done.token_ids == [piece.token_id for piece in pieces] == ids_of(text)
    assert done.finish_reason == pieces[-1].finish_reason == "length"
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert done.usage == (3, len(pieces))
    assert done.prompt_token_ids == [1, 2, 3]
    assert done.logprobs is None


@pytest.mark.parametrize("text", TEXTS)
def test_an_end_token_has_no_text(text):
    sequence, pieces = run([*ids_of(text), 256, 65])
    done = sequence.completion()
    assert done.text == joined(pieces) == text
    assert done.token_ids[-1] == 256
    assert done.finish_reason == pieces[-1].finish_reason == "stop"


def test_a_stop_token_with_text_of_its_own_is_left_out():
    sequence, pieces = run(ids_of("one.two"), ends=frozenset({ord(".")}))
    assert sequence.completion().text == joined(pieces) == "one"
    assert sequence.completion().token_ids == ids_of("one.")


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_an_unfinished_character_at_the_end_is_shown_broken(kept):
    whole = ids_of("ab🙂")
    ids = whole[: 2 + kept]
    for reason, extra in (("length", []), ("stop", [256])):
        sequence, pieces = run(ids + extra)
        done = sequence.completion()
        assert done.text == joined(pieces) == Bytes().decode(ids)
        assert done.text.startswith("ab\ufffd")
        assert done.finish_reason == reason
        assert "\ufffd" not in joined(pieces[:-1])


@pytest.mark.parametrize("stop", ["END", "E", "好"])
def test_a_stop_string_ends_and_is_left_out(stop):
    sequence, pieces = run(ids_of(f"some text {stop}more"), stop=[stop, "never"])
    done = sequence.completion()
    assert done.text == joined(pieces) == "some text "
    assert done.finish_reason == pieces[-1].finish_reason == "stop"
    assert done.token_ids == ids_of(f"some text {stop}")


def test_text_that_may_become_a_stop_string_is_held_back():
    _, pieces = run(ids_of("abENDLESS"), stop=["ENDED"])
    assert [piece.text for piece in pieces] == ["a", "b", "", "", "", "ENDL", "", "ES", "S"]


def test_what_was_held_back_is_shown_at_the_end():
    for ids in (ids_of("abEND"), [*ids_of("abEND"), 256]):
        sequence, pieces = run(ids, stop=["ENDED"])
        assert sequence.completion().text == joined(pieces) == "abEND"
        assert pieces[-1].text == "END"


def test_a_stop_string_on_the_last_allowed_token_is_a_stop():
    sequence, pieces = run(ids_of("abEND"), stop=["END"])
    assert sequence.completion().finish_reason == pieces[-1].finish_reason == "stop"
    assert joined(pieces) == "ab"


def test_a_stop_string_that_only_the_flush_completes():
    # The unfinished character becomes U+FFFD when the sequence ends, and that is what is looked for.
    sequence, pieces = run([*ids_of("ab"), 0xF0], stop=["b\ufffd"])
    assert sequence.completion().text == joined(pieces) == "a"
    assert sequence.completion().finish_reason == pieces[-1].finish_reason == "stop"


def test_without_a_tokenizer_there_is_no_text():
    sequence, pieces = run([7, 8, 256], tokenizer=False)
    assert sequence.completion().text == joined(pieces) == ""
    assert sequence.completion().token_ids == [7, 8, 256]
    assert sequence.completion().finish_reason == "stop"


def test_logprobs_are_collected():
    sequence, _ = run([7, 8], logprobs={7: -0.5})
    assert sequence.completion().logprobs == [{7: -0.5}, {7: -0.5}]


def test_speeds(monkeypatch):
    now = iter([10.0, 12.0, 13.0, 15.0])
    monkeypatch.setattr("mla_jax.completion.time.perf_counter", lambda: next(now))
    _, pieces = run([7, 8, 9])
    assert [piece.prompt_tps for piece in pieces] == [1.5, 1.5, 1.5]  # 3 tokens in 2 s
    assert [piece.generation_tps for piece in pieces] == [0.0, 1.0, pytest.approx(2 / 3)]


def test_speed_survives_a_clock_that_stands(monkeypatch):
    monkeypatch.setattr("mla_jax.completion.time.perf_counter", lambda: 1.0)
    _, pieces = run([7, 8])
    assert pieces[-1].generation_tps > 0
    assert TextSequence([1], None, (), frozenset()).prompt_tps > 0


def test_an_unended_sequence_has_no_completion():
    with pytest.raises(AssertionError, match="only an ended sequence"):
        TextSequence([1], None, (), frozenset()).completion()
