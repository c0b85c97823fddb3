"""Chat templates rendered within bounds, by a process of their own (`template_worker`).

It starts with the first rendering and ends with this process; one that a template has used up is
replaced for the next rendering.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from clara_cli.core import template_worker
from clara_cli.errors import ArtefactError

PATIENCE = 60.0  # seconds until a rendering that the system did not end is given up
GROWTH, ROOM = 4, 1_000_000  # characters a template may make: so many times what it is given, and
MOST_TEMPLATE = 1_000_000  # characters of a template
PROBE = "Who, 'of' <b> & {{ x }} [\u00e9\u4e16], is it\\n?"  # what a template might change
LONG_PROBE = "\n".join(f"{number}: {PROBE}" for number in range(40))
HINT = "give a backbone with a plain chat template, or put one into its chat_template.jinja"


class Worker:
    """The process that renders. Used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """Its reply; {"limit"} where it was ended before it could give one."""
        with self._lock:
            process = self._running()
            try:
                line = self._exchange(process, json.dumps(request).encode() + b"\n")
            except OSError:  # it is gone
                line = b""
            if not line.endswith(b"\n"):
                self._end()
                seconds = template_worker.SECONDS
                return {"limit": f"takes more than {seconds} seconds of processor time"}
            reply: dict[str, str] = json.loads(line)
            if "limit" in reply:
                self._end()
            return reply

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid():  # never shared with a fork
            self._owner = os.getpid()
            self._process = subprocess.Popen(  # noqa: S603  (this program's own file)
                [sys.executable, "-I", str(Path(template_worker.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process to answer
            )
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(request)
        process.stdin.flush()
        deadline, pieces = time.monotonic() + PATIENCE, [b""]
        while not pieces[-1].endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([process.stdout], [], [], left)[0]:
                return b""
            pieces.append(os.read(process.stdout.fileno(), 2**16))
            if not pieces[-1]:
                return b""
        return b"".join(pieces)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()


WORKER = Worker()
atexit.register(WORKER.close)


def chat_template(tokenizer: Any, what: str = "") -> str | None:
    """The template of a tokenizer: the only one, or the one named default; None without any.
    `what` stands in errors, else where the tokenizer is from.

    Raises:
        ArtefactError: for several of which none is the default, and one that is too long.
    """
    template = tokenizer.chat_template
    what = what or str(getattr(tokenizer, "name_or_path", "")) or "the tokenizer"
    if isinstance(template, dict):
        if "default" not in template:
            names = ", ".join(sorted(map(str, template)))
            message = f"{what} has several chat templates, none of them the default: {names}"
            raise ArtefactError(message, "put the one you mean into its chat_template.jinja")
        template = template["default"]
    if template is not None and len(template) > MOST_TEMPLATE:
        message = f"{what}: its chat template has more than {MOST_TEMPLATE:,} characters"
        raise ArtefactError(message, HINT)
    return template


def write_user_turn(tokenizer: Any, text: str) -> str | None:
    """A prompt as the user's turn of a chat, up to where the reply begins; None where a tokenizer
    has no chat template. Raises as `render_chat` does."""
    if chat_template(tokenizer) is None:
        return None
    message = {"role": "user", "content": text}
    return render_chat(tokenizer, [message], add_generation_prompt=True)


def check_user_turn(tokenizer: Any, what: str) -> None:
    """See that the user's turn keeps what it is given, once, whole and as it is.

    Raises:
        ArtefactError: where the chat template drops, cuts, escapes or repeats it.
    """
    turn = write_user_turn(tokenizer, LONG_PROBE)
    if turn is not None and turn.count(LONG_PROBE) != 1:
        raise ArtefactError(f"{what}: its chat template does not write a prompt as it is", HINT)


def special_tokens(tokenizer: Any) -> dict[str, str | list[str]]:
    """The special tokens by name, as templates know them."""
    named = tokenizer.special_tokens_map.items()
    return {
        name: list(map(str, token)) if isinstance(token, list | tuple) else str(token)
        for name, token in named
    }


def render_chat(tokenizer: Any, messages: Sequence[dict[str, str]], **variables: Any) -> str:
    """A conversation as a tokenizer's template writes it.

    Raises:
        TemplateError: where the template refuses it, or fails.
        ArtefactError: where it goes beyond its bounds of time, memory or text.
    """
    characters = sum(len(message["content"]) for message in messages)
    request = {
        "template": chat_template(tokenizer),
        "variables": {**special_tokens(tokenizer), "messages": list(messages), **variables},
        "most": GROWTH * characters + ROOM,
    }
    reply = WORKER.ask(request)
    if "limit" in reply:
        message = f"the chat template of {tokenizer.name_or_path or 'the tokenizer'}"
        raise ArtefactError(f"{message} {reply['limit']}", HINT)
    if "error" in reply:
        raise TemplateError(reply["error"])
    return reply["text"]
