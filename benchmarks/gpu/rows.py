"""The rows of `queue.toml`: what each runs, what it needs, and what it leaves for others.

Standard library alone, Python 3.11 or newer: this is read before anything is installed.

    [[row]]
    id = 9
    commands = ["uv run ..."]     # in bash, from the root of the repository; what they write lies under runs/
    toy = ["uv run ..."]          # the same on a CPU in seconds, for `run.sh --dry-run`
    minutes = 8                   # of all commands, on one H100 or H200 card
    proves = "..."                # and where the figure goes
    capability = "..."
    inputs = ["runs/world64"]     # made by other rows
    toy_inputs = ["runs/world64"] # further ones of the toy form
    makes = ["runs/vae64"]        # what other rows take
    read = ["runs/vae64/vae.json"]     # JSON files with the figures of a command that does not print them
    needs = { gpu_gib = 80, variables = { WISA = "..." }, weights = ["hub/id"], network = true, programs = ["g++"] }
    columns = { "s a step" = "{seconds} ({lowest} to {highest})" }   # of the row's table in benchmarks/README.md

`needs.gpu_gib` is 1 by default (any GPU), 0 for a row that a CPU works.
"""

import os
import re
import shlex
import shutil
import socket
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QUEUE = Path(__file__).with_name("queue.toml")
HUB = ("huggingface.co", 443)


@dataclass(frozen=True)
class Needs:
    """What a row cannot do without."""

    gpu_gib: float = 1
    variables: Mapping[str, str] = field(default_factory=dict)  # environment variable: what it names
    weights: tuple[str, ...] = ()  # ids of the hub
    network: bool = False
    programs: tuple[str, ...] = ()

    def missing(self, gpu_gib: float) -> list[str]:
        """Say what is not there, on a machine whose GPU has so much memory (0: none)."""
        found = []
        if self.gpu_gib and not gpu_gib:
            found.append("a GPU")
        elif self.gpu_gib > gpu_gib:
            found.append(f"{self.gpu_gib:g} GiB of GPU memory (this one has {gpu_gib:.0f})")
        for name, what in self.variables.items():
            value = os.environ.get(name, "")
            if not value:
                found.append(f"${name} ({what})")
            elif not Path(value).exists():
                found.append(f"${name}={value} ({what}): no such file or folder")
        absent = [name for name in self.weights if not in_hub_cache(name)]
        if (absent or self.network) and not reaches(HUB):
            found += [f"the weights of {name} (not in the hub's cache, no network)" for name in absent]
            if self.network:
                found.append("the network")
        found += [f"the program {name}" for name in self.programs if shutil.which(name) is None]
        return found


@dataclass(frozen=True)
class Row:
    """One line of the queue."""

    id: int
    commands: tuple[str, ...]
    toy: tuple[str, ...]
    minutes: float
    proves: str
    capability: str
    inputs: tuple[str, ...] = ()
    toy_inputs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    needs: Needs = field(default_factory=Needs)
    columns: Mapping[str, str] = field(default_factory=dict)

    def as_toy(self) -> "Row":
        """The row at toy size: it needs nothing and takes no time worth planning."""
        inputs = (*self.inputs, *self.toy_inputs)
        return replace(self, commands=self.toy, inputs=inputs, minutes=0, needs=Needs(gpu_gib=0))


def load(path: Path = QUEUE) -> list[Row]:
    """Read the queue.

    Raises:
        ValueError: for an unknown key, an id that is there twice, or an input that no row makes.
    """
    rows = []
    for table in tomllib.loads(path.read_text(encoding="utf-8"))["row"]:
        known = set(Row.__dataclass_fields__)
        if set(table) - known:
            raise ValueError(f"{path}: expected the keys {sorted(known)}, got {sorted(set(table) - known)}")
        lists = {key: tuple(table.get(key, ())) for key in ("commands", "toy", "inputs", "toy_inputs", "makes", "read")}
        needs = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.get("needs", {}).items()
        }
        rows.append(Row(**{**table, **lists, "needs": Needs(**needs)}))
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path}: expected every id once, got {ids}")
    made = {item for row in rows for item in row.makes}
    for row in rows:
        if unmade := {*row.inputs, *row.toy_inputs} - made:
            raise ValueError(f"{path}: row {row.id} takes {sorted(unmade)}, which no row makes")
    return rows


def before(row: Row, rows: Iterable[Row], runs: Path, half: Collection[int] = ()) -> list[Row]:
    """The rows whose products this one lacks, or has from a row that did not end (`half`), in the order in which they
    have to be made.
    """
    found: list[Row] = []
    for item in row.inputs:
        maker = next(other for other in rows if item in other.makes)
        if maker.id in half or not under(item, runs).exists():
            found += [r for r in (*before(maker, rows, runs, half), maker) if r not in found]
    return found


def under(path: str, runs: Path) -> Path:
    """Where a path of the queue lies when `runs/` is another folder."""
    return runs / path.removeprefix("runs/")


def placed(command: str, runs: Path) -> str:
    """A command whose `runs/` is another folder.

    >>> placed("world make --out runs/world64 | tee runs/a.jsonl", Path("/x"))
    'world make --out /x/world64 | tee /x/a.jsonl'
    """
    return re.sub(r"(?<![\w./-])runs/", lambda _: f"{shlex.quote(str(runs))}/", command)


def in_hub_cache(name: str) -> bool:
    """Whether some of a model's weights lie in the hub's cache."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    folder = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{name.replace('/', '--')}"
    return any(folder.glob("snapshots/*/**/*.safetensors"))


@cache
def reaches(address: tuple[str, int]) -> bool:
    """Whether a server can be reached, within three seconds; asked once, as a name may take long to be unknown."""
    try:
        socket.create_connection(address, timeout=3).close()
    except OSError:
        return False
    return True


def columns_of(template: str, figures: Mapping[str, Any]) -> str:
    """Fill `{a.b}` with figures["a"]["b"], `{a:.1f}` in that format; "" when one of them is not there.

    >>> columns_of("{ms.median} ({ms.low})", {"ms": {"median": 2, "low": 1.5}})
    '2 (1.5)'
    >>> columns_of("{ms.high}", {"ms": {"median": 2}})
    ''
    """
    missing = False

    def value(match: re.Match[str]) -> str:
        nonlocal missing
        found: Any = figures
        for key in match[1].split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        missing = missing or found is None
        whole = isinstance(found, int) and not isinstance(found, bool)
        return "" if found is None else format(found, match[2] or ("," if whole else ""))

    text = re.sub(r"\{([^}:]+):?([^}]*)\}", value, template)
    return "" if missing else text
