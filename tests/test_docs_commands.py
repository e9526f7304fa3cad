"""Every command on a page works: bash reads it, then it is run here, or it is parsed whole and the reason said.

A block is given to bash with stand-ins for the commands (`uv`, `pila`, `torchrun`, ...) that write down the words they
are given, so that loops, variables, quotes and continued lines mean what they mean in a shell. Each command is then, in
the block's order and in one folder,

- run in this process, with the words of `RUN` added, which make it small; or
- parsed whole where `PARSED` says why it is not run: sub-command, options, types, the recipe with all of its `--set`.

A command that neither table knows fails. So does one in a line of prose, `uv run ...`, that does not parse.
"""

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from trainers import HeldOut, load_config
from trainers.schema import find

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "packages/**/*.md", "apps/**/*.md")
    for path in ROOT.glob(pattern)
    if "tests" not in path.parts
    and (path.parent.name != "contributing" or path.name == "index.md")  # test_contributing.py follows those whole
)
APPS = sorted(path.parent.name for path in ROOT.glob("apps/*/pyproject.toml"))
METHODS = ["pila", "prophy", "phantom", "mmphysvideo"]
SHELL = ("sh", "bash", "console")
WORLD = {
    "vae": "world.recipe:VAERecipe",
    "backbone": "world.recipe:Recipe",
    "encoder": "world.encoder:EncoderRecipe",
}
"""Whose recipe `world train` reads."""
LAUNCHERS = ["python", "torchrun", "accelerate", "srun"]


def small(sets):
    return [part for one in sets.split() for part in ("--set", one)]


RUN = {
    r"pila train": ["--quiet", *small("data.clips=8 batch=4 observe.steps=1 recover.steps=1 couple.steps=1")],
    r"prophy train": ["--quiet", *small("data.clips=8 batch=4 steps=1 semantic.first_steps=1 semantic.first_batch=4")],
    r"phantom train": ["--quiet", *small("data.clips=8 batch=4 steps=1")],
    r"mmphysvideo train": ["--quiet", *small("data.clips=8 batch=4 teacher.steps=1 student.steps=1")],
    r"(pila|prophy|phantom|mmphysvideo) generate": small("sampling.steps=1"),
    r"prophy evaluate": ["--clips", "8", "--no-routers", *small("sampling.steps=1")],  # 200 paraphrases: 19 s
    r"(pila|phantom|mmphysvideo) evaluate": ["--clips", "8", *small("sampling.steps=1")],
    r"(pila|prophy|phantom|mmphysvideo) check": [],
    r"pila cache": small("data.clips=8"),
    r"mmphysvideo export": [],
    r"world make": ["--clips", "8", "--workers", "1"],
    r"bench prompts": [],
    r"backbones inspect": [],
    r"trainers schema": [],
}
"""What is run, and the words that make it small: fewer clips and steps, never another path through the code."""

PARSED = {
    r"plan .*--config|plan --config": "half a minute each at the real size; tests/test_real_size.py makes every one",
    r"(--config |backbone=)\S*(wan|Wan-AI|cogvideox)": "needs weights and a GPU",
    r"data\.source=(?!world)|runs/(mine|real)/": "needs your clips; tests/test_own_clips.py walks that path",
    r"pila plan": "runs in apps/pila/tests/test_plan.py",
    r"(prophy|phantom|mmphysvideo) .*(--clips 64|seed=)": "trains nine adapters; the READMEs train one",
    r"phantom train .*--from": "force fine-tuning runs in apps/phantom/tests/test_force.py",
    r"phantom evaluate --forces": "runs in apps/phantom/tests/test_evaluate.py",
    r"prophy annotate": "needs a vision-language model; a tiny one annotates in apps/prophy/tests/test_cli.py",
    r"phantom continue": "needs the benchmark's videos; runs in apps/phantom/tests/test_continuation.py",
    r"mmphysvideo caption": "asks a model of yours; the one that takes names runs in tests/test_own_clips.py",
    r"mmphysvideo pipe": "runs on clips in apps/mmphysvideo/tests/test_pipe.py and test_pipe_ray.py",
    r"world (train|export|thresholds|sample|evaluate|probe)": "minutes each; run small in apps/world/tests",
    r"bench demo": "runs small in apps/bench/tests/test_demo.py",
    r"bench (world|ablate|compare|report|serve)": "needs bundles or results; run small in apps/bench/tests",
    r"bench (physics-iq|phyworld|pisa)": "needs the benchmark's videos; run on small ones in apps/bench/tests",
    r"bench (vbench|to-official|from-official|rate)": "needs the benchmark's videos; apps/bench/tests/official",
    r"bench (judge|laws|frechet)": "needs videos or a judge; run in apps/bench/tests",
    r"backbones verify-export": "needs a bundle; runs in packages/backbones/tests/test_verify.py",
    r"trainers cache": "needs a cache; runs in packages/trainers/tests",
    r"(pila|prophy|phantom|mmphysvideo) (export|time|cache)": "runs in the app's tests/test_cli.py",
}
"""What is parsed whole but not run, and why; looked at before `RUN`."""

