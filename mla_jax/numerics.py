"""How far stored weights are from the originals: tensor by tensor, and for each way to hold kv_b_proj."""

import math
from dataclasses import dataclass, field

import jax
import numpy as np

from custom_calls.quantized_tensor import QuantizedTensor, dequantize
from mla_jax.absorbed import ABSORB_WEIGHTS, absorbed_weight
from mla_jax.errors import ConfigError

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Distance:
    """Between two arrays: 1 - cosine, and the largest error relative to the largest original magnitude."""

    cosine: float
    error: float

    @staticmethod
    def between(before: np.ndarray, after: np.ndarray) -> "Distance":
        dot = squares = other = error = largest = 0.0
        before, after = before.reshape(-1), after.reshape(-1)
        for start in range(0, before.size, _BLOCK):
            # float64, a block at a time: the arrays may be most of the memory that there is.
            one, two = (array[start : start + _BLOCK].astype(np.float64) for array in (before, after))
            dot += float(one @ two)
            squares += float(one @ one)
            other += float(two @ two)
            error = max(error, float(np.max(np.abs(one - two))))
            largest = max(largest, float(np.max(np.abs(one))))
        norms = math.sqrt(squares * other)
        return Distance(1 - dot / norms if norms else 0.0, error / largest if largest else 0.0)

    @staticmethod
    def worst(found: list["Distance"]) -> "Distance":
        return Distance(max(one.cosine for one in found), max(one.error for one in found))


@dataclass
class Numerics:
    """How far quantised weights are from the originals.

    Attributes:
      tensors: by tensor name.
      absorbed: by value of `absorb_weights`: (tensor name, distance, bytes) of every layer's kv_b_proj.
      refused: by value of `absorb_weights` that this model cannot have: why.
    """

    tensors: dict[str, Distance] = field(default_factory=dict)
    absorbed: dict[str, list[tuple[str, Distance, int]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, before: np.ndarray, after: np.ndarray) -> None:
        self.tensors[name] = Distance.between(before, after)

    def absorb(self, name: str, before: np.ndarray, stored: jax.Array | QuantizedTensor) -> None:
        """What each `absorb_weights` makes of a kv_b_proj that is stored as `stored`."""
        for choice in ABSORB_WEIGHTS:
            try:
                held = absorbed_weight(stored, choice, "bfloat16")
            except ConfigError as error:
                self.refused[choice] = str(error)
                continue
            values = dequantize(held) if isinstance(held, QuantizedTensor) else held
            found = Distance.between(before, np.asarray(values))
            self.absorbed.setdefault(choice, []).append((name, found, int(held.nbytes)))

    def by_layer(self) -> list[tuple[str, int, Distance]]:
        """(layer, tensors, worst distance)."""
        layers: dict[str, list[Distance]] = {}
        for name, distance in self.tensors.items():
            parts = name.split(".")
            layer = ".".join(parts[: parts.index("layers") + 2]) if "layers" in parts else parts[0]
            layers.setdefault(layer, []).append(distance)
        return [(layer, len(found), Distance.worst(found)) for layer, found in layers.items()]


def format_report(numerics: Numerics, weights: str) -> str:
    """The errors layer by layer, then what each `absorb_weights` costs and saves, as lines of text."""
    lines = []
    if not numerics.tensors:
        lines.append("no weight was quantised")
    else:
        lines.append(f"{weights}: the worst tensor of each layer, errors relative to its largest weight")
        lines.append(f"{'layer':32} {'tensors':>8} {'1 - cosine':>12} {'max error':>12}")
        for layer, count, worst in numerics.by_layer():
            lines.append(f"{layer:32} {count:8d} {worst.cosine:12.3e} {worst.error:12.3e}")
    if numerics.absorbed:
        lines.append("absorb_weights: kv_b_proj against the original, worst layer, and bytes of all layers")
        lines.append(f"{'choice':32} {'MB':>8} {'1 - cosine':>12} {'max error':>12}")
        for choice, found in numerics.absorbed.items():
            worst = Distance.worst([distance for _, distance, _ in found])
            size = sum(nbytes for *_, nbytes in found) / 1e6
            lines.append(f"{choice:32} {size:8.1f} {worst.cosine:12.3e} {worst.error:12.3e}")
        lines += [f"{choice:32} {why}" for choice, why in numerics.refused.items()]
    return "\n".join(lines)
