"""The bundles that ship with the app: PILA and its control, trained on the embedded backbone with
`recipes/tiny.yaml`.
"""

from pathlib import Path

__all__ = ["PILA", "PLAIN"]

PILA = Path(__file__).parent / "pila"
PLAIN = Path(__file__).parent / "plain"
