"""VideoPhy-2: ratings, Joint, rules with what cannot be judged, hardness that is unknown, and raters run outside."""

import sys
from pathlib import Path

import pytest

from bench import results
from bench.official import folder, prompts, tables, videophy2
from bench.official.rater import SCRIPTS, Rater

DATA = Path(__file__).parents[1] / "data" / "videophy2"


def clips(*captions):
    return [folder.Clip(Path(f"/v/{i}.mp4"), prompts.Prompt(i, c), 0) for i, c in enumerate(captions)]


def test_the_rater_gets_the_tables_of_the_official_examples(tmp_path):
    examples = tables.records(DATA / "sa_pc.csv", "caption", "videopath")
    made = videophy2.tables_for(clips(*(row["caption"] for row in examples)))["sa_pc.csv"]
    (tmp_path / "made.csv").write_text(made)
    ours = tables.records(tmp_path / "made.csv", "caption", "videopath")
    assert list(ours[0]) == list(examples[0])
    assert [row["caption"] for row in ours] == [row["caption"] for row in examples]


def test_the_official_examples_have_their_numbers():
    sa, pc = videophy2.read(DATA / "output_sa.csv"), videophy2.read(DATA / "output_pc.csv")
    assert list(sa.scores.values()) == [5, 5, 5, 5, 4, 5, 5, 5, 4, 4]
    assert list(pc.scores.values()) == [4, 5, 4, 5, 4, 4, 4, 4, 4, 4]
    rules = videophy2.read_rules(DATA / "output_rule.csv")
    system, notes = videophy2.system("examples", prompts.load("videophy2"), sa, pc, rules)
    values = {name: metric.value for name, metric in system.metrics.items()}
    assert values == {
        "sa_mean": 4.7,
        "pc_mean": 4.2,
        "sa_at_4": 1.0,
        "pc_at_4": 1.0,
        "joint_at_4": 1.0,
        "rule": 8 / 9,
        "rule_undecidable": 0.1,
    }
    assert {name: (m.n, m.n_valid) for name, m in system.metrics.items()}["rule"] == (10, 9)
    assert system.metrics["joint_at_4"].n == 10  # the ten videos of rules were not rated
    assert notes == ["10 of 20 videos belong to no prompt of VideoPhy-2 test", "581 of 591 prompts have no video here"]


def test_prompts_whose_hardness_nobody_told_are_neither_hard_nor_easy():
    groups = [prompt.group for prompt in prompts.load("videophy2").prompts]
    assert [groups.count(group) for group in ("hard", "not hard", "hardness unknown")] == [82, 188, 321]
    sa, pc = videophy2.read(DATA / "output_sa.csv"), videophy2.read(DATA / "output_pc.csv")
    system, _ = videophy2.system("examples", prompts.load("videophy2"), sa, pc, None)
    assert {name: group["joint_at_4"].n for name, group in system.groups.items()} == {
        "hardness unknown": 5,
        "not hard": 5,
    }


def test_people_s_labels_give_joint_and_rules_of_the_sample(run, tmp_path):
    labels = prompts.DATA / "videophy2" / "human_sample.jsonl"
    done = run("from-official", "--benchmark", "videophy2", "--human", labels, "--out", tmp_path / "board.json")
    assert done.exit_code == 0, done.output
    board = results.read(tmp_path / "board.json")
    assert [s.metrics["joint_at_4"].n for s in board.systems] == [44, 47, 47, 43, 45, 45, 47]
    every = videophy2.figures([item for system in board.systems for item in system.items])
    assert every["rule"].value == 716 / (133 + 716)
    assert every["rule_undecidable"].value == 51 / 900
    rows = tables.lines(labels)
    assert every["joint_at_4"].value == sum(row["joint"] for row in rows) / 318  # upstream's own column


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("4", 4),
        ("The video scores five.", 5),
        ("None", 1),  # "one" is in it
        ("10", 0),
        ("I rate 1 to 5: 4", 1),
        ("no idea", 0),
        ("Zero to five: 5", 0),
    ],
)
def test_the_official_parser_takes_the_first_number_that_is_anywhere(answer, rating):
    assert videophy2.official_rating(answer) == rating


