"""Files that appear whole or not at all: written beside their place under another name, then renamed."""

import os
from pathlib import Path

__all__ = ["write_bytes", "write_text"]


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file by rename, its folder too where there is none. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8 by rename, its folder too where there is none. Returns the path."""
    return write_bytes(path, text.encode())
