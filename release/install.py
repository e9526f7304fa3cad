"""Install built wheels in environments of their own and import all that they hold, warnings being errors.

    uv build --all-packages --out-dir build/dist
    python release/install.py locked                        # each wheel alone, the lock file's versions, as CI does
    python release/install.py lowest --only physfields      # the lowest versions that its pyproject.toml allows
    python release/install.py highest --together --tests    # all wheels, the newest versions; then their own tests

The command is the README's `pip install` line, run by uv. Members come from the wheels just built and from nowhere
else, so that a project of the same name on the index cannot stand in. What a member forgot to declare is missing where
it is alone. `lowest` takes the lower bounds of all members that are drawn in; what the libraries themselves require is
as new as they allow, because few of them say what is too old.
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
TESTED_WITH = {
    "beartype", "findiff", "jsonschema", "peft", "pyarrow", "pytest", "pytest-xdist", "scipy", "sympy", "tensorboard"
}  # fmt: skip
HEADER = "| date | dependencies | Python | wheel | outcome | versions |\n|---|---|---|---|---|---|\n"
OLD = "ignore::DeprecationWarning"  # of old libraries beside new ones: theirs to tell each other


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
        self.environment, self.byte_code = BUILD / resolution, BUILD / f"{resolution}-byte-code"
        self.constraints = BUILD / f"{resolution}-constraints.txt"
        BUILD.mkdir(parents=True, exist_ok=True)
        lines = [f"{member.name} @ {self.wheel(member)}\n" for member in self.known.values()]
        if resolution == "locked":
            export = ["uv", "export", "--quiet", "--locked", "--all-packages", "--no-dev", "--no-emit-workspace"]
            run(*export, "--no-hashes", "--no-annotate", "--output-file", self.constraints)
            lines.append(self.constraints.read_text(encoding="utf-8"))
        self.constraints.write_text("".join(lines), encoding="utf-8")

    def wheel(self, member: Member) -> str:
        """Give the address of a member's wheel; Failed when it is not built."""
        path = self.dist / f"{member.name}-{member.version}-py3-none-any.whl"
        if not path.is_file():
            raise Failed(f"no {path}: run uv build --all-packages --out-dir build/dist")
        return path.as_uri()

    def options(self, chosen: list[Member], extra: str = "") -> list[str | Path]:
        """Give what uv is told beside the README's line."""
        options: list[str | Path] = ["--quiet", "--python", self.environment, "--constraints", self.constraints]
        if self.resolution == "lowest":
            direct = BUILD / "lowest-direct.txt"
            bounds = [bound for member in drawn_in(chosen, self.known).values() for bound in requirements(member)[""]]
            bounds += [bound for member in chosen for bound in (requirements(member)[extra] if extra else ())]
            direct.write_text("\n".join(bounds) + "\n", encoding="utf-8")
            options += ["--resolution", "lowest-direct", "--requirements", direct]
        return options

    def install(self, chosen: list[Member]) -> None:
        """Install by the README's lines, into an environment that holds nothing else afterwards.

        With locked versions what stays from one wheel to the next need not come again, nor be compiled again.
        """
        if self.resolution != "locked" or not (self.environment / "bin" / "python").exists():
            shutil.rmtree(self.byte_code, ignore_errors=True)
            run("uv", "venv", "--quiet", "--clear", "--python", self.python, self.environment)
        words = [word for member in chosen for word in shlex.split(install_line(member))[2:]]
        run("uv", "pip", "install", *words, "--exact", *self.options(chosen), cwd=self.dist)

    def resolve(self, member: Member, extra: str) -> None:
        """Resolve an extra without installing it."""
        wanted = f"{member.name}[{extra}] @ {self.wheel(member)}"
        run("uv", "pip", "install", "--dry-run", wanted, *self.options([member], extra))

    def load(self, chosen: list[Member]) -> None:
        """Import every module. Byte code is kept apart: what uninstalls leaves nothing that could be imported."""
        python: list[str | Path] = [self.environment / "bin" / "python", "-I", "-X", f"pycache_prefix={self.byte_code}"]
        python += ["-W", "error", "-W", "ignore:Failed to initialize NumPy:UserWarning"]  # torch's, where it is missing
        if self.resolution == "lowest":
            python += ["-W", OLD]
        run(*python, ROOT / "release" / "imports.py", *(member.module for member in chosen))

    def installed(self) -> list[str]:
        """Give what is in the environment, a line each."""
        command = ["uv", "pip", "freeze", "--quiet", "--python", str(self.environment)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    def test(self, tested: list[Member]) -> str:
        """Run members' own tests against the wheels; give pytest's last line."""
        held = BUILD / f"{self.resolution}-held.txt"
        held.write_text("\n".join(self.installed()) + "\n", encoding="utf-8")
        groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
        tools = [line for line in groups["dev"] if name_of(line) in TESTED_WITH]
        run("uv", "pip", "install", "--quiet", "--python", self.environment, "--constraints", held, *tools)
        command = [
            str(self.environment / "bin" / "python"),
            "-m",
            "pytest",
            "-q",
            "-n",
            "auto",
            "-p",
            "no:cacheprovider",
        ]
        command += ["-W", OLD] if self.resolution == "lowest" else []
        command += [str((member.folder / "tests").relative_to(ROOT)) for member in tested]
        last = ""
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout or ():
                print(line, end="", flush=True)
                last = line.strip("= \n") or last
        if child.returncode:
            raise Failed(f"{shlex.join(command)}: {last}")
        return last

    def versions(self, chosen: list[Member]) -> str:
        """Give the versions of what the members require, as they are installed."""
        installed = dict(line.split("==") for line in self.installed() if "==" in line)
        names = {name_of(r) for member in drawn_in(chosen, self.known).values() for r in requirements(member)[""]}
        return ", ".join(f"{name} {installed[name]}" for name in sorted(names) if name in installed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("resolution", choices=("locked", "lowest", "highest"))
    parser.add_argument("--dist", type=Path, default=ROOT / "build" / "dist", help="the folder of wheels")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these members; by default all")
    parser.add_argument("--together", action="store_true", help="all wheels in one environment, not each alone")
    parser.add_argument("--tests", action="store_true", help="then the members' own tests; with --together")
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="of the environments")
    parser.add_argument("--report", type=Path, help="a Markdown table to add rows to")
    parser.add_argument("--keep", action="store_true", help="leave the last environment, in build/release")
    asked = parser.parse_args(arguments)
    if asked.tests and not asked.together:
        parser.error("--tests needs --together: tests use what only some users need, and other members bring it")
    wheels = Wheels(asked.dist, asked.resolution, asked.python)
    known = wheels.known
    unknown = [name for name in asked.only or () if name not in known]
    if unknown:
        parser.error(f"expected names among {', '.join(known)}, got {', '.join(unknown)}")
    chosen = [known[name] for name in asked.only or known]
    failed = []
    for group in [list(known.values())] if asked.together else [[member] for member in chosen]:
        name = "all together" if asked.together else group[0].name
        print(f"---- {asked.resolution}, Python {asked.python}: {name}", flush=True)
        done = ["all modules imported"]
        try:
            wheels.install(group)
            wheels.load(group)
            if asked.resolution != "locked":
                extras = [(member, extra) for member in group for extra in requirements(member) if extra]
                for member, extra in extras:
                    wheels.resolve(member, extra)
                done += [f"extras resolved: {len(extras)}"] * bool(extras)
            if asked.tests:
                done.append(f"tests of {', '.join(asked.only or ['all'])}: {wheels.test(chosen)}")
        except Failed as error:
            failed.append(name)
            done = [f"**failed**: {error}"]
            print(f"failed: {error}", file=sys.stderr)
        if asked.report is not None:
            facts = [asked.resolution, asked.python, name, "; ".join(done), wheels.versions(group)]
            with asked.report.open("a", encoding="utf-8") as file:
                file.write("" if file.tell() else HEADER)
                file.write(f"| {datetime.datetime.now(datetime.UTC).date()} | {' | '.join(facts)} |\n")
    if not asked.keep:
        shutil.rmtree(wheels.environment, ignore_errors=True)
        shutil.rmtree(wheels.byte_code, ignore_errors=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
