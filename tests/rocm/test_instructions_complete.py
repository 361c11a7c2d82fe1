"""Every instruction that the emulator knows has a test of its own in one of the files beside this one."""

import re
from collections.abc import Iterator

import test_instructions_atomics as atomics
import test_instructions_compare as compare
import test_instructions_convert as convert
import test_instructions_cross_lane as cross_lane
import test_instructions_float as floats
import test_instructions_half as half
import test_instructions_integer as integer
import test_instructions_matrix as matrix
import test_instructions_memory as memory
import test_instructions_scalar as scalar
from emulation import library
from snippets import Case

SUFFIX = re.compile(r"(_e32|_e64|_dpp|_sdwa)$")


def cases() -> Iterator[Case]:
    for module in (atomics, compare, half, convert, cross_lane, floats, integer, memory, scalar):
        for value in vars(module).values():
            if isinstance(value, list):
                yield from (item for item in value if isinstance(item, Case))


def mnemonics(text: str) -> Iterator[str]:
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if rest.endswith(" lds"):
            name = name.replace("buffer_load_", "buffer_load_lds_")
        yield SUFFIX.sub("", name)


def test_no_instruction_is_untested() -> None:
    known = set(library().emu_instruction_names().decode().split())
    tested = {name for case in cases() for name in mnemonics(case.text)}
    tested |= {name for names in matrix.MNEMONICS for name in names}
    # Ends, barriers and traps are what test_emulator.py is about.
    tested |= {"s_endpgm", "s_barrier", "s_trap"}
    assert len(known) > 500
    assert sorted(known - tested) == []
