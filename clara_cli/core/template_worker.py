"""Renders chat templates in a process of its own, one JSON line in, one out, until its input ends.

A template comes with a model and may loop for ever or grow without bound: here it has a limit of
processor time for every rendering and one of memory. Knows jinja2 alone; `chat_templates` runs it.
The date a template may ask for is fixed, so that a prompt is the same on another day.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2  # of processor time, for one rendering
MEMORY = 512 * 2**20  # bytes of address space, for all of them
TODAY = datetime(2024, 7, 26)  # noqa: DTZ001  (the date that templates fall back to themselves)


class Generation(Extension):
    """`{% generation %}` marks what an assistant says; the text is what is inside."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> NoReturn:
    """What templates call to refuse a conversation."""
    raise jinja2.TemplateError(message)


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """JSON without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def strftime_now(form: str) -> str:
    """The fixed date."""
    return TODAY.strftime(form)


@lru_cache
def compiled(template: str) -> jinja2.Template:
    """A template in the environment that transformers gives it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(template)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """{"text"} of a rendering, {"error"} of a template that fails, {"limit"} of one that is too
    large."""
    try:
        text = compiled(request["template"]).render(**request["variables"])
    except MemoryError:
        return {"limit": f"takes more than {MEMORY >> 20} MiB"}
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        return {"error": str(error) or type(error).__name__}
    except (AttributeError, RecursionError) as error:
        return {"error": str(error) or type(error).__name__}
    if len(text) > request["most"]:
        return {"limit": f"makes more than {request['most']:,} characters"}
    return {"text": text}


def allow_seconds() -> None:
    """Give the next rendering its processor time; the system ends this process beyond it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS + 1, hard))


def main() -> None:
    """Answer until there is nothing more to read."""
    with contextlib.suppress(ValueError, OSError):  # where a system has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin.buffer:
        allow_seconds()
        reply = json.dumps(answer(json.loads(line)))
        sys.stdout.buffer.write(reply.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
