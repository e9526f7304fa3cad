"""From the outputs of a benchmark's own code to a result."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.official import phygenbench, vbench, vbench2, videophy, videophy2
from bench.official.prompts import PromptList, load
from bench.results import PromptSet, Rater, Result, System, versions

FILES = {
    "videophy": ("sa", "pc", "human"),
    "videophy2": ("sa", "pc", "rule", "human"),
    "phygenbench": ("results",),
    "vbench": ("results",),
    "vbench2": ("results",),
}


def result(benchmark: str, given: Mapping[str, Path], prompts: str | None, clone: Path | None, name: str) -> Result:
    """Read the files at hand, by kind: `sa`, `pc`, `rule` of a rater, `human` labels, `results` of other benchmarks."""
    if benchmark not in FILES:
        raise ValueError(f"expected the benchmark {', '.join(FILES)}, got {benchmark!r}")
    kinds = FILES[benchmark]
    if strange := sorted(given.keys() - set(kinds)):
        raise ValueError(f"--{strange[0]} does not go with {benchmark}; it reads {', '.join(f'--{k}' for k in kinds)}")
    if not given:
        raise ValueError(f"expected an output of {benchmark}'s code: {', '.join(f'--{kind} FILE' for kind in kinds)}")
    if "human" in given and len(given) > 1:
        raise ValueError("expected --human alone: people's labels and a rater's are two results")
    if benchmark in ("videophy", "videophy2"):
        return _videophy(benchmark, given, load(prompts or benchmark), name)
    if prompts is not None:
        raise ValueError(f"--prompts goes with videophy and videophy2; {benchmark} scores its own prompts alone")
    if benchmark == "phygenbench":
        if clone is None:
            raise ValueError("PhyGenBench's prompts are not shipped: name a clone of its repository with --clone")
        listed = phygenbench.prompts(clone)
        system = phygenbench.system(name, listed, phygenbench.read(given["results"], name, listed))
        return _made(benchmark, listed.record, Rater(name=phygenbench.RATER, kind="official"), [system], [])
    found = vbench.dimensions(given["results"])
    two = benchmark == "vbench2"
    system, notes = (vbench2 if two else vbench).system(name, found)
    rater = Rater(name=vbench2.RATER if two else vbench.RATER, kind="official")
    asked = PromptSet(name="VBench-2.0" if two else "VBench", count=len(system.items))
    return _made(benchmark, asked, rater, [system], notes)


def _videophy(benchmark: str, given: Mapping[str, Path], listed: PromptList, name: str) -> Result:
    people = Rater(name="people", kind="human")
    if benchmark == "videophy":
        if "human" in given:
            return _made(benchmark, listed.record, people, videophy.board(given["human"]), [])
        scores = {task: videophy.read(path, task) for task, path in given.items()}
        system, notes = videophy.system(name, listed, scores.get("sa"), scores.get("pc"))
        return _made(benchmark, listed.record, Rater(name=videophy.RATER, kind="official"), [system], notes)
    if "human" in given:
        return _made(benchmark, listed.record, people, videophy2.people(given["human"]), [])
    sa, pc = (videophy2.read(given[task]) if task in given else None for task in ("sa", "pc"))
    rules = videophy2.read_rules(given["rule"]) if "rule" in given else None
    system, notes = videophy2.system(name, listed, sa, pc, rules)
    return _made(benchmark, listed.record, Rater(name=videophy2.RATER, kind="official"), [system], notes)


def _made(benchmark: str, asked: PromptSet, rater: Rater, systems: Sequence[System], notes: Sequence[str]) -> Result:
    return Result(
        benchmark=benchmark,
        prompt_set=asked,
        rater=rater,
        systems=tuple(systems),
        versions=versions("scipy"),
        notes=tuple(notes),
    )
