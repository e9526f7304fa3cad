"""What a release checks is true of every member now, and each check finds the fault that it is for."""

import doctest
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "release"))
try:
    check, install, sbom, workspace = map(importlib.import_module, ("check", "install", "sbom", "members"))
finally:
    sys.path.remove(str(ROOT / "release"))

MEMBERS = workspace.members()
FILES = sorted(ROOT.glob(".github/workflows/*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
WRITTEN = [*FILES, ROOT / ".ci" / "run", ROOT / "CONTRIBUTING.md", *ROOT.glob("release/*.*")]
COMMANDS = {  # of the scripts here, wherever they are written down
    found
    for path in WRITTEN
    for found in re.findall(r"python (release/\w+\.py)([^\n|#`&]*)", path.read_text(encoding="utf-8"))
}


@pytest.fixture
def member(tmp_path):
    """A copy of a small package, under version control: to be broken."""
    folder = tmp_path / "packages" / "physworld"
    shutil.copytree(ROOT / "packages" / "physworld", folder, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return workspace.Member(folder)


def wrong(member, **asked):
    subprocess.run(["git", "add", "--all"], cwd=member.folder, check=True)
    return list(check.problems(workspace.Member(member.folder), **asked))


def change(member, path, old, new):
    text = (member.folder / path).read_text(encoding="utf-8")
    assert old in text
    (member.folder / path).write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_can_be_released_but_for_its_date(name):
    assert list(check.problems(MEMBERS[name])) == []


def test_a_copy_that_nobody_broke_has_no_fault(member):
    assert wrong(member) == []


def test_a_changelog_s_top_entry_has_a_version_and_a_day_that_exists():
    assert check.entry("# Changelog\n\n## 1.2.3 (2026-11-28)\n\n- A.\n\n## 1.2.2 (2026-01-01)\n") == (
        "1.2.3", "2026-11-28", "- A."
    )  # fmt: skip
    assert check.entry("## 0.1.0 (unreleased)\n- A.")[1] == "unreleased"
    for text in ("# Changelog\n", "## Unreleased\n- A.", "## 1.2 (unreleased)\n", "## 1.2.3 (2026-02-30)\n"):
        with pytest.raises(ValueError, match=r"expected|day"):
            check.entry(text)


def test_a_release_needs_a_date_and_a_tag_of_the_same_version(member):
    version = member.version
    text = (member.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    for when in ("unreleased", "2999-01-01", "2026-01-01"):
        dated = re.sub(r"^## .*$", f"## {version} ({when})", text, count=1, flags=re.M)
        (member.folder / "CHANGELOG.md").write_text(dated, encoding="utf-8")
        found = wrong(member, version=version)
        assert (
            found
            == {
                "unreleased": [f"CHANGELOG.md: expected a date, got 'unreleased': write '## {version} (YYYY-MM-DD)'"],
                "2999-01-01": ["CHANGELOG.md: expected a day that has come, got 2999-01-01"],
                "2026-01-01": [],
            }[when]
        )
    assert wrong(member, version="9.9.9") == [f"the tag says 9.9.9, pyproject.toml {version}"]
    change(member, "CHANGELOG.md", f"## {version} (", "## 9.9.9 (")
    assert wrong(member) == [f"CHANGELOG.md: expected {version} on top, the version in pyproject.toml, got 9.9.9"]


def test_a_missing_or_other_licence_is_found(member):
    (member.folder / "LICENSE").write_text("mine")
    assert wrong(member) == ["LICENSE: differs from the one of the root"]
    (member.folder / "LICENSE").unlink()
    assert wrong(member) == ["LICENSE: missing; copy the one of the root"]


def test_what_others_made_must_stand_in_the_notices_and_the_notices_in_the_wheel(member):
    source = member.folder / "src" / "physworld"
    (source / "theirs.csv").write_text("a,b\n")
    (source / "theirs.py").write_text("# Copyright 2020 Somebody\n")
    assert [line.split(":")[0] for line in wrong(member)] == ["src/physworld/theirs.csv", "src/physworld/theirs.py"]
    notices = member.folder / check.NOTICES
    notices.write_text(
        "## `src/physworld/theirs.*`, `src/physworld/gone.csv`\n\n- what: data\n- from: there\n- licence: MIT\n"
    )
    assert wrong(member) == [
        "pyproject.toml: expected license-files = ['LICENSE', 'THIRD_PARTY_NOTICES.md'], got ['LICENSE']",
        "THIRD_PARTY_NOTICES.md: src/physworld/gone.csv names no file",
    ]
    change(member, "pyproject.toml", '["LICENSE"]', '["LICENSE", "THIRD_PARTY_NOTICES.md"]')
    change(member, check.NOTICES, ", `src/physworld/gone.csv`", "")
    assert wrong(member) == []
    change(member, check.NOTICES, "- licence: MIT\n", "")
    assert wrong(member) == ["THIRD_PARTY_NOTICES.md: src/physworld/theirs.* has no line '- licence: ...'"]


def test_bounds_metadata_and_the_readme_s_line_are_looked_at(member):
    change(member, "pyproject.toml", '"scipy>=', '"einops",\n    "scipy>=')
    change(member, "pyproject.toml", '    "Typing :: Typed",\n', "")
    change(member, "README.md", "pip install physworld", "pip install world")
    (member.folder / "src" / "physworld" / "py.typed").unlink()
    assert wrong(member) == [
        "pyproject.toml: classifiers lack Typing :: Typed",
        "src/physworld/py.typed: missing",
        "pyproject.toml: no lower bound for einops",
        "README.md: expected the line 'pip install physworld'",
    ]


def test_a_wheel_or_sdist_that_lacks_a_file_is_found(member, tmp_path):
    assert wrong(member) == []
    stem, dist = f"physworld-{member.version}", tmp_path / "dist"
    dist.mkdir()
    assert wrong(member, dist=dist) == [f"{stem}-py3-none-any.whl: not in {dist}", f"{stem}.tar.gz: not in {dist}"]
    sources = [path.removeprefix("src/") for path in member.files if path.startswith("src/")]
    with zipfile.ZipFile(dist / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path in [*sources, "physworld/scratch.py"]:
            wheel.writestr(path, "") if not path.endswith("thresholds.json") else None
    with tarfile.open(dist / f"{stem}.tar.gz", "w:gz") as sdist:
        for path in ("src", "README.md", "pyproject.toml"):
            sdist.add(member.folder / path, f"{stem}/{path}")
    assert wrong(member, dist=dist) == [
        f"{stem}-py3-none-any.whl: lacks {stem}.dist-info/licenses/LICENSE",
        f"{stem}-py3-none-any.whl: lacks physworld/thresholds.json",
        f"{stem}-py3-none-any.whl: holds physworld/scratch.py, which is not under version control",
        f"{stem}.tar.gz: lacks LICENSE",
    ]


def test_a_tag_that_names_no_member_and_one_of_another_version_are_refused(capsys):
    for tag in ("physfields-0.1.0", "nosuch-v0.1.0", "trainers-v0.1.0", "v0.1.0"):
        with pytest.raises(SystemExit):
            check.main(["--tag", tag])
        assert f"got '{tag}'" in capsys.readouterr().err
    assert check.main(["physworld", "--tag", "physfields-v9.9.9"]) == 1
    said = capsys.readouterr()
    assert "the tag is of physfields, expected physworld" in said.err
    assert "packages/physfields: the tag says 9.9.9, pyproject.toml" in said.err
    assert said.out == ""


def test_every_file_of_others_outside_the_members_stands_in_the_root_s_notices():
    named = check.noticed((ROOT / check.NOTICES).read_text(encoding="utf-8"))
    listed = subprocess.run(["git", "ls-files", "tests/data"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= set(named)
    assert [path for path in named if not (ROOT / path).is_file()] == []
    assert all(f"- {field}: " in lines for lines in named.values() for field in ("what", "from", "licence"))


def test_every_pattern_of_own_files_is_needed():
    files = [path for member in MEMBERS.values() for path in member.files]
    assert [pattern for pattern in check.OURS if not any(check.fnmatch(path, pattern) for path in files)] == []


def test_the_root_s_line_is_the_one_that_installs_all_members_of_the_index():
    words = [check.install_line(member).split()[2] for member in MEMBERS.values() if member.on_index]
    assert f"\npip install {' '.join(words)}\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_members_come_with_all_that_they_draw_in_and_lowest_takes_all_their_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "BUILD", tmp_path / "build")
    for member in MEMBERS.values():
        (tmp_path / f"{member.name}-{member.version}-py3-none-any.whl").touch()
    wheels = install.Wheels(tmp_path, "lowest", "3.11")
    assert set(install.drawn_in([MEMBERS["world"]], MEMBERS)) == {"world", "physworld", "physbackbones", "phystrainers"}
    wheels.options([MEMBERS["world"]])
    bounds = set((tmp_path / "build" / "lowest-direct.txt").read_text().split())
    assert {"diffusers>=0.40", "scipy>=1.13", "av>=15"} <= bounds  # of backbones, physworld, trainers
    constraints = (tmp_path / "build" / "lowest-constraints.txt").read_text().splitlines()
    assert [line.split(" @ ")[0] for line in constraints] == list(MEMBERS)
    wheels.options([MEMBERS["phystrainers"]], "deepspeed")
    assert "deepspeed>=0.18" in (tmp_path / "build" / "lowest-direct.txt").read_text()


def test_an_install_without_wheels_or_of_nobody_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install, "BUILD", tmp_path / "build")
    with pytest.raises(install.Failed, match="run uv build"):
        install.main(["highest", "--dist", str(tmp_path)])
    for member in MEMBERS.values():
        (tmp_path / f"{member.name}-{member.version}-py3-none-any.whl").touch()
    for words, said in ((["--only", "nosuch"], "got nosuch"), (["--tests"], "--tests needs --together")):
        with pytest.raises(SystemExit):
            install.main(["highest", "--dist", str(tmp_path), *words])
        assert said in capsys.readouterr().err


def test_a_failed_wheel_is_named_and_the_others_go_on(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(install, "BUILD", tmp_path / "build")
    for member in MEMBERS.values():
        (tmp_path / f"{member.name}-{member.version}-py3-none-any.whl").touch()

    def load(self, group):
        if group[0].name == "physfields":
            raise install.Failed("python -c import physfields")

    monkeypatch.setattr(install.Wheels, "install", lambda self, group: None)
    monkeypatch.setattr(install.Wheels, "versions", lambda self, group: "torch 1")
    monkeypatch.setattr(install.Wheels, "load", load)
    report = tmp_path / "report.md"
    arguments = ["highest", "--dist", str(tmp_path), "--report", str(report), "--only", "physfields", "physworld"]
    assert install.main(arguments) == 1
    rows = report.read_text(encoding="utf-8").removeprefix(install.HEADER).splitlines()
    assert len(rows) == 2
    assert "| physfields | **failed**: python -c import physfields | torch 1 |" in rows[0]
    assert "| physworld | all modules imported | torch 1 |" in rows[1]
    assert "failed: physfields\n" in capfd.readouterr().err


def test_a_bill_with_gpl_alone_or_with_no_licence_is_refused():
    def component(name, *licences):
        entries = [
            {"expression": text} if " " in text and "::" not in text else {"license": {"name": text}}
            for text in licences
        ]
        return {"name": name, "version": "1", "licenses": entries}

    gpl = "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"
    bill = {
        "components": [
            component("free", "MIT"),
            component("weak", "LGPL-2.1-or-later"),
            component("lesser", "GNU Lesser General Public License v3 (LGPLv3)"),
            component("choice", "MIT OR GPL-3.0-only"),
            component("classified", "License :: OSI Approved :: BSD License", gpl),
            component("transformers"),
            component("strong", "GPL-3.0-only"),
            component("both", "MIT AND AGPL-3.0-only"),
            component("old", gpl),
            component("silent"),
        ]
    }
    assert [line.split()[0] for line in sbom.refused(bill)] == ["strong", "both", "old", "silent"]


def test_examples_of_the_scripts_run():
    for script in (check, install, sbom):
        assert doctest.testmod(script).failed == 0


@pytest.mark.parametrize(("script", "words"), sorted(COMMANDS))
def test_every_command_that_is_written_down_exists(script, words):
    text = (ROOT / script).read_text(encoding="utf-8")
    assert [word for word in re.findall(r"--[a-z]+", words) if f'"{word}"' not in text] == []


@pytest.mark.parametrize("name", ["ci", "release", "weekly"])
def test_a_workflow_may_only_read_but_where_it_says_so(name):
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]
    more = {job: table["permissions"] for job, table in workflow["jobs"].items() if "permissions" in table}
    assert more == ({"index": {"id-token": "write"}, "page": {"contents": "write"}} if name == "release" else {})
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert re.fullmatch(r"[\w./-]+@(v\d+|release/v1|[0-9a-f]{40})", step.get("uses", "a@v1"))
            assert "${{" not in step.get("run", ""), "values reach a shell through env"


def test_nothing_is_published_before_all_checks_have_passed():
    jobs = WORKFLOWS["release"]["jobs"]
    assert {"papers", "checks", "install"} <= set(jobs["index"]["needs"])
    assert {"papers", "checks", "install", "index"} <= set(jobs["page"]["needs"])


def test_the_jobs_of_ci_are_all_parts_of_the_one_script():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (job,) = WORKFLOWS["ci"]["jobs"].values()
    assert job["strategy"]["matrix"]["part"] == re.findall(r"^if in_part (\w+); then$", script, re.M)
    assert job["strategy"]["matrix"]["python"] == list(check.PYTHONS)
