"""What the package promises of every public function and class: an example that runs, and shapes in the signature."""

import importlib
import inspect
import pkgutil

import pytest
from torch import Tensor

import physexperts

MODULES = [importlib.import_module(f"physexperts.{m.name}") for m in pkgutil.iter_modules(physexperts.__path__)]
PUBLIC = {
    f"{thing.__module__}.{name}": thing
    for module in (physexperts, *MODULES)
    for name in module.__all__
    if inspect.isfunction(thing := getattr(module, name)) or inspect.isclass(thing)
}


def test_every_module_names_what_is_public():
    assert len(MODULES) > 20
    assert len(PUBLIC) > 60


@pytest.mark.parametrize("name", sorted(n for n in PUBLIC if n.startswith("physexperts.")))
def test_every_public_name_has_a_doctest_and_no_tensor_without_a_shape(name):
    thing = PUBLIC[name]
    assert ">>>" in (thing.__doc__ or ""), f"{name} has no doctest"
    if inspect.isclass(thing):
        calls = [f for n, f in vars(thing).items() if inspect.isfunction(f) and (n == "__call__" or n[0] != "_")]
    else:
        calls = [thing]
    for call in calls:
        assert call.__doc__, f"{call.__qualname__} has no docstring"
        signature = inspect.signature(call)
        hints = [p.annotation for p in signature.parameters.values() if p.kind != p.VAR_POSITIONAL]
        bare = [hint for hint in (*hints, signature.return_annotation) if hint is Tensor]
        assert not bare, f"{call.__qualname__} takes or returns a tensor of unnamed shape: {signature}"
