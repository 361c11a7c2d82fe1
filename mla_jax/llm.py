"""`LLM`: strings in, strings out."""

import inspect
import math
import numbers
import os
import secrets
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from custom_calls.registry import Kernels
from mla_jax.absorbed import AbsorbWeights, check_absorb_weights
from mla_jax.arguments import as_integer
from mla_jax.cache import MAX_SLOTS, cache_dtype
from mla_jax.checking import checks_asked
from mla_jax.checkpoints.generation_config import GenerationDefaults
from mla_jax.checkpoints.hub import locate
from mla_jax.completion import Completion, StreamPiece, TextSequence
from mla_jax.config import ModelConfig
from mla_jax.engine import Engine, EngineLimits, Event, Request
from mla_jax.engine.programs import bucket_of, buckets
from mla_jax.errors import (
    CheckpointError,
    ConfigError,
    KernelUnavailableError,
    MlaJaxError,
    RequestError,
    TokenizerError,
    shown,
)
from mla_jax.kernel_table import KernelRow, format_table, kernel_table
from mla_jax.loading import check_kernels, compute_dtype, read_config, read_model
from mla_jax.models import FrozenModel, MLAForCausalLM, forward, freeze
from mla_jax.progress import TokenProgress
from mla_jax.sampling_params import ResolvedParams, SamplingParams, resolve
from mla_jax.text.protocol import TokenizerLike
from mla_jax.text.tokenizer import Tokenizer

DEFAULT_CACHE_BYTES = 1 << 30
"""Default budget of the pool: with it and the model's context the default sizes are computed."""

DEFAULT_MAX_NUM_SEQS = 8

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]

_Asked = tuple[Request, tuple[str, ...], frozenset[int]]
"""What the engine is asked for, the stop strings, and the ids whose text is not part of the answer."""


@dataclass
class _Live:
    """A request that the engine serves, the text that it has so far, and what a stream has not fetched yet."""

    request_id: int
    sequence: TextSequence
    pieces: deque[StreamPiece] = field(default_factory=deque)
    error: Exception | None = None


