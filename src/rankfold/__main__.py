"""`python -m rankfold` is the command `rankfold`."""

from rankfold.cli.main import main

if __name__ == "__main__":
    main()
