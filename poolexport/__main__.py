"""``python -m poolexport``: the command line."""

from poolexport.cli import main

if __name__ == "__main__":
    main()
