"""A recipe is read strictly, and every mistake is answered with its place and the nearest right word."""

import pytest
import yaml

from trainers import EMA, Config, Length, Optim, Ramp, dump_config, find_recipe, load_config, override


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


@pytest.mark.parametrize("value", ["yes", "on", "12:30:00", "0o17", ".inf", ".nan", "2020-01-01"])
def test_a_word_of_yaml_1_1_is_no_number(tmp_path, value):
    with pytest.raises(ValueError, match=r"data\.f"):
        load_config(Recipe, put(tmp_path, "a.yaml", f"data:\n  frames: {value}"))
    with pytest.raises(ValueError, match=r"data\.f"):
        load_config(Recipe, put(tmp_path, "a.yaml", f"data:\n  fps: {value}"))


NUMBERS = {"1e-4": 1e-4, "-2.5": -2.5, "3.": 3.0, ".5": 0.5, "0x1F": 31, "+7": 7, "010": 10}


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_numbers_are_numbers(tmp_path, text, value):
    assert load_config(Recipe, put(tmp_path, "a.yaml", f"data:\n  fps: {text}")).data.fps == value


def test_a_flag_takes_yes_and_no(tmp_path):
    class Flags(Config):
        compile: bool = False
        fast: bool = True

    read = load_config(Flags, put(tmp_path, "a.yaml", "compile: yes\nfast: false"))
    assert (read.compile, read.fast) == (True, False)


@pytest.mark.parametrize(
    "text",
    [
        "data: " + "[" * 3000 + "]" * 3000,
        "data: " + "{a: " * 2000 + "1" + "}" * 2000,
        "a: &a [x, x]\nb: &b [*a, *a]\nseed: *b",
        "seed: " + "9" * 5000,
        "extends: 3",
        "extends: [1]",
        "extends: {a: b}",
        "extends: null",
        "extends: .",
        "extends: /dev/null/x",
        "1: 2",
        "? [1, 2]\n: 3",
        "data:\n  <<: 3",
        "data: &a {frames: *a}",
        "seed: 1\n---\nseed: 2",
        "data:",
        "data: hello",
        "data:\n\tframes: 1",
        "seed: \0",
        "seed: !!python/name:os.system ''",
        "k" * 100_000 + ": 1",
    ],
    ids=range(21),
)
def test_hostile_files_are_one_short_answer(tmp_path, text):
    with pytest.raises(ValueError, match=r"a\.yaml") as caught:
        load_config(Recipe, put(tmp_path, "a.yaml", text))
    assert len(str(caught.value)) < 5000


def test_a_file_of_unknown_keys_is_answered_with_the_first_few(tmp_path):
    with pytest.raises(ValueError, match="and 19995 more") as caught:
        load_config(Recipe, put(tmp_path, "a.yaml", "\n".join(f"key{i}: {i}" for i in range(20_000))))
    assert len(str(caught.value)) < 2000


HOSTILE = ("data=" + "[" * 3000, "seed=" + "9" * 5000, "data=", "__class__=1", "model_config=3")


@pytest.mark.parametrize("override", HOSTILE, ids=range(5))
def test_hostile_overrides_are_one_short_answer(override):
    with pytest.raises(ValueError, match=r"expected|unknown key|valid") as caught:
        load_config(Recipe, None, [override])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("override", ["data.fps=.inf", "optim={lr: .inf}", "ramps={a: {start: 0, end: .nan}}"])
def test_infinity_and_nan_are_refused_at_any_depth(override):
    class Run(Recipe):
        optim: Optim = Optim()

    with pytest.raises(ValueError, match="finite number"):
        load_config(Run, None, [override])


def test_a_date_is_a_word(tmp_path):
    class Named(Config):
        name: str

    path = put(tmp_path, "a.yaml", "name: 2020-01-01")
    assert load_config(Named, path).name == "2020-01-01"
    dump_config(load_config(Named, path), tmp_path / "b.yaml")
    assert load_config(Named, tmp_path / "b.yaml").name == "2020-01-01"


def test_a_config_that_is_there_takes_overrides_as_a_file_does_and_names_them_when_they_are_wrong():
    recipe = Recipe(ramps={"rise": Ramp(0.0, 1.0, to_step=3)}, parts=(Part(name="a"),))
    changed = override(recipe, ["data.fps=24", "parts.0.optim.lr=0.5"])
    assert (changed.data.fps, changed.parts[0].optim.lr, changed.ramps) == (24.0, 0.5, recipe.ramps)
    assert override(recipe, []) is recipe
    with pytest.raises(ValueError, match=r"--set data\.fbs=24 is not a valid Recipe:\n.*did you mean 'fps'"):
        override(recipe, ["data.fbs=24"])


def test_a_recipe_is_found_by_path_and_by_its_name_among_the_shipped_ones(tmp_path, monkeypatch):
    shipped = tmp_path / "recipes"
    shipped.mkdir()
    for name in ("tiny", "wan2.1-1.3b"):
        put(shipped, f"{name}.yaml", {})
    own = put(tmp_path, "mine.yaml", {})
    assert find_recipe(None, shipped) == shipped / "tiny.yaml"
    assert find_recipe("wan2.1-1.3b", shipped) == shipped / "wan2.1-1.3b.yaml"
    assert find_recipe("wan2.1-1.3b.yaml", shipped) == shipped / "wan2.1-1.3b.yaml"
    assert find_recipe(str(own), shipped) == own
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "tiny.yaml", {})
    assert find_recipe("tiny.yaml", shipped).resolve() == tmp_path / "tiny.yaml"  # one's own file wins
    (tmp_path / "wan2.1-1.3b").mkdir()  # a folder is no recipe
    assert find_recipe("wan2.1-1.3b", shipped) == shipped / "wan2.1-1.3b.yaml"
