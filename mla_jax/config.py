"""What a model is, as frozen numbers: hashable, so that it can be a static argument under jit.

Nothing here computes RoPE or YaRN: `mla_jax.rope` does, from these raw values. How Hugging Face spells a
configuration is in `mla_jax.checkpoints.hf_config`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from mla_jax.errors import ConfigError, shown

ScoringFunc = Literal["softmax", "sigmoid"]
TopkMethod = Literal["greedy", "group_limited_greedy", "noaux_tc"]
MlpLayerType = Literal["dense", "sparse"]
RopePairing = Literal["interleaved", "half"]

MAX_INT = 2**31 - 1
"""Largest integer of any field: array dimensions and token ids are int32 in the kernels."""

MAX_EXPERTS = 65_536
"""As for layers: every expert of every layer is a line in the plan of an import."""

MAX_LAYERS = 4096
"""Far beyond any model; bounds what a hostile configuration can make us allocate."""

MAX_POSITIONS = 2**24
"""Longest context of any model; the RoPE table has a row for every position."""

MAX_NUMBER = 1e15
"""Largest number of any field: with it, everything derived is finite in float32, squares included."""


@dataclass(frozen=True)
class YarnConfig:
    """YaRN's numbers (Peng et al. 2023) as the checkpoint states them.

    Attributes:
      factor: context stretch, >= 1.
      original_max_position_embeddings: the context before stretching, in tokens.
      beta_fast, beta_slow: turns over the original context between which the ramp runs.
      mscale, mscale_all_dim: temperature weights; 0.0 where the checkpoint has none.
      attention_factor: explicit multiplier of cos and sin, or None to derive it from the mscales.

    Raises:
      ConfigError: a value is out of range.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        where = "rope scaling: "
        _number(where + "factor", self.factor, low=1.0)
        _integer(
            where + "original_max_position_embeddings",
            self.original_max_position_embeddings,
            low=1,
        )
        _number(where + "beta_slow", self.beta_slow, above=1 / MAX_NUMBER)
        _number(where + "beta_fast", self.beta_fast, low=self.beta_slow)
        _number(where + "mscale", self.mscale, low=0.0)
        _number(where + "mscale_all_dim", self.mscale_all_dim, low=0.0)
        if self.attention_factor is not None:
            _number(where + "attention_factor", self.attention_factor, above=0.0)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of the rope slice of a head.

    Attributes:
      theta: base of the frequencies.
      dim: width of the rotated slice (qk_rope_head_dim), even.
      layout: which components make a pair: (2i, 2i+1) "interleaved", (i, i + dim/2) "half".
      scaling: YaRN, or None for plain RoPE.

    Raises:
      ConfigError: a value is out of range.
    """

    theta: float
    dim: int
    layout: RopePairing = "interleaved"
    scaling: YarnConfig | None = None

    def __post_init__(self) -> None:
        # YaRN divides by ln(theta), and a base of 1 or less has no decreasing frequencies at all.
        _number("rope_theta", self.theta, above=1.0)
        _integer("qk_rope_head_dim", self.dim, low=2)
        if self.dim % 2:
            _fail("qk_rope_head_dim", "an even number (RoPE rotates pairs)", self.dim)
        _choice("rope layout", self.layout, ("interleaved", "half"))


@dataclass(frozen=True)
class RouterConfig:
    """How a sparse layer picks experts.

    Attributes:
      scoring_func: what turns logits into scores.
      topk_method: "greedy" takes the best experts; "group_limited_greedy" first keeps the groups with
        the best single expert (V2); "noaux_tc" keeps the groups with the best sum of two biased scores
        and chooses by biased, weighs by unbiased scores (V3).
      n_group, topk_group: number of expert groups, and of groups kept.
      norm_topk_prob: whether the chosen weights are divided by their sum.
      routed_scaling_factor: multiplies the weights at the end.

    Raises:
      ConfigError: a value is out of range.
    """

    scoring_func: ScoringFunc
    topk_method: TopkMethod
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float

    def __post_init__(self) -> None:
        _choice("scoring_func", self.scoring_func, ("softmax", "sigmoid"))
        _choice("topk_method", self.topk_method, ("greedy", "group_limited_greedy", "noaux_tc"))
        _integer("n_group", self.n_group, low=1)
        _integer("topk_group", self.topk_group, low=1)
        if self.topk_group > self.n_group:
            _fail("topk_group", f"at most n_group = {self.n_group}", self.topk_group)
        _boolean("norm_topk_prob", self.norm_topk_prob)
        _number("routed_scaling_factor", self.routed_scaling_factor, above=0.0)


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a checkpoint's architecture that shapes, layers or sampling depend on.

    Attributes:
      model_type: the checkpoint's own, such as "deepseek_v3" or "kimi_k2".
      q_lora_rank: width of the query latent, or None where queries come from one `q_proj`.
      kv_lora_rank: width of the latent that is cached.
      intermediate_size: width of a dense layer's MLP.
      moe_intermediate_size: width of one expert; 0 in a dense model.
      n_routed_experts: 0 in a dense model, and then `router` is None.
      n_shared_experts: they are one MLP of width n_shared_experts * moe_intermediate_size.
      mlp_layer_types: "dense" or "sparse", one a layer.
      rms_norm_eps: of the layers' norms.
      latent_norm_eps: of q_a_layernorm and kv_a_layernorm, which is not always rms_norm_eps.
      attention_bias: whether q_a_proj, kv_a_proj_with_mqa and o_proj have a bias.
      mlp_bias: whether the dense and shared MLPs have biases.
      index_topk: tokens that V3.2's sparse attention keeps, or None for models without an indexer.
      num_nextn_predict_layers: multi-token-prediction layers announced after the last layer.
      bos_token_id, eos_token_ids, pad_token_id: as the checkpoint says, possibly beyond vocab_size.
      dtype: in which the checkpoint says its weights are: "float32", "bfloat16" or "float16".
      tensor_prefix: what precedes "model." and "lm_head." in tensor names.
      quantization: the checkpoint's quantization_config as JSON text, or None.

    Raises:
      ConfigError: a field has the wrong type, is out of range or contradicts another.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    mlp_layer_types: tuple[MlpLayerType, ...]
    router: RouterConfig | None
    rope: RopeConfig
    rms_norm_eps: float
    latent_norm_eps: float
    max_position_embeddings: int
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    index_topk: int | None = None
    num_nextn_predict_layers: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    dtype: str = "float32"
    tensor_prefix: str = ""
    quantization: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "intermediate_size",
            "max_position_embeddings",
        ):
            _integer(name, getattr(self, name), low=1)
        for name in (
            "moe_intermediate_size",
            "n_routed_experts",
            "num_experts_per_tok",
            "n_shared_experts",
            "num_nextn_predict_layers",
        ):
            _integer(name, getattr(self, name), low=0)
        for name in ("q_lora_rank", "index_topk"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), low=1)
        if self.num_hidden_layers > MAX_LAYERS:
            _fail("num_hidden_layers", f"at most {MAX_LAYERS}", self.num_hidden_layers)
        if (
            self.n_routed_experts * self.num_hidden_layers > MAX_EXPERTS * 16
            or self.n_routed_experts > MAX_EXPERTS
        ):
            _fail(
                "n_routed_experts",
                f"at most {MAX_EXPERTS}, and 16 times that in all layers",
                self.n_routed_experts,
            )
        if self.max_position_embeddings > MAX_POSITIONS:
            _fail("max_position_embeddings", f"at most {MAX_POSITIONS}", self.max_position_embeddings)
        for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
            _boolean(name, getattr(self, name))
        for name in ("rms_norm_eps", "latent_norm_eps"):
            _number(name, getattr(self, name), above=0.0)
            if getattr(self, name) >= 1.0:
                _fail(name, "a number below 1", getattr(self, name))
        for name in ("model_type", "tensor_prefix"):
            if not isinstance(getattr(self, name), str):
                _fail(name, "a string", getattr(self, name))
        _choice("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        if self.quantization is not None and not isinstance(self.quantization, str):
            _fail("quantization", "JSON text or None", self.quantization)
        self._check_token_ids()
        if not isinstance(self.rope, RopeConfig):
            _fail("rope", "a RopeConfig", self.rope)
        if self.rope.dim != self.qk_rope_head_dim:
            _fail("rope.dim", f"qk_rope_head_dim = {self.qk_rope_head_dim}", self.rope.dim)
        self._check_layers()

    @property
    def qk_head_dim(self) -> int:
        """Width of a head's query and key: the part without RoPE and the part with it."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def max_context(self) -> int:
        """Longest sequence, in tokens, that is computed as the model defines it.

        Usually max_position_embeddings. V3.2 attends to the index_topk best tokens only: up to
        index_topk tokens that is all of them and plain causal attention is exact, beyond it the
        indexer would have to choose, and this library has none.
        """
        if self.index_topk is None:
            return self.max_position_embeddings
        return min(self.max_position_embeddings, self.index_topk)

    @property
    def context_reason(self) -> str:
        """Why `max_context` is what it is, for messages."""
        if self.index_topk is not None and self.index_topk < self.max_position_embeddings:
            return (
                f"{self.model_type} attends to its index_topk = {self.index_topk} best tokens only, and "
                "beyond that many tokens choosing them needs the sparse indexer, which is not supported"
            )
        return "max_position_embeddings in config.json"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """The configuration that a Hugging Face `config.json` describes.

        Args:
          config: the file's JSON object, in the hub's or in transformers 5's dialect.

        Raises:
          UnsupportedModelError: not one of the supported architectures, or a variant without support.
          ConfigError: a key is missing, of the wrong type or out of range; the message names it.
        """
        from mla_jax.checkpoints.hf_config import model_config_from_hf

        return model_config_from_hf(config)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "ModelConfig":
        """`from_hf` of a `config.json`, or of the one in a folder; the path is named in every error."""
        from mla_jax.checkpoints.hf_config import model_config_from_file

        return model_config_from_file(path)

    def _check_token_ids(self) -> None:
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), low=0)
        if not isinstance(self.eos_token_ids, tuple):
            _fail("eos_token_ids", "a tuple (lists are not hashable)", self.eos_token_ids)
        for token in self.eos_token_ids:
            _integer("eos_token_id", token, low=0)

    def _check_layers(self) -> None:
        kinds = self.mlp_layer_types
        if not isinstance(kinds, tuple):
            _fail("mlp_layer_types", "a tuple (lists are not hashable)", kinds)
        if len(kinds) != self.num_hidden_layers:
            _fail("length of mlp_layer_types", f"num_hidden_layers = {self.num_hidden_layers}", len(kinds))
        for kind in kinds:
            _choice("mlp_layer_types", kind, ("dense", "sparse"))
        if "sparse" not in kinds:
            if self.n_routed_experts or self.router is not None:
                _fail(
                    "n_routed_experts",
                    "0 and no router, since no layer is sparse",
                    self.n_routed_experts,
                )
            return
        if not isinstance(self.router, RouterConfig):
            _fail("router", "a RouterConfig, since some layers are sparse", self.router)
        _integer("n_routed_experts", self.n_routed_experts, low=1)
        _integer("moe_intermediate_size", self.moe_intermediate_size, low=1)
        _integer("num_experts_per_tok", self.num_experts_per_tok, low=1)
        groups, kept = self.router.n_group, self.router.topk_group
        if self.n_routed_experts % groups:
            _fail(
                "n_group",
                f"a divisor of n_routed_experts = {self.n_routed_experts}",
                groups,
            )
        in_group = self.n_routed_experts // groups
        if self.router.topk_method == "noaux_tc" and in_group < 2:
            _fail("n_group", "at least two experts a group (noaux_tc adds the best two)", groups)
        reachable = self.n_routed_experts if self.router.topk_method == "greedy" else kept * in_group
        if self.num_experts_per_tok > reachable:
            _fail(
                "num_experts_per_tok",
                f"at most {reachable}, the experts in the groups that are kept",
                self.num_experts_per_tok,
            )


def _fail(key: str, expected: str, got: object) -> NoReturn:
    raise ConfigError(f"{key}: expected {expected}, got {shown(got)}")


def _integer(key: str, value: object, *, low: int) -> None:
    # bool is a subclass of int, and true for 1 is the classic way to get a one-layer model.
    if type(value) is not int or not low <= value <= MAX_INT:
        _fail(key, f"an integer from {low} to {MAX_INT}", value)


def _boolean(key: str, value: object) -> None:
    if type(value) is not bool:
        _fail(key, "true or false", value)


def _number(key: str, value: object, *, low: float | None = None, above: float | None = None) -> None:
    bound = "" if low is None else f" of at least {low:g}"
    bound = bound if above is None else f" above {above:g}"
    expected = f"a finite number{bound}, at most {MAX_NUMBER:g}"
    if type(value) is not int and type(value) is not float:
        _fail(key, expected, value)
    # Comparing is exact for integers of any size, and false for NaN.
    fits = abs(value) <= MAX_NUMBER and (low is None or value >= low) and (above is None or value > above)
    if not fits:
        _fail(key, expected, value)


def _choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        _fail(key, f"one of {', '.join(repr(choice) for choice in choices)}", value)
