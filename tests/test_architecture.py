"""The shape of the package, read from its syntax trees: which way imports go, how long things are,
and what no module does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "clara_cli"
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))

FUNCTION_LINES, AIM_LINES, COLUMNS = 60, 45, 100

# Layers from the top; a module imports from its own package or from a layer below. Core, corpus and
# search know nothing of each other; `training` and `commands` put together what lies below them.
LAYERS = [
    {"__main__"},
    {"app"},
    {"cli"},
    {"commands"},
    {"training"},
    {"answering", "synthesis", "evaluation"},
    {"distributed"},
    {"core", "corpus", "search"},
    {"documents"},
    {"config"},
    {"chat"},
    {"memory_layout"},
    {"storage"},
    {"records", "bench_records", "bundled"},
    {"errors", "interrupts", "printable", "extras"},
]
HELPERS = {
    f"clara_cli.commands.{name}"
    for name in (
        "dry_run",
        "question_files",
        "checkpoint_notes",
        "index_measurement",
        "compress_pipeline",
        "sync",
        "watch",
    )
}
ONLY_IN = {
    "typer": ("clara_cli/cli/",),
    "rich": ("clara_cli/cli/show/",),
    "peft": ("clara_cli/core/",),
    "hnswlib": ("clara_cli/search/hnsw.py",),
    "pymilvus": ("clara_cli/search/milvus.py",),
    "prompt_toolkit": ("clara_cli/cli/repl.py",),
}
TOP_LEVEL = {
    "pyproject.toml",
    "clara_cli",
    "recipes",
    "tests",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "findings",
}
LOADING = "clara_cli/core/loading.py"
LOADS = {"from_pretrained", "from_config", "for_model", "from_single_file", "load_adapter"}
LOADS_BY_ID = {  # libraries and their parts that fetch, and some that run, what a name stands for
    *("sentence_transformers", "FlagEmbedding", "pylate", "colbert", "ragatouille", "diffusers"),
    *("vllm", "llama_cpp", "xllamacpp", "ctransformers", "optimum", "onnxruntime", "spacy", "timm"),
    *("torch.hub", "torchvision", "open_clip", "evaluate", "kernels", "tiktoken", "gensim"),
}
LOWEST = {"records", "errors", "printable"}
NOT_CORE = ("corpus", "documents", "search", "synthesis")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def dotted(module: str) -> str:
    return module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(module: str, when_loaded: bool = False) -> Iterator[str]:
    """Every module that `module` imports anywhere, under its full name; `when_loaded`: only what
    its being imported imports."""
    known = {dotted(other) for other in MODULES}
    for node in tree(module).body if when_loaded else ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names)


def part(name: str) -> str:
    """`core` of clara_cli.core.model, `app` of clara_cli.app, empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def layer(name: str) -> int | None:
    """How deep a part lies; None for the package itself, which imports nothing."""
    return next((depth for depth, names in enumerate(LAYERS) if part(name) in names), None)


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def public(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of a module and methods of its public classes whose names are public."""
    holders: list[ast.Module | ast.ClassDef] = [tree(module)]
    while holders:
        for node in holders.pop().body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                holders.append(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if not node.name.startswith("_") or node.name == "__init__":
                    yield node


def at(module: str, node: ast.AST) -> str:
    return f"{module}:{node.lineno}"  # type: ignore[attr-defined]


def assert_none(found: list[str], what: str) -> None:
    assert not found, f"{what}:\n  " + "\n  ".join(found)


# --- imports ---


def test_the_top_level_holds_what_was_designed_and_nothing_else():
    """What lies about beside the package (a fetched wheel, notes, runs) is never committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("no clone: nothing says what is committed")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {name.split("/")[0] for name in listed}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_every_part_has_its_layer():
    parts = {part(dotted(module)) for module in MODULES} - {""}
    assert_none(sorted(p for p in parts if layer(f"clara_cli.{p}") is None), "parts without layer")


def test_imports_go_downward_only():
    found = []
    for module in MODULES:
        own = layer(dotted(module))
        for name in imported(module):
            other = layer(name)
            if not name.startswith("clara_cli") or own is None or other is None:
                continue
            if other < own or (other == own and part(name) != part(dotted(module))):
                found.append(f"{module} imports {name}")
    assert_none(found, "imports that go up or sideways")


def test_layers_beside_each_other_are_the_ones_designed():
    """Retrieval knows text and arrays, the core knows tensors: neither needs the other."""
    allowed = {"core", "config", "bundled", "memory_layout", "storage", "printable", "records"}
    allowed |= {"errors", "extras"}
    for module in MODULES:
        names = {part(name) for name in imported(module) if name.startswith("clara_cli.")}
        if part(dotted(module)) in NOT_CORE:
            assert "core" not in names, module
        if part(dotted(module)) == "core":
            assert names <= allowed, module


def test_commands_never_import_each_other():
    found = [
        f"{module} imports {name}"
        for module in MODULES
        if module.startswith("clara_cli/commands/")
        for name in imported(module)
        if name.startswith("clara_cli.commands.") and name not in HELPERS
    ]
    assert_none(found, "commands that import commands")


def test_every_command_has_one_public_run():
    from clara_cli.cli.app import COMMANDS

    for name in COMMANDS:
        module = f"clara_cli/commands/{name}.py"
        runs = [f for f in tree(module).body if getattr(f, "name", "") == "run"]
        assert len(runs) == 1, module
        arguments = [a.arg for a in runs[0].args.args]  # type: ignore[attr-defined]
        assert arguments == ["config", "report"], module


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_where_it_belongs(library):
    found = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imported(module)
        if name.split(".")[0] == library and not module.startswith(ONLY_IN[library])
    ]
    assert_none(found, f"{library} outside {' '.join(ONLY_IN[library])}")


