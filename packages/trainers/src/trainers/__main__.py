"""`python -m trainers`."""

import sys

from .cli import app

if __name__ == "__main__":
    try:
        app(prog_name="python -m trainers")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
