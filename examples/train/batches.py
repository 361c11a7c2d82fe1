"""Batches of tokenised training problems, made by worker processes.

Batch i depends on the seed and on i alone: neither on the number of workers, nor on where a run started.
A worker is this file as a program: `batches.py TOKENIZER SEED BATCH LENGTH FIRST STRIDE` writes the batches
FIRST, FIRST + STRIDE, ... to its standard output until nobody reads them any more.
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from vocabulary import ASSISTANT, BOS, EOS, USER

from mla_jax.tasks.arithmetic import problems
from mla_jax.tasks.problem import Problem


class Batch(NamedTuple):
    """Problems padded on the right with EOS.

    Attributes:
      tokens: (B, length + 1) uint16; inputs are all columns but the last, targets all but the first.
      prompt: (B,) uint16 tokens before the solution.
      used: (B,) uint16 tokens in all, the final EOS included.
    """

    tokens: np.ndarray
    prompt: np.ndarray
    used: np.ndarray

    def to_bytes(self) -> bytes:
        return b"".join(array.astype("<u2").tobytes() for array in self)

    @staticmethod
    def from_bytes(data: bytes, rows: int, length: int) -> "Batch":
        numbers = np.frombuffer(data, "<u2")
        cut = rows * (length + 1)
        return Batch(numbers[:cut].reshape(rows, -1), numbers[cut : cut + rows], numbers[cut + rows :])


class Encoder:
    """Token ids of problems, word by word from a table: several times as fast as encoding whole texts.

    The pattern cuts where the tokenizer's own pre-tokenizer does, so the ids are the same.
    """

    _WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._table: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        ids: list[int] = []
        table = self._table
        for word in self._WORDS.findall(text):
            known = table.get(word)
            if known is None:
                known = table[word] = self._tokenizer.encode(word, add_special_tokens=False).ids
            ids += known
        return ids

    def prompt(self, problem: Problem) -> list[int]:
        """What the chat template makes of the question, with the generation prompt."""
        return [BOS, USER, *self.text(problem.question), ASSISTANT]

    def solution(self, problem: Problem) -> list[int]:
        return [*self.text(problem.solution), EOS]


def make_batch(encoder: Encoder, seed: int, index: int, rows: int, length: int) -> Batch:
    """Batch `index`. The rare problem that is longer than length + 1 tokens is passed over.

    Raises:
      ValueError: they are not rare.
    """
    tokens = np.full((rows, length + 1), EOS, np.uint16)
    prompt, used = np.zeros(rows, np.uint16), np.zeros(rows, np.uint16)
    stream = problems("train", f"{seed} {index}")
    row = passed = 0
    while row < rows:
        problem = next(stream)
        question, solution = encoder.prompt(problem), encoder.solution(problem)
        total = len(question) + len(solution)
        if total > length + 1:
            passed += 1
            if passed > 8 + rows // 20:
                raise ValueError(f"length {length} is too short for one problem in twenty")
            continue
        tokens[row, :total] = question + solution
        prompt[row], used[row] = len(question), total
        row += 1
    return Batch(tokens, prompt, used)


class Workers:
    """Batches FIRST, FIRST + 1, ... from `count` processes; a context manager that ends them."""

    def __init__(self, tokenizer: Path, seed: int, rows: int, length: int, first: int, count: int) -> None:
        self._rows, self._length = rows, length
        shape = [str(seed), str(rows), str(length)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(tokenizer), *shape, str(first + worker), str(count)],
                stdout=subprocess.PIPE,
                bufsize=0,
            )
            for worker in range(count)
        ]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.close()
            process.wait()

    def __iter__(self) -> Iterator[Batch]:
        size = 2 * self._rows * (self._length + 3)
        while True:
            for process in self._processes:
                assert process.stdout is not None
                data = b"".join(_read(process.stdout, size))
                if len(data) != size:
                    raise RuntimeError("a process that makes training problems ended; its error is above")
                yield Batch.from_bytes(data, self._rows, self._length)


def _read(stream: "Iterable[bytes]", size: int) -> Iterator[bytes]:
    while size > 0:
        part = stream.read(size)  # type: ignore[attr-defined]
        if not part:
            return
        size -= len(part)
        yield part


def main(arguments: list[str]) -> None:
    encoder = Encoder(Tokenizer.from_file(arguments[0]))
    seed, rows, length, index, stride = map(int, arguments[1:])
    while True:
        data = make_batch(encoder, seed, index, rows, length).to_bytes()
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except (BrokenPipeError, KeyboardInterrupt):
            return
        index += stride


if __name__ == "__main__":
    main(sys.argv[1:])