def test_no_module_imports_itself_in_a_circle():
    graph = {
        dotted(m): {n for n in imported(m, when_loaded=True) if n.startswith("clara_cli.")}
        for m in MODULES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_only_declared_libraries_are_imported():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for names in project.get("optional-dependencies", {}).values() for name in names]
    declared = {
        requirement.split(">")[0].split("=")[0].split("<")[0].split("[")[0].replace("-", "_")
        for requirement in [*project["dependencies"], *extras]
    }
    implied = {"fsspec", "jinja2", "pyarrow", "huggingface_hub", "tokenizers", "httpx2", "yaml"}
    implied |= {"bs4", "docx", "pptx"}  # imported by another name than they are installed by
    found = sorted(
        {
            f"{module} imports {name}"
            for module in MODULES
            for name in imported(module)
            if (top := name.split(".")[0]) not in sys.stdlib_module_names | declared | implied
            and top != "clara_cli"
        }
    )
    assert_none(found, "libraries that pyproject.toml does not name")


def names_in(module: str) -> Iterator[tuple[ast.AST, str]]:
    """Every name a module reads, imports or asks an object for."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute):
            yield node, node.attr
        elif isinstance(node, ast.Name):
            yield node, node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, node.value  # getattr(model, "from_pretrained")
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, alias.name) for alias in node.names)


def test_one_place_loads_models():
    """A folder is checked for code of its own in one place, so no other place may load one."""
    found = [
        f"{at(module, node)} {name}"
        for module in MODULES
        if module != LOADING
        for node, name in names_in(module)
        if name in LOADS or (name.startswith("Auto") and name[4:5].isupper())
    ]
    assert_none(found, f"loading outside {LOADING}")


def test_no_library_that_loads_by_id_is_used():
    found = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imported(module)
        if any(name == other or name.startswith(f"{other}.") for other in LOADS_BY_ID)
    ]
    assert_none(found, "libraries that load by a name")


# --- what every module has, and what none does ---


def test_every_module_says_what_it_is():
    assert_none([m for m in MODULES if not ast.get_docstring(tree(m))], "modules without docstring")


def test_every_public_function_and_class_says_what_it_does():
    found = [
        f"{at(module, function)} {function.name}"
        for module in MODULES
        for function in public(module)
        if function.name != "__init__" and not ast.get_docstring(function)
    ]
    assert_none(found, "public functions without docstring")


def test_nothing_prints():
    found = [
        at(module, node)
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert_none(found, "print calls (a command returns a record, ui shows it)")


CHANGES = set(
    "write_text write_bytes unlink rmdir rmtree mkdir makedirs rename remove_folder".split()
)
CHANGES |= set("hardlink_to touch copytree copyfile truncate chmod mkdtemp".split())
OS_CHANGES = {"replace", "remove"}  # names that others than os have


def changes_files(call: ast.Call) -> bool:
    """Whether a call writes, makes, renames or deletes a file or folder, by its name alone."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name == "open":
        given = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        modes = {node.value for node in given if isinstance(node, ast.Constant)}
        return any(
            set(mode) & set("wax+") for mode in modes if re.fullmatch("[rwaxbt+]+", str(mode))
        )
    return name in CHANGES and owner != "files" or name in OS_CHANGES and owner == "os"


