"""The bar: a terminal sees one line that is rewritten, everything else sees nothing."""

import io
import sys

import pytest

from mla_jax.checkpoints import progress
from mla_jax.checkpoints.progress import ByteProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when the test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_terminal(clock):
    terminal = Terminal()
    with ByteProgress("loading", 4_000_000_000, enabled=True, stream=terminal) as bar:
        clock[0] += 1
        bar.advance(1_000_000_000)
        assert terminal.getvalue() == "\rloading 1.00 of 4.00 GB (25 %), 1.00 GB/s "
        clock[0] += 1
        bar.advance(3_000_000_000)
    lines = terminal.getvalue().split("\r")
    assert lines[-1] == "loading 4.00 of 4.00 GB (100 %), 2.00 GB/s \n"
    assert terminal.getvalue().count("\n") == 1


def test_at_most_ten_times_a_second(clock):
    terminal = Terminal()
    with ByteProgress("loading", 1000, enabled=True, stream=terminal) as bar:
        for _ in range(1000):
            clock[0] += 0.001
            bar.advance(1)
        assert 5 <= terminal.getvalue().count("\r") <= 10


def test_the_line_ends_after_an_error(clock):
    terminal = Terminal()
    with pytest.raises(ZeroDivisionError), ByteProgress("loading", 10, enabled=True, stream=terminal):
        raise ZeroDivisionError
    assert terminal.getvalue() == "\rloading 0.00 of 0.00 GB (0 %), 0.00 GB/s \n"


def test_nothing_to_load(clock):
    terminal = Terminal()
    with ByteProgress("loading", 0, enabled=True, stream=terminal):
        pass
    assert "(100 %)" in terminal.getvalue()


@pytest.mark.parametrize(("stream", "enabled"), [(io.StringIO(), True), (Terminal(), False)])
def test_silence(clock, stream, enabled):
    with ByteProgress("loading", 10, enabled=enabled, stream=stream) as bar:
        clock[0] += 1
        bar.advance(10)
    assert stream.getvalue() == ""


def test_standard_error(clock, monkeypatch, capsys):
    def run() -> None:
        with ByteProgress("loading", 10, enabled=True) as bar:
            clock[0] += 1
            bar.advance(10)

    run()
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run()
    assert terminal.getvalue().startswith("\rloading")
    monkeypatch.setattr(sys, "stderr", None)  # a process without a console
    run()
