"""The eight mechanism modules by name, imported when first needed.

A mechanism is a module with `SCENARIOS`, `sample`, `simulate_batch`, `caption`, `expect`, `measure` and `RULE`.
"""

from importlib import import_module
from types import ModuleType

from physworld.clip import MECHANISMS


def module(mechanism: str) -> ModuleType:
    """The module of a mechanism; ValueError names the eight when it is not one of them."""
    if mechanism not in MECHANISMS:
        raise ValueError(f"expected a mechanism, one of {', '.join(MECHANISMS)}, got {mechanism!r}")
    return import_module(f"physworld.{mechanism}")
