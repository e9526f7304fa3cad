"""Install built wheels in environments of their own and import all that they hold, warnings being errors.

    uv build --all-packages --out-dir build/dist
    python release/install.py locked                        # each wheel alone, the lock file's versions, as CI does
    python release/install.py lowest --only physfields      # the lowest versions that its pyproject.toml allows
    python release/install.py highest --together --tests    # all wheels, the newest versions; then the members' own tests

The command is the README's `pip install` line, run by uv. Members come from the wheels just built and from nowhere else, so that a project
of the same name on the index cannot stand in. What a member forgot to declare is missing where it is alone. `lowest` takes
the lower bounds of all members that are drawn in; what the libraries themselves require is as new as they allow, because few of
them say what is too old.
"""

import argparse
import datetime
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from check import install_line, requirements
from members import ROOT, Member, members

BUILD = ROOT / "build" / "release"
TESTED_WITH = ("beartype", "findiff", "jsonschema", "peft", "pyarrow", "pytest", "pytest-xdist", "scipy", "sympy", "tensorboard")
IMPORTS = """
import importlib, pkgutil, sys

for name in sys.argv[1:]:
    package = importlib.import_module(name)
    modules = [m.name for m in pkgutil.walk_packages(package.__path__, f"{name}.") if "__main__" not in m.name]
    for module in modules:
        importlib.import_module(module)
    print(name, package.__version__, "with", len(modules), "modules")
"""


class Failed(Exception):
    """A command that ended with an error; what it wrote is on the screen."""


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    if subprocess.run([str(word) for word in command], cwd=cwd).returncode:
        raise Failed(shlex.join(str(word) for word in command))


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement).group()  # pyright: ignore[reportOptionalMemberAccess]


def drawn_in(chosen: Iterable[Member], known: dict[str, Member]) -> dict[str, Member]:
    """Give members with all members that they require, by name."""
    found: dict[str, Member] = {}
    waiting = list(chosen)
    while waiting:
        member = waiting.pop()
        found[member.name] = member
        names = map(name_of, requirements(member)[""])
        waiting += [known[name] for name in names if name in known and name not in found]
    return found


