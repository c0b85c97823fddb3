"""`python -m clara_cli`: the same program as the command `clara`. Knows nothing else."""

from clara_cli.app import main

if __name__ == "__main__":
    main()
