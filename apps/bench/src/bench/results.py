"""One result of one benchmark: what was measured of which systems, on which prompts, by which rater.

Every command of `bench` that measures writes this as `result.json`, and `compare`, `report` and `serve` read nothing
else. **Prompt set and rater are two fields**: the same video scored on VideoPhy's prompts by VideoPhy-2's rater is
another experiment than on VideoPhy-2's prompts, and published tables mix them. A metric carries its `n`; one whose
denominator leaves clips out carries `n_valid` as well. Groups are mechanisms, categories, scenarios, views: whatever
the benchmark sorts by; what is over all groups stands in `metrics`.

Paths of videos are relative to the folder of the file and never leave it. What JSON cannot say (NaN, infinities) is
null. The file holds no date and nothing of the machine, so that the same bytes measured twice give the same file.
"""

import hashlib
import json
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from trainers import write_text

SCHEMA_VERSION = 1
FILE = "result.json"
SHOWN_MISTAKES = 5


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _inside(path: str) -> str:
    """Accept a path that stays in its folder on any system."""
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith(("/", "\\")) or "\0" in path or PureWindowsPath(path).drive:
        raise ValueError(f"expected a path inside the folder of the result, got {path!r}")
    return path


Role = Literal["system", "real", "floor", "control"]
Number = Annotated[float | None, BeforeValidator(_finite)]
Inside = Annotated[str, BeforeValidator(_inside)]


