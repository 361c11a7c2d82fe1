"""The child process that renders chat templates. Run as a script, never imported by mla_jax.

Templates come with checkpoints, so they are programs of strangers. Jinja's sandbox keeps them from Python's
internals, but not from looping for ever or filling the memory; a process can be limited, and killed.

Protocol: one JSON object a line. The first line out is {"ready": true}; each line in is a request, answered
by one line with either "text" or "error" (with "kind", "message" and "line").

argv: memory limit in bytes, then folders to import jinja2 from. Imports nothing but jinja2 and the standard
library: starting it costs about 60 ms.
"""

import datetime
import json
import sys
from typing import Any

for _folder in sys.argv[2:]:
    if _folder not in sys.path:
        sys.path.append(_folder)

import jinja2  # noqa: E402
import jinja2.ext  # noqa: E402
import jinja2.nodes  # noqa: E402
import jinja2.parser  # noqa: E402
import jinja2.sandbox  # noqa: E402
import jinja2.utils  # noqa: E402

resource: Any
try:
    import resource
except ImportError:  # Windows: the parent's clock is the only limit there
    resource = None

MAX_MESSAGE = 500
COMPILED_TEMPLATES = 8


class Raised(jinja2.TemplateError):
    """The template called raise_exception."""


class OutputTooLong(Exception):
    """The rendered text exceeds its limit."""


class Generation(jinja2.ext.Extension):
    """{% generation %} marks an assistant's text for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way to declare it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateDict:
    """`dict` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class Namespace(jinja2.utils.Namespace):
    """`namespace` that stores no underscore names, through which Python's internals could be reached."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]  # so that namespace(self=1) works
        values = dict(*args, **kwargs)
        for name in values:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot store the name {name!r}")


def raise_exception(message: object = "") -> None:
    raise Raised(str(message))


def strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML and everything outside ASCII; models were trained on plain JSON.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    env.globals["dict"] = TemplateDict()
    env.globals["namespace"] = Namespace
    return env


compiled: dict[str, jinja2.Template] = {}


def compile_template(source: str) -> jinja2.Template:
    """The compiled template; the last few are kept. Each has an environment of its own to play with."""
    template = compiled.pop(source, None)
    if template is None:
        template = environment().from_string(source)
    compiled[source] = template
    if len(compiled) > COMPILED_TEMPLATES:
        del compiled[next(iter(compiled))]
    return template


def render(request: dict[str, Any]) -> str:
    pieces, length = [], 0
    for piece in compile_template(request["template"]).generate(**request["variables"]):
        length += len(piece)
        if length > request["max_chars"]:
            raise OutputTooLong
        pieces.append(piece)
    return "".join(pieces)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"text": render(request)}
    except OutputTooLong:
        return {"error": {"kind": "output", "message": "", "line": None}}
    except MemoryError:
        return {"error": {"kind": "memory", "message": "", "line": None}}
    except Exception as failure:
        # The memory may run out in Jinja's own handler, which then reports another exception.
        if isinstance(failure.__context__, MemoryError):
            return {"error": {"kind": "memory", "message": "", "line": None}}
        return {"error": describe(failure)}


def describe(failure: Exception) -> dict[str, Any]:
    if isinstance(failure, Raised):
        kind, message = "raised", str(failure)
    elif isinstance(failure, jinja2.TemplateSyntaxError):
        kind, message = "syntax", failure.message or ""
    elif isinstance(failure, jinja2.TemplateError):
        kind, message = "render", str(failure)
    else:
        kind, message = "render", f"{type(failure).__name__}: {failure}"
    return {"kind": kind, "message": message[:MAX_MESSAGE], "line": line_of(failure)}


def line_of(failure: Exception) -> int | None:
    """The template's line: Jinja rewrites tracebacks so that templates look like files of Python."""
    if isinstance(failure, jinja2.TemplateSyntaxError):
        return failure.lineno
    line, frame = None, failure.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


def limit_resources(memory_bytes: int) -> None:
    """What no template needs: more memory, files and core dumps."""
    if resource is None:
        return
    for name, value in (("RLIMIT_AS", memory_bytes), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        _lower(name, value)


def limit_cpu(seconds: int) -> None:
    """From now on at most this much CPU time; the kernel ends the process at the limit.

    The parent's clock comes first. This is for the case that the parent is no longer there.
    """
    if resource is None:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _lower("RLIMIT_CPU", int(usage.ru_utime + usage.ru_stime) + 1 + seconds)


def _lower(name: str, value: int) -> None:
    """Sets a soft limit, never above the hard one. macOS has no RLIMIT_AS that works."""
    kind = getattr(resource, name, None)
    if kind is None:
        return
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(kind, (value, hard))
    except (OSError, ValueError):
        if sys.platform == "linux":
            raise


def main() -> None:
    limit_resources(int(sys.argv[1]))
    send({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limit_cpu(request["cpu_seconds"])
        send(answer(request))


def send(reply: dict[str, Any]) -> None:
    try:
        line = json.dumps(reply).encode("ascii")
    except MemoryError:
        line = json.dumps({"error": {"kind": "memory", "message": "", "line": None}}).encode("ascii")
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