def test_only_storage_writes_and_deletes_files():
    """There links are refused, what is written is whole, and a full disk is one clear error."""
    found = [
        at(module, node)
        for module in MODULES
        if not module.startswith("clara_cli/storage/")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and changes_files(node)
    ]
    assert_none(found, "files written or deleted outside clara_cli/storage")


READS_WAITING = {  # pipes that a user hands over, files of this program or of the system
    "clara_cli/documents/sources.py",
    "clara_cli/documents/reader_process.py",
    "clara_cli/evaluation/data/published.py",
}


def opens_to_read(call: ast.Call) -> bool:
    """Whether a call opens a file for reading as Python does: it would wait for a pipe."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name in ("read_text", "read_bytes"):
        # a distribution's own records are read by the standard library
        return isinstance(call.func, ast.Attribute) and owner not in ("artefact", "distribution")
    modes = [node.value for node in call.args if isinstance(node, ast.Constant)]
    told = {word.arg for word in call.keywords} & {"encoding", "mode"}
    return name == "open" and (owner in ("gzip", "lzma", "bz2") or bool(told) or "rb" in modes)


def test_only_storage_opens_files_to_read_them():
    """There what is no file (a pipe, a device) is refused before anything waits for it."""
    found = [
        at(module, node)
        for module in MODULES
        if not module.startswith("clara_cli/storage/") and module not in READS_WAITING
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and opens_to_read(node)
    ]
    assert_none(found, "files opened outside clara_cli/storage: use its open_file")


def caught(handler: ast.ExceptHandler) -> set[str]:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {kind.id for kind in kinds if isinstance(kind, ast.Name)}


def test_nothing_is_caught_blindly():
    found = []
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = caught(node) & {"Exception", "BaseException"}
            if node.type is None or (broad and module not in ("clara_cli/cli/app.py", LOADING)):
                found.append(at(module, node))
    assert_none(found, "bare or blind except outside the error boundaries")


def test_no_error_is_swallowed():
    """An `except` whose body is only `pass` hides what happened; contextlib.suppress says why."""
    found = [
        at(module, node)
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ExceptHandler)
        and all(isinstance(line, ast.Pass) for line in node.body)
    ]
    assert_none(found, "swallowed errors")


def test_no_default_is_mutable():
    found = [
        at(module, default)
        for module in MODULES
        for function in functions(module)
        for default in [*function.args.defaults, *function.args.kw_defaults]
        if isinstance(default, ast.List | ast.Dict | ast.Set | ast.ListComp)
        or (
            isinstance(default, ast.Call)
            and isinstance(default.func, ast.Name)
            and default.func.id in {"list", "dict", "set"}
        )
    ]
    assert_none(found, "mutable defaults")


def test_public_functions_are_annotated():
    found = []
    for module in MODULES:
        for function in public(module):
            given = function.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            arguments += [a for a in (given.vararg, given.kwarg) if a]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in SELF]
            if bare or function.returns is None:
                found.append(f"{at(module, function)} {function.name} ({', '.join(bare)})")
    assert_none(found, "public functions without annotations")


SELF = {"self", "cls"}


# --- sizes ---


@pytest.mark.parametrize("module", MODULES)
def test_lines_are_short(module):
    lines = (ROOT / module).read_text(encoding="utf-8").splitlines()
    long = [f"{module}:{n}: {len(line)}" for n, line in enumerate(lines, 1) if len(line) > COLUMNS]
    assert_none(long, f"lines of more than {COLUMNS} columns")


def test_functions_are_short():
    sizes = {
        f"{at(module, f)} {f.name}": (f.end_lineno or f.lineno) - f.lineno + 1
        for module in MODULES
        for f in functions(module)
    }
    over = {name: size for name, size in sizes.items() if size > AIM_LINES}
    listed = [f"{size} lines: {name}" for name, size in sorted(over.items(), key=lambda i: -i[1])]
    what = f"the most is {FUNCTION_LINES} lines, {AIM_LINES} the aim; over the aim"
    if any(size > FUNCTION_LINES for size in over.values()):
        assert_none(listed, what)
