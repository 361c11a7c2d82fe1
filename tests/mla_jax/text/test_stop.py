import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_jax.errors import RequestError
from mla_jax.text import Detokenizer, StopMatcher


def shown(stop, pieces):
    matcher = StopMatcher(stop)
    text = "".join(matcher.feed(piece) for piece in pieces)
    return text + matcher.flush(), matcher.stopped_by


def brute_force(stop, text):
    """The stop string that is complete first; the longest of those that are complete at that character."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.text("ab中", min_size=1, max_size=5), max_size=4),
    st.lists(st.text("ab中", max_size=6), max_size=12),
)
def test_any_cut_of_any_text(stop, pieces):
    assert shown(stop, pieces) == brute_force(stop, "".join(pieces))


@settings(deadline=None)
@given(st.text("ab", min_size=1, max_size=6), st.text("ab", max_size=30))
def test_held_back_text_is_as_short_as_possible(stop, text):
    matcher = StopMatcher([stop])
    out = ""
    for i, character in enumerate(text, start=1):
        out += matcher.feed(character)
        if matcher.stopped_by:
            return
        held = text[len(out) : i]
        longest = max(k for k in range(len(stop)) if text[:i].endswith(stop[:k]))
        assert held == stop[:longest]


def test_nothing_to_stop_at():
    matcher = StopMatcher(())
    assert matcher.feed("abc") == "abc"
    assert matcher.flush() == ""
    assert matcher.stopped_by is None


def test_stop_string_across_pieces_is_not_part_of_the_text():
    matcher = StopMatcher(["</s>"])
    assert [matcher.feed(p) for p in ("a<", "/", "b</", "s", ">tail", "more")] == ["a", "", "</b", "", "", ""]
    assert matcher.stopped_by == "</s>"
    assert matcher.flush() == ""


def test_false_alarm_is_shown_later():
    matcher = StopMatcher(["abc"])
    assert matcher.feed("xab") == "x"
    assert matcher.feed("d") == "abd"
    assert matcher.feed("ab") == ""
    assert matcher.flush() == "ab"
    assert matcher.stopped_by is None


def test_first_complete_wins_then_the_longest():
    assert shown(["bcd", "c"], ["abcd"]) == ("ab", "c")
    assert shown(["c", "bc"], ["abcd"]) == ("a", "bc")
    assert shown(["ab", "abc"], ["xabc"]) == ("x", "ab")


def test_stop_string_inside_one_token_and_across_a_character(byte_level):
    detokenizer, matcher = Detokenizer(byte_level), StopMatcher(["文。"])
    text = ""
    for token in byte_level.encode("中文。tail"):
        text += matcher.feed(detokenizer.feed(token))
    assert text + matcher.feed(detokenizer.flush()) + matcher.flush() == "中"


def test_cost_is_one_step_a_character():
    matcher = StopMatcher(["a" * 5000 + "b"])
    for _ in range(200):
        matcher.feed("a" * 100)
    assert matcher.flush() == "a" * 5000


def test_feeding_after_flush_starts_without_memory():
    matcher = StopMatcher(["ab"])
    assert matcher.feed("a") == ""
    assert matcher.flush() == "a"
    assert matcher.feed("b") == "b"


@pytest.mark.parametrize("stop", ["ab", [""], [3], [None], ["a", b"b"]])
def test_malformed(stop):
    with pytest.raises(RequestError, match=r"^stop"):
        StopMatcher(stop)