class Strict(BaseModel):
    """Frozen; an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(Strict):
    """One figure with what it rests on.

    `n` items were asked for and `n_valid` of them count (none: all). `low` and `high` bound the `level` interval that
    `interval` names ("Wilson", "bootstrap over clips", ...); where there are too few items they are null.
    """

    value: Number
    n: int = Field(ge=0)
    n_valid: int | None = Field(default=None, ge=0)
    low: Number = None
    high: Number = None
    level: float = Field(default=0.95, gt=0, lt=1)
    interval: str = ""
    unit: str = ""

    @model_validator(mode="after")
    def _ordered(self) -> "Metric":
        if (self.low is None) != (self.high is None):
            raise ValueError("expected both ends of an interval or none")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"expected low <= high, got {self.low} > {self.high}")
        if self.n_valid is not None and self.n_valid > self.n:
            raise ValueError(f"expected n_valid <= n, got {self.n_valid} > {self.n}")
        return self


class Item(Strict):
    """One video, or one question about a video, and its figures.

    `values` are numbers (a pass is 0 or 1; what could not be decided is null); `details` is whatever a reader may want
    to look at: a rater's words, a fitted trajectory, the gates that failed. `pictures` are images and videos beside the
    clip under their names: maps of experts, fields, the real clip. `id` is the same for every system that got
    the same prompt; for paired comparison `seed` is the seed of the noise and `run` the training run.
    """

    id: str
    group: str = ""
    prompt: str = ""
    video: Inside | None = None
    pictures: dict[str, Inside] = {}
    seed: int | None = None
    run: int | None = None
    values: dict[str, Number] = {}
    details: dict[str, JsonValue] = {}


class System(Strict):
    """One model, folder of videos, floor or control: its metrics over all items and by group, and its items.

    `role` keeps apart what competes ("system") from what bounds it: "real" videos, the "floor" that an autoencoder
    leaves, and a "control" that should fail. `config_hash` is `digest` of the resolved recipe; `training_seeds` name
    the training runs, `sampling_seeds` the noise.
    """

    name: str
    role: Role = "system"
    kind: str = ""
    backbone: str = ""
    bundle: str = ""
    config_hash: str = ""
    training_seeds: tuple[int, ...] = ()
    sampling_seeds: tuple[int, ...] = ()
    parameters: int | None = None
    steps: int | None = None
    metrics: dict[str, Metric] = {}
    groups: dict[str, dict[str, Metric]] = {}
    items: tuple[Item, ...] = ()
    details: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _distinct(self) -> "System":
        seen: set[tuple[str, str, int | None, int | None]] = set()
        for item in self.items:
            if (key := (item.group, item.id, item.seed, item.run)) in seen:
                raise ValueError(f"expected every item once, got {item.id!r} with seed {item.seed} twice")
            seen.add(key)
        return self


class PromptSet(Strict):
    """What was asked: a name ("videophy2 test", "world test"), how many prompts, and the digest of their text."""

    name: str
    count: int = Field(ge=0)
    style: str = ""
    digest: str = ""


class Rater(Strict):
    """Who says how good it is.

    `kind`: "law" fits a physical law to pixels, "formula" compares with real videos, "official" is a benchmark's own
    network, "judge" a vision-language model of one's own, "human" people. Figures of two raters are never compared.
    """

    name: str
    kind: Literal["law", "formula", "official", "judge", "human"]
    version: str = ""
    settings: dict[str, JsonValue] = {}


class Comparison(Strict):
    """Mean of `a - b` over `n` pairs: its interval, p-value, and the p-value corrected for `family` comparisons."""

    a: str
    b: str
    metric: str
    group: str = ""
    mean: Number
    n: int = Field(ge=0)
    low: Number = None
    high: Number = None
    level: float = Field(default=0.95, gt=0, lt=1)
    p: Number = None
    p_corrected: Number = None
    family: int | None = None
    method: str = ""

    @property
    def clear(self) -> bool:
        """Whether there is an interval and it excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Result(Strict):
    """A benchmark's result: read with `read`, written with `write`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    benchmark: str
    title: str = ""
    prompt_set: PromptSet
    rater: Rater
    systems: tuple[System, ...]
    comparisons: tuple[Comparison, ...] = ()
    settings: dict[str, JsonValue] = {}
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _named(self) -> "Result":
        names = [system.name for system in self.systems]
        if len(set(names)) < len(names):
            raise ValueError(f"expected every system under its own name, got {', '.join(names)}")
        return self

    def system(self, name: str) -> System:
        """Give a system by name."""
        for system in self.systems:
            if system.name == name:
                return system
        raise ValueError(f"expected one of {', '.join(s.name for s in self.systems)}, got {name!r}")


class PhysicsIQResult(Result):
    """Physics-IQ says at the top of its file, beside the schema, what its own readers look for there."""

    score: Number
    verified: Number
    physical_variance: Number
    per_view: tuple[dict[str, JsonValue], ...]


OWN: dict[str, type[Result]] = {"physics-iq": PhysicsIQResult}


def read(path: Path) -> Result:
    """Read a result, given its file or its folder.

    Raises:
        ValueError: if there is none, or if it is not one that this version knows, with what is wrong and where.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"expected a result file or a folder with a {FILE}, got {path}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected JSON in {file}, got {error}") from None
    if not isinstance(content, dict) or "schema_version" not in content:
        raise ValueError(f"expected a result of `bench` (a JSON object with schema_version), got {file}")
    if content["schema_version"] != SCHEMA_VERSION:
        newer = f"expected schema version {SCHEMA_VERSION} in {file}, got {content['schema_version']}"
        raise ValueError(f"{newer}: read it with the version of `bench` that wrote it, or measure again")
    try:
        own = OWN.get(str(content.get("benchmark")), Result)
        says_more = content.keys() & (own.model_fields.keys() - Result.model_fields.keys())
        return (own if says_more else Result).model_validate(content)  # a comparison has the schema's fields alone
    except ValidationError as error:
        mistakes = error.errors()
        said = [f"{'.'.join(map(str, m['loc'])) or 'file'}: {m['msg']}" for m in mistakes[:SHOWN_MISTAKES]]
        more = len(mistakes) - len(said)
        text = "; ".join(said) + (f"; and {more} more" if more else "")
        raise ValueError(f"{file} is not a result of `bench`: {text}") from None


def write(result: Result, path: Path) -> Path:
    """Write a result to a file, or as `result.json` into a folder; it appears whole or not at all."""
    file = path if path.suffix == ".json" else path / FILE
    return write_text(file, result.model_dump_json(indent=1) + "\n")


def digest(content: Any) -> str:
    """Name a configuration, a list of prompts or any JSON by its content.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions(*more: str) -> dict[str, str]:
    """Name the versions that figures belong to: Python's packages that decode, generate and measure."""
    found: dict[str, str] = {}
    for name in ("bench", "physworld", "physbackbones", "phystrainers", "numpy", "torch", "av", *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # said by its absence: nothing of it can have been used
    return found


def video_path(folder: Path, item: Item) -> Path | None:
    """Give the video of an item, or none where it has none or it is not there; a link out of the folder is refused."""
    if item.video is None:
        return None
    path = (folder / item.video).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"expected videos inside {folder}, got {item.video} which leads to {path}")
    return path if path.is_file() else None
