import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from mla_jax.errors import TemplateError
from mla_jax.text import template_process
from mla_jax.text.template_process import TemplateProcess, shared_process

MEMORY = 400_000_000


@pytest.fixture
def process():
    process = TemplateProcess(MEMORY)
    yield process
    process.close()


def render(process, template, *, seconds=60.0, max_chars=1000, **variables):
    return process.render(template, variables, seconds=seconds, max_chars=max_chars)


def test_the_child_is_kept(process):
    assert render(process, "{{ a }}", a=1) == {"text": "1"}
    first = process._process.pid
    assert render(process, "{{ a")["error"]["kind"] == "syntax"
    assert render(process, "{{ a }}", a=2) == {"text": "2"}
    assert process._process.pid == first


@pytest.mark.parametrize(
    ("template", "kind", "seconds"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "time", 0.3),
        ("{{ 'a' * 10 ** 11 }}", "memory", 60.0),
        ("{{ 'a' * 1001 }}", "output", 60.0),
    ],
)
def test_a_child_that_hit_a_limit_is_replaced(process, template, kind, seconds):
    assert render(process, "{{ 1 }}") == {"text": "1"}
    child = process._process
    assert render(process, template, seconds=seconds)["error"]["kind"] == kind
    assert process._process is None
    assert child.returncode is not None
    assert render(process, "{{ 1 }}") == {"text": "1"}


def test_output_limit_is_exact(process):
    assert render(process, "{{ '中' * 1000 }}")["text"] == "中" * 1000
    assert render(process, "{{ '😀' * 1000 }}")["text"] == "😀" * 1000
    assert render(process, "{{ '中' * 1000 }}x")["error"]["kind"] == "output"


def test_child_killed_from_outside_is_replaced(process):
    render(process, "")
    process._process.kill()
    process._process.wait()
    assert render(process, "{{ 1 }}") == {"text": "1"}


def test_child_that_dies_while_it_works(process):
    render(process, "")
    child, pipe = process._process, process._process.stdin

    def killing():
        pipe.flush()
        child.kill()

    child.stdin = SimpleNamespace(write=pipe.write, flush=killing, close=pipe.close)
    slow = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert render(process, slow)["error"]["kind"] == "crash"
    assert render(process, "{{ 1 }}") == {"text": "1"}


def test_interrupted_call_leaves_no_answer_behind(process, monkeypatch):
    """An answer that nobody read would otherwise be taken for the next one."""
    render(process, "")

    def interrupted(self, line, seconds, max_bytes):
        self._process.stdin.write(line)
        self._process.stdin.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TemplateProcess, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render(process, "stale")
    assert render(process, "fresh") == {"text": "fresh"}


def test_threads_take_turns(process):
    answers = {}

    def work(i):
        answers[i] = [render(process, "{{ i }}-{{ j }}", i=i, j=j)["text"] for j in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: [f"{i}-{j}" for j in range(20)] for i in range(8)}


def test_close_ends_the_child(process):
    render(process, "")
    child = process._process
    process.close()
    assert child.returncode == -signal.SIGKILL
    process.close()
    assert render(process, "{{ 1 }}") == {"text": "1"}


def test_the_child_is_gone_when_the_program_ends():
    code = (
        "from mla_jax.text.template_process import shared_process as s;"
        "s(400_000_000).render('', {}, seconds=60, max_chars=1); print(s(400_000_000)._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_a_fork_has_its_own_child_and_leaves_the_parent_s_alone(process, monkeypatch):
    render(process, "")
    child, shared = process._process, shared_process(MEMORY)
    assert shared_process(MEMORY) is shared
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -5)
        process.close()
        assert shared_process(MEMORY) is not shared
        template_process._shared.pop((-5, MEMORY))
    assert child.poll() is None


@pytest.mark.parametrize(
    "output", ["", "nonsense\n", "[]\n", '{"error": 3}\n', '{"text": 3}\n', "[" * 99999 + "\n"]
)
def test_answers_that_are_none(process, tmp_path, monkeypatch, output):
    fake = tmp_path / "fake.py"
    fake.write_text(
        "import sys\n"
        "print('{\"ready\": true}', flush=True)\n"
        f"sys.stdin.readline(); sys.stdout.write({output!r}); sys.stdout.flush()\n"
    )
    monkeypatch.setattr(template_process, "_WORKER", fake)
    assert render(process, "", max_chars=10**6)["error"]["kind"] == "crash"


def test_child_that_does_not_start(process, tmp_path, monkeypatch):
    monkeypatch.setattr(template_process, "_WORKER", tmp_path / "nope.py")
    with pytest.raises(TemplateError, match="did not start"):
        render(process, "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    with pytest.raises(TemplateError, match="cannot be started"):
        render(process, "")
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(TemplateError, match="no Python"):
        render(process, "")


def test_child_does_not_die_of_the_parent_s_ctrl_c(process):
    render(process, "")
    assert os.getsid(process._process.pid) != os.getsid(0)


def start_worker(*flags):
    command = [
        sys.executable,
        *flags,
        str(template_process._WORKER),
        str(MEMORY),
        *template_process._import_folders(),
    ]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_worker_alone_with_warnings_as_errors():
    request = {"template": "{{ a }}", "variables": {"a": 1}, "max_chars": 9, "cpu_seconds": 5}
    with start_worker("-I", "-W", "error") as worker:
        out, err = worker.communicate(json.dumps(request).encode() + b"\n")
    assert [json.loads(line) for line in out.splitlines()] == [{"ready": True}, {"text": "1"}]
    assert (err, worker.returncode) == (b"", 0)


def test_worker_imports_neither_jax_nor_this_package():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='worker');"
        "print([m for m in sys.modules if m.split('.')[0] in ('jax', 'numpy', 'mla_jax', 'tokenizers')])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(template_process._WORKER)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the Linux kernel")
def test_orphan_ends_by_its_own_cpu_limit():
    """Nobody watches the clock for a worker whose parent was killed."""
    slow = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    request = {"template": slow, "variables": {}, "max_chars": 9, "cpu_seconds": 0}
    with start_worker("-I") as worker:
        worker.communicate(json.dumps(request).encode() + b"\n")
    assert worker.returncode == -signal.SIGXCPU


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the Linux kernel")
def test_cpu_limit_is_counted_from_each_request(process):
    """A worker that is kept for days must not die of all its work together."""
    # A short one: 0.9 s make a CPU limit of 1 s, and a crowded machine may take ten times as long.
    busy = "{% for i in range(100) %}{% for j in range(3000) %}{% endfor %}{% endfor %}"
    render(process, "")
    first, used = process._process.pid, 0.0
    while used < 2.5:
        assert "text" in render(process, busy, seconds=0.9)
        ticks = Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[11:13]
        used = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    assert process._process.pid == first
