"""One training step through `mla_jax.forward`: loss, gradient, AdamW, router balance, and its state on disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from batches import Batch
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

import mla_jax
from custom_calls.mxfp4_quantize import mxfp4_quantize
from custom_calls.quantized_tensor import dequantize
from custom_calls.registry import Kernels
from mla_jax.checkpoints.safetensors import SafetensorsFile
from mla_jax.checkpoints.safetensors_writer import write_safetensors
from mla_jax.config import ModelConfig
from mla_jax.layers import MoE
from mla_jax.parameters import ParamInfo, Tree, map_table, parameter_table, random_parameters
from mla_jax.rope import RopeTable

BIAS = "e_score_correction_bias"


@dataclass(frozen=True)
class Settings:
    """What training depends on beside the data.

    Attributes:
      learning_rate: AdamW's at its highest.
      warmup, decay: parts of the run in which the rate rises from 0 and falls to 0, both linearly.
      weight_decay: AdamW's, for matrices only.
      clip: greatest global norm of a gradient.
      beta2: AdamW's.
      bias_rate: step of the router's bias, DeepSeek-V3's gamma (technical report, 2.1.2).
      bias_until: part of the run from which the bias no longer moves, so that the router settles.
      mxfp4_from: part of the run from which every second step sees the MLPs' weights as MXFP4 will hold
        them (straight-through gradient); 1 for never.
    """

    learning_rate: float = 2e-3
    warmup: float = 0.03
    decay: float = 0.6
    weight_decay: float = 0.1
    clip: float = 1.0
    beta2: float = 0.98
    bias_rate: float = 1e-3
    bias_until: float = 0.9
    mxfp4_from: float = 0.6

    def rate(self, progress: float) -> float:
        """Learning rate when `progress` in [0, 1] of the run is done."""
        rise = min(1.0, progress / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (1.0 - progress) / self.decay) if self.decay else 1.0
        return self.learning_rate * max(0.0, min(rise, fall))


class State(NamedTuple):
    """Float32 master weights, nested as `parameter_table(config)`, and the optimiser's state."""

    params: Tree
    optimizer: Any


class StepReport(NamedTuple):
    """Of one step, on the device: mean loss of a target token, gradient norm, and for each sparse layer the
    largest expert's share of the choices times the number of experts (1 is perfect balance)."""

    loss: jax.Array
    gradient_norm: jax.Array
    imbalance: jax.Array


