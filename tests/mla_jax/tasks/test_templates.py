"""Every template's answer is worked out twice more: from its question alone, and from its own equations."""

import random
import re
from fractions import Fraction
from itertools import islice

import pytest

from mla_jax.tasks.arithmetic import draw, problems
from mla_jax.tasks.problem import SPLITS
from mla_jax.tasks.templates import SHARED_TEMPLATES
from mla_jax.tasks.unseen_templates import UNSEEN_TEMPLATES

WORDS = {"twice": 2, "three times": 3, "four times": 4, "half": 2, "a third": 3, "a quarter": 4, "a fifth": 5}
LARGEST = 999
EVERY = [*SHARED_TEMPLATES, *UNSEEN_TEMPLATES]


def word(text):
    (found,) = {factor for name, factor in WORDS.items() if re.search(rf"\b{name} (as|of) ", text)}
    return found


# From the numbers of the question, in the order in which they stand there.
SOLVE = {
    "shopping": lambda _, paid, n, p, m, q: paid - n * p - m * q,
    "total_price": lambda text, a, b, c: a * c + b if text.startswith("One box") else a * b + c,
    "travel": lambda _, h, v, g, w: h * v + g * w,
    "remaining_trip": lambda _, miles, h, v, g: (miles - h * v) / g,
    "ages_sum": lambda text, age, older: age + (age + older) * (1 + word(text)),
    "ages_future": lambda _, age, k, years: age * k + years,
    "equal_shares": lambda _, n, eaten, friends: (n - eaten) / friends,
    "pooled_shares": lambda _, a, b, k: (a + b) / k,
    "machine_rate": lambda _, rate, hours, days, broken: rate * hours * days - broken,
    "boxes_sold": lambda _, n, rest, size, price: (n - rest) / size * price,
    "leftover": lambda _, a, b, size: (a + b) % size,
    "discount": lambda _, price, percent, coupon: price * (1 - percent / 100) - coupon,
    "raise_percent": lambda _, rent, percent, months: rent * (1 + percent / 100) * months,
    "survey_percent": lambda _, total, percent, cars: total * (1 - percent / 100) - cars,
    "savings_weeks": lambda _, cost, have, weekly: (cost - have) / weekly,
    "savings_spent": lambda _, weekly, weeks, gift, spent: weekly * weeks + gift - spent,
    "garden": lambda _, rows, each, dead, flowers: (rows * each - dead) * flowers,
    "library": lambda _, start, out, back, new: start - out + back + new,
    "bakery": lambda _, trays, each, left, price: (trays * each - left) * price,
    "reading": lambda _, pages, daily, days, rest: (pages - daily * days) / rest,
    "farm_legs": lambda _, birds, cows, sold: 2 * birds + 4 * (cows - sold),
    "bus_stops": lambda _, start, off, on, off2: start - off + on - off2,
    "tank": lambda _, start, rate, minutes, used: start + rate * minutes - used,
    "fence": lambda _, a, b, price: 2 * (a + b) * price,
    "tiles": lambda _, a, b, have: a * b - have,
    "twice_and_half": lambda _, n, more: n + n / 2 + n / 2 + more,
    "tickets": lambda _, adults, children, p, q, cost: adults * p + children * q - cost,
    "wages": lambda _, hourly, hours, days, bonus: hourly * hours * days + bonus,
    "give_fraction": lambda text, n, lost: n - n / word(text) - lost,
    "recipe": lambda _, people, each, guests, have: guests / people * each - have,
    "running": lambda _, laps, length, days, other: abs(laps * length * days - other),
    "game_score": lambda _, points, penalty, hits, misses: points * hits - penalty * misses,
    "average": lambda _, a, b, c: (a + b + c) / 3,
    "album": lambda _, pages, each, packs, new: pages * each + packs * new,
    "minutes_spent": lambda _, hours, tasks, each, rest: 60 * hours - tasks * each - rest,
    "teams": lambda _, girls, boys, absent, size: (girls + boys - absent) / size,
    "profit": lambda _, n, cost, price: n * (price - cost),
    "collection": lambda _, n, p, m, q, k, each: n * p + m * q - k * each,
    "hiking_water": lambda _, people, bottles, cups, spilled: (people * bottles - spilled) * cups,
    "theater_seats": lambda _, rows, seats, sold, price: (rows * seats - sold) * price,
    "post_office": lambda _, letters, parcels, stamp, parcel: abs(letters * stamp - parcels * parcel),
    "aquarium": lambda text, fish, sold: fish * (1 + word(text)) - sold,
    "painting": lambda _, walls, meters, can: walls * meters / can,
    "bees": lambda _, hives, jars, kept, price: (hives * jars - kept) * price,
    "charity": lambda _, n, more, k: (2 * n + more) / k,
    "elevator": lambda _, floors, flats, empty, people: (floors * flats - empty) * people,
}

