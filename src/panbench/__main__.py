"""``python -m panbench`` is the ``panbench`` command."""

from panbench.cli.main import main

if __name__ == "__main__":
    main()