class LLM:
    """A model with its tokenizer and engine.

    Args:
      path_or_model: a Hugging Face folder or hub id, or a model in memory.
      revision: branch, tag or commit of a hub id; settings, tokenizer and weights are of one commit.
      tokenizer: an object with `encode`, `decode` and `eos_token_id`; by default the checkpoint's own.
        A model in memory without one takes and returns token ids. Ids past its last one (`vocab_size`, or
        its length where that is more) are never drawn.
      dtype: compute dtype, "auto" (the checkpoint's), "float32" or "bfloat16", or one of these as a dtype.
      kernels: "auto", "native" or "reference"; for a model in memory "auto" is what it was made with.
      absorb_weights: how kv_b_proj is held: "auto" (as the checkpoint stores it), "bfloat16", "mxfp4" or "fp8".
      page_size: tokens of a cache page; every size gives the same tokens.
      kv_cache_dtype: "auto" (the compute dtype), "float32", "bfloat16" or "fp8", or a dtype.
      max_model_len: tokens of one sequence; by default the model's context as far as 1 GiB of cache reach.
      max_num_seqs: sequences that run at the same time.
      max_total_tokens: tokens of all running sequences together; more requests wait their turn.
      decode_steps: decode steps of one program at most, see `EngineLimits`: the same tokens, in bursts of as many.
      checks: checked mode, see `Engine`; by default what the environment's MLA_JAX_CHECK says now, 0 or 1.

    Attributes:
      config: the model's configuration.
      checks: whether checked mode is on.
      kernels: what each op runs, and why.
      limits: the engine's sizes.

    Raises:
      MlaJaxError: one clear sentence about checkpoint, tokenizer, sizes or kernels.
    """

    def __init__(
        self,
        path_or_model: str | os.PathLike[str] | MLAForCausalLM | FrozenModel,
        *,
        revision: str | None = None,
        tokenizer: TokenizerLike | None = None,
        dtype: Any = "auto",
        kernels: Kernels = "auto",
        absorb_weights: AbsorbWeights = "auto",
        page_size: int = 16,
        kv_cache_dtype: Any = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_total_tokens: int | None = None,
        decode_steps: int | None = None,
        checks: bool | None = None,
    ) -> None:
        self.checks = checks_asked(checks)
        check_kernels(kernels)
        check_absorb_weights(absorb_weights)
        asked_dtype = compute_dtype(dtype)
        self._defaults: GenerationDefaults | None = None
        self.tokenizer = _checked_tokenizer(tokenizer)
        self._why_no_tokenizer = "a model in memory has none"
        sizes = (page_size, kv_cache_dtype, max_model_len, max_num_seqs, max_total_tokens, decode_steps)
        if isinstance(path_or_model, str | os.PathLike):
            source = locate(path_or_model, revision)
            # What can be refused without the weights is refused before they are read.
            self.kernels = _usable_kernels(kernels)
            config = read_config(source.folder, asked_dtype)
            _limits(config, *sizes)
            if tokenizer is None:
                self.tokenizer, self._why_no_tokenizer = _own_tokenizer(source.folder)
            self._defaults = GenerationDefaults.from_folder(source.folder)
            self.model = freeze(read_model(source, config, kernels, absorb_weights))
        else:
            self.model = _model_in_memory(path_or_model, asked_dtype, kernels)
            if revision is not None:
                raise CheckpointError(f"revision: expected none for a model in memory, got {shown(revision)}")
            if absorb_weights != "auto":
                raise ConfigError(
                    f"absorb_weights: expected 'auto' for a model in memory, got {shown(absorb_weights)}; "
                    "mla_jax.load takes it"
                )
            self.kernels = _usable_kernels(self.model.kernels)
        self.config: ModelConfig = self.model.config
        self.limits = _limits(self.config, *sizes)
        print(format_table(self.kernels), file=sys.stderr)
        if self.checks:
            print("checked mode: pages, slots, lengths and scales of every step", file=sys.stderr)
        if self._defaults is not None and self._defaults.repetition_penalty != 1.0:
            penalty = self._defaults.repetition_penalty
            print(
                f"generation_config.json: repetition_penalty {penalty} is not supported: ignored",
                file=sys.stderr,
            )
        self.engine = self._new_engine()
        self._forward = jax.jit(forward)
        self._lock = threading.RLock()
        self._engine_in_use = self._engine_broken = False
        self._live: dict[int, _Live] = {}
        self._dropped: deque[_Live] = deque()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[Completion]:
        """Completes prompts, many at a time.

        Args:
          prompts: a text, a list of texts, a list of token ids, or a list of such lists.
          params: for all prompts, or one for each; None is generation_config.json's, else greedy.
          progress: prints tokens per second to standard error.

        Returns:
          Completions in the order of the prompts; with n > 1, the n of a prompt one after the other.

        Raises:
          RequestError: a malformed request, or one that can never fit; nothing has been generated then.
        """
        encoded = [self._encode(prompt) for prompt in _as_list(prompts)]
        live = self._start(self._requests(encoded, params))
        try:
            with TokenProgress([one.sequence for one in live], enabled=progress) as bar:
                for one in live:
                    self._finish(one, bar)
        finally:
            for one in live:
                self._drop(one)
        return [one.sequence.completion() for one in live]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Completes a conversation, or several, through the checkpoint's chat template.

        Args:
          messages: dicts with "role" and "content", in order; or a list of such conversations.
          params, progress: as `generate`.

        Returns:
          As `generate`: one completion a conversation.
        """
        # Several conversations are a list of lists; whatever else this is, `encode_chat` judges it.
        several = (
            isinstance(messages, Sequence)
            and len(messages) > 0
            and all(isinstance(one, Sequence) and not isinstance(one, str) for one in messages)
        )
        conversations = messages if several else [messages]
        prompts = [self.encode_chat(one) for one in conversations]  # type: ignore[arg-type]
        return self.generate(prompts, params, progress=progress)

    def encode_chat(self, messages: Messages) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer."""
        if not isinstance(self.tokenizer, Tokenizer):
            why = self._why_no_tokenizer if self.tokenizer is None else "this LLM was given another one"
            raise TokenizerError(
                f"chat: a checkpoint's own tokenizer with its chat template is needed; {why}"
            )
        return self.tokenizer.encode_chat(messages)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamPiece]:
        """Yields one piece a token: (text, token_id, prompt_tps, generation_tps, finish_reason).

        The texts joined are the completion's text. Closing the iterator ends the request. n must be 1.

        Raises:
          RequestError: when called, before the first piece is asked for.
        """
        requests = self._requests([self._encode(prompt)], params)
        if len(requests) != 1:
            raise RequestError(f"n: expected 1 for a stream, got {len(requests)}")
        # It is queued when the first piece is asked for: a stream that nobody reads takes no place.
        with self._using_engine() as engine:
            engine.check(requests[0][0])
        return self._stream(requests[0])

    def logits(self, token_ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Teacher-forced logits of whole sequences.

        Args:
          token_ids: non-empty lists of ids, each at most the model's context long.

        Returns:
          One float32 array (tokens, config.vocab_size) a list; row i predicts token i + 1.
        """
        results = []
        sizes = buckets(16, max(self.config.max_context, 16))
        if isinstance(token_ids, str | Mapping) or not _is_iterable(token_ids):
            raise RequestError(f"token_ids: expected lists of token ids, got {shown(token_ids)}")
        for number, ids in enumerate(token_ids):
            checked = self._check_ids(ids, f"token_ids[{number}]")
            if not 0 < len(checked) <= self.config.max_context:
                raise RequestError(
                    f"token_ids[{number}]: expected 1 to {self.config.max_context} tokens "
                    f"({self.config.context_reason}), got {len(checked)}"
                )
            padded = np.zeros((1, bucket_of(len(checked), sizes)), np.int32)
            padded[0, : len(checked)] = checked
            every = self._forward(self.model, padded[:, : self.config.max_context])
            results.append(np.array(every[0, : len(checked)]))
        return results

    def _stream(self, request: _Asked) -> Iterator[StreamPiece]:
        (live,) = self._start([request])
        try:
            while True:
                with self._lock:
                    while not live.pieces:
                        self._pump(live)
                    piece = live.pieces.popleft()
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            self._drop(live)

    def _start(self, asked: list[_Asked]) -> list[_Live]:
        """Queues every request, or none where the engine refuses one."""
        started: list[_Live] = []
        with self._using_engine() as engine:
            try:
                for request, stop, silent in asked:
                    sequence = TextSequence(request.prompt, self.tokenizer, stop, silent)
                    live = _Live(engine.add(request), sequence)
                    self._live[live.request_id] = live
                    started.append(live)
            except BaseException:
                for live in started:
                    del self._live[live.request_id]
                    engine.abort(live.request_id)
                raise
        return started

    def _finish(self, live: _Live, bar: TokenProgress) -> None:
        while live.sequence.finish_reason is None:
            with self._lock:
                if live.sequence.finish_reason is None:
                    self._pump(live)
            bar.update()

    def _pump(self, asking: _Live) -> None:
        """One engine step; every event goes to its own request, whoever asked for the step."""
        if asking.error is not None:
            raise asking.error
        with self._using_engine() as engine:
            try:
                for event in engine.step():
                    self._deliver(engine, event)
            except BaseException:
                # The device state was donated, or tokens got lost: only an empty engine is a safe one.
                self._engine_broken = True
                raise

    def _deliver(self, engine: Engine, event: Event) -> None:
        live = self._live[event.request_id]
        if live.error is not None or live.sequence.finish_reason is not None:
            return  # tokens of the same block as the one that ended the text
        try:
            live.pieces.append(live.sequence.take(event))
        except Exception as error:  # a caller's tokenizer may fail: the request's own matter
            live.error = error
        ended_by_engine = event.finish_reason is not None
        if live.error is not None or (live.sequence.finish_reason is not None and not ended_by_engine):
            engine.abort(event.request_id)

    @contextmanager
    def _using_engine(self) -> Iterator[Engine]:
        """The engine, for one caller at a time, without the requests that were given up meanwhile."""
        with self._lock:
            self._engine_in_use = True
            try:
                if self._engine_broken:
                    self._replace_engine()
                while self._dropped:
                    live = self._dropped.popleft()
                    if self._live.get(live.request_id) is live:
                        del self._live[live.request_id]
                        self.engine.abort(live.request_id)
                yield self.engine
            finally:
                self._engine_in_use = False

    def _drop(self, live: _Live) -> None:
        """Gives a request up; never waits.

        The garbage collector closes abandoned streams, and it may run anywhere: in the middle of a step, or
        in a thread that holds other locks. Then the engine's next use gives the rows back.
        """
        self._dropped.append(live)
        if self._lock.acquire(blocking=False):
            try:
                if not self._engine_in_use:
                    with self._using_engine():
                        pass
            finally:
                self._lock.release()

    def _new_engine(self) -> Engine:
        try:
            limit = _vocab_limit(self.tokenizer)
            return Engine(self.model, self.limits, vocab_limit=limit, checks=self.checks)
        except (MemoryError, jax.errors.JaxRuntimeError) as failure:
            tokens = math.ceil(self.limits.max_total_tokens / self.limits.page_size) * self.limits.page_size
            raise RequestError(
                f"max_total_tokens: a cache for {tokens} tokens and {self.limits.max_num_seqs} sequences cannot be "
                f"allocated: {str(failure).splitlines()[0]}"
            ) from failure

    def _replace_engine(self) -> None:
        for live in self._live.values():
            if live.sequence.finish_reason is None:
                live.error = MlaJaxError(
                    "an engine step failed or was interrupted, and this request was lost with it"
                )
        self._live.clear()
        del self.engine  # its memory, before the next one's
        self.engine = self._new_engine()
        self._engine_broken = False

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError(
                    f"prompt: expected token ids, as there is no tokenizer ({self._why_no_tokenizer}), got a string"
                )
            return self._check_ids(self.tokenizer.encode(prompt), "the tokenizer's encode")
        return self._check_ids(prompt, "prompt")

    def _check_ids(self, ids: Sequence[int], where: str) -> list[int]:
        if isinstance(ids, str | bytes | Mapping | set | frozenset) or not _is_iterable(ids):
            raise RequestError(f"{where}: expected a list of token ids, got {shown(ids)}")
        checked = []
        for position, token in enumerate(np.asarray(ids) if isinstance(ids, jax.Array) else ids):
            if isinstance(token, bool) or not isinstance(token, int | np.integer):
                raise RequestError(
                    f"{where}: expected integer token ids, got {shown(token)} at position {position}"
                )
            if not 0 <= token < self.config.vocab_size:
                raise RequestError(
                    f"{where}: expected token ids in [0, {self.config.vocab_size}), got {token} at position {position}"
                )
            checked.append(int(token))
        return checked

    def _requests(
        self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[_Asked]:
        if params is None or isinstance(params, SamplingParams):
            per_prompt = [params] * len(prompts)
        elif isinstance(params, Sequence) and not isinstance(params, str):
            per_prompt = list(params)
        else:
            raise RequestError(
                f"params: expected SamplingParams, a list of them, or None, got {shown(params)}"
            )
        if len(per_prompt) != len(prompts):
            raise RequestError(
                f"params: expected one for each of {len(prompts)} prompts, got {len(per_prompt)}"
            )
        requests = []
        for prompt, own in zip(prompts, per_prompt, strict=True):
            asked = SamplingParams() if own is None else own
            if not isinstance(asked, SamplingParams):
                raise RequestError(f"params: expected SamplingParams or None, got {shown(asked)}")
            resolved = resolve(asked, self._defaults)
            ends = frozenset() if asked.ignore_eos else self._end_tokens(resolved)
            if resolved.stop and self.tokenizer is None:
                raise RequestError("stop: expected none, as this LLM has no tokenizer to match text with")
            requests += [self._request(prompt, resolved, ends, copy) for copy in range(resolved.n)]
        return requests

    def _request(self, prompt: list[int], params: ResolvedParams, ends: frozenset[int], copy: int) -> _Asked:
        stop_ids = ends | frozenset(params.stop_token_ids)
        room = max(self.limits.max_model_len - len(prompt), 1)
        seed = secrets.randbits(63) if params.seed is None else params.seed + copy
        request = Request(
            prompt=tuple(prompt),
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            seed=seed,
            stop_token_ids=stop_ids,
            logprobs=params.logprobs,
        )
        return request, tuple(params.stop), stop_ids

    def _end_tokens(self, params: ResolvedParams) -> frozenset[int]:
        own = getattr(self.tokenizer, "eos_token_id", None)
        return frozenset(
            (*params.eos_token_ids, *self.config.eos_token_ids, *(() if own is None else (own,)))
        )


def _own_tokenizer(folder: Path) -> tuple[Tokenizer | None, str]:
    """A checkpoint's tokenizer, or None and the reason: a folder without one still takes token ids."""
    try:
        return Tokenizer.from_folder(folder), ""
    except TokenizerError as error:
        if (folder / "tokenizer.json").exists():
            raise
        return None, str(error)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, bytes | Mapping | set | frozenset) or not _is_iterable(prompts):
        raise RequestError(f"prompts: expected texts or lists of token ids, got {shown(prompts)}")
    items = list(np.asarray(prompts) if isinstance(prompts, jax.Array) else prompts)
    # A list of scalars is one prompt; that they are usable ids is checked with every other prompt.
    if items and all(isinstance(item, numbers.Number | np.generic) for item in items):
        return [items]  # type: ignore[list-item]
    return items  # type: ignore[return-value]