def test_zeros_are_below_4_as_officially_and_their_number_is_said(tmp_path):
    path = tmp_path / "pc.csv"
    path.write_text((DATA / "output_pc.csv").read_text().replace(",5.0", ",0.0"))
    system, notes = videophy2.system("x", prompts.load("videophy2"), None, videophy2.read(path), None)
    assert system.metrics["pc_at_4"].value == 0.8
    assert notes[0] == "PC: 2 ratings of 0: answers that the rater's parser could not read or misread"


def test_doubled_rows_count_once_and_labels_off_the_scale_nowhere(tmp_path):
    body = (DATA / "output_rule.csv").read_text()
    path = tmp_path / "rule.csv"
    path.write_text(body + body.split("\n", 1)[1].replace(",2.0", ",4.0"))
    rules = videophy2.read_rules(path)
    system, notes = videophy2.system("x", prompts.load("videophy2"), None, None, rules)
    assert (system.metrics["rule"].n, system.metrics["rule"].n_valid) == (10, 9)
    assert system.metrics["rule_undecidable"].value == 0.0
    assert notes[:2] == [
        "rule: 10 doubled rows; the last one of each video and rule counts",
        "rule: 1 labels of 3 to 5 are an accident of the rater's parser and count nowhere",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace(",4.0", ",0.77", 1), "VideoPhy's rater gives 0..1"),
        (lambda text: text.replace("score", "rating"), "score is missing"),
        (lambda text: text.rstrip().rsplit(",", 1)[0], "expected 4 columns in row 11"),
        (lambda text: text.split("\n")[0], "got none"),
    ],
)
def test_an_output_that_is_not_the_rater_s_is_refused(tmp_path, change, said):
    path = tmp_path / "sa.csv"
    path.write_text(change((DATA / "output_sa.csv").read_text()))
    with pytest.raises(ValueError, match=said):
        videophy2.read(path)


def test_rules_are_asked_of_videos_that_are_there(tmp_path):
    table = tmp_path / "rules.csv"
    table.write_text('videopath,rule\n0.mp4,"It falls, fast."\nelsewhere/1.mp4,It stops.\n')
    made = videophy2.tables_for(clips("a", "b"), table)["rule.csv"]
    assert made == 'videopath,rule\n/v/0.mp4,"It falls, fast."\n/v/1.mp4,It stops.\n'
    with pytest.raises(ValueError, match="expected rules for videos that are there"):
        videophy2.tables_for(clips("a"), table)


# -- the raters, out of process

FAKE = """
import argparse, csv, os, sys, time
parser = argparse.ArgumentParser()
for name in ("input_csv", "output_csv", "checkpoint", "task"):
    parser.add_argument("--" + name)
args = parser.parse_args()
mode = open(os.path.join(args.checkpoint, "mode")).read()
assert "VIRTUAL_ENV" not in os.environ and os.path.samefile(os.getcwd(), os.path.dirname(__file__))
rows = list(csv.DictReader(open(args.input_csv, newline="")))
if mode == "fail":
    sys.exit("CUDA out of memory")
if mode == "hang":
    time.sleep(60)
"""
FIRST = (
    FAKE
    + """
for i, row in enumerate(rows):
    if mode == "die" and i == 2:
        open(args.output_csv, "a").write(rows[i]["videopath"] + ',"The follow')
        sys.exit(9)
    with open(args.output_csv, "a", newline="") as file:
        csv.writer(file).writerow([row["videopath"], row["caption"], 0.25 * (i + 1)])
"""
)
SECOND = (
    FAKE
    + """
assert args.task in ("sa", "pc", "rule")
rows = rows[:2] if mode == "short" else rows
with open(args.output_csv, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["", *rows[0], "score"])
    writer.writerows([i, *row.values(), 4.0 if args.task != "rule" else 1.0] for i, row in enumerate(rows))
"""
)


