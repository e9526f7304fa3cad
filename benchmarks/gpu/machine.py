"""The machine that measures: its environment, from carried wheels, and what its figures are filed with.

Standard library alone: this runs on a bare Python 3.12 beside an installed torch.
"""

import csv
import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "build" / "gpu" / "wheels"
VENV = ROOT / "build" / "gpu" / "venv"
MEMBERS = sorted(path.parent for group in ("packages", "apps") for path in (ROOT / group).glob("*/pyproject.toml"))
LIBRARIES = ("torch", "triton", "transformers", "diffusers", "accelerate", "numpy")


def set_up(wheels: Path = WHEELS, venv: Path = VENV) -> Path:
    """Make an environment of this Python's packages and the carried wheels, and return its interpreter.

    The members are installed in place, so that they are those of this checkout. What this Python has already stays as
    it is where its version will do. An environment that was made from the same wheels is kept.

    Raises:
        ValueError: if a wheel is missing; the message is pip's own, and names it.
    """
    mark = venv / "made-from"
    packed = sorted(wheels.rglob("*.whl.xz"))
    if not packed:
        raise ValueError(f"expected wheels of wheels.py in {wheels}, got none")
    made_from = " ".join(path.name for path in packed)
    python = venv / "bin" / "python"
    if mark.is_file() and mark.read_text() == made_from and python.exists():
        return python
    shutil.rmtree(venv, ignore_errors=True)
    _run(sys.executable, "-m", "venv", "--without-pip", venv)
    # An environment made inside another one sees neither its packages nor what they lead to: tell it.
    (site,) = venv.glob("lib/python3*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})" for path in sys.path if path.endswith("-packages")]
    (site / "beside.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder = venv / "wheels"
    folder.mkdir()
    for path in packed:
        (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(python), "install", "--quiet", "--no-index"]
    pip += ["--find-links", str(folder), "--disable-pip-version-check", "--no-cache-dir", "--no-compile"]
    _run(*pip, "uv_build")  # builds the members
    members = [word for member in MEMBERS for word in ("--editable", str(member))]
    _run(*pip, "--no-build-isolation", *members, PATH=f"{python.parent}:{os.environ['PATH']}")  # where uv-build lies
    shutil.rmtree(folder)
    mark.write_text(made_from, encoding="utf-8")
    return python


def _run(*words: object, **changes: str) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=os.environ | changes)
    if done.returncode:
        raise ValueError(f"{' '.join(map(str, words[:6]))} ... failed:\n{(done.stderr or done.stdout).strip()[-3000:]}")


def facts(python: Path) -> dict[str, Any]:
    """Name and memory of the GPU, its driver, and the versions that an interpreter has."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "def version(name):\n"
        "    try: return m.version(name)\n"
        "    except m.PackageNotFoundError: return None\n"
        f"print(json.dumps({{'python': platform.python_version(), **{{n: version(n) for n in {LIBRARIES!r}}}}}))"
    )
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, Any] = {"gpu": None, "gpu_gib": 0.0, "driver": None, **json.loads(done.stdout)}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True)
        lines = list(csv.reader(io.StringIO(done.stdout), skipinitialspace=True))
        if done.returncode == 0 and lines:
            name, mib, driver = lines[0]
            found |= {"gpu": name, "gpu_gib": round(float(mib) / 1024, 1), "driver": driver, "gpus": len(lines)}
    return found


def commit() -> str:
    """The commit of this checkout, with `+` where files differ from it, or "" for a copy without its history."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "-C", ROOT, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def code() -> str:
    """A digest of the sources that figures come from: members, benchmarks, recipes; not tests or pages."""
    digest = hashlib.sha256()
    folders = [*(member / "src" for member in MEMBERS), ROOT / "benchmarks"]
    for path in sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".yaml")):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
