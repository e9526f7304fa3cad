"""Import every module of the packages named: in an environment of `install.py`, with warnings as errors."""

import importlib
import pkgutil
import sys

for name in sys.argv[1:]:
    package = importlib.import_module(name)
    modules = [m.name for m in pkgutil.walk_packages(package.__path__, f"{name}.") if "__main__" not in m.name]
    for module in modules:
        importlib.import_module(module)
    print(name, package.__version__, "with", len(modules), "modules")
