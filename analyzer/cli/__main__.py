"""`python -m i2am.analyzer.cli` is the command `i2am`."""

from .main import main

if __name__ == "__main__":
    main()
