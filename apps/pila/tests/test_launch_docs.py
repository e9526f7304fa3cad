"""The scripts of docs/launch: bash and YAML parse, flags exist, and a Slurm job saves and is queued again."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import typer
import yaml

DOCS = Path(__file__).parents[3] / "docs"
SCRIPTS = sorted(path for path in (DOCS / "launch").iterdir() if path.suffix != ".yaml")
JOB = DOCS / "launch" / "kubernetes.yaml"


def manifest():
    return {part["kind"]: part for part in yaml.safe_load_all(JOB.read_text())}


def container():
    return manifest()["Job"]["spec"]["template"]["spec"]["containers"][0]


def sources():
    """Everything in bash: the scripts, the manifest's, and the blocks of the page."""
    page = re.findall(r"^```(?:bash)?\n(.*?)^```", (DOCS / "launch.md").read_text(), re.S | re.M)
    return [path.read_text() for path in SCRIPTS] + [container()["args"][0]] + page


def commands(script):
    """The words of each command, with continued lines joined and comments gone."""
    joined = re.sub(r"\\\n\s*", " ", script)
    return [re.sub(r"(^|\s)#.*", "", line).split() for line in joined.splitlines()]


def pila_flags():
    click = typer.main.get_command(__import__("pila.cli", fromlist=["app"]).app)
    return {name: {opt for p in c.params for opt in p.opts} for name, c in click.commands.items()}


def torchrun_flags():
    from torch.distributed.run import get_args_parser

    return {option for action in get_args_parser()._actions for option in action.option_strings}


def accelerate_flags():
    from accelerate.commands.launch import launch_command_parser

    return {option for action in launch_command_parser()._actions for option in action.option_strings}


def test_there_is_a_script_for_each_way():
    assert {path.name for path in SCRIPTS} == {"one-machine.sh", "zero2-offload.sh", "two-nodes.sh", "slurm.sbatch"}
    page = (DOCS / "launch.md").read_text()
    assert all(f"launch/{path.name}" in page for path in (*SCRIPTS, JOB))


@pytest.mark.parametrize("number", range(len(sources())))
def test_bash_parses_it(number):
    done = subprocess.run(["bash", "-n"], input=sources()[number], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_flag_exists():
    known = {"torchrun": torchrun_flags(), "accelerate": accelerate_flags()} | pila_flags()
    seen = set()
    for words in (words for script in sources() for words in commands(script)):
        tool = {"machines": "torchrun", "recipe": "train"}.get(re.split(r"\+?=\(", words[0])[0]) if words else None
        for word in words:
            flag = re.sub(r"^\w+\+?=\(|\)$", "", word)
            if flag in ("torchrun", "accelerate", "cache", "train"):
                tool = flag
            elif flag.startswith("-") and tool is not None:
                assert flag in known[tool], (tool, flag)
                seen.add((tool, flag))
    assert {("torchrun", "--rdzv-endpoint"), ("accelerate", "--deepspeed_config_file"), ("train", "--resume")} <= seen
    assert ("cache", "--cache") in seen


def test_every_set_is_a_field_of_the_recipe():
    from pila.config import load_recipe

    given = {word for script in sources() for word in re.findall(r"--set \"?([a-z_.]+=[^\s\")]+)", script)}
    assert len(given) >= 3
    recipe = load_recipe("wan2.1-1.3b", sorted(given))
    assert (recipe.batch, recipe.accumulate) == (1, 1)


def test_the_pods_of_the_job_find_one_another_and_have_time_to_save():
    service, job = manifest()["Service"], manifest()["Job"]["spec"]
    pod = job["template"]["spec"]
    script = container()["args"][0]
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"] == manifest()["Job"]["metadata"]["name"] == "pila"
    assert service["spec"]["selector"] == {"job-name": manifest()["Job"]["metadata"]["name"]}
    assert (
        f"{manifest()['Job']['metadata']['name']}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}" in script
    )
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(re.search(r"--nnodes (\d+)", script)[1])
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == int(re.search(r"--nproc-per-node (\d+)", script)[1])
    assert pod["terminationGracePeriodSeconds"] > int(re.search(r"--shutdown-timeout (\d+)", script)[1])
    assert {v["name"] for v in pod["volumes"]} == {v["name"] for v in container()["volumeMounts"]}


def write(folder, name, text):
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path):
    """A Slurm of one task, and a python that stands for training: it ends on TERM as `fit` does."""
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    write(tools, "srun", 'shift; SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & echo $! > "$LOG.pid"; wait $!')
    write(tools, "scancel", 'echo "scancel $*" >> "$LOG"; kill -TERM "$(cat "$LOG.pid")"')
    write(tools, "scontrol", 'if [ "$1" = show ]; then echo one; echo two; else echo "scontrol $*" >> "$LOG"; fi')
    write(tools, "python", 'echo "$MASTER_ADDR $RANK/$WORLD_SIZE $*" >> "$LOG"\n'
          'if [ "$3" = cache ]; then exit "${CACHE_CODE:-0}"; fi\n'
          'trap \'echo saved >> "$LOG"; exit 143\' TERM; touch "$LOG.training"\n'
          'for _ in $(seq "${STEPS:-500}"); do sleep 0.02; done; echo finished >> "$LOG"')  # fmt: skip
    variables = {"PATH": f"{tools}:/usr/bin:/bin", "LOG": str(log), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    variables |= {"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8"}

    def start(**more):
        return subprocess.Popen(["bash", str(DOCS / "launch" / "slurm.sbatch")], env=variables | more)

    return start, log


def test_a_slurm_job_saves_before_its_time_is_over_and_is_queued_again(cluster):
    start, log = cluster
    job = start()
    deadline = time.monotonic() + 30
    while not Path(f"{log}.training").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    lines = log.read_text().splitlines()
    assert lines[0].startswith("one 0/16 -m pila.cli cache --config wan2.1-1.3b")
    assert lines[1].startswith("one 0/16 -m pila.cli train")
    assert lines[1].endswith("--resume")
    assert lines[2:] == ["scancel --signal=TERM 7.1", "saved", "scontrol requeue 7"]


def test_a_slurm_job_that_is_done_is_not_queued_again_and_one_that_failed_says_so(cluster):
    start, log = cluster
    assert start(STEPS="1").wait(30) == 0
    assert log.read_text().splitlines()[-1] == "finished"
    assert start(CACHE_CODE="1").wait(30) == 1
    assert "requeue" not in log.read_text()
