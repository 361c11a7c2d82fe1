"""What a word problem is, and the draws that templates make: names and numbers of one split only.

A split never shows what the other one shows. Names come from two lists, and composed names from syllables
that make none of the test names. Numbers are split by `is_held_out`: the multiset of all numbers that a
problem draws belongs to the test splits or to training, whatever the template and the order.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Split = Literal["train", "test", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "test", "unseen")
"""train and test share templates; unseen has templates of its own, with the names and numbers of test."""

TRAIN_NAMES = tuple(
    "Ada Alan Amir Anna Anton Aisha Bela Ben Bianca Boris Carla Carol Chen Clara Dana David Dina Diego Edith Elena "
    "Emil Erik Eva Fatima Felix Fiona Frank Gina Goran Grace Hana Hugo Ida Igor Ines Ivan Jana Jasper Joan Jonas "
    "Karim Kate Klara Kofi Lara Leo Lina Luis Maja Marco Maria Mila Nadia Nils Nora Olga Omar Oscar Paula Pedro "
    "Petra Priya Rahul Rita Robin Rosa Ruben Salma Sara Simon Sofia Stefan Tara Theo Tina Tom Uma Vera Victor "
    "Wanda Yara Yusuf Zoe".split()
)
TEST_NAMES = tuple(
    "Abel Agnes Bruno Celine Dario Esther Farid Greta Henrik Irene Jules Kira Lorenz Miriam Noel Odette Pablo "
    "Quinn Renata Samir Thea Ulrich Viola Wilma Xenia Yolanda Zeno Tobias Selma Ravi".split()
)

_ONSETS = "B C D F G H J K L M N P R S T V W Z Br Dr Gr Kr St Tr Sh Th".split()
_MIDDLES = "a e i o u ai ea io".split()
_CODAS = "b d f g k l m n r s t v ll nn rr st nd".split()
_ENDS = "a e i o an en in on us ia er el is y".split()

_HELD_OUT_ONE_IN = 8

Item = TypeVar("Item")


@dataclass(frozen=True)
class Problem:
    """One word problem.

    Attributes:
      template: name of the template.
      question: what is asked, one paragraph.
      solution: the worked answer: sentences with equations, then the line `#### answer`.
      answer: the final number.
      numbers: every number that was drawn, in order.
      names: every name that was drawn, in order.
    """

    template: str
    question: str
    solution: str
    answer: int
    numbers: tuple[int, ...]
    names: tuple[str, ...]


def is_held_out(numbers: Sequence[int]) -> bool:
    """Whether a multiset of drawn numbers belongs to the test splits: one in eight does.

    The sorted numbers go through a multiplicative hash (Knuth's constant, modulo 2^32); held out are those
    whose bits 16 to 18 are zero.
    """
    state = len(numbers)
    for number in sorted(numbers):
        state = ((state ^ number) + 1) * 2654435761 & 0xFFFFFFFF
    return (state >> 16) % _HELD_OUT_ONE_IN == 0


class Draw:
    """The random choices of one problem; templates take every name and number from here."""

    __slots__ = ("_composed", "_names", "_random", "names", "numbers")

    def __init__(self, generator: random.Random, split: Split) -> None:
        self._random = generator.random
        self._names = TRAIN_NAMES if split == "train" else TEST_NAMES
        self._composed = split == "train"
        self.numbers: list[int] = []
        self.names: list[str] = []

    def number(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        value = low + int(self._random() * (high - low + 1))
        self.numbers.append(value)
        return value

    def tens(self, low: int, high: int) -> int:
        """A multiple of ten in [low, high]."""
        return self._multiple(10, low, high)

    def _multiple(self, unit: int, low: int, high: int) -> int:
        first = -(-low // unit)
        value = unit * (first + int(self._random() * (high // unit - first + 1)))
        self.numbers.append(value)
        return value

    def name(self) -> str:
        """A name that this problem has not used; in training half of them are composed of syllables."""
        while True:
            name = self._compose() if self._composed and self._random() < 0.5 else self.pick(self._names)
            if name not in self.names:
                self.names.append(name)
                return name

    def pick(self, items: Sequence[Item]) -> Item:
        """One of several wordings or things."""
        return items[int(self._random() * len(items))]

    def _compose(self) -> str:
        pick = self.pick
        while True:
            name = pick(_ONSETS) + pick(_MIDDLES) + pick(_CODAS) + pick(_ENDS)
            if name not in TEST_NAMES:
                return name


def product(a: int, b: int) -> str:
    """`a * b = c`; factors of two digits each are split: `24 * 13 = 24 * 10 + 24 * 3 = 240 + 72 = 312`."""
    if a < 10 or b < 10 or b % 10 == 0:
        return f"{a} * {b} = {a * b}"
    tens, ones = b - b % 10, b % 10
    return f"{a} * {b} = {a} * {tens} + {a} * {ones} = {a * tens} + {a * ones} = {a * b}"
