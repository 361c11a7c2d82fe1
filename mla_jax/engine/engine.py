"""`Engine`: continuous batching over a fixed number of rows and a fixed pool of pages.

A request is admitted when a row is free and the pool can hold its prompt and all of its `max_tokens`;
until then it waits, first come, first served. Admission reserves, so a running request never runs out of
pages and is never preempted. Requests with the same prompt that wait one after the other, as the n samples of
one prompt do, are prefilled once: the others fork the first one's rows as far as they can be admitted, and
share its whole pages. What they reserve is what they would need alone.

The device is kept busy: a program is sent before the tokens of the one before it are read. Rows end on the device,
so tokens are the same however many steps a program has.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np

from mla_jax.cache import init_cache
from mla_jax.checking import check_flag
from mla_jax.engine.logprobs import TOP_LOGPROBS, top_logprobs
from mla_jax.engine.programs import Drawn, EngineState, Programs, bucket_of, buckets, stop_bits
from mla_jax.engine.request import Event, FinishReason, Request, Running
from mla_jax.errors import CheckError, NumericsError, RequestError
from mla_jax.models.decode_loop import NO_TOKEN
from mla_jax.models.frozen import Model, freeze
from mla_jax.sampling import LIMIT_RANGES
from mla_jax.step_checks import check_weight_scales


@dataclass(frozen=True)
class EngineLimits:
    """Sizes that are fixed for an engine's life.

    Attributes:
      max_model_len: tokens of one sequence, prompt included.
      max_num_seqs: sequences that run at the same time.
      max_total_tokens: tokens of all running sequences together: the pool.
      page_size: tokens of a page.
      kv_cache_dtype: see `mla_jax.init_cache`.
      max_prefill_tokens: longer prompts are prefilled in chunks of this size.
      min_prefill_bucket: smallest compiled prefill.
      decode_steps: decode steps of one program at most; None is `default_decode_steps()`. Tokens are the same for
        every number. More steps cost the host less, and tokens come in bursts of as many: a request that arrives
        waits for the block that runs, and so does one that waits for the row of a request with a stop id. Steps
        whose log-probabilities are asked for are programs of one step.
    """

    max_model_len: int
    max_num_seqs: int = 8
    max_total_tokens: int = 8192
    page_size: int = 16
    kv_cache_dtype: str = "auto"
    max_prefill_tokens: int = 512
    min_prefill_bucket: int = 16
    decode_steps: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_total_tokens",
            "page_size",
            "max_prefill_tokens",
            "min_prefill_bucket",
            "decode_steps",
        ):
            value = getattr(self, name)
            if name == "decode_steps" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"{name}: expected an integer >= 1, got {value!r}")


def default_decode_steps() -> int:
    """Decode steps of one program: 4 on a CPU, elsewhere 1.

    On a CPU the second to fourth step of a program save what a call costs, later ones save little and make tokens
    come in longer bursts. On a GPU the steps of a loop are not recorded into a command buffer, and every turn waits
    for its condition; a program of one step is recorded, and the next is sent while it runs.
    """
    return 4 if jax.default_backend() == "cpu" else 1


class Engine:
    """Serves requests step by step.

    Args:
      model: its weights are used as a plain pytree; the arrays are shared.
      limits: sizes.
      vocab_limit: ids from here on are never drawn (a tokenizer may be smaller than the output layer).
      checks: checked mode: weight scales now, and every step's pages, slots, lengths and cache scales. Steps then
        wait for the device, and `step` raises `CheckError`; an engine that raised one is of no further use.

    Raises:
      RequestError: a size. ConfigError: `checks` is no bool. CheckError: a weight's scale is no number.
    """

    def __init__(
        self, model: Model, limits: EngineLimits, *, vocab_limit: int | None = None, checks: bool = False
    ) -> None:
        self.model = freeze(model)
        self.checks = check_flag(checks)
        if checks:
            check_weight_scales(self.model)
        config = self.model.config
        context, reason = config.max_context, config.context_reason
        if limits.max_model_len > context:
            raise RequestError(
                f"max_model_len: expected at most {context} ({reason}), got {limits.max_model_len}"
            )
        self.limits = limits
        self.vocab_limit = config.vocab_size if vocab_limit is None else min(vocab_limit, config.vocab_size)
        largest = min(limits.max_prefill_tokens, limits.max_model_len)
        self.prefill_buckets = buckets(min(limits.min_prefill_bucket, largest), largest)
        self.decode_buckets = buckets(1, limits.max_num_seqs)
        cache = init_cache(
            config,
            num_tokens=limits.max_total_tokens,
            page_size=limits.page_size,
            dtype=limits.kv_cache_dtype,
        )
        self._num_pages = self._free_pages = cache.num_pages
        self._state = EngineState.init(
            cache, limits.max_num_seqs, limits.max_model_len, config.vocab_size, checks
        )
        self.decode_steps = limits.decode_steps or default_decode_steps()
        self._programs = Programs(checks, self.decode_steps)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._running: dict[int, Running] = {}
        self._unread: deque[tuple[list[Running], Drawn]] = deque()
        self._events: list[Event] = []
        self._errors: deque[NumericsError] = deque()
        self._next_id = 0

    @property
    def max_programs(self) -> int:
        """Programs that this engine can ever compile: admit, release, fork and draw, and one a bucket."""
        return 4 + len(self.prefill_buckets) + len(self.decode_buckets)

    def compiled_programs(self) -> dict[str, int]:
        """Programs compiled since this engine was made, by kind."""
        return self._programs.compiled()

    @property
    def has_work(self) -> bool:
        """Whether a request is waiting or running, or something is left to report."""
        return bool(self._waiting or self._running or self._events or self._errors)

    @property
    def num_running(self) -> int:
        """Requests that hold a row."""
        return len(self._with_rows())

    def check(self, request: Request) -> None:
        """Raises `RequestError` when the request is malformed or can never be served."""
        limits, vocab = self.limits, self.model.config.vocab_size
        length = len(request.prompt)
        if length == 0:
            raise RequestError("prompt: expected at least one token, got none")
        for position, token in enumerate(request.prompt):
            if not 0 <= token < vocab:
                raise RequestError(
                    f"prompt: expected token ids in [0, {vocab}), got {token} at position {position}"
                )
        if length >= limits.max_model_len:
            raise RequestError(
                f"prompt: expected at most {limits.max_model_len - 1} tokens (max_model_len "
                f"{limits.max_model_len} less one to generate), got {length}"
            )
        if request.max_tokens < 1:
            raise RequestError(f"max_tokens: expected at least 1, got {request.max_tokens}")
        for name, (expected, in_range) in LIMIT_RANGES.items():
            value = getattr(request, name)
            if not in_range(value):
                raise RequestError(f"{name}: expected {expected}, got {value}")
        if request.logprobs is not None and not 0 <= request.logprobs <= TOP_LOGPROBS:
            raise RequestError(f"logprobs: expected 0 to {TOP_LOGPROBS}, got {request.logprobs}")
        if self._pages_of(request) > self._num_pages:
            raise RequestError(
                f"the request can never fit: {length} prompt tokens and up to "
                f"{self._reserve(request) - length} new ones need {self._pages_of(request)} pages of "
                f"{limits.page_size} tokens, the pool has {self._num_pages}; lower max_tokens or raise "
                "max_total_tokens"
            )

    def add(self, request: Request) -> int:
        """Queues a request; returns its id. Raises `RequestError` as `check` does."""
        self.check(request)
        request_id = self._next_id
        self._next_id += 1
        self._waiting.append((request_id, request))
        return request_id

    def abort(self, request_id: int) -> None:
        """Ends a waiting or running request; unknown ids are ignored."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] != request_id)
        running = self._running.get(request_id)
        if running is not None:
            self._finish(running)
        self._events = [event for event in self._events if event.request_id != request_id]

    def step(self) -> list[Event]:
        """Sends one program, then reports the tokens of the one that was sent before it.

        The program is the next prefill chunk if a request can be admitted, else a block of decode steps. While one
        can be sent, tokens are reported a step late; the last step only reports.

        Raises:
          NumericsError: a request's logits are not numbers; it is over. What the other requests have got is
            reported by the next step.
          CheckError: in checked mode.
        """
        before = len(self._unread)
        running = self._with_rows()
        unfinished = [one for one in running if one.prefilled < len(one.request.prompt)]
        if not unfinished:
            admitted = self._admit_next()
            unfinished = [admitted] if admitted is not None else []
        if unfinished:
            self._prefill(unfinished[0])
        elif running:
            self._decode(running)
        for _ in range(before if unfinished or running else len(self._unread)):
            self._read(*self._unread.popleft())
        if self._errors:
            raise self._errors.popleft()
        events, self._events = self._events, []
        return events

    def _with_rows(self) -> list[Running]:
        return [one for one in self._running.values() if one.has_row]

    def _reserve(self, request: Request) -> int:
        return min(len(request.prompt) + request.max_tokens, self.limits.max_model_len)

    def _pages_of(self, request: Request) -> int:
        return -(-self._reserve(request) // self.limits.page_size)

    def _admit_next(self, source: Running | None = None) -> Running | None:
        """Gives the next request its row and pages, if there are enough; only a copy of `source`, where given."""
        if not self._waiting or self.num_running >= self.limits.max_num_seqs:
            return None
        request_id, request = self._waiting[0]
        if source is not None and request.prompt != source.request.prompt:
            return None
        pages = self._pages_of(request)
        if pages > self._free_pages:
            return None
        self._waiting.popleft()
        used = {running.row for running in self._with_rows()}
        row = next(row for row in range(self.limits.max_num_seqs) if row not in used)
        max_new = self._reserve(request) - len(request.prompt)
        running = Running(request_id, request, row, pages, max_new)
        self._running[request_id] = running
        self._free_pages -= pages
        settings = {
            "seeds": np.array([request.seed & 0xFFFFFFFF, (request.seed >> 32) & 0xFFFFFFFF], np.uint32),
            "temperature": np.float32(request.temperature),
            "top_p": np.float32(request.top_p),
            "top_k": np.int32(min(request.top_k, self.model.config.vocab_size)),
            "min_p": np.float32(request.min_p),
            "left": np.int32(max_new),
            "stop_bits": stop_bits(request.stop_token_ids, self.model.config.vocab_size),
        }
        reserve, at = np.int32(self._reserve(request)), np.int32(row)
        if source is None:
            self._state = self._programs.admit(self._state, at, reserve, settings)
        else:
            self._state = self._programs.admit(self._state, at, np.int32(0), settings)
            self._state = self._programs.fork(self._state, np.int32(source.row), at, reserve)
            running.prefilled = len(request.prompt)
        return running

    def _prefill(self, running: Running) -> None:
        prompt = running.request.prompt
        chunk = prompt[running.prefilled : running.prefilled + self.prefill_buckets[-1]]
        tokens = np.zeros((bucket_of(len(chunk), self.prefill_buckets),), np.int32)
        tokens[: len(chunk)] = chunk
        with _naming_requests([running]):
            logits, self._state = self._programs.prefill(
                self.model, self._state, tokens, np.int32(running.row), np.int32(len(chunk))
            )
        running.prefilled += len(chunk)
        if running.prefilled < len(prompt):
            return
        # Copies before any token is drawn: a request that ends with its first gives its pages back.
        ready = [running]
        while (copy := self._admit_next(running)) is not None:
            ready.append(copy)
        for one in ready:
            drawn, self._state = self._programs.draw(
                self._state, np.int32(one.row), logits, np.int32(self.vocab_limit)
            )
            self._sent([one], drawn, 1)

    def _decode(self, running: list[Running]) -> None:
        size = bucket_of(len(running), self.decode_buckets)
        rows = np.full((size,), self.limits.max_num_seqs, np.int32)
        rows[: len(running)] = [one.row for one in running]
        steps = min(self.decode_steps, max(one.max_new - one.sent for one in running))
        if self._waiting:  # for a row or pages: the first that are known to be given back end the block
            steps = min(steps, *(one.max_new - one.sent for one in running))
        if _asked_logprobs(running):
            steps = 1
        limit = (np.int32(steps),) if self.decode_steps > 1 else ()
        with _naming_requests(running):
            drawn, self._state = self._programs.decode(
                self.model, self._state, rows, np.int32(self.vocab_limit), *limit
            )
        self._sent(running, drawn, steps)

    def _sent(self, running: list[Running], drawn: Drawn, steps: int) -> None:
        """Takes note of a program on its way, and gives back rows that it ends whatever it draws."""
        drawn.tokens.copy_to_host_async()
        if _asked_logprobs(running):
            drawn.logits.copy_to_host_async()
        self._unread.append((running, drawn))
        for one in running:
            one.sent += steps
            if one.sent >= one.max_new:
                self._give_back(one)

    def _read(self, running: list[Running], drawn: Drawn) -> None:
        """Turns what a program drew into events; waits for it."""
        tokens = np.asarray(drawn.tokens)
        logits = np.asarray(drawn.logits) if _asked_logprobs(running) else None
        for step in tokens:
            for i, one in enumerate(running):
                if not one.ended and step[i] != NO_TOKEN:
                    self._take(one, int(step[i]), None if logits is None else logits[i])

    def _take(self, one: Running, token: int, logits: np.ndarray | None) -> None:
        request = one.request
        if token < 0:
            self._finish(one)
            self._errors.append(
                NumericsError(
                    f"request {one.request_id}: the logits after {len(request.prompt) + one.generated} tokens "
                    "are not numbers; the weights may be damaged, or too large for the compute dtype"
                )
            )
            return
        one.generated += 1
        reason: FinishReason | None = None
        if token in request.stop_token_ids:
            reason = "stop"
        elif one.generated >= one.max_new:
            reason = "length"
        count = request.logprobs
        logprobs = None if count is None or logits is None else top_logprobs(logits, token, count)
        self._events.append(Event(one.request_id, token, logprobs, reason))
        if reason is not None:
            self._finish(one)

    def _finish(self, running: Running) -> None:
        del self._running[running.request_id]
        running.ended = True
        self._give_back(running)

    def _give_back(self, running: Running) -> None:
        """Frees row and pages for programs that are sent from now on."""
        if running.has_row:
            running.has_row = False
            self._free_pages += running.pages
            self._state = self._programs.release(self._state, np.int32(running.row))


def _asked_logprobs(running: list[Running]) -> bool:
    return any(one.request.logprobs is not None and not one.ended for one in running)


@contextmanager
def _naming_requests(running: list[Running]) -> Iterator[None]:
    """A checked step knows its sequences by number only."""
    try:
        yield
    except CheckError as error:
        ids = ", ".join(str(one.request_id) for one in running)
        raise CheckError(f"{error} (sequences of this step: requests {ids})") from error
