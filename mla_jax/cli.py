"""The `mla-jax` command. Heavy imports happen inside the commands, so that `--help` is immediate."""

import argparse
import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from mla_jax import __version__

if TYPE_CHECKING:
    from mla_jax.llm import LLM
    from mla_jax.sampling_params import SamplingParams

EXIT_DIVERGES = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
REPEAT_INTERRUPT_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. Errors are one sentence on standard error and code 2."""
    options = _parser().parse_args(arguments)
    if arguments is None:
        _repeat_interrupts()
    # What a model writes may be anything; a terminal that cannot show it must not end the program.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = int(options.run(options))
        sys.stdout.flush()  # here and not at exit, so that a reader who has gone is noticed below
        return code
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("interrupted", file=sys.stderr)
        if arguments is None:
            _leave(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader is gone; Python must not fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USAGE
    except Exception as error:
        if not isinstance(error, _expected_errors()):
            raise
        print(f"mla-jax: {str(error) or type(error).__name__}", file=sys.stderr)
        return EXIT_USAGE


def _repeat_interrupts() -> None:
    """An interrupt is raised again until the program ends.

    One that comes while a callback of the garbage collector or of C++ runs is lost otherwise: whoever called it
    drops what it raised, or reports it and goes on. JAX has several such callbacks.
    """

    def interrupt(signum: int, frame: object) -> NoReturn:
        del signum, frame
        signal.setitimer(signal.ITIMER_REAL, REPEAT_INTERRUPT_SECONDS)
        raise KeyboardInterrupt

    def report(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)

    signal.signal(signal.SIGALRM, interrupt)
    sys.unraisablehook = report
    # A shell's background job has it ignored, and keeps it so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def _leave(code: int) -> NoReturn:
    """Ends the process as it is: jaxlib crashes when it is torn down while one of its threads compiles."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _expected_errors() -> tuple[type[Exception], ...]:
    """What may go wrong without a mistake in this program; anything else keeps its traceback."""
    from jax.errors import JaxRuntimeError

    from mla_jax.errors import MlaJaxError

    return MlaJaxError, JaxRuntimeError, MemoryError, OSError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mla-jax",
        description="DeepSeek-family inference (multi-head latent attention) in JAX.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mla-jax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    generate = command("generate", _generate, "Complete one or more prompts.")
    _add_model_options(generate)
    generate.add_argument(
        "--prompt", action="append", required=True, help="text to complete; may be repeated"
    )
    generate.add_argument("--chat", action="store_true", help="put each prompt through the chat template")
    generate.add_argument("--json", action="store_true", help="print one JSON object a completion")
    _add_sampling_options(generate)

    chat = command("chat", _chat, "Talk to a model; an empty line or end of input leaves.")
    _add_model_options(chat)
    chat.add_argument("--system", help="system message")
    _add_sampling_options(chat)

    convert = command("convert", _convert, "Write a checkpoint with its weights in another container.")
    convert.add_argument("model", metavar="IN", help="a Hugging Face folder or hub id")
    convert.add_argument("out", metavar="OUT", help="a new folder")
    convert.add_argument("--weights", required=True, choices=("mxfp4", "fp8", "bf16"))
    convert.add_argument("--revision", help="branch, tag or commit of a hub id")

    compare = command("compare", _compare, "Compare the native kernels with the references, layer by layer.")
    compare.add_argument("model", metavar="MODEL", help="a Hugging Face folder or hub id")
    compare.add_argument("--against", default="reference", choices=("reference",))
    compare.add_argument("--revision", help="branch, tag or commit of a hub id")
    compare.add_argument("--tokens", type=int, default=64, help="length of the random prompt (default 64)")

    verify = command(
        "verify", _verify, "Prove that a model's steps rotate once, store once, and copy no pool."
    )
    verify.add_argument("model", metavar="MODEL", help="a Hugging Face folder or hub id; no weight is read")
    verify.add_argument("--revision", help="branch, tag or commit of a hub id")

    evaluate = command("eval", _eval, "Count the word problems that a model answers exactly.")
    _add_model_options(evaluate)
    group = evaluate.add_argument_group("task")
    group.add_argument("--task", required=True, choices=("arithmetic", "gsm8k"))
    group.add_argument("--data", metavar="FILE", help="gsm8k's public jsonl, your own copy")
    group.add_argument("--n", type=int, help="problems (default: 100 of arithmetic, all of FILE)")
    group.add_argument("--json", action="store_true", help="print one JSON object")

    bench = command("bench", _bench, "Measure tokens per second beside the rate at which memory is read.")
    bench.add_argument("model", nargs="?", metavar="MODEL", help="a Hugging Face folder or hub id")
    bench.add_argument("--config", help="a preset or a config.json, with random weights")
    bench.add_argument(
        "--weights",
        choices=("mxfp4", "fp8", "bf16", "mxfp4-all", "mxfp4-experts"),
        help="of --config (default bf16); -all: with the output head, -experts: the rest as FP8",
    )
    bench.add_argument("--prompt", type=int, default=512, help="tokens of a prefill (default 512; 0: none)")
    bench.add_argument("--decode", type=int, default=32, help="timed decode steps (default 32; 0: none)")
    bench.add_argument("--batch", type=int, default=1, help="sequences (default 1)")
    bench.add_argument("--depth", type=int, default=0, help="tokens before the timed steps (default 0)")
    bench.add_argument("--json", action="store_true", help="print one JSON object")

    doctor = command("doctor", _doctor, "Say what is installed, what each op runs, and why.")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")

    selftest = command("selftest", _selftest, "Run every op against its reference here, with times.")
    selftest.add_argument("--platform", choices=("cpu", "cuda", "rocm"), help="default: where JAX computes")
    selftest.add_argument(
        "--out", metavar="FILE", help="also write the report, as JSON, to attach to an issue"
    )
    selftest.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder or hub id")
    group = parser.add_argument_group("model")
    group.add_argument("--revision", help="branch, tag or commit of a hub id")
    group.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    group.add_argument("--kernels", default="auto", choices=("auto", "native", "reference"))
    group.add_argument(
        "--absorb-weights",
        default="auto",
        choices=("auto", "bfloat16", "mxfp4", "fp8"),
        help="how kv_b_proj is held (default: as the checkpoint stores it)",
    )
    group.add_argument("--page-size", type=int, default=16, help="tokens of a cache page (default 16)")
    group.add_argument("--kv-cache-dtype", default="auto", choices=("auto", "float32", "bfloat16", "fp8"))
    group.add_argument("--max-model-len", type=int, help="tokens of one sequence, prompt included")
    group.add_argument("--max-num-seqs", type=int, help="sequences that run at the same time")
    group.add_argument("--max-total-tokens", type=int, help="tokens of all running sequences together")
    group.add_argument(
        "--decode-steps", type=int, help="decode steps of one program at most (default 4 on a CPU, else 1)"
    )


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (defaults: generation_config.json, else greedy)")
    group.add_argument("--max-tokens", type=int, help="tokens to generate at most")
    group.add_argument("--temperature", type=float)
    group.add_argument("--top-p", type=float)
    group.add_argument("--top-k", type=int)
    group.add_argument("--min-p", type=float)
    group.add_argument("--seed", type=int)
    group.add_argument(
        "--stop", action="append", default=[], help="text that ends the answer; may be repeated"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after the end token")


def _llm(options: argparse.Namespace) -> "LLM":
    from mla_jax.llm import LLM

    return LLM(
        options.model,
        revision=options.revision,
        dtype=options.dtype,
        kernels=options.kernels,
        absorb_weights=options.absorb_weights,
        page_size=options.page_size,
        kv_cache_dtype=options.kv_cache_dtype,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_total_tokens=options.max_total_tokens,
        decode_steps=options.decode_steps,
    )


def _params(options: argparse.Namespace) -> "SamplingParams":
    from mla_jax.sampling_params import SamplingParams

    return SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        seed=options.seed,
        stop=tuple(options.stop),
        ignore_eos=options.ignore_eos,
    )


