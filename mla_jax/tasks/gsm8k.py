"""GSM8K (Cobbe et al. 2021) from the user's own copy: the public jsonl, and the usual 8-shot prompt.

The eight worked examples are this project's own, written in the data set's format.
"""

import os
from dataclasses import dataclass

from mla_jax.checkpoints.json_files import parse_json_object, read_json_text
from mla_jax.errors import RequestError, shown
from mla_jax.tasks.arithmetic import final_answer

MAX_DATA_BYTES = 100_000_000
"""The public files have 0.7 and 4 MB."""

STOP = ("Question:", "\n\n")
"""Where an answer ends: a model that was given examples goes on with a next one."""


@dataclass(frozen=True)
class WordProblem:
    """A question, and its worked answer that ends in the line `#### number`."""

    question: str
    answer: str


EXAMPLES = (
    WordProblem(
        "A florist ties 12 bouquets of 9 tulips each and keeps 15 tulips for the window. How many tulips did the "
        "florist buy?",
        "The bouquets take 12 * 9 = 108 tulips.\nWith those in the window that makes 108 + 15 = 123 tulips.\n#### 123",
    ),
    WordProblem(
        "Marek earns $18 an hour. On Saturday he worked 5 hours, and on Sunday 2 hours less than on Saturday. How many "
        "dollars did he earn on both days?",
        "On Sunday Marek worked 5 - 2 = 3 hours.\nOn both days he worked 5 + 3 = 8 hours.\nHe earned 8 * 18 = $144.\n"
        "#### 144",
    ),
    WordProblem(
        "A ferry carries 240 passengers. A quarter of them are children, and half of the children travel with a "
        "school. How many children do not travel with a school?",
        "There are 240 / 4 = 60 children.\nWith a school travel 60 / 2 = 30 of them.\nThe others are 60 - 30 = 30 "
        "children.\n#### 30",
    ),
    WordProblem(
        "Ilse reads 14 pages every evening and 22 pages every Sunday morning. How many pages does she read in 3 weeks?",
        "In a week of evenings she reads 14 * 7 = 98 pages.\nWith the morning that is 98 + 22 = 120 pages a week.\n"
        "In 3 weeks she reads 120 * 3 = 360 pages.\n#### 360",
    ),
    WordProblem(
        "A coat costs $80. In a sale it is 25% cheaper, and Tomas pays with a $100 note. How much change does he get?",
        "The coat is 80 * 25 / 100 = $20 cheaper.\nIt costs 80 - 20 = $60.\nTomas gets 100 - 60 = $40 back.\n#### 40",
    ),
    WordProblem(
        "A rope of 50 meters is cut into pieces of 6 meters. How many meters of rope are left over?",
        "There are 8 whole pieces, because 8 * 6 = 48 and 9 * 6 = 54.\nThere are 50 - 48 = 2 meters left.\n#### 2",
    ),
    WordProblem(
        "Nuri is three times as old as Pia. In 4 years Pia will be 13. How old is Nuri now?",
        "Pia is 13 - 4 = 9 years old now.\nNuri is 9 * 3 = 27 years old.\n#### 27",
    ),
    WordProblem(
        "A printer prints 30 sheets a minute. It runs for 12 minutes, stops for refilling, and runs for another 8 "
        "minutes. 25 sheets are spoiled. How many good sheets are there?",
        "The printer runs for 12 + 8 = 20 minutes.\nIt prints 20 * 30 = 600 sheets.\nThere are 600 - 25 = 575 good "
        "sheets.\n#### 575",
    ),
)


def prompt(question: str) -> str:
    """The eight examples with their answers, then the question, whose answer is to come."""
    shots = (f"Question: {one.question}\nAnswer: {one.answer}\n\n" for one in EXAMPLES)
    return f"{''.join(shots)}Question: {question}\nAnswer:"


def read_problems(path: str | os.PathLike[str]) -> list[WordProblem]:
    """The problems of a jsonl file: one object a line, {"question": ..., "answer": ...}; empty lines are skipped.

    Raises:
      RequestError: the file cannot be read, holds no problem, or a line is not what it should be.
    """
    problems = []
    for number, line in enumerate(read_json_text(path, RequestError, MAX_DATA_BYTES).split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        values = parse_json_object(line, where, RequestError)
        question, answer = (values.get(name) for name in ("question", "answer"))
        if not isinstance(question, str) or not isinstance(answer, str):
            raise RequestError(f'{where}: expected the strings "question" and "answer", got {shown(values)}')
        if final_answer(answer) is None:
            raise RequestError(
                f"{where}: expected an answer that ends in #### and a number, got {shown(answer)}"
            )
        problems.append(WordProblem(question, answer))
    if not problems:
        raise RequestError(f"{path}: expected a problem a line, got none")
    return problems
