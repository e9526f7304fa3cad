"""A table of ablations: whose command line, which recipe, which rows.

It is a YAML file beside an app's recipes (`recipes/ablations.yaml`, or any file with `app:`):

    app: pila                 # whose command line; left out in the file that the app itself ships
    config: tiny              # recipe of every row, its name or file (left out: the app's `tiny`)
    rows:
      - name: plain adapter   # one row; a row without sets is the whole method, and is added where there is none
        set: [adapter=plain]  # what it changes, as `--set` takes it
        what: The same network under the flow-matching loss alone.
        when: training        # or `sampling`: the whole method's weights under these sets; anything else is a need
                              # (such as "language model") of a row that only runs when asked for by name
        stage: student        # for an app that trains one model after another (`train --stage teacher`, then
                              # `train --stage student --teacher BUNDLE`): which one the row changes; it is measured
                              # by the last one in any case
        needs: a row's name   # of an earlier stage, which this one learns from; left out: the first row there
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from bench.generate import slug
from bench.results import Strict

SHIPPED = Path("recipes") / "ablations.yaml"
WHOLE = "whole method"
SAMPLING, TRAINING = "sampling", "training"


class Row(Strict):
    """One row of the table."""

    name: str
    set: tuple[str, ...] = ()
    what: str
    when: str = TRAINING
    stage: str = ""
    needs: str = ""


class Ablations(Strict):
    """The table: whose command line, which recipe, which rows."""

    app: str = ""
    config: str | None = None
    rows: tuple[Row, ...] = Field(min_length=1)

    @property
    def stages(self) -> list[str]:
        """Stages of the rows, the earliest first; the last is the one that is measured."""
        return list(dict.fromkeys(row.stage for row in self.rows))

    @property
    def whole(self) -> Row:
        """The row without sets of the last stage: the whole method."""
        return next(row for row in self.rows if not row.set and row.stage == self.stages[-1])

    @property
    def measured(self) -> list[Row]:
        """Rows that are measured, the whole method first; an earlier stage without sets belongs to the whole method."""
        return [self.whole, *(row for row in self.rows if row.set)]


@dataclass(frozen=True)
class Training:
    """One start of `APP train`: its folder, overrides, stage, and the folder of what it learns from."""

    folder: Path
    sets: tuple[str, ...]
    stage: str = ""
    flag: str = ""
    after: Path | None = None


@dataclass(frozen=True)
class Job:
    """One row under one training seed: its folders and what is overridden."""

    table: Ablations
    row: Row
    seed: int
    out: Path
    config: str | None
    sets: tuple[str, ...]
    clips: int
    split: str

    @property
    def trainings(self) -> list[Training]:
        """What has to be trained, in order; the last one is measured. A sampling row uses the whole method's weights.

        A changed earlier stage is followed by the whole method's last one under the same changes.
        """
        row = self.table.whole if self.row.when == SAMPLING else self.row
        first, last = self.table.stages[0], self.table.stages[-1]
        if first == last:
            return [Training(self._folder(row.name), row.set, row.stage)]
        if row.stage == last:
            rows = [r for r in self.table.rows if r.stage == first]
            taught = next(r for r in rows if row.needs in ("", r.name))
            before = Training(self._folder(taught.name), taught.set, first)
            own = self._folder(row.name)
        else:
            before = Training(self._folder(row.name), row.set, first)
            own = self._folder(f"{row.name} {last}")
        return [before, Training(own, row.set, last, f"--{first}", before.folder)]

    def _folder(self, name: str) -> Path:
        return self.out / "runs" / f"{slug(name)}-seed{self.seed}"

    @property
    def evaluation(self) -> Path:
        """File of the evaluation."""
        return self.out / "evaluations" / f"{slug(self.row.name)}-seed{self.seed}-{self.split}-{self.clips}.json"


def read(recipe: str) -> Ablations:
    """Read a table: the file of an app by its name, or any file.

    ValueError says what is wrong with it, or where it was looked for.
    """
    path = Path(recipe)
    home = None
    if not path.is_file():
        spec = find_spec(recipe) if recipe.isidentifier() else None
        places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
        home = next((place for place in places if (place / SHIPPED).is_file()), None)
        if home is None:
            raise ValueError(f"expected a file of ablations, or an app that ships {SHIPPED}, got {recipe!r}")
        path = home / SHIPPED
    try:
        table = Ablations.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML in {path}, got {error}") from None
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, m['loc'])) or 'file'}: {m['msg']}" for m in error.errors()[:5])
        raise ValueError(f"{path} is no table of ablations: {said}") from None
    names = [row.name for row in table.rows]
    if len({slug(name) for name in names}) < len(names):
        raise ValueError(f"expected rows with names of their own in {path}, got {', '.join(names)}")
    app = table.app or (path.resolve().parents[1].name if path.parent.name == SHIPPED.parts[0] else "")
    if not app.isidentifier() or find_spec(app) is None or find_spec(f"{app}.cli") is None:
        raise ValueError(f"expected `app:` in {path} with the name of an installed app, got {app!r}")
    last = table.stages[-1]
    if not any(not row.set and row.stage == last for row in table.rows):
        whole = Row(name=WHOLE, what="All parts, as the recipe has them.", stage=last)
        table = table.model_copy(update={"rows": (*table.rows, whole)})
    if strange := {row.needs for row in table.rows} - {"", *names}:
        raise ValueError(f"expected rows that others need in {path}, got none called {', '.join(sorted(strange))}")
    return table.model_copy(update={"app": app})


def choose(table: Ablations, rows: Sequence[str] | None) -> list[Row]:
    """Choose rows by name, and the whole method always; without names, all that need nothing further."""
    known = [row.name for row in table.measured]
    if strange := set(rows or ()) - set(known):
        raise ValueError(f"expected rows among {', '.join(known)}; got {', '.join(sorted(strange))}")
    if rows:
        return [row for row in table.measured if row.name in rows or row == table.whole]
    return [row for row in table.measured if row.when in (TRAINING, SAMPLING)]
