"""What commands say of a checkpoint: what it can do, where it comes from and on what terms."""

from __future__ import annotations

from clara_cli.core.abilities import Abilities
from clara_cli.core.checkpoint import Loaded
from clara_cli.core.model import ROLES
from clara_cli.records import Report


def abilities(loaded: Loaded) -> Abilities:
    """What a loaded checkpoint can do."""
    return Abilities(loaded.name, loaded.model.roles, loaded.info.stage)


def tell(loaded: Loaded, report: Report) -> Abilities:
    """Say what a checkpoint can do, unless it is one of this program's with every role."""
    found = abilities(loaded)
    whole = set(ROLES) <= set(loaded.model.roles)
    if not whole or loaded.info.origin is not None:
        report.note(found.said())
    if loaded.info.origin is not None:
        report.note(f"from {loaded.info.origin}, licence {loaded.info.licence}")
    return found
