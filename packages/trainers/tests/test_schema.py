"""Laws of the schema: editors see the comments of the code, and what the model refuses the schema refuses."""

import json

import pytest
from pydantic import Field, ValidationError
from typer.testing import CliRunner

from trainers import EMA, Config, Length, Optim, dump_config, load_config
from trainers.cli import app
from trainers.schema import comments, find, schema


class Data(Config):
    """What is learned from."""

    # how many of them,
    # counted once
    frames: int = Field(
        default=17,
        ge=1,
    )  # 4n + 1
    fps: float = 16.0  # of the clips: "16" is Wan's
    folder: str | None = None


class Recipe(Config):
    """A run."""

    data: Data = Data()  # where from
    optim: Optim = Optim()
    length: Length = Length(steps=1)
    average: EMA | None = None  # noqa: RUF100
    sizes: tuple[int, int] = (1, 2)  # a # in a comment


class Longer(Recipe):
    more: int = 0  # of its own


def part(name):
    return schema(Recipe)["$defs"][name]["properties"]


def test_comments_beside_and_above_a_field_are_its_description():
    assert comments(Data) == {"frames": "how many of them, counted once 4n + 1", "fps": 'of the clips: "16" is Wan\'s'}
    assert part("Data")["fps"]["description"] == 'of the clips: "16" is Wan\'s'
    assert "description" not in part("Data")["folder"]
    assert schema(Recipe)["properties"]["data"]["description"] == "where from"
    assert schema(Recipe)["properties"]["sizes"]["description"] == "a # in a comment"
    assert "description" not in schema(Recipe)["properties"]["average"]


def test_docstrings_of_parts_are_their_description():
    assert schema(Recipe)["description"] == "A run."
    assert schema(Recipe)["$defs"]["Optim"]["description"].startswith("AdamW and its schedule")


def test_a_child_has_the_comments_of_its_parent():
    assert comments(Longer)["data"] == "where from"
    assert schema(Longer)["properties"]["more"]["description"] == "of its own"


def test_bounds_choices_and_defaults_are_in_it_and_unknown_keys_are_not():
    assert part("Data")["frames"]["minimum"] == 1
    assert part("Optim")["schedule"]["enum"] == ["constant", "cosine", "hold_cosine"]
    assert part("Optim")["lr"]["default"] == 1e-4
    made = schema(Recipe)
    assert all(one["additionalProperties"] is False for one in (made, *made["$defs"].values()))


def test_a_recipe_may_extend_others_and_leave_out_what_they_say():
    made = schema(Recipe)
    assert made["properties"]["extends"]["anyOf"][0] == {"type": "string"}
    assert not any("required" in one for one in (made, *made["$defs"].values()))


def test_a_file_that_names_its_schema_loads_as_before(tmp_path):
    (tmp_path / "a.yaml").write_text("# yaml-language-server: $schema=recipe.schema.json\ndata:\n  frames: 9\n")
    assert load_config(Recipe, tmp_path / "a.yaml").data.frames == 9


def test_the_schema_accepts_what_is_dumped_and_refuses_what_the_model_refuses(tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not in the environment (it comes with ray)")
    check = jsonschema.Draft202012Validator(schema(Recipe))
    dump_config(Recipe(), tmp_path / "a.yaml")
    assert not list(check.iter_errors(Recipe().model_dump(mode="json")))
    for wrong in ({"dta": {}}, {"data": {"frames": 0}}, {"optim": {"schedule": "cosin"}}, {"sizes": [1]}):
        assert list(check.iter_errors(wrong))
        with pytest.raises(ValidationError):
            Recipe.model_validate(wrong)


def test_the_verb_writes_a_file_and_names_what_it_cannot_import(tmp_path):
    run = CliRunner()
    done = run.invoke(app, ["schema", "trainers.data:Filters", "--out", str(tmp_path / "s.json")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "s.json").read_text()) == schema(find("trainers.data:Filters"))
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
    assert json.loads(run.invoke(app, ["schema", "trainers.data:Filters"]).stdout)["title"] == "Filters"
    for wrong in ("no.such:Recipe", "trainers.data", "trainers.data:InMemory", ":", "trainers.data:nothing"):
        done = run.invoke(app, ["schema", wrong])
        assert done.exit_code == 2
        assert "pila.config:Recipe" in " ".join(done.output.split())
