"""Check that members can be released: papers, names, version, changelog, and with a tag that all of them agree.

    python release/check.py                                # every member
    python release/check.py --dist build/dist              # and what their wheels and sdists hold, as CI does
    python release/check.py --tag physfields-v0.1.0 --notes notes.md    # one that is released: dated, tagged, complete

It lists all that is wrong and ends with 1; else it prints package, version and index: whether that package goes to the
package index.
"""

import argparse
import datetime
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from members import ROOT, Member, members

NOTICES = "THIRD_PARTY_NOTICES.md"
TAG = re.compile(r"(?P<name>[a-z]+)-v(?P<version>\d+\.\d+\.\d+)")
ENTRY = re.compile(r"^## (?P<version>\d+\.\d+\.\d+) \((?P<when>unreleased|\d{4}-\d\d-\d\d)\)$")
PYTHONS = ("3.11", "3.12")

# Files of a member that are no Python and were made in this project; others must stand in its notices.
OURS = (
    "pyproject.toml", "LICENSE", "*.md", "*/py.typed",
    "src/*/recipes/*", "src/*/bundles/*", "src/*/weights/*", "src/*/configs/*", "src/*/templates/*",
    "src/bench/published.yaml",  # figures of papers, each with its source
    "src/trainers/gpus.yaml",  # figures of data sheets, each with its source
    "src/physworld/thresholds.json", "src/physexperts/keywords.json", "src/prophy/data/*", "examples/clips.json",
)  # fmt: skip


def entry(text: str) -> tuple[str, str, str]:
    """Give the version, the date (or "unreleased") and the lines of a changelog's top entry; ValueError without one."""
    parts = re.split(r"^(?=## )", text, flags=re.M)
    heading, _, body = parts[1].partition("\n") if len(parts) > 1 else ("no entry", "", "")
    found = ENTRY.match(heading)
    if not found:
        raise ValueError(f"expected '## X.Y.Z (unreleased)' or '## X.Y.Z (YYYY-MM-DD)' on top, got {heading!r}")
    if found["when"] != "unreleased":
        datetime.date.fromisoformat(found["when"])
    return found["version"], found["when"], body.strip()


