"""Greedy answers of the model in training, decoded with `mla_jax.decode_step` in one program."""

from collections.abc import Sequence
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
from batches import Encoder
from tokenizers import Tokenizer
from vocabulary import EOS

import mla_jax
from mla_jax.tasks.arithmetic import final_answer, problems
from mla_jax.tasks.problem import Split


@partial(jax.jit, static_argnames="length")
def greedy(model: mla_jax.FrozenModel, prompts: jax.Array, used: jax.Array, *, length: int) -> jax.Array:
    """(N, length) tokens: each prompt and its greedy continuation, EOS after its end.

    Prompts are fed token by token, all sequences in step: no prefill to compile, and every length at once.

    Args:
      prompts: (N, length) int32, of which `used` (N,) tokens are given.
      length: positions of a sequence in all.
    """
    rows = prompts.shape[0]
    cache = mla_jax.init_cache(model.config, num_tokens=rows * length, page_size=length)
    table = mla_jax.PageTable.allocate(cache, rows, length)
    start = jnp.zeros((rows,), jnp.int32)
    meta = mla_jax.AttentionMetadata.extend(table, start, start + 1, num_tokens=rows)

    def unfinished(carry: tuple[jax.Array, ...]) -> jax.Array:
        position, _, ended, *_ = carry
        return (position < length - 1) & ~jnp.all(ended)

    def step(carry):
        position, tokens, ended, cache, meta = carry
        logits, cache = mla_jax.decode_step(model, tokens[:, position], cache, meta)
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        given = position + 1 < used
        token = jnp.where(given, tokens[:, position + 1], jnp.where(ended, EOS, best))
        ended = ended | (~given & (token == EOS))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], position + 1, axis=1)
        return position + 1, tokens, ended, cache, mla_jax.advance(meta)

    first = (jnp.int32(0), prompts, jnp.zeros((rows,), jnp.bool_), cache, meta)
    return jax.lax.while_loop(unfinished, step, first)[1]


def exact_match(
    model: mla_jax.FrozenModel, tokenizer: Tokenizer, split: Split, number: int, *, rows: int, length: int
) -> tuple[int, list[str]]:
    """(right answers among the split's first `number` problems, some wrong answers as text)."""
    encoder = Encoder(tokenizer)
    chosen = list(islice(problems(split), number))
    right, wrong = 0, []
    for first in range(0, number, rows):
        part = chosen[first : first + rows]
        prompts, used = np.full((rows, length), EOS, np.int32), np.ones(rows, np.int32)
        for row, problem in enumerate(part):
            prompt = encoder.prompt(problem)
            prompts[row, : len(prompt)] = prompt
            used[row] = len(prompt)
        tokens = np.asarray(greedy(model, prompts, used, length=length))
        for row, problem in enumerate(part):
            text = tokenizer.decode(_until_end(tokens[row, used[row] :]))
            if final_answer(text) == str(problem.answer):
                right += 1
            else:
                wrong.append(f"[{problem.template}] {problem.question}\n-> {text}\n== {problem.solution}")
    return right, wrong


def _until_end(tokens: np.ndarray) -> Sequence[int]:
    ids = tokens.tolist()
    return ids[: ids.index(EOS)] if EOS in ids else ids
