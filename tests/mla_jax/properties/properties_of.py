"""How the properties are run: `holds` tries examples, `is_falsified` demands that one of them fails.

Every property is a function of what is drawn, stated once and used twice: as it is, and with a fault planted where such
a bug would sit, which it has to find. Examples are the same in every run; `make properties` draws many new ones.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

EXAMPLES_VARIABLE = "MLA_JAX_PROPERTY_EXAMPLES"
"""Examples of each property, newly drawn in each run, instead of the few that are always the same."""

EXAMPLES = int(os.environ.get(EXAMPLES_VARIABLE, "0"))
FEW = 50
MOST_UNTIL_FOUND = 100
"""Examples in which a planted fault has to be found; each fault here is found in far fewer."""

_ALWAYS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "derandomize": EXAMPLES == 0,
    "suppress_health_check": list(HealthCheck),
}


def holds(check: Callable[..., None], **drawn: st.SearchStrategy[Any]) -> None:
    """Fails, with the smallest example, unless `check` passes for everything that is drawn."""
    settings(max_examples=EXAMPLES or FEW, print_blob=EXAMPLES > 0, **_ALWAYS)(given(**drawn)(check))()


def is_falsified(check: Callable[..., None], **drawn: st.SearchStrategy[Any]) -> None:
    """Fails unless an example makes `check` fail, by an assertion of its own and by nothing else."""
    search = settings(
        max_examples=MOST_UNTIL_FOUND, phases=[Phase.generate], report_multiple_bugs=False, **_ALWAYS
    )
    with pytest.raises(AssertionError):
        search(given(**drawn)(check))()
