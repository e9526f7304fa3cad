"""The bundles that ship with the app, trained on the embedded backbone with `recipes/tiny.yaml`: the student, and the
control that was trained for as many steps without alignment.
"""

from pathlib import Path

__all__ = ["CONTROL", "STUDENT"]

STUDENT = Path(__file__).parent / "student"
CONTROL = Path(__file__).parent / "control"
