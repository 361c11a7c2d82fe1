"""The parent's side of the process that renders chat templates."""

import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from mla_jax.errors import TemplateError

_WORKER = Path(__file__).with_name("_template_worker.py")

# Starting takes about 60 ms; far more on a cold disk or a crowded machine.
_START_SECONDS = 30.0


class TemplateProcess:
    """A child process that renders one template after the other; started at the first, then kept.

    It speaks JSON over pipes, imports Jinja but neither JAX nor this package, and has limited memory and CPU
    time. Whenever anything about it is in doubt (a limit was reached, an answer did not come, the caller
    was interrupted) it is killed, and the next call starts a fresh one. Threads take turns.

    Args:
      memory_bytes: its limit, the interpreter (about 40 MB) included. Not enforced on macOS and Windows.
      python_flags: for the child's interpreter.
    """

    def __init__(self, memory_bytes: int, python_flags: tuple[str, ...] = ("-I",)) -> None:
        self._memory_bytes = memory_bytes
        self._python_flags = python_flags
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    def render(
        self, template: str, variables: dict[str, Any], *, seconds: float, max_chars: int
    ) -> dict[str, Any]:
        """The child's answer: {"text": ...} or {"error": {"kind", "message", "line"}}.

        Beside the child's own kinds of errors, "time" says that it did not answer within `seconds`, and
        "crash" that it ended by itself.

        Raises:
          TemplateError: the process cannot be started.
        """
        request = {
            "template": template,
            "variables": variables,
            "max_chars": max_chars,
            "cpu_seconds": int(seconds) + 1,
        }
        line = json.dumps(request).encode("ascii") + b"\n"
        with self._lock:
            done = False
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                # The longest answer: every character as two escaped surrogates.
                answer = self._exchange(line, seconds, 12 * max_chars + 10_000)
                done = "text" in answer or answer["error"]["kind"] in ("syntax", "render", "raised")
                return answer
            finally:
                if not done:
                    self._kill()

    def close(self) -> None:
        """Ends the child, if there is one. Not done by a fork of the process that started it."""
        if self._owner == os.getpid():
            with self._lock:
                self._kill()

    def _start(self) -> None:
        self._kill()
        if not sys.executable:
            raise TemplateError("chat templates need a child process, and sys.executable names no Python")
        command = [
            sys.executable,
            *self._python_flags,
            str(_WORKER),
            str(self._memory_bytes),
            *_import_folders(),
        ]
        try:
            # A session of its own: Ctrl-C in the terminal is the parent's business.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as failure:
            raise TemplateError(f"the process for chat templates cannot be started: {failure}") from failure
        if self._exchange(b"", _START_SECONDS, 100) != {"ready": True}:
            raise TemplateError(
                f"the process for chat templates did not start; {' '.join(command)} should print "
                '{"ready": true}'
            )

    def _exchange(self, line: bytes, seconds: float, max_bytes: int) -> dict[str, Any]:
        """Sends a line and reads one. The timer is what ends a read that takes too long."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True  # must not keep an interrupted program alive
        timer.start()
        try:
            if line:
                process.stdin.write(line)
                process.stdin.flush()
            answer = process.stdout.readline(max_bytes + 1)
        except OSError:  # the child ended while it was written to
            answer = b""
        finally:
            timer.cancel()
            timer.join()  # or it might kill the child while the next request is written
        if answer.endswith(b"\n"):
            return _parsed(answer)
        if expired.is_set():
            return {"error": {"kind": "time", "message": "", "line": None}}
        return {"error": {"kind": "crash", "message": "", "line": None}}

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was never sent cannot be flushed any more
                    pipe.close()


def _parsed(answer: bytes) -> dict[str, Any]:
    """The answer, or a crash: a template that broke out of its sandbox may have written anything."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        if value == {"ready": True} or (set(value) == {"text"} and isinstance(value["text"], str)):
            return value
        error = value.get("error")
        if isinstance(error, dict) and {"kind", "message", "line"} <= set(error):
            return value
    return {"error": {"kind": "crash", "message": "", "line": None}}


def _import_folders() -> list[str]:
    """Where jinja2 and markupsafe are, for an isolated interpreter that does not see PYTHONPATH."""
    folders = []
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise TemplateError(f"chat templates need the package {name}, which is not installed")
        folders.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(folders))


_shared: dict[tuple[int, int], TemplateProcess] = {}


def shared_process(memory_bytes: int) -> TemplateProcess:
    """The process that everybody with the same memory limit uses.

    A forked child gets one of its own: two that wrote to the same pipe would read each other's answers.
    """
    key = (os.getpid(), memory_bytes)
    if key not in _shared:
        _shared.setdefault(key, TemplateProcess(memory_bytes))
    return _shared[key]
