"""The Typer app: a command is its config dataclass turned into flags, a call of its `run`, and the
result shown; around all of them stands the error boundary, the one place that catches everything.

A new command is one line in `COMMANDS`. Knows no command's work and imports nothing heavy: the
command's module is loaded when it runs.

Exit codes are `errors.ExitCode`; a reader that goes away (`clara ... | head`) ends the program
quietly with 141, what a shell reports for a tool stopped by SIGPIPE.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from clara_cli import config as configs
from clara_cli import interrupts
from clara_cli.cli.parameters import LIST_SETTINGS, SHARED, parameters
from clara_cli.config import AskConfig, Common, option_files
from clara_cli.config.fields import MACHINE, Setting, with_recipe
from clara_cli.distributed import launch
from clara_cli.errors import ClaraError, ExitCode, Interrupted, UsageError, nearest

COMMANDS: dict[str, type[Common]] = {
    "synth": configs.SynthConfig,
    "pretrain": configs.PretrainConfig,
    "train": configs.TrainConfig,
    "compress": configs.CompressConfig,
    "index": configs.IndexConfig,
    "ask": configs.AskConfig,
    "bench": configs.BenchConfig,
}

BROKEN_PIPE = 141


class ClaraCommand(TyperCommand):
    """A command whose `--help` stands with the other general flags, not in a panel of its own."""

    def get_help_option(self, ctx: Any) -> Any:
        """The `--help` option, in the last panel."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = MACHINE
        return option

    def get_params(self, ctx: Any) -> Any:
        """Arguments and options; a switch shows no type in help."""
        return _switches_untyped(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of a command line; an option given as nothing, which is what a shell makes
        of an unset variable, is not taken for its default or the present folder."""
        takes = [p for p in self.get_params(ctx) if not getattr(p, "is_flag", False)]
        names = {name for p in takes for name in p.opts if name.startswith("-")}
        for word, following in itertools.zip_longest(args, args[1:]):
            empty = following == "" if word in names else word[-1:] == "=" and word[:-1] in names
            if empty and not ctx.resilient_parsing:
                message = f"{word.removesuffix('=')} is empty"
                raise UsageError(message, "give it a value (is a variable unset?), or omit it")
        return super().parse_args(ctx, args)


class ClaraGroup(TyperGroup):
    """The error boundary: whatever escapes a command becomes a message, a hint and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the program on `args` and leave with its exit code."""
        words = list(sys.argv[1:] if args is None else args)
        prog_name = prog_name or "clara"
        self._main_shell_completion(extra, prog_name, complete_var)
        try:
            runs = any(word in self.commands for word in words)
            files = option_files.read_defaults(COMMANDS) if runs else {}
            extra |= {"default_map": files, "auto_envvar_prefix": "CLARA"}
            with interrupts.raised():
                with self.make_context(prog_name, words, obj=tuple(words), **extra) as ctx:
                    self.invoke(ctx)
                sys.stdout.flush()
            code = int(ExitCode.OK)
        except (Exception, KeyboardInterrupt) as error:
            named = next((word for word in words if word in self.commands), "")
            code = _show_failure(error, named, traced=_wants_traceback(words))
        sys.exit(code)

    def get_params(self, ctx: Any) -> Any:
        """The general options; a switch shows no type in help."""
        return _switches_untyped(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command named first, or an error naming the nearest ones."""
        if args[0] not in self.commands:
            raise UsageError(f"no such command: {args[0]}", nearest(args[0], self.commands))
        return super().resolve_command(ctx, args)


def _switches_untyped(found: list[Any]) -> list[Any]:
    for parameter in found:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return found


def _show_failure(error: BaseException, command: str, *, traced: bool) -> int:
    """Show what escaped a command; the exit code it leads to."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return BROKEN_PIPE
    if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
        return int(ExitCode.USAGE)
    from clara_cli.cli.show import terminal

    if traced:
        traceback.print_exception(error)
    error = _usage_error(error) if isinstance(error, typer.TyperException) else error
    if not isinstance(error, ClaraError) and interrupts.is_interrupt(error):
        error = Interrupted("interrupted")
    shown = terminal.explain(error, command)
    launch.hand_over_error(shown, terminal.show_error)
    return int(shown.code)


def _usage_error(error: typer.TyperException) -> UsageError:
    """Typer's own complaint about the command line, with a next step."""
    ctx, param = getattr(error, "ctx", None), getattr(error, "param", None)
    path = ctx.command_path if ctx is not None else "clara"
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and ctx is not None and option is not None:
        if isinstance(ctx.command, ClaraGroup) and option.removeprefix("--") in SHARED:
            return UsageError(
                f"no such option: {option}", f"it goes last, as in {path} ask {option}"
            )
        names = [name for p in ctx.command.get_params(ctx) for name in (*p.opts, *p.secondary_opts)]
        flags = [name for name in names if name.startswith("-")]
        return UsageError(f"no such option: {option}", nearest(option, flags))
    faults: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()  # pydantic's
    if param is not None and faults:
        value, choices = str(faults[0]["input"]), param.type_descriptor.choices
        hint = nearest(value, choices) if choices else f"expected {param.display_type(ctx)}"
        return UsageError(f"{'/'.join(param.opts)} is {value!r}", hint)
    message = " ".join(error.format_message().split()).rstrip(".")
    return UsageError(message[:1].lower() + message[1:], f"{path} --help shows what it takes")


def _wants_traceback(words: list[str]) -> bool:
    options = words[: words.index("--")] if "--" in words else words
    return "--traceback" in options or os.environ.get("CLARA_TRACEBACK", "") not in ("", "0")


def _silence_stdout() -> None:
    """Let nothing more be written: the reader has gone, and the interpreter still flushes."""
    with contextlib.suppress(OSError, ValueError):  # stdout is not a file of the system
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command(name: str, config: type[Common]) -> Callable[..., None]:
    """The function behind one command; its signature is the config's fields."""

    def call(ctx: typer.Context, **values: Any) -> None:
        shared = {flag: values.pop(flag) for flag in SHARED}
        values.pop(LIST_SETTINGS, None)  # has stopped the command where it was given
        sources = {field: ctx.get_parameter_source(field) for field in values}
        named = frozenset(field for field, s in sources.items() if s and s.name == "COMMANDLINE")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        settings: Any = config(**values)
        if shared["show_config"]:
            _show_config(settings, sources)
            return
        if hasattr(settings, "recipe"):
            settings = with_recipe(settings, named)
        if launch.must_launch(getattr(settings, "nproc", None)):
            launch.run(ctx.find_root().obj, settings.nproc)
        elif isinstance(settings, AskConfig):
            _ask(settings, as_json=shared["json"], quiet=shared["quiet"])
        else:
            _run(name, settings, as_json=shared["json"], quiet=shared["quiet"])

    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    signature = inspect.Signature([context, *parameters(config, _show_settings)])
    call.__name__ = name
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return call


def _show_config(settings: Common, sources: dict[str, Any]) -> None:
    """Every option of a command, as clara.toml may hold it, and where its value comes from."""
    from clara_cli.cli.show import terminal

    words = {"DEFAULT_MAP": option_files.NAME, "COMMANDLINE": "command line"}
    for f in dataclasses.fields(settings):
        if f.metadata["kind"] == "option":
            source = getattr(sources.get(f.name), "name", "DEFAULT")
            terminal.show_option(f, getattr(settings, f.name), words.get(source, source.lower()))


def _show_settings(ctx: typer.Context, settings: list[Setting]) -> None:
    """What a command's recipes and `--set` may hold, as a recipe or as JSON."""
    from clara_cli.cli.show import json_line, terminal

    if "--json" in (ctx.find_root().obj or ()):
        json_line.write_json({"settings": [dataclasses.asdict(setting) for setting in settings]})
    else:
        terminal.show_settings(settings)


def _run(name: str, config: Common, *, as_json: bool, quiet: bool) -> None:
    """Run a command that returns one record, and show it."""
    from clara_cli.cli.show import json_line, terminal

    with terminal.TerminalReport(quiet=quiet) as report:
        module = importlib.import_module(f"clara_cli.commands.{name}")
        result = module.run(config, launch.report_of_first(report))
    if launch.world().rank != 0:
        return
    if as_json:
        json_line.write_json(json_line.result_json(result))
    else:
        shorter = (flag for flag in ("dry_run", "check") if getattr(config, flag, False))
        terminal.show_result(result, only=next(shorter, None))


def _ask(config: AskConfig, *, as_json: bool, quiet: bool) -> None:
    """Answer questions, and show each answer as it comes."""
    from clara_cli.cli import ask

    ask.run(config, as_json=as_json, quiet=quiet)


def _version(wanted: bool) -> None:
    if wanted:
        import clara_cli

        typer.echo(f"clara {clara_cli.__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Compress documents into memory tokens, and answer questions from them, with sources."""


def build() -> typer.Typer:
    """The app with every command of `COMMANDS`."""
    typer_app = typer.Typer(
        name="clara", cls=ClaraGroup, no_args_is_help=True, pretty_exceptions_enable=False
    )
    typer_app.callback()(_top)
    for name, config in COMMANDS.items():
        help_text = inspect.cleandoc(config.__doc__ or "")
        typer_app.command(name, cls=ClaraCommand, help=help_text)(command(name, config))
    return typer_app


app = build()


def main() -> None:
    """The command `clara`. SIGTERM ends it the way Ctrl-C does: state kept, exit 130."""
    interrupts.install()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app()