@pytest.fixture
def rating(run, tmp_path, film, monkeypatch):
    """Tables of three videos, a clone with fake scripts, and a way to run a rater in a mode."""
    monkeypatch.setenv("VIRTUAL_ENV", "/ours")
    (tmp_path / "asked.csv").write_text("caption\na ball\na wall\na cup\n")
    for i in range(3):
        film(tmp_path / "videos" / f"000{i}.mp4", 50 * i)
    checkpoint = tmp_path / "weights"
    checkpoint.mkdir()
    (checkpoint / "pytorch_model.bin").write_bytes(b"never opened here")
    for benchmark, words in (("videophy", FIRST), ("videophy2", SECOND)):
        script = tmp_path / "clone" / SCRIPTS[benchmark]
        script.parent.mkdir(parents=True)
        script.write_text(words)
        asked = ("--prompts", tmp_path / "asked.csv", "--videos", tmp_path / "videos", "--out", tmp_path / benchmark)
        assert run("to-official", "--benchmark", benchmark, *asked).exit_code == 0

    def rate(benchmark, mode, *more):
        (checkpoint / "mode").write_text(mode)
        places = ("--tables", tmp_path / benchmark, "--clone", tmp_path / "clone", "--checkpoint", checkpoint)
        out = ("--prompts", tmp_path / "asked.csv", "--out", tmp_path / "out")
        return run("rate", "--benchmark", benchmark, "--python", sys.executable, *places, *out, *more)

    return rate


def test_a_rater_runs_in_its_own_environment_and_its_scores_become_a_result(rating, tmp_path):
    done = rating("videophy2", "good", "--name", "mine")
    assert done.exit_code == 0, done.output
    result = results.read(tmp_path / "out")
    assert (result.rater.name, result.rater.kind, result.prompt_set.name) == (
        "VideoPhy-2 AutoEval",
        "official",
        "asked",
    )
    assert result.system("mine").metrics["joint_at_4"].value == 1.0
    assert rating("videophy2", "fail").exit_code == 0  # nothing is left to rate


def test_a_rater_that_was_killed_goes_on_with_the_rows_it_lacks(rating, tmp_path):
    done = rating("videophy", "die")
    assert done.exit_code == 1
    assert "status 9" in done.output
    assert rating("videophy", "good").exit_code == 0
    scores = [row[2] for row in tables.rows(tmp_path / "out" / "sa.csv")]
    assert scores == ["0.25", "0.5", "0.25"]  # the third row was scored alone, and the torn one is gone
    assert len(results.read(tmp_path / "out").systems[0].items) == 3


def test_a_rater_that_fails_or_leaves_rows_out_is_an_error_with_its_last_words(rating, tmp_path):
    assert "CUDA out of memory" in rating("videophy2", "fail").output
    short = rating("videophy2", "short")
    assert "expected scores for 3 rows" in short.output
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_rater_without_script_weights_or_interpreter_says_what_to_fetch(tmp_path):
    clone, weights = tmp_path / "clone", tmp_path / "weights"
    with pytest.raises(ValueError, match="expected the interpreter"):
        Rater("videophy", tmp_path / "python", clone, weights)
    with pytest.raises(ValueError, match="expected a clone of"):
        Rater("videophy", Path(sys.executable), clone, weights)
    script = clone / SCRIPTS["videophy2"]
    script.parent.mkdir(parents=True)
    script.touch()
    with pytest.raises(ValueError, match="videophy_2_auto with git lfs"):
        Rater("videophy2", Path(sys.executable), clone, weights)


def test_a_rater_that_hangs_is_ended_with_all_it_started(rating, tmp_path):
    (tmp_path / "weights" / "mode").write_text("hang")
    rater = Rater("videophy2", Path(sys.executable), tmp_path / "clone", tmp_path / "weights", timeout_s=0.5)
    with pytest.raises(ValueError, match="took longer than"):
        rater.run("sa", tmp_path / "videophy2" / "sa_pc.csv", tmp_path / "out" / "sa.csv")
