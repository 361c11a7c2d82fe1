"""`mla-jax selftest`: every op's native kernel against its reference on this machine, with both times."""

from mla_jax.selftest.run import format_report, selftest

__all__ = ["format_report", "selftest"]
