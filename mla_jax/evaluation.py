"""`mla-jax eval`: how many problems of a task a model answers exactly, and how sure that figure is."""

import math
import os
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal, get_args

from mla_jax.arguments import as_integer
from mla_jax.errors import RequestError, shown
from mla_jax.sampling_params import SamplingParams
from mla_jax.tasks import arithmetic, gsm8k

if TYPE_CHECKING:  # a task is checked before the engine is imported
    from mla_jax.completion import Completion
    from mla_jax.llm import LLM, Prompt

TaskName = Literal["arithmetic", "gsm8k"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)

DEFAULT_ARITHMETIC_PROBLEMS = 100

_Z = 1.959963984540054
"""The normal distribution's 97.5 % quantile: intervals are of 95 %."""


@dataclass(frozen=True)
class Task:
    """What a model is asked, and what is right.

    Attributes:
      prompts: what is asked, one text a problem.
      answers: the final numbers.
      chat: whether prompts go through the model's chat template.
      params: how answers are generated; always greedily.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    chat: bool
    params: SamplingParams


@dataclass(frozen=True)
class Score:
    """Of one evaluation.

    Attributes:
      exact_match: part of the answers whose number after #### is right, in [0, 1].
      low, high: 95 % Wilson interval of it.
      n: number of problems.
      seconds: what answering took, compilation included and loading the model not.
    """

    exact_match: float
    low: float
    high: float
    n: int
    seconds: float


def make_task(name: TaskName, *, data: str | os.PathLike[str] | None = None, n: int | None = None) -> Task:
    """A task's first `n` problems.

    Args:
      name: "arithmetic", the held-out problems of `mla_jax.tasks`, through the chat template; or "gsm8k",
        with eight worked examples in front of each question.
      data: for gsm8k, the user's copy of the public jsonl; for arithmetic None.
      n: number of problems; by default 100 of arithmetic and the whole file of gsm8k.

    Raises:
      RequestError: an unknown task, a missing, superfluous or unreadable file, or more problems than there are.
    """
    if name not in TASKS:
        raise RequestError(f"task: expected {' or '.join(map(repr, TASKS))}, got {shown(name)}")
    count = as_integer(n)
    if n is not None and (count is None or count < 1):
        raise RequestError(f"n: expected an integer >= 1, got {shown(n)}")
    if name == "arithmetic":
        if data is not None:
            raise RequestError(f"data: expected none, arithmetic makes its own problems, got {shown(data)}")
        drawn = list(islice(arithmetic.problems("test"), count or DEFAULT_ARITHMETIC_PROBLEMS))
        return Task(
            tuple(problem.question for problem in drawn),
            tuple(str(problem.answer) for problem in drawn),
            chat=True,
            params=SamplingParams(max_tokens=128, temperature=0.0),
        )
    if data is None:
        raise RequestError("data: gsm8k needs the public jsonl file, of which this project has no copy")
    read = gsm8k.read_problems(data)
    if count is not None and count > len(read):
        raise RequestError(f"n: expected at most {len(read)}, the problems of {data}, got {count}")
    chosen = read[:count]
    return Task(
        tuple(gsm8k.prompt(problem.question) for problem in chosen),
        tuple(str(arithmetic.final_answer(problem.answer)) for problem in chosen),
        chat=False,
        params=SamplingParams(max_tokens=400, temperature=0.0, stop=gsm8k.STOP),
    )


def evaluate(llm: "LLM", task: Task, *, progress: bool = True) -> Score:
    """Answers all of a task's problems, as many at a time as the engine runs sequences, and counts.

    Raises:
      TokenizerError, TemplateError: a chat task, and a model without a chat template.
      RequestError: a prompt that does not fit the model's context.
    """
    return answer(llm, task, progress=progress)[0]


def answer(llm: "LLM", task: Task, *, progress: bool = True) -> "tuple[Score, list[Completion]]":
    """`evaluate`, and the completions themselves, in the order of the problems."""
    prompts: list[Prompt] = list(task.prompts)
    if task.chat:
        prompts = [llm.encode_chat([{"role": "user", "content": text}]) for text in task.prompts]
    start = time.perf_counter()
    completions = llm.generate(prompts, task.params, progress=progress)
    seconds = time.perf_counter() - start
    right = sum(
        arithmetic.final_answer(completion.text) == expected
        for completion, expected in zip(completions, task.answers, strict=True)
    )
    low, high = wilson_interval(right, len(completions))
    return Score(right / len(completions), low, high, len(completions), seconds), completions


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927): unlike right / n ± 2 sigma, sound near 0 and 1."""
    share, z2 = right / n, _Z * _Z
    middle = share + z2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    scale = 1 + z2 / n
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    low = 0.0 if right == 0 else (middle - half) / scale
    high = 1.0 if right == n else (middle + half) / scale
    return low, high


def format_report(score: Score) -> str:
    """One line for people."""
    return (
        f"{score.exact_match:.3f} exact match (95 % interval {score.low:.3f} to {score.high:.3f}), "
        f"{score.n} problems in {score.seconds:.1f} s"
    )
