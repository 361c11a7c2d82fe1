"""The two spellings of RoPE in a config.json, read into a RopeConfig.

The hub's: `rope_theta` beside `rope_scaling {"type": "yarn", ...}` (or null). transformers 5's:
`rope_parameters {"rope_type": ..., "rope_theta": ..., ...}` and nothing beside it.
"""

from collections.abc import Mapping

from mla_jax.checkpoints.fields import Fields
from mla_jax.config import RopeConfig, RopePairing, YarnConfig
from mla_jax.errors import UnsupportedModelError, shown

DEFAULT_THETA = 10000.0
SUPPORTED_ROPE_TYPES = ("default", "yarn")


def rope_from_hf(fields: Fields, dim: int, layout: RopePairing, max_positions: int) -> RopeConfig:
    """The RoPE that a config.json describes, in either dialect.

    Args:
      fields: the keys of the (text) configuration.
      dim: qk_rope_head_dim.
      layout: pairing that the model's weights are stored for.
      max_positions: max_position_embeddings; YaRN's defaults are derived from it.

    Raises:
      UnsupportedModelError: another RoPE type than default and yarn, or one per layer type.
      ConfigError: values are missing, malformed, or the two dialects contradict each other.
    """
    found = [_read(fields, key, dim, layout, max_positions) for key in ("rope_scaling", "rope_parameters")]
    first, second = found
    if first is not None and second is not None and first != second:
        fields.fail("rope_parameters", "the same RoPE as rope_scaling describes")
    theta = fields.number("rope_theta", default=DEFAULT_THETA)
    _whole_slice(fields)
    return first or second or RopeConfig(theta, dim, layout)


def _read(fields: Fields, key: str, dim: int, layout: RopePairing, max_positions: int) -> RopeConfig | None:
    rope = fields.object(key)
    if rope is None or not rope.items():
        return None
    if any(isinstance(value, Mapping) for _, value in rope.items()):
        raise UnsupportedModelError(f"{rope.where[:-1]}: RoPE that differs by layer type is not supported")
    theta = rope.number("rope_theta", default=None)
    outer_theta = fields.number("rope_theta", default=None)
    if theta is not None and outer_theta is not None and theta != outer_theta:
        rope.fail("rope_theta", f"the same as rope_theta = {outer_theta:g} beside it")
    if theta is None:  # a theta of 0 is refused, not replaced
        theta = DEFAULT_THETA if outer_theta is None else outer_theta
    _whole_slice(rope)
    kind = rope.string("rope_type", "type", default=None)
    if kind is None:
        if rope.has("factor"):
            # transformers would fall back to plain RoPE here; the author of a factor meant something else.
            rope.fail("rope_type", "a type, since there is a factor")
        kind = "default"
    if kind == "default":
        return RopeConfig(theta, dim, layout)
    if kind == "yarn":
        return RopeConfig(theta, dim, layout, _yarn(fields, rope, max_positions))
    raise UnsupportedModelError(
        f"{rope.where}rope_type: RoPE type {shown(kind)} is not supported"
        f" (supported: {', '.join(SUPPORTED_ROPE_TYPES)})"
    )


def _yarn(fields: Fields, rope: Fields, max_positions: int) -> YarnConfig:
    if not rope.boolean("truncate", default=True):
        raise UnsupportedModelError(f"{rope.where}truncate: YaRN without rounded bounds is not supported")
    key = "original_max_position_embeddings"
    outer = fields.integer(key, low=1, default=None)
    original = rope.integer(key, low=1, default=outer or max_positions)
    if outer is not None and original != outer:
        rope.fail(key, f"the same as {key} = {outer} beside it")
    return YarnConfig(
        factor=rope.number("factor", default=max_positions / original),
        original_max_position_embeddings=original,
        # transformers reads 0 as "not given" in both betas.
        beta_fast=rope.number("beta_fast", default=None) or 32.0,
        beta_slow=rope.number("beta_slow", default=None) or 1.0,
        mscale=rope.number("mscale", default=0.0),
        mscale_all_dim=rope.number("mscale_all_dim", default=0.0),
        attention_factor=rope.number("attention_factor", default=None),
    )


def _whole_slice(fields: Fields) -> None:
    if fields.number("partial_rotary_factor", default=1.0) != 1.0:
        raise UnsupportedModelError(
            f"{fields.where}partial_rotary_factor: expected 1.0 (qk_rope_head_dim is the rotated part),"
            f" got {shown(fields.raw('partial_rotary_factor'))}"
        )
