"""The progress lines: rewritten on a terminal; elsewhere printed once or not at all."""

import io
import sys
from types import SimpleNamespace

import pytest

from mla_jax.progress import ByteProgress, TokenProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("mla_jax.progress.time.perf_counter", lambda: now.seconds)
    return now


# Tokens


def sequences(*lengths):
    return [SimpleNamespace(finish_reason=None, token_ids=[0] * length) for length in lengths]


def test_elsewhere_only_the_last_state_is_printed(clock):
    stream, rows = io.StringIO(), sequences(3, 4)
    with TokenProgress(rows, enabled=True, stream=stream) as bar:
        clock.seconds += 2
        bar.update()
        assert stream.getvalue() == ""
        rows[0].finish_reason = "stop"
    assert stream.getvalue() == "[1/2] 7 tokens in 2.0 s, 3.5 tokens/s\n"


def test_a_terminal_sees_one_line_grow(clock):
    stream, rows = Terminal(), sequences(0)
    with TokenProgress(rows, enabled=True, stream=stream) as bar:
        for _ in range(40):  # 2 seconds
            clock.seconds += 0.05
            rows[0].token_ids.append(0)
            bar.update()
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    drawn = text.removesuffix("\n").split("\r")[1:]
    assert 10 <= len(drawn) <= 22  # at most ten a second, and the last
    assert drawn[0].startswith("[0/1] 1 tokens in 0.0 s")
    assert drawn[-1].rstrip() == "[0/1] 40 tokens in 2.0 s, 20.0 tokens/s"


def test_a_shorter_line_covers_a_longer_one(clock):
    stream, rows = Terminal(), sequences(100)
    with TokenProgress(rows, enabled=True, stream=stream) as bar:
        clock.seconds += 0.2
        bar.update()
        clock.seconds += 4
    first, last = stream.getvalue().removesuffix("\n").split("\r")[1:]
    assert first.endswith(" 500.0 tokens/s")
    assert last.rstrip().endswith(" 23.8 tokens/s")
    assert len(last) >= len(first)


@pytest.mark.parametrize(("rows", "enabled"), [(sequences(3), False), (sequences(), True)])
def test_silence(rows, enabled):
    stream = Terminal()
    with TokenProgress(rows, enabled=enabled, stream=stream) as bar:
        bar.update()
    assert stream.getvalue() == ""


def test_standard_error_is_the_default(capsys):
    with TokenProgress(sequences(1), enabled=True):
        pass
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("[0/1] 1 tokens")


def test_the_line_ends_when_generation_fails(clock):
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), TokenProgress(sequences(1), enabled=True, stream=stream):
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\n")


def test_no_time_at_all(clock):
    stream = io.StringIO()
    with TokenProgress(sequences(0), enabled=True, stream=stream):
        pass
    assert stream.getvalue() == "[0/1] 0 tokens in 0.0 s, 0.0 tokens/s\n"


# Bytes


def test_bytes_on_a_terminal(clock):
    terminal = Terminal()
    with ByteProgress("loading", 4_000_000_000, enabled=True, stream=terminal) as bar:
        clock.seconds += 1
        bar.advance(1_000_000_000)
        assert terminal.getvalue() == "\rloading 1.00 of 4.00 GB (25 %), 1.00 GB/s"
        clock.seconds += 1
        bar.advance(3_000_000_000)
    lines = terminal.getvalue().split("\r")
    assert lines[-1] == "loading 4.00 of 4.00 GB (100 %), 2.00 GB/s\n"
    assert terminal.getvalue().count("\n") == 1


def test_bytes_are_drawn_at_most_ten_times_a_second(clock):
    terminal = Terminal()
    with ByteProgress("loading", 1000, enabled=True, stream=terminal) as bar:
        for _ in range(1000):
            clock.seconds += 0.001
            bar.advance(1)
        assert 5 <= terminal.getvalue().count("\r") <= 10


def test_the_line_of_bytes_ends_after_an_error(clock):
    terminal = Terminal()
    with pytest.raises(ZeroDivisionError), ByteProgress("loading", 10, enabled=True, stream=terminal):
        raise ZeroDivisionError
    assert terminal.getvalue() == "\rloading 0.00 of 0.00 GB (0 %), 0.00 GB/s\n"


def test_nothing_to_load(clock):
    terminal = Terminal()
    with ByteProgress("loading", 0, enabled=True, stream=terminal):
        pass
    assert "(100 %)" in terminal.getvalue()


@pytest.mark.parametrize(("stream", "enabled"), [(io.StringIO(), True), (Terminal(), False)])
def test_no_bytes_are_drawn(clock, stream, enabled):
    with ByteProgress("loading", 10, enabled=enabled, stream=stream) as bar:
        clock.seconds += 1
        bar.advance(10)
    assert stream.getvalue() == ""


def test_bytes_on_standard_error(clock, monkeypatch, capsys):
    def run():
        with ByteProgress("loading", 10, enabled=True) as bar:
            clock.seconds += 1
            bar.advance(10)

    run()
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run()
    assert terminal.getvalue().startswith("\rloading")
    monkeypatch.setattr(sys, "stderr", None)  # a process without a console
    run()