class Wheels:
    """The built wheels, and how they are installed at one resolution."""

    def __init__(self, dist: Path, resolution: str, python: str) -> None:
        self.dist, self.resolution, self.python = dist.resolve(), resolution, python
        self.known = members()
        self.environment = BUILD / resolution
        self.constraints = BUILD / f"{resolution}-constraints.txt"
        BUILD.mkdir(parents=True, exist_ok=True)
        lines = []
        for member in self.known.values():
            wheel = self.dist / f"{member.name}-{member.version}-py3-none-any.whl"
            if not wheel.is_file():
                raise Failed(f"no {wheel}: run uv build --all-packages --out-dir {dist}")
            lines.append(f"{member.name} @ {wheel.as_uri()}\n")
        if resolution == "locked":
            run("uv", "export", "--quiet", "--all-packages", "--no-dev", "--no-emit-workspace", "--no-hashes",
                "--no-annotate", "--locked", "--output-file", self.constraints)  # fmt: skip
            lines.insert(0, self.constraints.read_text(encoding="utf-8"))
        self.constraints.write_text("".join(lines), encoding="utf-8")

    def options(self, chosen: list[Member], extra: str = "") -> list[str | Path]:
        """Give what uv is told beside the README's line."""
        options: list[str | Path] = ["--quiet", "--constraints", self.constraints]
        if self.resolution == "lowest":
            direct = BUILD / "lowest-direct.txt"
            bounds = [bound for member in drawn_in(chosen, self.known).values() for bound in requirements(member)[""]]
            bounds += [bound for member in chosen for bound in (requirements(member)[extra] if extra else ())]
            direct.write_text("\n".join(bounds) + "\n", encoding="utf-8")
            options += ["--resolution", "lowest-direct", "--requirements", direct]
        return options

    def install(self, chosen: list[Member]) -> None:
        """Install by the README's lines, into an environment that holds nothing else afterwards."""
        fresh = self.resolution != "locked"  # locked versions are the same each time: what stays need not come again
        if fresh or not self.environment.exists():
            shutil.rmtree(self.environment, ignore_errors=True)
            run("uv", "venv", "--quiet", "--python", self.python, self.environment)
        words = [word for member in chosen for word in shlex.split(install_line(member))[2:]]
        run("uv", "pip", "install", *words, "--exact", "--python", self.environment, *self.options(chosen), cwd=self.dist)

    def load(self, chosen: list[Member]) -> None:
        """Import every module. Byte code is kept apart: what uninstalls leaves nothing that could be imported."""
        warnings = ["-W", "error", "-W", "ignore:Failed to initialize NumPy:UserWarning"]  # torch's, where numpy is not there
        if self.resolution == "lowest":
            warnings += ["-W", "ignore::DeprecationWarning"]  # old libraries beside new ones: theirs to tell, not ours
        cache = ["-X", f"pycache_prefix={BUILD / 'byte-code' / self.resolution}"]
        run(self.environment / "bin" / "python", "-I", *cache, *warnings, "-c", IMPORTS, *(m.module for m in chosen))

    def resolve(self, member: Member, extra: str) -> None:
        """Resolve an extra without installing it."""
        run("uv", "pip", "install", "--dry-run", f"{member.name}[{extra}] @ {(self.dist / f'{member.name}-{member.version}-py3-none-any.whl').as_uri()}",
            "--python", self.environment, *self.options([member], extra), cwd=self.dist)  # fmt: skip

    def test(self, tested: list[Member]) -> str:
        """Run the members' own tests against the wheels; give pytest's last line."""
        root = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        tools = [r for r in root["dependency-groups"]["dev"] if isinstance(r, str) and name_of(r) in TESTED_WITH]
        held = BUILD / f"{self.resolution}-held.txt"
        frozen = subprocess.run(["uv", "pip", "freeze", "--quiet", "--python", self.environment], capture_output=True, text=True)
        held.write_text(frozen.stdout, encoding="utf-8")
        run("uv", "pip", "install", "--quiet", "--python", self.environment, "--constraints", held, *tools)
        command = [str(self.environment / "bin" / "python"), "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider"]
        if self.resolution == "lowest":
            command += ["-W", "ignore::DeprecationWarning"]
        command += [str(m.folder.relative_to(ROOT) / "tests") for m in tested]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            lines = []
            for line in child.stdout or ():
                print(line, end="", flush=True)
                lines.append(line.strip())
        if child.returncode:
            raise Failed(f"{shlex.join(command)}: {lines[-1] if lines else 'no output'}")
        return lines[-1].strip("= ")

    def versions(self, chosen: list[Member]) -> str:
        """Give the versions of what the members require, as they are installed."""
        frozen = subprocess.run(["uv", "pip", "freeze", "--quiet", "--python", self.environment], capture_output=True, text=True)
        installed = dict(line.split("==") for line in frozen.stdout.splitlines() if "==" in line)
        names = {name_of(r) for member in drawn_in(chosen, self.known).values() for r in requirements(member)[""]}
        return ", ".join(f"{name} {installed[name]}" for name in sorted(names) if name in installed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("resolution", choices=("locked", "lowest", "highest"))
    parser.add_argument("--dist", type=Path, default=ROOT / "build" / "dist", help="the folder of wheels")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these members; by default all")
    parser.add_argument("--together", action="store_true", help="all members in one environment, not each alone")
    parser.add_argument("--tests", action="store_true", help="then the tests of the members: with --together")
    parser.add_argument("--python", default="3.11", help="version or path of the interpreter")
    parser.add_argument("--report", type=Path, help="a Markdown table to add a row to")
    parser.add_argument("--keep", action="store_true", help="leave the environment")
    asked = parser.parse_args(arguments)
    if asked.tests and not asked.together:
        parser.error("--tests needs --together: tests use what only some users have, which other members bring")
    wheels = Wheels(asked.dist, asked.resolution, asked.python)
    unknown = [name for name in asked.only or () if name not in wheels.known]
    if unknown:
        parser.error(f"expected names among {', '.join(wheels.known)}, got {', '.join(unknown)}")
    chosen = [wheels.known[name] for name in asked.only or wheels.known]
    failed = []
    for group in [list(wheels.known.values())] if asked.together else [[member] for member in chosen]:
        name = "all together" if asked.together else group[0].name
        print(f"---- {asked.resolution}, Python {asked.python}: {name}", flush=True)
        done = ["installed"]
        try:
            wheels.install(group)
            wheels.load(group)
            done.append("all modules imported")
            if asked.resolution != "locked":
                extras = [(m, extra) for m in group for extra in requirements(m) if extra]
                for member, extra in extras:
                    wheels.resolve(member, extra)
                done += [f"{len(extras)} extras resolved"] if extras else []
            if asked.tests:
                done.append(f"tests of {'all' if not asked.only else ', '.join(asked.only)}: {wheels.test(chosen)}")
        except Failed as error:
            failed.append(name)
            done = [f"**failed**: {str(error)[:300]}"]
            print(f"failed: {error}", file=sys.stderr)
        if asked.report is not None:
            with asked.report.open("a", encoding="utf-8") as file:
                today = datetime.datetime.now(datetime.UTC).date()
                file.write(f"| {today} | {asked.resolution} | {asked.python} | {name} | {'; '.join(done)} | {wheels.versions(group)} |\n")
    if not asked.keep:
        shutil.rmtree(wheels.environment, ignore_errors=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