def changelog(member: Member, *, released: bool) -> Iterator[str]:
    """Say what is wrong with the top entry of a member's changelog."""
    try:
        version, when, body = entry((member.folder / "CHANGELOG.md").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"CHANGELOG.md: {error}"
        return
    if version != member.version:
        yield f"CHANGELOG.md: expected {member.version} on top, the version in pyproject.toml, got {version}"
    if not body:
        yield f"CHANGELOG.md: expected lines under {version}, got none"
    if released and when == "unreleased":
        yield f"CHANGELOG.md: expected a date, got 'unreleased': write '## {version} (YYYY-MM-DD)'"
    if when != "unreleased" and datetime.date.fromisoformat(when) > datetime.datetime.now(datetime.UTC).date():
        yield f"CHANGELOG.md: expected a day that has come, got {when}"


def papers(member: Member) -> Iterator[str]:
    """Say what is wrong with licence and notices: a file that others made must stand in the member's notices."""
    licence = member.folder / "LICENSE"
    if not licence.is_file():
        yield "LICENSE: missing; copy the one of the root"
    elif licence.read_bytes() != (ROOT / "LICENSE").read_bytes():
        yield "LICENSE: differs from the one of the root"
    notices = member.folder / NOTICES
    expected = ["LICENSE", NOTICES] if notices.is_file() else ["LICENSE"]
    if member.project.get("license-files") != expected:
        yield f"pyproject.toml: expected license-files = {expected}, got {member.project.get('license-files')}"
    if member.project.get("license") != "Apache-2.0":
        yield f"pyproject.toml: expected license = 'Apache-2.0', got {member.project.get('license')!r}"
    text = notices.read_text(encoding="utf-8") if notices.is_file() else ""
    named = noticed(text)
    for path in member.files:
        if path.endswith(".py"):
            foreign = "Copyright" in (member.folder / path).read_text(encoding="utf-8")
        else:
            foreign = not any(fnmatch(path, pattern) for pattern in OURS)
        if foreign and not any(fnmatch(path, pattern) for pattern in named):
            yield f"{path}: name it in {NOTICES}; or in OURS of release/check.py, if it was made here"
    for pattern, lines in named.items():
        if not any(fnmatch(path, pattern) for path in member.files):
            yield f"{NOTICES}: {pattern} names no file"
        for field in ("what", "from", "licence"):
            if not re.search(rf"^- {field}: \S", lines, re.M):
                yield f"{NOTICES}: {pattern} has no line '- {field}: ...'"


def noticed(text: str) -> dict[str, str]:
    """Give the lines of notices by the pattern of files that they are about: those in backticks in a heading."""
    named: dict[str, str] = {}
    for part in re.split(r"^(?=## )", text, flags=re.M)[1:]:
        heading, _, lines = part.partition("\n")
        named |= dict.fromkeys(re.findall(r"`([^`]+)`", heading), lines)
    return named


def metadata(member: Member) -> Iterator[str]:
    """Say what the index would miss."""
    table = member.project
    for field in ("description", "readme", "keywords", "classifiers", "requires-python"):
        if not table.get(field):
            yield f"pyproject.toml: {field} is missing"
    wanted = {"Typing :: Typed", *(f"Programming Language :: Python :: {python}" for python in PYTHONS)}
    missing = sorted(wanted - set(table.get("classifiers", [])))
    if missing:
        yield f"pyproject.toml: classifiers lack {', '.join(missing)}"
    if not (member.folder / "src" / member.module / "py.typed").is_file():
        yield f"src/{member.module}/py.typed: missing"
    unbounded = [r for group in requirements(member).values() for r in group if ">=" not in r]
    if unbounded:
        yield f"pyproject.toml: no lower bound for {', '.join(unbounded)}"


def requirements(member: Member) -> dict[str, list[str]]:
    """What a member requires, by extra; '' is without any."""
    return {"": member.project["dependencies"]} | member.project.get("optional-dependencies", {})


def install_line(member: Member) -> str:
    """The line by which a member is installed: from the index, or its wheel from the page of its release."""
    return f"pip install {member.name if member.on_index else f'{member.name}-{member.version}-py3-none-any.whl'}"


def readme(member: Member) -> Iterator[str]:
    """Say whether the README shows the line that is tested."""
    page, line = member.folder / "README.md", install_line(member)
    if not re.search(rf"^{re.escape(line)}( *#.*)?$", page.read_text(encoding="utf-8"), re.M):
        yield f"README.md: expected the line {line!r}"


def built(member: Member, dist: Path) -> Iterator[str]:
    """Say what wheel and sdist lack, or hold though they should not."""
    stem = f"{member.name}-{member.version}"
    wheel, sdist = dist / f"{stem}-py3-none-any.whl", dist / f"{stem}.tar.gz"
    papers = member.project["license-files"]
    sources = [path.removeprefix("src/") for path in member.files if path.startswith("src/")]
    if wheel.is_file():
        held = set(zipfile.ZipFile(wheel).namelist())
        wanted = {*sources, *(f"{stem}.dist-info/licenses/{paper}" for paper in papers)}
        yield from (f"{wheel.name}: lacks {path}" for path in sorted(wanted - held))
        strange = {n for n in held if not n.endswith("/") and not n.startswith(f"{stem}.dist-info/")} - set(sources)
        yield from (f"{wheel.name}: holds {path}, which is not under version control" for path in sorted(strange))
    else:
        yield f"{wheel.name}: not in {dist}"
    if sdist.is_file():
        with tarfile.open(sdist) as archive:
            held = {name.partition("/")[2] for name in archive.getnames()}
        wanted = {*(f"src/{path}" for path in sources), *papers, "README.md", "pyproject.toml"}
        yield from (f"{sdist.name}: lacks {path}" for path in sorted(wanted - held))
    else:
        yield f"{sdist.name}: not in {dist}"


def problems(member: Member, *, version: str | None = None, dist: Path | None = None) -> Iterator[str]:
    """Say all that is wrong with a member; `version` is that of a tag, by which it is released."""
    if version is not None and version != member.version:
        yield f"the tag says {version}, pyproject.toml {member.version}"
    yield from changelog(member, released=version is not None)
    yield from papers(member)
    yield from metadata(member)
    yield from readme(member)
    if dist is not None:
        yield from built(member, dist)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="*", help="names of distributions; by default that of the tag, or all")
    parser.add_argument("--tag", help="the tag of a release, NAME-vX.Y.Z")
    parser.add_argument("--dist", type=Path, help="a folder with wheel and sdist, which are looked into")
    parser.add_argument(
        "--notes", type=Path, help="where to write the changelog's top entry, for the page of the release"
    )
    asked = parser.parse_args(arguments)
    known = members()
    wrong: list[str] = []
    names, version = asked.package, None
    if asked.tag is not None:
        tag = TAG.fullmatch(asked.tag)
        if tag is None or tag["name"] not in known:
            parser.error(f"expected a tag NAME-vX.Y.Z with a name among {', '.join(known)}, got {asked.tag!r}")
        if names not in ([], [tag["name"]]):
            wrong.append(f"the tag is of {tag['name']}, expected {' '.join(names)}")
        names, version = [tag["name"]], tag["version"]
    if asked.notes is not None and version is None:
        parser.error("--notes is of one release: give its --tag")
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"expected names among {', '.join(known)}, got {', '.join(unknown)}")
    for name in names or known:
        member = known[name]
        folder = member.folder.relative_to(ROOT)
        wrong += [f"{folder}: {problem}" for problem in problems(member, version=version, dist=asked.dist)]
        if not wrong:
            print(f"package={name}\nversion={member.version}\nindex={str(member.on_index).lower()}")
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong and asked.notes is not None:
        asked.notes.write_text(entry((known[names[0]].folder / "CHANGELOG.md").read_text(encoding="utf-8"))[2] + "\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
