"""A recipe is read strictly, and every mistake is answered with its place and the nearest right word."""

import pytest
import yaml

from trainers import EMA, Config, Length, Optim, Ramp, dump_config, load_config


class Data(Config):
    frames: int = 17
    fps: float = 16.0


class Part(Config):
    name: str
    optim: Optim = Optim()


class Recipe(Config):
    seed: int = 0
    data: Data = Data()
    length: Length = Length(steps=10)
    ramps: dict[str, Ramp] = {}  # noqa: RUF012
    ema: EMA | None = None
    parts: tuple[Part, ...] = ()


def put(tmp_path, name, tree):
    (tmp_path / name).write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return tmp_path / name


def test_without_a_file_the_defaults_and_the_overrides_hold():
    recipe = load_config(Recipe, None, ["data.fps=24", "length={minutes: 2}", "ema={decay: 0.99}"])
    assert (recipe.data.fps, recipe.length.minutes, recipe.ema) == (24.0, 2.0, EMA(0.99))


def test_the_recipe_wins_over_what_it_extends_and_overrides_win_over_both(tmp_path):
    put(tmp_path, "base.yaml", {"seed": 1, "data": {"frames": 5, "fps": 8}})
    (tmp_path / "sub").mkdir()
    put(tmp_path, "sub/more.yaml", {"extends": "../base.yaml", "data": {"fps": 12}})
    path = put(tmp_path, "top.yaml", {"extends": ["base.yaml", "sub/more.yaml"], "seed": 2})
    recipe = load_config(Recipe, path, ["data.frames=9"])
    assert (recipe.seed, recipe.data.frames, recipe.data.fps) == (2, 9, 12.0)


@pytest.mark.parametrize(
    ("tree", "overrides", "message"),
    [
        ({"sede": 1}, [], r"\(top\): unknown key 'sede', did you mean 'seed'"),
        ({"data": {"frame": 5}}, [], r"data: unknown key 'frame', did you mean 'frames'"),
        ({"parts": [{"name": "a", "optim": {"lrr": 1}}]}, [], r"parts\.0\.optim: unknown key 'lrr', did you mean 'lr'"),
        ({"ramps": {"a": {"start": 0, "end": 1, "form_step": 3}}}, [], r"ramps\.a: .*did you mean 'from_step'"),
        ({}, ["data.fp=3"], r"data: unknown key 'fp', did you mean 'fps'"),
        ({"length": {"steps": 1, "minutes": 2}}, [], "exactly one of steps, epochs, minutes"),
        ({"data": {"fps": "fast"}}, [], r"data\.fps: .*'fast'"),
        ({"parts": [{}]}, [], r"parts\.0\.name: Field required"),
        ({"{x}": 1}, [], r"unknown key '\{x\}'"),
    ],
)
def test_a_mistake_is_named_with_its_dotted_path(tmp_path, tree, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(Recipe, put(tmp_path, "a.yaml", tree), overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "map of keys"),
        ("seed: 1\nseed: 2", "occurs twice"),
        ("extends: a.yaml", "extends itself"),
        ("extends: none.yaml", r"none\.yaml.*extended by"),
        ("seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_says_why(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(Recipe, put(tmp_path, "a.yaml", text))


@pytest.mark.parametrize("override", ["seed", "=3", "data..fps=1", "seed.deep.x=1", "parts.3.name=x", "seed=[1"])
def test_an_override_that_cannot_be_read_is_shown(tmp_path, override):
    path = put(tmp_path, "a.yaml", {"seed": 1, "parts": [{"name": "a"}]})
    with pytest.raises(ValueError, match=r"expected|below it"):
        load_config(Recipe, path, [override])


def test_an_index_reaches_into_a_list(tmp_path):
    path = put(tmp_path, "a.yaml", {"parts": [{"name": "a"}, {"name": "b"}]})
    assert load_config(Recipe, path, ["parts.1.optim.lr=1e-3"]).parts[1].optim.lr == 1e-3


def test_exponents_without_a_point_are_numbers(tmp_path):
    from typing import Any

    class Loose(Config):
        value: Any = None

    assert load_config(Loose, put(tmp_path, "a.yaml", "value: 1e-4")).value == 1e-4
    assert load_config(Loose, None, ["value=-2E3"]).value == -2000.0
    assert load_config(Loose, None, ["value=e3"]).value == "e3"


def test_what_is_dumped_loads_back_equal_and_is_all_there(tmp_path):
    recipe = load_config(Recipe, None, ["ema={decay: 0.9, apply: true}", "ramps={a: {start: 0, end: 1, to_step: 5}}"])
    dump_config(recipe, tmp_path / "sub" / "config.yaml")
    assert load_config(Recipe, tmp_path / "sub" / "config.yaml") == recipe
    assert yaml.safe_load((tmp_path / "sub" / "config.yaml").read_text())["data"] == {"frames": 17, "fps": 16.0}
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["config.yaml"]


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 3