class Trainer:
    """The compiled step for one architecture and shape of batch."""

    def __init__(
        self,
        config: ModelConfig,
        settings: Settings,
        *,
        kernels: Kernels = "reference",
        fast_products: bool = True,
    ) -> None:
        self.config, self.settings, self.kernels = config, settings, kernels
        self.table = parameter_table(config)
        self.rope = RopeTable.from_config(config.rope, config.max_position_embeddings)
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(settings.clip),
            optax.scale_by_adam(b1=0.9, b2=settings.beta2),
            optax.add_decayed_weights(
                settings.weight_decay, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
            ),
        )
        step = with_fast_products(self._step) if fast_products else self._step
        self.step = jax.jit(step, donate_argnums=0)

    def init(self, seed: int) -> State:
        params = random_parameters(self.table, jax.random.key(seed), "float32")
        return State(params, self.optimizer.init(params))

    def frozen(self, params: Tree, *, mxfp4: bool = False) -> mla_jax.FrozenModel:
        """The model in its compute dtype, its MLPs rounded to MXFP4 if asked."""
        cast = map_table(lambda info: jnp.dtype(info.dtype or self.config.dtype), self.table)
        compute = jax.tree.map(lambda kind, leaf: leaf.astype(kind), cast, params)
        if mxfp4:
            compute = as_mxfp4(compute, self.table)
        return mla_jax.FrozenModel(compute, self.rope.cos, self.rope.sin, self.config, self.kernels)

    def loss(self, params: Tree, batch: Batch, see_mxfp4: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean cross entropy of the solutions' tokens, choices of each expert (sparse layers, experts))."""
        model = self.frozen(params)
        rounded = jax.lax.cond(
            see_mxfp4,
            lambda tree: as_mxfp4(tree, self.table),
            lambda tree: tree,
            jax.lax.stop_gradient(model.params),
        )
        # Exactly the rounded value, with the gradient of the one that is not rounded.
        straight = jax.tree.map(
            lambda plain, seen: seen + (plain - jax.lax.stop_gradient(plain)), model.params, rounded
        )
        module = mla_jax.FrozenModel(
            straight, model.rope_cos, model.rope_sin, self.config, self.kernels
        ).thaw()
        inputs, targets = batch.tokens[:, :-1].astype(jnp.int32), batch.tokens[:, 1:].astype(jnp.int32)
        column = jnp.arange(inputs.shape[1], dtype=jnp.int32)[None, :]
        used = batch.used.astype(jnp.int32)[:, None]
        real = column < used
        # Column i predicts token i + 1: the first token of the solution to the last, which is EOS.
        counted = (column + 1 >= batch.prompt.astype(jnp.int32)[:, None]) & (column + 1 < used)
        counts = count_choices(module, real.reshape(-1))
        embedding = module.model.embed_tokens.weight[...]
        module.model.embed_tokens = lambda tokens: rows_of(embedding, tokens)
        logits = mla_jax.forward(module, inputs)
        # A sum over the vocabulary with one term that is not zero: unlike a gather's, its derivative is no scatter.
        is_target = targets[:, :, None] == jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None, :]
        wanted = jnp.sum(jnp.where(is_target, logits, jnp.float32(0)), axis=-1)
        surprise = jax.nn.logsumexp(logits, axis=-1) - wanted
        total = jnp.sum(jnp.where(counted, surprise, jnp.float32(0)))
        number = jnp.maximum(jnp.sum(counted, dtype=jnp.int32), 1).astype(jnp.float32)
        return total / number, jnp.stack(counts)

    def _step(
        self, state: State, batch: Batch, rate: jax.Array, bias_rate: jax.Array, see_mxfp4: jax.Array
    ) -> tuple[State, StepReport]:
        (loss, counts), gradient = jax.value_and_grad(self.loss, has_aux=True)(state.params, batch, see_mxfp4)
        update, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
        params = jax.tree.map(lambda leaf, change: leaf - rate * change, state.params, update)
        share = counts / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), jnp.float32(1))
        even = np.float32(1 / self.config.n_routed_experts)
        # DeepSeek-V3's balance without an auxiliary loss: an expert that is chosen too often gets a lower bias.
        for layer, one in zip(sparse_layers(params), share, strict=True):
            layer["mlp"]["gate"][BIAS] += bias_rate * jnp.sign(even - one)
        imbalance = jnp.max(share, axis=1) * np.float32(self.config.n_routed_experts)
        return State(params, optimizer), StepReport(loss, optax.tree.norm(gradient), imbalance)

    def run_step(self, state: State, batch: Batch, step: int, progress: float) -> tuple[State, StepReport]:
        """Step number `step` when `progress` in [0, 1] of the run is done."""
        settings = self.settings
        return self.step(
            state,
            batch,
            np.float32(settings.rate(progress)),
            np.float32(settings.bias_rate if progress < settings.bias_until else 0.0),
            np.bool_(progress >= settings.mxfp4_from and step % 2 == 1),
        )


