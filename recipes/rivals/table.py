"""The table of recipes/rivals/README.md, from the program's own list of systems:

python recipes/rivals/table.py
"""

from __future__ import annotations

from clara_cli.evaluation.rivals.registry import SYSTEMS, SystemInfo


def state(info: SystemInfo) -> str:
    """Whether it runs on a plain install, with nothing fetched before."""
    if info.kind == "reported":
        return "reported only"
    if info.package or info.carrier:
        return "needs an extra"
    return "needs weights" if info.weights or info.argument == "DIR" else "runs here"


def install(info: SystemInfo) -> str:
    """What to install or make."""
    if info.kind == "reported":
        return "-"
    if info.argument == "DIR":
        return "an environment (below)"
    if info.argument == "MODEL@URL":
        return "a server"
    return "`clara-cli[rivals]`" if info.package or info.carrier else "nothing"


def row(info: SystemInfo) -> str:
    """One line of the table."""
    name = f"{info.name}={info.argument}" if info.argument else info.name
    weights = f"`{info.weights}`" if info.weights else "-"
    cells = (f"`{name}`", info.note, state(info), install(info), weights, info.licence)
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The whole table."""
    columns = ("system", "what it is", "plain install", "install", "weights", "licence")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *map(row, SYSTEMS)])


if __name__ == "__main__":
    print(table())
