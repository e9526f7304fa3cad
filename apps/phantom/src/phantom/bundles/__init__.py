"""The bundle that ships with the app: Phantom trained on the embedded backbone with `recipes/tiny.yaml`."""

from pathlib import Path

__all__ = ["PHANTOM"]

PHANTOM = Path(__file__).parent / "phantom"
