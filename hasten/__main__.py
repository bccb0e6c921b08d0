"""``python -m hasten``: the command, where its script is not on the path."""

from hasten.cli import main

if __name__ == "__main__":
    main()
