"""AMD's published rates of the GPUs that the kernels are compiled for; nothing here was measured.

Sources, by the names that docs/isa.md gives them:
  data sheets: "AMD Instinct MI300X", "AMD Instinct MI350X" and "AMD Instinct MI355X": units, clock, peaks.
  ISA: "AMD Instinct MI300 (CDNA3) ISA" and "CDNA4 ISA": size of the local data share.
  HIP: ROCm's documentation of HIP, "Hardware implementation": a vector instruction of 64 lanes takes a SIMD four
    cycles, matrix cores work beside it, bytes of LDS a cycle.
  profiler: ROCm Compute Profiler, "System Speed-of-Light" of gfx942 and gfx950: 128 bytes a channel of the L2 cache
    and cycle.
"""

import dataclasses
import re
from dataclasses import dataclass

LANES = 64
SIMDS = 4
VECTOR_CYCLES = 4
# Of the L2 caches of all eight dies; each die's channels serve the units of that die.
CACHE_CHANNELS, CHANNEL_BYTES = 8 * 16, 128


@dataclass(frozen=True)
class Machine:
    """One GPU.

    Attributes:
      units, clock_ghz: compute units and the peak of their clock.
      tbytes_per_s, bf16_tflops: peaks, dense.
      fp8_rate, fp4_rate: how much faster than bf16 matrix cores multiply codes of eight and of four bits; 0 where
        they cannot.
      lds, lds_rate: bytes of LDS that a unit has, and that it moves a cycle.
    """

    name: str
    units: int
    clock_ghz: float
    tbytes_per_s: float
    bf16_tflops: float
    fp8_rate: int
    fp4_rate: int
    lds: int
    lds_rate: int

    @property
    def memory_rate(self) -> float:
        """Bytes of memory a cycle, a unit's share of the whole GPU's."""
        return self.tbytes_per_s * 1e3 / self.clock_ghz / self.units

    @property
    def cache_rate(self) -> float:
        """Bytes of the L2 caches a cycle, a unit's share."""
        return CACHE_CHANNELS * CHANNEL_BYTES / self.units

    def matrix_cycles(self, instruction: str) -> float:
        """Of a SIMD, for one matrix instruction, by `isa.cost.matrix_name`, at the peak rate."""
        size = _MATRIX.match(instruction)
        assert size is not None, f"a matrix instruction of unknown size: {instruction}"
        m, n, k = map(int, size.groups())
        rate = next(
            (getattr(self, rate) for rate, ending in _RATES.items() if ending.search(instruction)), None
        )
        assert rate is not None or "_f8f6f4" not in instruction, f"no rate of mixed formats: {instruction}"
        rate = 1 if rate is None else rate
        assert rate, f"no rate of {instruction} on {self.name}"
        per_cycle = rate * self.bf16_tflops * 1e3 / self.clock_ghz / self.units / SIMDS
        return 2 * m * n * k / per_cycle


_MATRIX = re.compile(r"v_mfma_(?:scale_)?f32_(\d+)x(\d+)x(\d+)")
# By what a name ends in; all others multiply bf16. No kernel mixes formats.
_RATES = {"fp4_rate": re.compile("_f8f6f4 cbsz:4 blgp:4$"), "fp8_rate": re.compile("_(f8f6f4|fp8_fp8)$")}


def multiplications(instruction: str) -> int:
    """Of one matrix instruction."""
    size = _MATRIX.match(instruction)
    assert size is not None, f"a matrix instruction of unknown size: {instruction}"
    m, n, k = map(int, size.groups())
    return m * n * k


MACHINES = {
    "gfx942": Machine("MI300X", 304, 2.1, 5.3, 1307.4, 2, 0, 64 << 10, 128),
    "gfx950": Machine("MI355X", 256, 2.4, 8.0, 2516.6, 2, 4, 160 << 10, 256),
}
# The same chip at another clock.
MI350X = dataclasses.replace(MACHINES["gfx950"], name="MI350X", clock_ghz=2.2, bf16_tflops=2306.9)