TOOLS = {
    "uv": "the workspace's manager: sync, lock, build",
    "pytest": "this test suite",
    "ruff": "lint",
    "basedpyright": "types",
    "lint-imports": "imports",
    "pre-commit": "hooks",
    "sphinx-build": "the site; .ci/run builds it",
    "pip": "names are checked against the members' own",
    "git": "version control",
    "ray": "starts a cluster",
    "sbatch": "needs Slurm; the script is read by apps/pila/tests/test_launch_docs.py",
    "kubectl": "needs a cluster; the manifest is read by apps/pila/tests/test_launch_docs.py",
    "python": "a script of the reader's, or one in the repository",
}
"""Commands of others: what they do here. Their files must exist, and packages must be ours or declared by us."""


def blocks(path):
    """(line, language, text) of every fenced block of a page."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(
        r"^(?P<in> *)(?P<fence>```+)(?P<name>[^\n`]*)\n(?P<text>.*?)^(?P=in)(?P=fence) *$", text, re.S | re.M
    ):
        yield text.count("\n", 0, found.start()) + 1, found["name"].split(" ")[0], found["text"]


def told(language, text):
    """The commands of a block: all of a shell's, the lines behind `$ ` of a console's."""
    if language != "console":
        return text
    return "".join(line[2:] + "\n" for line in text.splitlines() if line.startswith("$ "))


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A folder of commands that write down their words."""
    folder = tmp_path_factory.mktemp("bin")
    script = """#!/bin/bash
if [[ ${0##*/} = python && ${1-} = -c ]]; then  # what a script asks python is answered, once
    known=$0.$(md5sum <<<"$2" | cut -c1-32)
    [[ -s $known ]] || "$PYTHON" "$@" >"$known"
    exec cat "$known"
fi
printf '%s\\0' "${0##*/}" "$@" >>"$RECORD"; printf '\\1\\0' >>"$RECORD"
"""
    for name in {*APPS, *LAUNCHERS, *TOOLS}:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder that commands run in: the repository's files by link, the reader's own as small ones."""
    for name in ("apps", "packages", "docs", "benchmarks", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recorded(stand_ins, here):
    """Gives the words of each command of a text, as bash would call them."""

    def read(text):
        record = here / "record"
        environment = {name: name.lower() for name in re.findall(r"\$\{?([A-Z][A-Z_0-9]+)", text)}  # the reader's
        environment |= os.environ | {"PATH": f"{stand_ins}:/usr/bin:/bin"}
        environment |= {"RECORD": str(record), "PYTHON": sys.executable}
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), text
        calls = record.read_text(encoding="utf-8").split("\0\1\0")[:-1] if record.exists() else []
        record.unlink(missing_ok=True)
        return [call.split("\0") for call in calls]

    return read


def resolve(words):
    """(command, its words) behind `uv run` and a launcher; a launcher's own options are parsed by its own parser."""
    if words[:2] == ["uv", "run"]:
        words = words[2:]
        while words[0] in ("--no-sync", "--isolated", "--group", "--package", "--with"):
            words = words[2 if words[0] in ("--group", "--package", "--with") else 1 :]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        asked = get_args_parser().parse_args(words[1:])
        words = ["python", *(["-m"] if asked.module else []), asked.training_script, *asked.training_script_args]
    elif words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        asked = launch_command_parser().parse_args(words[2:])
        assert asked.config_file is None or Path(asked.config_file).is_file(), asked.config_file
        words = ["python", *(["-m"] if asked.module else []), asked.training_script, *asked.training_script_args]
    elif words[0] == "srun" and "python" in words:
        words = words[words.index("python") :]
    if words[0] == "python" and words[1] == "-m":
        words = [words[2].removesuffix(".cli"), *words[3:]]
    return words[0], words[1:]


