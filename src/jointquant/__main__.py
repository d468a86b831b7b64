"""``python -m jointquant``."""

from jointquant.cli.main import main

if __name__ == "__main__":
    main()
