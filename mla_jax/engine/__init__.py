"""The host-side scheduler: requests, pages, fixed buckets, continuous batching."""

from mla_jax.engine.engine import Engine, EngineLimits
from mla_jax.engine.request import Event, Request

__all__ = ["Engine", "EngineLimits", "Event", "Request"]