EQUATION = re.compile(r"\d+(?: [-+*/] \d+)+(?: = \d+(?: [-+*/] \d+)*)+")


def value(side):
    """Of `a * b + c`, in exact arithmetic and without Python's own evaluation."""
    total, sign, term, operator = Fraction(0), 1, None, None
    for piece in side.split():
        if piece in "+-":
            total, sign, term = total + sign * term, 1 if piece == "+" else -1, None
        elif piece in "*/":
            operator = piece
        elif term is None:
            term = Fraction(piece)
        else:
            term = term * int(piece) if operator == "*" else term / int(piece)
    return total + sign * term


def sample(template, number=40):
    split = "unseen" if template in UNSEEN_TEMPLATES else "test"
    generator = random.Random(template.__name__)
    return [draw(template, generator, split) for _ in range(number)]


def test_the_evaluator_of_these_tests():
    assert value("24 * 10 + 24 * 3") == 312
    assert value("7 - 10 / 4 - 1") == Fraction(7, 2)
    assert value("12") == 12
    assert EQUATION.findall("x 2 * 3 = 6 and 6 / 2 = 3.") == ["2 * 3 = 6", "6 / 2 = 3"]


def test_every_template_has_a_name_and_a_solution_of_its_own():
    names = [template.__name__ for template in EVERY]
    assert len(set(names)) == len(names)
    assert set(names) == set(SOLVE)
    assert not set(SHARED_TEMPLATES) & set(UNSEEN_TEMPLATES)


@pytest.mark.parametrize("template", EVERY, ids=lambda one: one.__name__)
def test_the_answer_follows_from_the_question(template):
    for problem in sample(template):
        numbers = [Fraction(number) for number in re.findall(r"\d+", problem.question)]
        assert SOLVE[problem.template](problem.question, *numbers) == problem.answer, problem


@pytest.mark.parametrize("template", EVERY, ids=lambda one: one.__name__)
def test_the_equations_are_true_and_end_in_the_answer(template):
    for problem in sample(template):
        *steps, final = problem.solution.split("\n")
        assert final == f"#### {problem.answer}"
        assert 2 <= len(steps) <= 5
        last = None
        for step in steps:
            equations = EQUATION.findall(step)
            assert equations, step
            assert "=" not in EQUATION.sub("", step), "an equation that was not understood"
            for equation in equations:
                sides = equation.split(" = ")
                assert {value(side) for side in sides} == {value(sides[-1])}, problem
                last = value(sides[-1])
        assert last == problem.answer


@pytest.mark.parametrize("template", EVERY, ids=lambda one: one.__name__)
def test_numbers_stay_in_range(template):
    for problem in sample(template):
        shown = [int(number) for number in re.findall(r"\d+", problem.question + problem.solution)]
        assert max(shown) <= LARGEST
        assert problem.answer >= 0
        assert not re.search(r"-\d", problem.question + problem.solution), "a negative number"


@pytest.mark.parametrize("template", SHARED_TEMPLATES, ids=lambda one: one.__name__)
def test_products_are_of_one_digit_or_split(template):
    for problem in sample(template):
        for equation in EQUATION.findall(problem.solution):
            first, *rest = equation.split(" = ")
            if len(rest) > 1:
                continue  # written out
            for a, b in re.findall(r"(\d+) \* (\d+)", first):
                assert min(int(a), int(b)) < 10 or int(b) % 10 == 0, equation


@pytest.mark.parametrize("split", SPLITS)
def test_every_template_is_drawn(split):
    templates = UNSEEN_TEMPLATES if split == "unseen" else SHARED_TEMPLATES
    drawn = {problem.template for problem in islice(problems(split), 40 * len(templates))}
    assert drawn == {template.__name__ for template in templates}


def test_wordings_hold_no_other_numbers():
    """A name or a thing with a digit would be one that no answer accounts for."""
    for problem in islice(problems("train"), 300):
        assert not any(re.search(r"\d", name) for name in problem.names)
        assert problem.question.isascii()
        assert "  " not in problem.question + problem.solution
