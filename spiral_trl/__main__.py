"""`python -m spiral_trl`, the same as the command `spiral-trl`."""

from .commands.main import main


if __name__ == "__main__":
    main()