def parse(name, words):
    """Parse the words of one of our commands whole; the (option or argument, value) pairs that it would be given."""
    if name == "backbones":
        return vars(import_module("backbones.__main__")._parser().parse_args(words))
    command = typer.main.get_command(import_module(f"{name}.cli").app)
    words = list(words)
    while hasattr(command, "commands"):
        assert words, f"{name}: expected one of {', '.join(command.commands)}"
        assert words[0] in command.commands, f"{name} {words[0]}"
        command = command.commands[words.pop(0)]
    while True:
        try:
            given = command.make_context(name, list(words)).params
            break
        except Exception as error:
            missing = re.match(r"(\w+) '([^/].*)' does not exist", str(error))
            if missing is None:
                raise
            Path(missing[2]).touch() if missing[1] == "file" else Path(missing[2]).mkdir(parents=True)  # the reader's
    return {option: given[p.name] for p in command.params for option in p.opts if p.name in given}


def load(name, verb, given):
    """Check the recipe that a command would read, with its overrides."""
    sets, config = list(given.get("--set") or ()), given.get("--config")
    if name == "bench" and verb == "ablate":
        name = Path(str(given["recipe"])).stem
    if name == "mmphysvideo" and verb in ("pipe", "caption"):
        load_config(find("mmphysvideo.pipe.settings:Settings"), given.get("--settings"), sets)
    elif name == "world":
        if sets or config:
            load_config(find(WORLD[verb]), config, sets)
    elif name in METHODS:
        import_module(f"{name}.config").load_recipe(config, sets)


def check_whole(name, words):
    """Parse a command whole, with the recipe it reads; a tool of others has its files looked for."""
    if name not in (*APPS, "backbones", "trainers"):
        assert name in TOOLS, f"{name}: a command that nothing here knows; see TOOLS in {Path(__file__).name}"
        check_tool(name, words)
        return
    given = parse(name, words)
    verbs = [word for word in words if not word.startswith("-")]
    load(name, verbs[1] if verbs[:1] == ["train"] and name == "world" else (verbs or [""])[0], given)


def check_tool(name, words):
    files = [
        word for word in words if re.search(r"\w\.(sbatch|sh|py)$", word) or re.match(r"[\w./-]+/[\w.-]+\.yaml$", word)
    ]
    for file in files:
        assert (ROOT / file).exists() or Path(file).exists() or file in YOURS, file
    if name == "pip" and words[:1] == ["install"]:
        for package in (word for word in words[1:] if not word.startswith("-")):
            assert re.split(r"[\[<>=@ ]", package)[0] in known_packages() or package.endswith(".whl"), package


YOURS = {"make_cache.py", "benchmarks/NAME.py"}
"""Files that the reader writes or chooses."""


def known_packages():
    """Members, and whatever a member or the workspace declares."""
    names = {"uv"}
    for path in (ROOT / "pyproject.toml", *ROOT.glob("*/*/pyproject.toml")):
        told = tomllib.loads(path.read_text(encoding="utf-8"))
        project = told.get("project", {})
        groups = [project.get("dependencies", []), *project.get("optional-dependencies", {}).values()]
        groups += told.get("dependency-groups", {}).values()
        names |= {re.split(r"[\[<>=; ]", one)[0] for group in groups for one in group} | {project.get("name")}
    return names


def run(name, words, extra):
    if name == "backbones":
        assert import_module("backbones.__main__").main([*words, *extra]) == 0, words
        return
    done = CliRunner().invoke(import_module(f"{name}.cli").app, [*words, *extra])
    assert done.exit_code == 0, f"{name} {' '.join(words)}\n{done.output[-3000:]}{done.exception!r}"


FRONT = "README.md"
"""Its commands are those of docs/start.md and of the apps' READMEs, where they run; here they are parsed."""
OWN = {"docs/own-clips.md": "tests/test_own_clips.py", "docs/contributing/": "tests/test_contributing.py"}
"""Pages whose blocks another test follows from the first to the last, files, edits and commands."""


