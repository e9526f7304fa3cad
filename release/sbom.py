"""Write the bill of materials of an installed member (CycloneDX 1.6, JSON), and refuse what may not be in it.

    python release/install.py highest --only physfields --keep
    python release/sbom.py physfields --environment build/release/highest --out build/sbom

Every library of the environment is listed with version and licence. None may be under GPL or AGPL alone: a user of a
base install would be bound by it. The file is validated against CycloneDX's schema by the tool that writes it.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from members import ROOT, members

TOOL = "cyclonedx-bom==7.5.0"
STRONG = re.compile(r"(?<!L)(?:\bA?GPL|GNU (?:Affero )?General Public)", re.I)

# Libraries whose metadata names no licence that the tool reads, and what their own files say.
SAID = {
    "transformers": "Apache-2.0",
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "nvidia-cusparselt-cu12": "LicenseRef-NVIDIA-Proprietary",
    "nvidia-cusparselt-cu13": "LicenseRef-NVIDIA-Proprietary",
}


def bound(licence: str) -> bool:
    """Whether a licence leaves no way around GPL or AGPL: each alternative of an expression holds one of them.

    >>> [bound(text) for text in ("MIT", "MIT OR GPL-3.0-only", "MIT AND GPL-3.0-only", "LGPL-2.1", "AGPL-3.0-only")]
    [False, False, True, False, True]
    """
    return all(STRONG.search(alternative) for alternative in licence.split(" OR "))


def licences(component: dict[str, Any]) -> list[str]:
    """Give what a component of a bill says of its licence; several entries are alternatives."""
    said = [
        entry.get("expression") or entry["license"].get("id") or entry["license"].get("name", "")
        for entry in component.get("licenses", [])
    ]
    return said or [SAID[component["name"]]] if component["name"] in SAID else said


def refused(bill: dict[str, Any]) -> Iterator[str]:
    """Say which components may not be drawn in, or say nothing of their licence."""
    for component in bill["components"]:
        said, label = licences(component), f"{component['name']} {component.get('version', '')}"
        if not said:
            yield f"{label}: names no licence; read its files and add it to SAID of release/sbom.py"
        elif all(map(bound, said)):
            yield f"{label}: {', '.join(said)}: no base install may need it"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", help="the member that is installed there")
    parser.add_argument(
        "--environment", type=Path, required=True, help="an environment with this member and nothing else"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "sbom", help="the folder to write to")
    asked = parser.parse_args(arguments)
    if asked.package not in members():
        parser.error(f"expected a name among {', '.join(members())}, got {asked.package}")
    member = members()[asked.package]
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / f"{member.name}-{member.version}.cdx.json"
    command = [
        "uv",
        "tool",
        "run",
        "--from",
        TOOL,
        "cyclonedx-py",
        "environment",
        "--validate",
        "--output-reproducible",
    ]
    command += ["--mc-type", "library", "--spec-version", "1.6", "--output-format", "JSON", "--output-file", str(path)]
    command += ["--pyproject", str(member.folder / "pyproject.toml"), str(asked.environment / "bin" / "python")]
    if subprocess.run(command).returncode:
        return 1
    bill = json.loads(path.read_text(encoding="utf-8"))
    found = [c for c in bill["components"] if c["name"] == member.name] or [bill["metadata"]["component"]]
    if found[0].get("version") != member.version:
        print(f"{asked.environment} holds no {member.name} {member.version}", file=sys.stderr)
        return 1
    wrong = list(refused(bill))
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{path}: {len(bill['components'])} components")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