def _is_iterable(value: object) -> bool:
    try:
        iter(value)  # type: ignore[call-overload]
    except TypeError:  # NumPy's arrays without dimensions have an __iter__ that raises
        return False
    return True


def _checked_tokenizer(tokenizer: Any) -> TokenizerLike | None:
    if tokenizer is None:
        return None
    try:
        inspect.signature(tokenizer.encode).bind("")
        inspect.signature(tokenizer.decode).bind([], skip_special_tokens=True)
    except (AttributeError, TypeError) as problem:
        raise TokenizerError(
            "tokenizer: expected an object with eos_token_id, encode(text) and decode(ids, skip_special_tokens=...), "
            f"got {shown(tokenizer)}: {problem}"
        ) from problem
    except ValueError:  # written in C without a signature: nothing to compare with
        pass
    return tokenizer


def _vocab_limit(tokenizer: TokenizerLike | None) -> int | None:
    """Where the tokenizer's ids end. transformers' `vocab_size` leaves added tokens out, its length does not."""
    size = as_integer(getattr(tokenizer, "vocab_size", None))
    if size is None or size < 1:
        return None
    return max(size, len(tokenizer) if hasattr(tokenizer, "__len__") else 0)  # type: ignore[arg-type]


def _model_in_memory(model: Any, dtype: str, kernels: Kernels) -> FrozenModel:
    if not isinstance(model, MLAForCausalLM | FrozenModel):
        raise CheckpointError(f"expected a checkpoint folder, a hub id or a model, got {shown(model)}")
    frozen = freeze(model)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(frozen)):
        raise CheckpointError("expected a model with weights, got an abstract one")
    if dtype not in ("auto", frozen.config.dtype):
        raise ConfigError(
            f"dtype: expected 'auto', or {frozen.config.dtype!r} as this model in memory has, got {shown(dtype)}"
        )
    return frozen if kernels == "auto" else replace(frozen, kernels=kernels)


