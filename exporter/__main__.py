"""``python -m exporter`` is ``rotary-press``."""

from exporter.cli import main

if __name__ == "__main__":
    main()
