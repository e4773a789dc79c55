"""`python -m crashd.cli`: crashctl."""

from crashd.cli.main import command

if __name__ == "__main__":
    command()
