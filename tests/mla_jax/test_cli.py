"""The command line: what it prints, and that every mistake is a sentence and exit code 2."""

import contextlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from llm_case import SIZES

import mla_jax
from mla_jax import SamplingParams
from mla_jax.cli import main

FAST = [f"--{name.replace('_', '-')}={size}" for name, size in SIZES.items()]
GREEDY = ["--max-tokens", "8", "--temperature", "0", "--ignore-eos"]
COMMAND = ("-m", "mla_jax.cli")
PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.fixture
def served(llm, monkeypatch):
    """The shared LLM stands for every one that a command makes: compiling it anew is not the point."""
    monkeypatch.setattr("mla_jax.llm.LLM", lambda *_, **__: llm)


@pytest.fixture
def start():
    """start(argument, ..., NAME=value): Python in a process of its own, gone when the test is."""
    with contextlib.ExitStack() as stack:

        def process(*arguments, stdout=subprocess.PIPE, **environment):
            # A shell starts jobs in the background with SIGINT ignored, which children inherit.
            inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                started = subprocess.Popen(
                    [sys.executable, *map(str, arguments)],
                    pipesize=4096,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    env=os.environ | {"PYTHONUNBUFFERED": ""} | environment,  # buffered, as by default
                )
            finally:
                signal.signal(signal.SIGINT, inherited)
            stack.enter_context(started)
            stack.callback(started.kill)
            return started

        yield process


