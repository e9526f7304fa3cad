"""What `pip install physfields` brings: a small wheel of Python alone, whose import loads little beyond torch."""

import io
import json
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import physfields as pf

SOURCE = Path(pf.__file__).parent


def test_the_wheel_is_pure_python_below_100_kb():
    packed = io.BytesIO()
    files = [f for f in SOURCE.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for f in files:
            archive.write(f, f.relative_to(SOURCE.parent))
    assert {f.suffix or f.name for f in files} == {".py", ".typed"}
    assert packed.tell() < 95_000  # the metadata and the licence take the rest


def test_torch_and_jaxtyping_are_all_that_it_needs():
    assert {line.split(">")[0] for line in requires("physfields") or ()} == {"jaxtyping", "torch"}


def test_an_import_loads_its_own_modules_and_the_standard_library_beyond_torch():
    code = (
        "import json, sys, torch, jaxtyping; before = set(sys.modules); import physfields;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    loaded = json.loads(done.stdout)
    own = [name for name in loaded if name.split(".")[0] == "physfields"]
    others = {name.split(".")[0] for name in loaded} - {"physfields"} - set(sys.stdlib_module_names)
    assert "physfields.stencil" in own
    assert "physfields.traced" not in own  # it loads the compiler
    assert not others