def _generate(options: argparse.Namespace) -> int:
    params = _params(options)
    llm = _llm(options)
    prompts: list[Any] = options.prompt
    if options.chat:
        prompts = [llm.encode_chat([{"role": "user", "content": prompt}]) for prompt in prompts]
    if len(prompts) == 1 and not options.json:
        _print_stream(llm, prompts[0], params)
        return 0
    completions = llm.generate(prompts, params)
    for prompt, completion in zip(options.prompt, completions, strict=True):
        if options.json:
            print(json.dumps(_as_json(prompt, completion)), flush=True)
        else:
            print(f"{prompt}{completion.text}\n", flush=True)
    return 0


def _as_json(prompt: str, completion: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "usage": completion.usage._asdict(),
    }


def _print_stream(llm: "LLM", prompt: Any, params: "SamplingParams") -> str:
    """Prints the text as it comes, then tokens per second on standard error; returns the text."""
    text, count, piece = [], 0, None
    for piece in llm.stream(prompt, params):
        text.append(piece.text)
        count += 1
        print(piece.text, end="", flush=True)
    print(flush=True)
    if piece is not None:
        print(
            f"{count} tokens, {piece.generation_tps:.1f} tokens/s (prompt {piece.prompt_tps:.1f} tokens/s, "
            f"{piece.finish_reason})",
            file=sys.stderr,
        )
    return "".join(text)