def _usable_kernels(kernels: Kernels) -> tuple[KernelRow, ...]:
    """What each op runs; an error where native kernels are insisted on and one is missing."""
    rows = kernel_table(kernels)
    refused = [row.reason for row in rows if row.implementation == "refused"]
    if refused:
        more = f" (and {len(refused) - 1} more ops)" if len(refused) > 1 else ""
        raise KernelUnavailableError(f"{refused[0]}{more}")
    return rows


def _limits(
    config: ModelConfig,
    page_size: int,
    kv_cache_dtype: Any,
    max_model_len: int | None,
    max_num_seqs: int | None,
    max_total_tokens: int | None,
    decode_steps: int | None,
) -> EngineLimits:
    """Sizes that were not given, from the model's context and the default budget of the pool."""
    page_size = _size("page_size", page_size)
    seqs = DEFAULT_MAX_NUM_SEQS if max_num_seqs is None else _size("max_num_seqs", max_num_seqs)
    width = config.kv_lora_rank + config.qk_rope_head_dim
    resolved = cache_dtype(kv_cache_dtype, config.dtype)
    affordable = max(DEFAULT_CACHE_BYTES // (width * resolved.itemsize * config.num_hidden_layers), 1)
    if max_total_tokens is not None:
        max_total_tokens = affordable = _size("max_total_tokens", max_total_tokens)
    if max_model_len is None:
        max_model_len = min(config.max_context, affordable)
    max_model_len = _size("max_model_len", max_model_len)
    if max_model_len > config.max_context:
        raise RequestError(
            f"max_model_len: expected at most {config.max_context} ({config.context_reason}), got {max_model_len}"
        )
    if max_total_tokens is None:
        max_total_tokens = max(min(affordable, seqs * max_model_len), max_model_len)
    slots = math.ceil(max_total_tokens / page_size) * page_size
    if slots > MAX_SLOTS:
        raise RequestError(
            f"max_total_tokens, page_size: expected at most {MAX_SLOTS} tokens in whole pages, got {slots}"
        )
    return EngineLimits(
        max_model_len=max_model_len,
        max_num_seqs=seqs,
        max_total_tokens=max_total_tokens,
        page_size=page_size,
        kv_cache_dtype=resolved.name,
        decode_steps=None if decode_steps is None else _size("decode_steps", decode_steps),
    )


def _size(name: str, value: Any) -> int:
    size = as_integer(value)
    if size is None or size < 1:
        raise RequestError(f"{name}: expected an integer >= 1, got {shown(value)}")
    return size