def refused(capsys, *arguments):
    """The one sentence that a command ends with; nothing else may have gone wrong."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse's
        code = end.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    return shown.err.strip().splitlines()[-1]


# Help


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["chat", "--help"],
        ["doctor", "--help"],
        ["eval", "--help"],
        ["--version"],
    ],
)
def test_help_is_immediate(arguments):
    """How long it takes is the machine's affair; what it imports is ours."""
    code = (
        "import sys, mla_jax.cli\n"
        "try: mla_jax.cli.main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "ours = {name.partition('.')[0] for name in sys.modules if '_' in name or '.' not in name}\n"
        "ours -= set(sys.stdlib_module_names) | before\n"
        "assert ours == {'mla_jax'}, ours\n"
    )
    before = "import sys\nbefore = {name.partition('.')[0] for name in sys.modules}\n"
    done = subprocess.run([sys.executable, "-c", before + code, *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_names_every_option(capsys):
    for command in ("generate", "chat", "doctor"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        expected = (
            ["--json"] if command == "doctor" else ["MODEL", "--max-tokens", "--temperature", "--kernels"]
        )
        assert all(option in text for option in expected)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mla-jax {mla_jax.__version__}\n"


# generate


def test_the_installed_command_answers(folder, llm):
    # One token, for which one program is compiled: streaming on is what the other tests see.
    first = ["--max-tokens", "1", "--temperature", "0"]
    command = shutil.which("mla-jax", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run(
        [command, "generate", folder, "--prompt", "import", *FAST, *first],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = llm.generate("import", SamplingParams(max_tokens=1, temperature=0), progress=False)[0]
    assert done.stdout == expected.text + "\n"
    lines = done.stderr.strip().splitlines()
    assert "mla_jax.mla_attention " in done.stderr
    assert lines[-1].startswith("1 tokens, ")
    assert lines[-1].endswith("length)")


def test_json_is_one_object_a_completion(folder, llm, served, capsys):
    prompts = ["import", "größer 文\n", ""]
    flags = [flag for prompt in prompts for flag in ("--prompt", prompt)]
    assert main(["generate", str(folder), *flags, "--json", *FAST, *GREEDY]) == 0
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    for prompt, line, done in zip(prompts, lines, llm.generate(prompts, PARAMS, progress=False), strict=True):
        assert line == {
            "prompt": prompt,
            "text": done.text,
            "token_ids": done.token_ids,
            "finish_reason": "length",
            "usage": {"prompt_tokens": len(done.prompt_token_ids), "completion_tokens": 8},
        }
    assert shown.out.isascii()  # whatever encoding standard output has, it is the same JSON
    assert "[3/3] 24 tokens" in shown.err


def test_several_prompts_are_printed_with_their_text(folder, llm, served, capsys):
    assert main(["generate", str(folder), "--prompt", "import", "--prompt", "x", *FAST, *GREEDY]) == 0
    one, two = llm.generate(["import", "x"], PARAMS, progress=False)
    assert capsys.readouterr().out == f"import{one.text}\n\nx{two.text}\n\n"


def test_sampling_flags_arrive(folder, llm, served, capsys):
    text = llm.generate("import", PARAMS, progress=False)[0].text
    cut = text[5:8]
    main(["generate", str(folder), "--prompt", "import", "--stop", cut, "--stop", "\t\t\t", *FAST, *GREEDY])
    assert capsys.readouterr().out == text[: text.index(cut)] + "\n"
    warm = SamplingParams(max_tokens=7, temperature=1.1, top_p=0.9, top_k=50, min_p=0.01, seed=5)
    flags = "--max-tokens=7 --temperature=1.1 --top-p=0.9 --top-k=50 --min-p=0.01 --seed=5"
    main(["generate", str(folder), "--prompt", "import", *FAST, *flags.split()])
    assert capsys.readouterr().out == llm.generate("import", warm, progress=False)[0].text + "\n"


@pytest.mark.parametrize(
    ("flags", "params"),
    [
        ("", {}),
        ("--ignore-eos", {"ignore_eos": True}),
        ("--stop a --stop b", {"stop": ("a", "b")}),
        (
            "--max-tokens=7 --temperature=1.1 --top-p=0.9 --top-k=50 --min-p=0.01 --seed=5",
            {"max_tokens": 7, "temperature": 1.1, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "seed": 5},
        ),
    ],
)
def test_flags_are_sampling_params(monkeypatch, flags, params):
    asked = []

    class Recorder:
        def stream(self, prompt, params):
            asked.append((prompt, params))
            return iter(())

    monkeypatch.setattr("mla_jax.llm.LLM", lambda *_, **__: Recorder())
    assert main(["generate", "M", "--prompt", "x", *flags.split()]) == 0
    assert asked == [("x", SamplingParams(**params))]


def test_chat_flag_uses_the_template(folder, llm, served, capsys):
    main(["generate", str(folder), "--prompt", "hi", "--chat", "--json", *FAST, *GREEDY])
    line = json.loads(capsys.readouterr().out)
    done = llm.chat([{"role": "user", "content": "hi"}], PARAMS)[0]
    assert (line["prompt"], line["text"], line["token_ids"]) == ("hi", done.text, done.token_ids)
    assert line["usage"]["prompt_tokens"] == len(done.prompt_token_ids)


def test_model_flags_arrive(folder, capsys, monkeypatch):
    asked = {}

    def remember(path, **arguments):
        asked.update(arguments, path=path)
        raise KeyboardInterrupt

    monkeypatch.setattr("mla_jax.llm.LLM", remember)
    flags = "--dtype float32 --kernels reference --page-size 4 --kv-cache-dtype fp8 --max-model-len 64 "
    flags += "--max-num-seqs 2 --max-total-tokens 99 --decode-steps 3 --revision v2 --absorb-weights mxfp4"
    assert main(["generate", "M", "--prompt", "x", *flags.split()]) == 130
    assert asked == {
        "path": "M",
        "revision": "v2",
        "dtype": "float32",
        "kernels": "reference",
        "absorb_weights": "mxfp4",
        "page_size": 4,
        "kv_cache_dtype": "fp8",
        "max_model_len": 64,
        "max_num_seqs": 2,
        "max_total_tokens": 99,
        "decode_steps": 3,
    }
    assert capsys.readouterr().err == "interrupted\n"
    asked.clear()
    main(["chat", "M"])
    unset = ("revision", "max_model_len", "max_num_seqs", "max_total_tokens", "decode_steps")
    assert asked == dict.fromkeys(unset) | {
        "path": "M",
        "dtype": "auto",
        "kernels": "auto",
        "absorb_weights": "auto",
        "page_size": 16,
        "kv_cache_dtype": "auto",
    }


# chat


def talk(folder, monkeypatch, lines, *flags):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    return main(["chat", str(folder), *FAST, *GREEDY, *flags])


def answers(llm, questions, system=None):
    history = [{"role": "system", "content": system}] if system else []
    for question in questions:
        history.append({"role": "user", "content": question})
        history.append({"role": "assistant", "content": llm.chat(history, PARAMS)[0].text})
        yield history[-1]["content"]


@pytest.mark.parametrize(
    ("lines", "questions", "flags"),
    [
        (b"hi\nwhy?\n", ["hi", "why?"], []),  # end of input
        (b"hi\n\nwhy?\n", ["hi"], []),  # an empty line
        (b"hi\n  \nwhy?\n", ["hi"], []),
        (b"", [], []),
        (b"hi", ["hi"], ["--system", "brief"]),
    ],
)
def test_chat_remembers_until_it_ends(folder, llm, served, capsys, monkeypatch, lines, questions, flags):
    assert talk(folder, monkeypatch, lines, *flags) == 0
    expected = "".join(f"{answer}\n" for answer in answers(llm, questions, flags[1] if flags else None))
    assert capsys.readouterr().out == expected


def test_chat_prompts_on_a_terminal(folder, served, capsys, monkeypatch):
    asked = []

    def at_the_prompt(prompt):
        asked.append(prompt)
        raise EOFError

    monkeypatch.setattr("builtins.input", at_the_prompt)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main(["chat", str(folder), *FAST]) == 0
    assert asked == ["> "]


def test_chat_input_that_is_no_text_is_a_sentence(folder, served, capsys, monkeypatch):
    assert talk(folder, monkeypatch, b"\xff\xfe\n") == 2
    assert "mla-jax: standard input: expected utf-8 text" in capsys.readouterr().err


def test_a_conversation_that_gets_too_long_is_a_sentence(folder, served, capsys, monkeypatch):
    assert talk(folder, monkeypatch, b"hi\n" + b"word " * 80 + b"\n") == 2
    assert "mla-jax: prompt: expected at most 63 tokens" in capsys.readouterr().err


# Mistakes


def checkpoint(folder, tmp_path, change):
    """A copy of the configuration, changed; it has no weights, so it must be refused before they are read."""
    values = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_unusable_checkpoints(folder, tmp_path, capsys, command):
    rest = ["--prompt", "x"] if command == "generate" else []
    assert "there is no such" in refused(capsys, command, tmp_path / "absent", *rest)
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(capsys, command, tmp_path / "empty", *rest)
    (tmp_path / "config.json").write_text('{"model_type": ')
    assert "config.json" in refused(capsys, command, tmp_path, *rest)
    llama = checkpoint(folder, tmp_path, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    assert "llama" in refused(capsys, command, llama, *rest)
    assert "kv_lora_rank" in refused(
        capsys, command, checkpoint(folder, tmp_path, {"kv_lora_rank": -1}), *rest
    )
    gptq = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert "got 'gptq'" in refused(capsys, command, checkpoint(folder, tmp_path, gptq), *rest)
    assert refused(capsys, command, checkpoint(folder, tmp_path, {}), *rest).startswith(
        "mla-jax: "
    )  # no weights


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--temperature", "-1"], "mla-jax: temperature: expected a number >= 0, got -1.0"),
        (["--temperature", "nan"], "mla-jax: temperature: expected a number >= 0, got nan"),
        (["--temperature", "warm"], "argument --temperature: invalid float value: 'warm'"),
        (["--top-p", "0"], "mla-jax: top_p: expected a number in (0, 1], got 0.0"),
        (["--top-k", "-1"], "mla-jax: top_k: expected an integer >= 0"),
        (["--min-p", "2"], "mla-jax: min_p: expected a number in [0, 1], got 2.0"),
        (["--max-tokens", "0"], "mla-jax: max_tokens: expected an integer >= 1, got 0"),
        (["--max-tokens", "1.5"], "argument --max-tokens: invalid int value: '1.5'"),
        (["--seed", "-1"], "mla-jax: seed: expected an integer from 0 to 4294967295, got -1"),
        (["--stop", ""], "mla-jax: stop[0]: expected a non-empty string, got ''"),
        (["--kernels", "fast"], "argument --kernels: invalid choice: 'fast'"),
        (["--dtype", "float16"], "argument --dtype: invalid choice: 'float16'"),
        (["--kv-cache-dtype", "int8"], "argument --kv-cache-dtype: invalid choice: 'int8'"),
        (["--max-model-len", "257"], "mla-jax: max_model_len: expected at most 256 (max_position_embeddings"),
        (["--max-model-len", "0"], "mla-jax: max_model_len: expected an integer >= 1, got 0"),
        (["--max-num-seqs", "0"], "mla-jax: max_num_seqs: expected an integer >= 1, got 0"),
        (["--page-size", "-4"], "mla-jax: page_size: expected an integer >= 1, got -4"),
        (["--max-total-tokens", "-4"], "mla-jax: max_total_tokens: expected an integer >= 1, got -4"),
        (
            ["--max-total-tokens", str(10**14)],
            "mla-jax: max_total_tokens, page_size: expected at most 2147483646",
        ),
        (["--revision", "main"], "revision 'main' was given, but a folder has none"),
        (["--max-tok", "5"], "unrecognized arguments: --max-tok 5"),
        (["--prompt"], "argument --prompt: expected one argument"),
    ],
)
def test_bad_flags(folder, capsys, flags, sentence):
    assert sentence in refused(capsys, "generate", folder, "--prompt", "x", *flags)


def test_bad_requests(folder, capsys):
    assert "mla-jax: prompt: expected at most 7" in refused(
        capsys, "generate", folder, "--prompt", "x " * 20, "--max-model-len", "8"
    ).removesuffix("\n")
    assert "can never fit" in refused(
        capsys, "generate", folder, "--prompt", "x " * 20, "--max-model-len", "64", "--max-total-tokens", "16"
    )
    assert "expected Unicode text" in refused(capsys, "generate", folder, "--prompt", "\udcff", *FAST)


@pytest.mark.parametrize(
    "arguments", [[], ["generate"], ["generate", "M"], ["chat"], ["serve"], ["doctor", "M"]]
)
def test_incomplete_commands(capsys, arguments):
    assert "error" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            PermissionError(13, "Permission denied", "weights"),
            "mla-jax: [Errno 13] Permission denied: 'weights'",
        ),
        (MemoryError(), "mla-jax: MemoryError"),
        (mla_jax.MlaJaxError("one sentence"), "mla-jax: one sentence"),
    ],
)
def test_what_may_go_wrong_is_a_sentence(capsys, monkeypatch, error, sentence):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("mla_jax.llm.LLM", fail)
    assert refused(capsys, "generate", "M", "--prompt", "x") == sentence


def test_a_mistake_in_this_program_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("mla_jax.llm.LLM", fail)
    with pytest.raises(ZeroDivisionError):
        main(["generate", "M", "--prompt", "x"])


# The world outside


BOTH = """
import contextlib, io, json, sys
from mla_jax.cli import main
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def test_a_bad_environment_is_a_sentence(folder, start):
    """JAX and the libraries look at it once a process, so each environment has one of its own."""
    generate = ["generate", str(folder), "--prompt", "x", "--kernels", "native", *FAST]
    asked = ([generate, ["doctor"]], [generate, ["doctor", "--json"]])
    environments = ({"JAX_PLATFORMS": "nonsense"}, {"MLA_JAX_CPU_ISA": "sse9"})
    processes = [
        start("-c", BOTH, json.dumps(commands), **environment)
        for commands, environment in zip(asked, environments, strict=True)
    ]
    ends = []
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err.decode()
        ends += [json.loads(line) for line in out.splitlines()]
    assert [code for code, _, _ in ends] == [2, 2, 2, 2]
    backend = "JAX cannot start a backend (JAX_PLATFORMS='nonsense')"
    assert backend in ends[0][2].splitlines()[-1]
    assert f"problem: {backend}" in ends[1][1].splitlines()[-1]
    isa = "MLA_JAX_CPU_ISA: expected baseline, avx2, avx512, avx512vnni, avx512bf16 or amx, got 'sse9'"
    assert isa in ends[2][2].splitlines()[-1]
    assert isa in json.loads(ends[3][1])["problem"]


def test_an_interrupt_ends_a_generation(variant, start):
    # More text than a small pipe holds, and nobody reads: it cannot come to its end before the signal.
    endless = variant(config={"max_position_embeddings": 16_384})
    sizes = ("--max-model-len", "16384", "--max-num-seqs", "1")
    sampling = ("--ignore-eos", "--temperature", "0")
    process = start(*COMMAND, "generate", endless, "--prompt", "x", *sizes, *sampling)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    err = process.stderr.read()
    assert process.wait() == 130, err.decode()
    assert err.endswith(b"interrupted\n")
    assert b"Traceback" not in err


# A model that takes no time to load and never ends, unless it is to be interrupted: what counts is who
# reads, and how the process leaves.
STAND_IN = """
import atexit, itertools, signal, sys, types
from collections import namedtuple
sys.modules["mla_jax.llm"] = stand_in = types.ModuleType("stand_in")
Piece = namedtuple("Piece", "text")
class LLM:
    def __init__(self, *_, **__): pass
    def stream(self, prompt, params):
        if prompt == "interrupt": atexit.register(print, "torn down")
        for number in itertools.count():
            yield Piece("word ")
            if prompt == "interrupt": raise KeyboardInterrupt
            if prompt == "pause": signal.pause()
            if prompt == "lost" and number == 0: Careless()
class Careless:
    def __del__(self): signal.raise_signal(signal.SIGINT)
stand_in.LLM = LLM
sys.modules["mla_jax.doctor"] = doctor = types.ModuleType("doctor")
doctor.report = lambda: {"problem": None}
doctor.format_report = lambda facts: "fine"
from mla_jax.cli import main
sys.exit(main())
"""


def test_every_piece_is_written_when_it_comes(start):
    process = start("-c", STAND_IN, "generate", "M", "--prompt", "pause")
    assert select.select([process.stdout], [], [], 120)[0], "expected a word before the next one is asked for"
    assert os.read(process.stdout.fileno(), 100) == b"word "


def test_an_interrupted_process_is_not_torn_down(start):
    """jaxlib would crash if one of its threads were compiling."""
    out, err = start("-c", STAND_IN, "generate", "M", "--prompt", "interrupt").communicate()
    assert (out, err) == (b"word ", b"interrupted\n")


def test_an_interrupt_is_not_lost_in_a_finalizer(start):
    """Python reports what is raised there and goes on; so does JAX's callback of the garbage collector."""
    out, err = start("-c", STAND_IN, "generate", "M", "--prompt", "lost").communicate(timeout=120)
    assert out.startswith(b"word word ")
    assert err == b"interrupted\n"


def test_lost_readers(start):
    reader, writer = os.pipe()
    os.close(reader)  # gone before the first word
    at_the_end = start("-c", STAND_IN, "doctor", stdout=writer)  # so short that it is written last of all
    os.close(writer)
    streaming = start("-c", STAND_IN, "generate", "M", "--prompt", "x")
    assert streaming.stdout.read(1)
    streaming.stdout.close()
    for process in (streaming, at_the_end):
        err = process.stderr.read()
        assert process.wait() == 2, err.decode()
        assert err == b""


def test_output_that_cannot_show_the_text(folder, served, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["generate", str(folder), "--prompt", "größer", "--prompt", "x", *FAST, *GREEDY]) == 0
    out = sys.stdout.buffer.getvalue()
    assert b"gr\\xf6\\xdfer" in out
    assert main(["generate", str(folder), "--prompt", "x", "--stop", "", "--prompt", "größer"]) == 2
    sys.stderr.flush()
    assert sys.stderr.buffer.getvalue().endswith(b"expected a non-empty string, got ''\n")
