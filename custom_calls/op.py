"""`Op`: one named equation in the jaxpr, with a reference, a native call and the transformation rules.

Every op of this package is a JAX primitive. The jaxpr therefore shows it under its own name on every
platform, and the choice between the native kernel and the reference is made at lowering time, for the
platform that is being lowered for: one jitted function lowers for cpu, rocm and cuda from any host.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from custom_calls import registry
from custom_calls.architectures import PLATFORMS
from custom_calls.errors import UnsupportedTransformError

Arrays = tuple[jax.Array, ...]

OPS: "dict[str, Op]" = {}
"""Every op by name, in the order of registration; `doctor` and the load table read it."""


@dataclass(frozen=True)
class Native:
    """A native form of an op.

    Attributes:
      targets: the custom-call targets that it uses; none where it is an XLA computation.
      call: same signature as the op's reference.
      note: what else it does than call its targets, as a part of a sentence, or "".
      spread: whether `call` also takes `processors`, those that the library's launches spread over.
    """

    targets: tuple[str, ...]
    call: Callable[..., Arrays]
    note: str = ""
    spread: bool = False

    def called(self, library: registry.Library) -> Callable[..., Arrays]:
        """The call for this library."""
        return _spread(self.call, library.processors) if self.spread else self.call


class Op:
    """A named operation over arrays with several results.

    Args:
      name: the primitive's name, e.g. "mla_jax.linear".
      targets: custom-call targets that the native form uses.
      abstract: (*avals, **static) -> sequence of `jax.ShapeDtypeStruct`.
      reference: (*arrays, **static) -> tuple of arrays in plain jnp; the oracle, differentiable.
      native: same signature, calls `jax.ffi.ffi_call`.
      batch: (arrays, which are batched at axis 0, static) -> results batched at axis 0; None refuses
        vmap with a clear sentence.
      not_differentiable: a sentence that refuses grad, or None where the reference's derivative serves.
      native_note: what else the native form does than call its targets, as a part of a sentence, or "".
      adapters: other contracts that the op speaks: their targets, and the same signature as `native`. Which
        contract is called follows from the library's ABI record, when the op is lowered.
      gpu: the native form for the libraries of GPUs, where it is another.
    """

    def __init__(
        self,
        name: str,
        *,
        targets: Sequence[str],
        abstract: Callable[..., Sequence[jax.ShapeDtypeStruct]],
        reference: Callable[..., Arrays],
        native: Callable[..., Arrays],
        batch: Callable[[Arrays, Sequence[bool], dict[str, Any]], Arrays] | None = None,
        not_differentiable: str | None = None,
        native_note: str = "",
        adapters: Mapping[tuple[str, ...], Callable[..., Arrays]] | None = None,
        gpu: Native | None = None,
    ) -> None:
        self.name = name
        self.targets = tuple(targets)
        self.reference = reference
        self.natives = {self.targets: native, **(adapters or {})}
        self._batch = batch
        self._not_differentiable = not_differentiable
        self._native_note = native_note
        self._gpu = gpu
        self.primitive = Primitive(name)
        self.primitive.multiple_results = True
        self.primitive.def_impl(self._run_eagerly)
        self.primitive.def_abstract_eval(_with_varying_axes(abstract))
        for platform in PLATFORMS:
            mlir.register_lowering(self.primitive, self._lowering(platform), platform=platform)
        mlir.register_lowering(
            self.primitive, mlir.lower_fun(_without_kernels(reference), multiple_results=True)
        )
        ad.primitive_jvps[self.primitive] = self._jvp
        batching.primitive_batchers[self.primitive] = self._vmap
        OPS[name] = self

    def __call__(self, *arrays: jax.Array, kernels: registry.Kernels, **static: Any) -> Arrays:
        """Binds the primitive. `static` values are hashable and part of the equation."""
        return tuple(self.primitive.bind(*arrays, kernels=kernels, **static))

    def choice(self, platform: str, kernels: registry.Kernels, warn: bool = True) -> registry.Choice:
        """What this op runs on `platform`, and why; `warn=False` only asks."""
        library = registry.library(platform)
        first, *adapted = self.forms(library)
        found = registry.choose(self.name, first, platform, kernels, warn=warn, adapted=tuple(adapted))
        note = self._gpu.note if self._gpu and library.is_gpu else self._native_note
        if found.implementation == "native" and note:
            return replace(found, reason=f"{found.reason}; {note}")
        return found

    def forms(self, library: registry.Library) -> dict[tuple[str, ...], Callable[..., Arrays]]:
        """The native forms that may call a library, by their targets, the preferred one first."""
        if self._gpu and library.is_gpu:
            return {self._gpu.targets: self._gpu.called(library)}
        return self.natives

    def _run_eagerly(self, *arrays: jax.Array, **params: Any) -> Arrays:
        return _jitted(self.primitive, tuple(sorted(params.items())))(*arrays)

    def _lowering(self, platform: str) -> Any:
        def rule(ctx: Any, *operands: Any, kernels: registry.Kernels, **static: Any) -> Any:
            chosen = self.choice(platform, kernels)
            native = chosen.implementation == "native"
            body = self.forms(registry.library(platform))[chosen.targets] if native else self.reference
            return mlir.lower_fun(body, multiple_results=True)(ctx, *operands, **static)

        return rule

    def _jvp(self, primals: Any, tangents: Any, *, kernels: registry.Kernels, **static: Any) -> Any:
        if self._not_differentiable is not None:
            raise UnsupportedTransformError(
                f"{self.name} cannot be differentiated: {self._not_differentiable}"
            )
        moving = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

        def at(*values: jax.Array) -> Arrays:
            merged = list(primals)
            for i, value in zip(moving, values, strict=True):
                merged[i] = value
            return self.reference(*merged, **static)

        results = self(*primals, kernels=kernels, **static)
        _, tangents_out = jax.jvp(at, [primals[i] for i in moving], [tangents[i] for i in moving])
        return list(results), list(tangents_out)

    def _vmap(self, arrays: Any, dims: Any, *, kernels: registry.Kernels, **static: Any) -> Any:
        batched = [dim is not None for dim in dims]
        moved = tuple(
            jnp.moveaxis(array, dim, 0) if is_batched else array
            for array, dim, is_batched in zip(arrays, dims, batched, strict=True)
        )
        if self._batch is None:
            raise UnsupportedTransformError(f"{self.name} has no vmap rule; batch its rows instead")
        results = self._batch(moved, batched, {"kernels": kernels, **static})
        return list(results), [0] * len(results)


def map_rows(
    op: "Callable[..., Arrays]", arrays: Arrays, batched: Sequence[bool], static: dict[str, Any]
) -> Arrays:
    """vmap by running the op once per batch element, in a loop: right for every op without a pool result."""

    def one(values: Arrays) -> Arrays:
        taken = iter(values)
        return op(*[next(taken) if b else a for a, b in zip(arrays, batched, strict=True)], **static)

    return jax.lax.map(one, tuple(a for a, b in zip(arrays, batched, strict=True) if b))


def join_rows(
    op: "Callable[..., Arrays]", arrays: Arrays, batched: Sequence[bool], static: dict[str, Any]
) -> Arrays:
    """vmap of products of x (M, K), the first array: if nothing else is batched, all rows are those of one call."""
    x, *rest = arrays
    if not batched[0] or any(batched[1:]):
        return map_rows(op, arrays, batched, static)
    (y,) = op(x.reshape(x.shape[0] * x.shape[1], x.shape[2]), *rest, **static)
    return (y.reshape(*x.shape[:2], y.shape[1]),)


def varying_like(value: jax.Array, *arrays: jax.Array) -> jax.Array:
    """`value`, varying over every mesh axis that `arrays` vary over: the start of a scan over them."""
    axes = _varying(map(jax.typeof, arrays)) - _varying([jax.typeof(value)])
    return jax.lax.pcast(value, tuple(sorted(axes)), to="varying") if axes else value


def _varying(avals: Iterable[Any]) -> frozenset[str]:
    return frozenset[str]().union(*(aval.mat.varying for aval in avals))


@functools.lru_cache(maxsize=256)
def _spread(call: Callable[..., Arrays], processors: int) -> Callable[..., Arrays]:
    """The same object for the same library: what was traced of it is found again."""
    return functools.partial(call, processors=processors)


@functools.lru_cache(maxsize=4096)
def _jitted(primitive: Primitive, params: tuple[tuple[str, Any], ...]) -> Callable[..., Arrays]:
    def run(*arrays: jax.Array) -> Arrays:
        return tuple(primitive.bind(*arrays, **dict(params)))

    run.__name__ = primitive.name
    return jax.jit(run)


def _without_kernels(reference: Callable[..., Arrays]) -> Callable[..., Arrays]:
    def run(*arrays: jax.Array, kernels: registry.Kernels, **static: Any) -> Arrays:
        if kernels == "native":
            registry.choose(reference.__module__, ("native",), "this platform", kernels)
        return reference(*arrays, **static)

    return run


def _with_varying_axes(abstract: Callable[..., Sequence[jax.ShapeDtypeStruct]]) -> Callable[..., Any]:
    """Inside `jax.shard_map` a result varies over every mesh axis that some operand varies over."""

    def rule(*avals: Any, kernels: registry.Kernels, **static: Any) -> list[jax.core.ShapedArray]:
        del kernels
        outs = abstract(*avals, **static)
        varying = _varying(avals)
        if not varying:
            return [jax.core.ShapedArray(out.shape, out.dtype) for out in outs]
        like = next(aval for aval in avals if aval.mat.varying)
        over = like.mat.update(varying=varying)
        return [
            like.update(
                shape=out.shape,
                dtype=out.dtype,
                sharding=NamedSharding(like.sharding.mesh, PartitionSpec(*[None] * len(out.shape))),
                manual_axis_type=over,
            )
            for out in outs
        ]

    return rule