def _chat(options: argparse.Namespace) -> int:
    from mla_jax.errors import RequestError

    params = _params(options)
    llm = _llm(options)
    history: list[dict[str, str]] = []
    if options.system:
        history.append({"role": "system", "content": options.system})
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return 0
        except UnicodeDecodeError as error:
            raise RequestError(f"standard input: expected {error.encoding} text: {error.reason}") from error
        if not line.strip():
            return 0
        history.append({"role": "user", "content": line})
        answer = _print_stream(llm, llm.encode_chat(history), params)
        history.append({"role": "assistant", "content": answer})


def _convert(options: argparse.Namespace) -> int:
    from mla_jax.convert import convert
    from mla_jax.numerics import format_report

    numerics = convert(options.model, options.out, weights=options.weights, revision=options.revision)
    print(format_report(numerics, options.weights))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from mla_jax.compare import compare, format_report

    found = compare(
        options.model, against=options.against, revision=options.revision, num_tokens=options.tokens
    )
    print(format_report(found))
    return EXIT_DIVERGES if any(one.diverges for one in found) else 0


def _verify(options: argparse.Namespace) -> int:
    from mla_jax.verify import VerificationError
    from mla_jax.verify.model import check_model, format_model_report

    try:
        print(format_model_report(check_model(options.model, revision=options.revision)))
    except (VerificationError, AssertionError) as error:
        print(f"mla-jax: {error}", file=sys.stderr)
        return EXIT_DIVERGES
    return 0


def _eval(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mla_jax.evaluation import evaluate, format_report, make_task

    task = make_task(options.task, data=options.data, n=options.n)
    score = evaluate(_llm(options), task)
    print(json.dumps(asdict(score)) if options.json else format_report(score))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from mla_jax.bench import bench, format_report

    found = bench(
        options.model,
        config=options.config,
        weights=options.weights,
        prompt=options.prompt,
        decode=options.decode,
        batch=options.batch,
        depth=options.depth,
    )
    print(json.dumps(found) if options.json else format_report(found))
    return 0


def _selftest(options: argparse.Namespace) -> int:
    from mla_jax.selftest import format_report, selftest

    if options.out is not None:
        # What cannot be written is known before the work, not after it.
        open(options.out, "a", encoding="utf-8").close()
    found = selftest(options.platform)
    if options.out is not None:
        with open(options.out, "w", encoding="utf-8") as report:
            json.dump(found, report, indent=1)
    print(json.dumps(found) if options.json else format_report(found))
    return 0 if found["agrees"] else EXIT_DIVERGES


def _doctor(options: argparse.Namespace) -> int:
    from mla_jax.doctor import format_report, report

    facts = report()
    print(json.dumps(facts, indent=1) if options.json else format_report(facts))
    return EXIT_USAGE if facts["problem"] else 0


if __name__ == "__main__":
    sys.exit(main())
