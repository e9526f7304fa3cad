"""The bundles that ship with the app: ProPhy and its control, trained on the embedded backbone with
`recipes/tiny.yaml`.
"""

from pathlib import Path

__all__ = ["PLAIN", "PROPHY"]

PROPHY = Path(__file__).parent / "prophy"
PLAIN = Path(__file__).parent / "plain"
