"""``python -m jointquant``."""

from jointquant.cli import main

if __name__ == "__main__":
    main()
