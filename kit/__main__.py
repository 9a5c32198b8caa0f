"""`python -m kit`: the command line."""

from kit.cli.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
