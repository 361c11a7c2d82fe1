"""Multi-step arithmetic word problems in the style of GSM8K (Cobbe et al. 2021), made from own templates.

Deterministic: the same split, seed and index give the same problem everywhere. `mla_jax.tasks.problem` says
how names and numbers of training and test are kept apart.
"""

import random
import re
from collections.abc import Iterator

from mla_jax.tasks.problem import Draw, Problem, Split, is_held_out
from mla_jax.tasks.templates import SHARED_TEMPLATES, Template
from mla_jax.tasks.unseen_templates import UNSEEN_TEMPLATES

_FINAL = re.compile(r"####\s*\$?\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?)")


def problems(split: Split, seed: int | str = 0) -> Iterator[Problem]:
    """An endless stream of problems; templates are drawn with equal probability.

    Args:
      split: "train", "test" or "unseen".
      seed: the stream's; strings as well, so that every part of a data set can have its own.
    """
    generator = random.Random(f"{split} {seed}")
    templates = UNSEEN_TEMPLATES if split == "unseen" else SHARED_TEMPLATES
    while True:
        template = templates[int(generator.random() * len(templates))]
        yield draw(template, generator, split)


def draw(template: Template, generator: random.Random, split: Split) -> Problem:
    """One problem of a template, drawn until the numbers fit and belong to the split."""
    held_out = split != "train"
    while True:
        choices = Draw(generator, split)
        drawn = template(choices)
        if drawn is not None and is_held_out(choices.numbers) == held_out:
            question, steps, answer = drawn
            solution = "\n".join((*steps, f"#### {answer}"))
            return Problem(
                template.__name__, question, solution, answer, tuple(choices.numbers), tuple(choices.names)
            )


def final_answer(text: str) -> str | None:
    """The first number that stands after `####`, without thousands separators, or None.

    The first: what a model writes once it has answered is not its answer.
    """
    found = _FINAL.search(text)
    return None if found is None else found[1].replace(",", "")
