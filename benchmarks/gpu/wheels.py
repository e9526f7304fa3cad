"""Collect what the queue needs beside Python 3.12 and torch, packed small, for a machine without a network.

    uv run python benchmarks/gpu/wheels.py [--have FILE] [--out build/gpu/wheels] [--most-mib 27]

Versions are those of uv.lock for Python 3.12 on x86-64 Linux; torch, what only torch needs, and what FILE names are
left out (FILE: `python3 -m pip list --format freeze` of that machine). The members are not among them: `run.sh --wheels
DIR` installs them from the checkout. A wheel is packed again, stored and then compressed as a whole: PyAV's 33 MiB
become 22. DIR/1, DIR/2, ... hold at most --most-mib each, where one journey cannot take all; one line a wheel, then the
sums.
"""

import argparse
import io
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from machine import ROOT, WHEELS

TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*|setuptools|sympy|mpmath|networkx)")
"""Left out always: torch, what it brings along, and what its own metadata asks for."""
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 26, 24, 17, 12, 5)] + [
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]
FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 9}]


def plain(name: str) -> str:
    """The form in which names of distributions are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(have: set[str]) -> list[str]:
    """The requirements of all members in the lock file, and of building them, without what is there."""
    words = ["uv", "export", "--quiet", "--frozen", "--all-packages", "--no-dev", "--no-emit-workspace", "--no-hashes"]
    text = subprocess.run([*words, "--no-annotate"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pinned = [line for line in text.splitlines() if line and not line.startswith("#") and applies(line)]
    found = [line.partition(";")[0].strip() for line in pinned]  # pip would ask the markers of the Python it runs in
    found = [line for line in found if not TORCH.fullmatch(name := plain(line.partition("==")[0])) and name not in have]
    builder = tomllib.loads((ROOT / "packages" / "trainers" / "pyproject.toml").read_text(encoding="utf-8"))
    return found + builder["build-system"]["requires"]


def fetch(requirements: list[str], folder: Path) -> list[Path]:
    """Download wheels for Python 3.12 through pip, which knows this machine's index."""
    listed = folder / "requirements.txt"
    listed.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    words = ["uvx", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    words += ["--python-version", "3.12", "--implementation", "cp", *(w for p in PLATFORMS for w in ("--platform", p))]
    subprocess.run([*words, "--requirement", str(listed)], check=True)
    return sorted(folder.glob("*.whl"))


def applies(requirement: str) -> bool:
    """Whether a line of the lock file is one for Python 3.12 on x86-64 Linux."""
    from packaging.requirements import Requirement

    marker = Requirement(requirement).marker
    there = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux"}
    return marker is None or marker.evaluate(there | {"platform_machine": "x86_64", "platform_system": "Linux"})


def packed(wheel: Path) -> bytes:
    """A wheel whose files are stored, not deflated, so that the compression around it sees their content."""
    data = io.BytesIO()
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as target:
        for item in source.infolist():
            content = source.read(item)
            item.compress_type = zipfile.ZIP_STORED
            target.writestr(item, content)
    return lzma.compress(data.getvalue(), filters=FILTERS)


def main() -> int:
    """Fetch, pack, and say the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--have", type=Path, help="what the machine has, as `pip list --format freeze` prints it")
    parser.add_argument("--out", type=Path, default=WHEELS)
    parser.add_argument("--most-mib", type=float, default=float("inf"), help="of one part (none: one part)")
    given = parser.parse_args()
    if any(path.is_file() and not path.name.endswith(".whl.xz") for path in given.out.rglob("*")):
        parser.error(f"expected a folder of wheels or none for --out, which is emptied first, got {given.out}")
    lines = given.have.read_text(encoding="utf-8").splitlines() if given.have else []
    have = {plain(line.partition("==")[0].strip()) for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{wheel.name}.xz": packed(wheel) for wheel in fetch(wanted(have), Path(folder))}
    shutil.rmtree(given.out, ignore_errors=True)
    sums: list[float] = []
    for name, data in sorted(files.items(), key=lambda item: -len(item[1])):
        size = len(data) / 2**20
        part = next((i for i, held in enumerate(sums) if held + size <= given.most_mib), len(sums))
        sums[part:] = [(sums[part] if part < len(sums) else 0.0) + size, *sums[part + 1 :]]
        target = given.out / str(part + 1) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        print(f"{size:8.2f} MiB  {target.relative_to(given.out)}")
    for part, size in enumerate(sums, 1):
        print(f"{size:8.2f} MiB  {given.out / str(part)}")
    return int(any(size > given.most_mib for size in sums))


if __name__ == "__main__":
    sys.exit(main())
