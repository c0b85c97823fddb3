"""The program, as `clara` and as `python -m clara_cli`: signals first, then all else. Knows nothing
else."""

from clara_cli import interrupts

interrupts.install()


def main() -> None:
    """Load the program and run it."""
    from clara_cli.app import main as run

    run()


if __name__ == "__main__":
    main()