@pytest.fixture
def few_looks(monkeypatch):
    """The held-out loss takes 8 clips at one level of noise, which no recipe says: 64 at nine cost most of the time."""
    few = {"clips": 8, "batch_size": 8, "levels": 1}
    for app in ("prophy", "phantom", "mmphysvideo"):
        monkeypatch.setattr(f"{app}.train.HeldOut", lambda *words, **more: HeldOut(*words, **{**more, **few}))


def first(table, line):
    return next((table[pattern] for pattern in table if re.search(pattern, line)), None)


def marked(languages):
    """A parameter for each block in one of the languages, on pages that are followed here."""
    return [
        pytest.param(path, language, text, id=f"{path.relative_to(ROOT)}:{line}")
        for path in PAGES
        for line, language, text in blocks(path)
        if language in languages and not any(str(path.relative_to(ROOT)).startswith(own) for own in OWN)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("path", "language", "text"), marked(SHELL))
def test_commands_of_a_block_run_or_parse(path, language, text, recorded, few_looks):
    calls = [resolve(words) for words in recorded(re.sub(r"\[(--[^\]]*)\]", r"\1", told(language, text)))]
    assert calls or "export" in text, "a block without a command: is it `text`?"
    for name, words in calls:
        check_whole(name, words)
        line = " ".join([name, *words])
        if name in TOOLS or path == ROOT / FRONT or first(PARSED, line) is not None:
            continue
        extra = first(RUN, line)
        assert extra is not None, f"{line}: neither RUN nor PARSED knows it; see {Path(__file__).name}"
        run(name, words, extra)


def test_the_front_page_has_no_command_that_runs_nowhere(recorded):
    def called(path):
        texts = [told(language, text) for _, language, text in blocks(path) if language in SHELL]
        return {(name, words[0]) for text in texts for name, words in map(resolve, recorded(text)) if name in APPS}

    elsewhere = [ROOT / "docs" / "start.md", *sorted(ROOT.glob("apps/*/README.md"))]
    assert called(ROOT / FRONT) <= set().union(*map(called, elsewhere))


PROSE = {path: re.findall(r"`(uv run [^`]+)`", path.read_text(encoding="utf-8")) for path in PAGES}


@pytest.mark.parametrize("path", [p for p in PAGES if PROSE[p]], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_prose_parse(path, recorded):
    text = path.read_text(encoding="utf-8")
    inline = re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)
    lines = [line.replace("\\|", "|").replace("\n", " ") for line in re.findall(r"`(uv run [^`]+)`", inline)]
    for name, words in map(resolve, recorded("\n".join(lines))):
        try:
            check_whole(name, [word for word in words if word != "..."])
        except Exception as error:
            if type(error).__name__ != "MissingParameter":  # a command that is named, not called
                raise AssertionError(f"{name} {' '.join(words)}: {error}") from error


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_is_of_a_language_that_is_checked(path):
    checked = (*SHELL, "python", "yaml", "json", "toml", "text")
    strange = [
        (line, name) for line, name, _ in blocks(path) if name not in checked and not re.fullmatch(r"\{\w+\}", name)
    ]
    assert strange == []


@pytest.mark.parametrize("page", OWN)
def test_a_page_that_is_followed_elsewhere_is(page):
    assert Path(page).stem in (ROOT / OWN[page]).read_text(encoding="utf-8")


@pytest.mark.parametrize(("path", "language", "text"), marked(("text",)))
def test_a_block_of_text_holds_no_command(path, language, text):
    assert not re.search(rf"^\s*(\$ )?(uv run|pip install|({'|'.join(APPS)}) [a-z-]+ )", text, re.M)


@pytest.mark.parametrize(("path", "language", "text"), marked(("yaml", "json")))
def test_yaml_and_json_are_read_and_a_recipe_is_one(path, language, text):
    """A block of YAML that begins with the name of a method, `# pila`, is a recipe of it."""
    tree = yaml.safe_load(text)
    assert tree
    whose = re.match(r"# (\w+)", text)
    if whose and whose[1] in METHODS:
        tree.pop("extends", None)
        find(f"{whose[1]}.config:Recipe").model_validate(tree)