def with_fast_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with every matrix product that it shows at the backend's default precision.

    The references ask for `Precision.HIGHEST`, which they should as oracles: on NVIDIA it keeps float32
    products off the tensor cores. Their derivatives inherit it, and a gradient does not need it: the default,
    TF32, has three bits more than the bfloat16 in which the weights are used. What is inside an op of
    `custom_calls` stays as it is; on the CPU nothing changes.
    """

    def fast(*args: Any) -> Any:
        flat, structure = jax.tree.flatten(args)
        closed, shape = jax.make_jaxpr(
            lambda *leaves: function(*jax.tree.unflatten(structure, leaves)), return_shape=True
        )(*flat)
        return jax.tree.unflatten(jax.tree.structure(shape), jaxpr_as_fun(_fast_jaxpr(closed))(*flat))

    return fast


def _fast_jaxpr(value: Any) -> Any:
    if isinstance(value, ClosedJaxpr) and value.jaxpr is not value:
        return value.replace(jaxpr=_fast_jaxpr(value.jaxpr))
    if isinstance(value, Jaxpr):
        return value.replace(eqns=[_fast_equation(equation) for equation in value.eqns])
    if isinstance(value, tuple):
        return tuple(map(_fast_jaxpr, value)) if any(isinstance(v, ClosedJaxpr) for v in value) else value
    return value


def _fast_equation(equation: Any) -> Any:
    params = {name: _fast_jaxpr(value) for name, value in equation.params.items()}
    if equation.primitive is jax.lax.dot_general_p:
        params["precision"] = None
    return equation.replace(params=params)


def sparse_layers(params: Mapping[str, Any]) -> list[Tree]:
    return [layer for layer in params["model"]["layers"] if "gate" in layer["mlp"]]


@jax.custom_vjp
def rows_of(weight: jax.Array, tokens: jax.Array) -> jax.Array:
    """weight[tokens], with a matrix product as its derivative.

    A scatter of the rows of a batch into a small vocabulary would have thousands of additions to one row wait
    for each other, in an order that changes from run to run.
    """
    return weight[tokens]


def _rows_forward(weight: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return weight[tokens], (weight, tokens)


def _rows_backward(saved: tuple[jax.Array, jax.Array], change: jax.Array) -> tuple[jax.Array, None]:
    weight, tokens = saved
    hot = jax.nn.one_hot(tokens, weight.shape[0], dtype=change.dtype)
    by_row = jax.lax.dot_general(hot, change, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return by_row.astype(weight.dtype), None


rows_of.defvjp(_rows_forward, _rows_backward)


def count_choices(module: mla_jax.MLAForCausalLM, real: jax.Array) -> list[jax.Array]:
    """Makes the routers of `module` count; the list holds an entry (experts,) for each once it has run.

    `real` (T,) says which rows are counted: padding is not.
    """
    counts: list[jax.Array] = []

    def counting(router: Any, experts: int) -> Any:
        def route(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            ids, weights = router(x)
            chosen = jnp.where(real[:, None], ids, jnp.int32(experts))
            hits = chosen[:, :, None] == jnp.arange(experts, dtype=jnp.int32)[None, None, :]
            counts.append(jnp.sum(hits, axis=(0, 1), dtype=jnp.int32).astype(jnp.float32))
            return ids, weights

        return route

    for layer in module.model.layers:
        if isinstance(layer.mlp, MoE):
            layer.mlp.gate = counting(layer.mlp.gate, layer.mlp.num_experts)
    return counts


def as_mxfp4(params: Tree, table: Tree) -> Tree:
    """The weights that `mla-jax convert --weights mxfp4` quantises, rounded as it does: those of the MLPs."""

    def one(info: ParamInfo, leaf: jax.Array) -> jax.Array:
        if not info.quantizable or not all(".mlp." in source.name for source in info.sources):
            return leaf
        rounded = dequantize(mxfp4_quantize(leaf, rounding="even", kernels="reference"))
        return rounded.astype(leaf.dtype)

    return jax.tree.map(one, table, params, is_leaf=lambda node: isinstance(node, ParamInfo))


def write_model(path: Path, params: Tree, config: ModelConfig) -> None:
    """model.safetensors in `config.dtype`, under the names of the checkpoint format."""
    tensors: dict[str, np.ndarray] = {}

    def add(info: ParamInfo, leaf: jax.Array) -> None:
        array = np.asarray(leaf.astype(info.dtype or config.dtype))
        for source in info.sources:
            part = array[source.index] if source.index else array
            tensors[source.name] = part if source.rows is None else part[slice(*source.rows)]

    jax.tree.map(add, parameter_table(config), params, is_leaf=lambda node: isinstance(node, ParamInfo))
    write_safetensors(path, tensors, {"format": "pt"})


def save_state(path: Path, state: State, step: int, seconds: float) -> None:
    """All of a run's state; `seconds` of training so far."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    tensors = {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}
    write_safetensors(path, tensors, {"step": str(step), "seconds": repr(seconds)})


def load_state(path: Path, like: State) -> tuple[State, int, float]:
    """(state, steps done, seconds of training) of `save_state`; `like` gives the structure."""
    with SafetensorsFile(path) as file:
        state = jax.tree_util.tree_map_with_path(
            lambda key, leaf: jnp.asarray(file.read(jax.tree_util.keystr(key))).reshape(leaf.shape), like
        )
        return state, int(file.metadata["step"]), float(file.metadata["seconds"])
