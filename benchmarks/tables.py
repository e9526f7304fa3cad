"""Write the tables of measurements into the pages: what stands between `<!-- table: NAME -->` and `<!-- end -->`.

    uv run python benchmarks/tables.py            # after a change of gpu/queue.toml or of the results

`queue`    the rows of gpu/queue.toml, in gpu/QUEUE.md
`row N`    what row N measured last, from gpu/results/*.jsonl (the lines that run.sh writes), in README.md
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "gpu"))
import rows
from rows import Row
from work import lines_of

HOME = Path(__file__).resolve().parent
BEGIN, END = "<!-- table: ", "<!-- end -->"
PAGES = ("README.md", "gpu/QUEUE.md")


def measured(row: Row, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the last good run of each of a row's commands, in the order of the commands."""
    found = []
    for command in row.commands:
        own = [line for line in lines if line["row"] == row.id and line["command"] == command]
        good = [line for line in own if line["exit"] == 0 and not line["toy"]]
        last = max((line["date"] for line in good), default="")
        found += [line for line in good if line["date"] == last]
    return found


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (head, ["---"] * len(head), *body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def machine(line: dict[str, Any]) -> str:
    """Where, with what and when a line was measured."""
    m = line["machine"]
    parts = [
        m["gpu"] or "no GPU",
        f"torch {m['torch']}",
        f"diffusers {m['diffusers']}",
        f"transformers {m['transformers']}",
    ]
    return ", ".join([*parts, line["date"][:10], f"commit {line['commit'][:9] or 'unknown'}"])


def table_of(row: Row, lines: Sequence[dict[str, Any]]) -> str:
    """What a row measured, under the machine it was measured on; columns that stay empty are left out."""
    found = measured(row, lines)
    if not found:
        return f"Not measured yet: row {row.id} of [gpu/QUEUE.md](gpu/QUEUE.md), {row.proves.partition(';')[0]}."
    body = [[rows.columns_of(template, line["figures"]) for template in row.columns.values()] for line in found]
    body = [cells for cells in body if any(cells[1:])]  # lines that carry no figure, as of what does not install
    kept = [i for i in range(len(row.columns)) if any(cells[i] for cells in body)]
    head = [list(row.columns)[i] for i in kept]
    where = "; ".join(dict.fromkeys(machine(line) for line in found))
    return f"Row {row.id}: {where}.\n\n{markdown(head, [[cells[i] for i in kept] for cells in body])}"


def queue_of(listed: Sequence[Row], lines: Sequence[dict[str, Any]]) -> str:
    """The queue, with what has been measured."""
    body = []
    for row in listed:
        needs = [f"row {next(other.id for other in listed if item in other.makes)}" for item in row.inputs]
        needs += [] if row.needs.gpu_gib else ["no GPU"]
        needs += [f"{row.needs.gpu_gib:g} GiB of GPU memory"] if row.needs.gpu_gib > 1 else []
        needs += [f"weights of {name}" for name in row.needs.weights] + (["the network"] if row.needs.network else [])
        needs += [f"`${name}`: {what}" for name, what in row.needs.variables.items()]
        needs += [f"`{name}`" for name in row.needs.programs]
        found = measured(row, lines)
        ended = {line["command"] for line in found}
        state = f"{found[-1]['date'][:10]}, {found[-1]['machine']['gpu'] or 'no GPU'}" if found else ""
        state += "" if not found or ended == set(row.commands) else " (in part)"
        commands = "<br>".join(f"`{command}`" for command in row.commands)
        body.append(
            [
                str(row.id),
                commands,
                f"{row.minutes:g}",
                row.proves,
                row.capability,
                "; ".join(dict.fromkeys(needs)),
                state,
            ]
        )
    return markdown(["#", "command", "minutes", "what it proves", "capability", "needs", "measured"], body)


def rewritten(text: str, content: Callable[[str], str]) -> str:
    """A page with new content between its markers.

    Raises:
        ValueError: for a marker without an end.

    >>> print(rewritten("a\\n<!-- table: x -->\\nold\\n<!-- end -->\\nb", str.upper))
    a
    <!-- table: x -->
    X
    <!-- end -->
    b
    """
    first, *parts = text.split(BEGIN)
    out = [first]
    for part in parts:
        name, mark, rest = part.partition(" -->")
        _, end, after = rest.partition(END)
        if not (mark and end):
            raise ValueError(f"expected {END} after {BEGIN}{name.splitlines()[0]}, found none")
        out.append(f"{BEGIN}{name} -->\n{content(name)}\n{END}{after}")
    return "".join(out)


def pages(home: Path = HOME, results: Path | None = None) -> dict[Path, str]:
    """What each page should be, from the queue and the committed results."""
    listed = rows.load()
    files = sorted((results or home / "gpu" / "results").glob("*.jsonl"))
    lines = [line for file in files for line in lines_of(file)]
    by_name = {f"row {row.id}": row for row in listed}

    def content(name: str) -> str:
        if name == "queue":
            return queue_of(listed, lines)
        if name not in by_name:
            raise ValueError(f"expected the table queue or row N of the queue, got {name!r}")
        return table_of(by_name[name], lines)

    return {home / page: rewritten((home / page).read_text(encoding="utf-8"), content) for page in PAGES}


def main() -> None:
    """Rewrite what differs."""
    for path, text in pages().items():
        if path.read_text(encoding="utf-8") != text:
            part = path.with_name(f".{path.name}.part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)
            print(f"{path} written")


if __name__ == "__main__":
    main()
