"""The members of the workspace, packages and apps, by the name of their distribution."""

import subprocess
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRIVATE = "Private :: Do Not Upload"  # the index refuses what carries it


@dataclass(frozen=True)
class Member:
    """One package or app. Its folder has the name of its module, its distribution may have another."""

    folder: Path

    @cached_property
    def project(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    @property
    def name(self) -> str:
        return self.project["name"]

    @property
    def version(self) -> str:
        return self.project["version"]

    @property
    def module(self) -> str:
        return self.folder.name

    @property
    def on_index(self) -> bool:
        """Whether it is published on the package index; the others are wheels on the page of their release."""
        return PRIVATE not in self.project.get("classifiers", [])

    @property
    def files(self) -> list[str]:
        """Its files under version control, relative to its folder."""
        done = subprocess.run(["git", "ls-files"], cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()


def members(root: Path = ROOT) -> dict[str, Member]:
    """Read the workspace: packages first, then apps."""
    folders = [
        path.parent for group in ("packages", "apps") for path in sorted((root / group).glob("*/pyproject.toml"))
    ]
    return {member.name: member for member in map(Member, folders)}
