"""The program's entry, `clara_cli.app:main`. What it does is in `cli/app.py`."""

from clara_cli.cli.app import main

__all__ = ["main"]
