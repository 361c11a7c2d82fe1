"""`LLM`: strings in, strings out."""

import secrets
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.registry import Kernels
from mla_jax.cache import cache_dtype
from mla_jax.checkpoints.generation_config import GenerationDefaults
from mla_jax.checkpoints.hub import resolve as resolve_checkpoint
from mla_jax.completion import Completion, StreamPiece, TextSequence
from mla_jax.config import ModelConfig
from mla_jax.engine import Engine, EngineLimits, Request
from mla_jax.engine.programs import bucket_of, buckets
from mla_jax.errors import RequestError, TokenizerError, shown
from mla_jax.kernel_table import KernelRow, format_table, kernel_table
from mla_jax.loading import load
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


class LLM:
    """A model with its tokenizer and engine.

    Args:
      path_or_model: a Hugging Face folder or hub id, or a model in memory.
      tokenizer: an object with `encode`, `decode` and `eos_token_id`; by default the checkpoint's own.
        A model in memory without one takes and returns token ids.
      dtype: compute dtype, "auto" (the checkpoint's), "float32" or "bfloat16".
      kernels: "auto", "native" or "reference".
      page_size: tokens of a cache page; every size gives the same tokens.
      kv_cache_dtype: "auto" (the compute dtype), "float32", "bfloat16" or "fp8".
      max_model_len: tokens of one sequence; by default the model's context as far as 1 GiB of cache reach.
      max_num_seqs: sequences that run at the same time.
      max_total_tokens: tokens of all running sequences together; more requests wait their turn.

    Attributes:
      config: the model's configuration.
      kernels: what each op runs, and why.
      limits: the engine's sizes.

    Raises:
      MlaJaxError: one clear sentence about checkpoint, tokenizer, sizes or kernels.
    """

    def __init__(
        self,
        path_or_model: str | Path | MLAForCausalLM | FrozenModel,
        *,
        tokenizer: TokenizerLike | None = None,
        dtype: str = "auto",
        kernels: Kernels = "auto",
        page_size: int = 16,
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_total_tokens: int | None = None,
    ) -> None:
        self._defaults: GenerationDefaults | None = None
        self.tokenizer = tokenizer
        self._why_no_tokenizer = "a model in memory has none"
        if isinstance(path_or_model, str | Path):
            folder = resolve_checkpoint(path_or_model)
            if tokenizer is None:
                self.tokenizer, self._why_no_tokenizer = _own_tokenizer(folder)
            self._defaults = GenerationDefaults.from_folder(folder)
            model, _ = load(folder, dtype=dtype, kernels=kernels)
            self.model = freeze(model)
        else:
            self.model = freeze(path_or_model)
        self.config: ModelConfig = self.model.config
        self.kernels: tuple[KernelRow, ...] = kernel_table(self.model.kernels)
        self.limits = _limits(
            self.config, page_size, kv_cache_dtype, max_model_len, max_num_seqs, max_total_tokens
        )
        print(format_table(self.kernels), file=sys.stderr)
        vocab_limit = getattr(self.tokenizer, "vocab_size", None)
        self.engine = Engine(self.model, self.limits, vocab_limit=vocab_limit)
        self._forward = jax.jit(forward)
        self._lock = threading.RLock()
        self._sequences: dict[int, TextSequence] = {}
        self._pieces: dict[int, deque[StreamPiece]] = {}

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
        requests = self._requests(encoded, params)
        for request, _, _ in requests:
            self.engine.check(request)
        ids = [self._start(*request) for request in requests]
        bar = TokenProgress(len(ids), enabled=progress)
        try:
            results = {request_id: self._finish(request_id, bar) for request_id in ids}
        finally:
            for request_id in ids:
                self._drop(request_id)
            bar.close()
        return [results[request_id] for request_id in ids]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | None = None,
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
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations = messages if several else [messages]
        prompts = [self.encode_chat(one) for one in conversations]  # type: ignore[arg-type]
        return self.generate(prompts, params, progress=progress)

    def encode_chat(self, messages: Messages) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer."""
        if not isinstance(self.tokenizer, Tokenizer):
            raise TokenizerError("chat needs a checkpoint's own tokenizer with its chat template")
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
        self.engine.check(requests[0][0])
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
            results.append(np.asarray(every[0, : len(checked)]))
        return results

    def _stream(self, request: tuple[Request, tuple[str, ...], frozenset[int]]) -> Iterator[StreamPiece]:
        request_id = self._start(*request)
        try:
            while True:
                with self._lock:
                    while not self._pieces[request_id]:
                        self._pump()
                    piece = self._pieces[request_id].popleft()
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            self._drop(request_id)

    def _start(self, request: Request, stop: tuple[str, ...], silent: frozenset[int]) -> int:
        with self._lock:
            request_id = self.engine.add(request)
            self._sequences[request_id] = TextSequence(request.prompt, self.tokenizer, stop, silent)
            self._pieces[request_id] = deque()
            return request_id

    def _finish(self, request_id: int, bar: TokenProgress) -> Completion:
        sequence = self._sequences[request_id]
        while sequence.finish_reason is None:
            with self._lock:
                if sequence.finish_reason is None:
                    bar.update(*self._pump())
        return sequence.completion()

    def _pump(self) -> tuple[int, int]:
        """One engine step; every event goes to its own sequence, whoever asked for the step."""
        finished = 0
        events = self.engine.step()
        for event in events:
            sequence = self._sequences[event.request_id]
            self._pieces[event.request_id].append(sequence.take(event))
            if sequence.finish_reason is not None:
                finished += 1
                self.engine.abort(event.request_id)
        return finished, len(events)

    def _drop(self, request_id: int) -> None:
        with self._lock:
            self.engine.abort(request_id)
            self._sequences.pop(request_id, None)
            self._pieces.pop(request_id, None)

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError(
                    f"prompt: expected token ids, as there is no tokenizer ({self._why_no_tokenizer}), got a string"
                )
            return list(self.tokenizer.encode(prompt))
        return self._check_ids(prompt, "prompt")

    def _check_ids(self, ids: Sequence[int], where: str) -> list[int]:
        checked = []
        for position, token in enumerate(ids):
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
    ) -> list[tuple[Request, tuple[str, ...], frozenset[int]]]:
        per_prompt = (
            [params] * len(prompts) if params is None or isinstance(params, SamplingParams) else list(params)
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

    def _request(
        self, prompt: list[int], params: ResolvedParams, ends: frozenset[int], copy: int
    ) -> tuple[Request, tuple[str, ...], frozenset[int]]:
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
    items = list(prompts)
    if items and all(isinstance(item, int | np.integer) for item in items):
        return [items]  # type: ignore[list-item]
    return items  # type: ignore[return-value]


def _limits(
    config: ModelConfig,
    page_size: int,
    kv_cache_dtype: str,
    max_model_len: int | None,
    max_num_seqs: int | None,
    max_total_tokens: int | None,
) -> EngineLimits:
    """Sizes that were not given, from the model's context and the default budget of the pool."""
    width = config.kv_lora_rank + config.qk_rope_head_dim
    itemsize = jnp.dtype(cache_dtype(kv_cache_dtype, config.dtype)).itemsize
    affordable = max(DEFAULT_CACHE_BYTES // (width * itemsize * config.num_hidden_layers), 1)
    seqs = DEFAULT_MAX_NUM_SEQS if max_num_seqs is None else max_num_seqs
    if max_model_len is None:
        max_model_len = min(config.max_context, affordable if max_total_tokens is None else max_total_tokens)
    if max_total_tokens is None:
        max_total_tokens = max(min(affordable, seqs * max_model_len), max_model_len)
    return EngineLimits(
        max_model_len=max_model_len,
        max_num_seqs=seqs,
        max_total_tokens=max_total_tokens,
        page_size=page_size,
        kv_cache_dtype=kv_cache_dtype,
    )
