"""VideoPhy: tables for its rater, both readings of its scores, the published human board, and sound folders."""

import csv
import gzip
import hashlib
from pathlib import Path

import pytest

from bench import results
from bench.official import folder, prompts, tables, videophy

DATA = Path(__file__).parents[1] / "data" / "videophy"
CAPTIONS = ("Honey runs off a spoon.", "A ball hits a wall.", "Milk, poured into tea.")
BOARD = {  # the README's human leaderboard at 01d366c: SA=1 and PC=1, SA=1, PC=1, as it stands there
    "CogVideoX-5B": (39.6, 63.3, 53.0),
    "pika": (19.7, 41.1, 36.5),
    "vc2": (19.0, 48.5, 34.6),
    "CogVideoX-2B": (18.6, 47.2, 34.1),
    "lavie": (15.7, 48.7, 28.0),
    "Dream Machine (LumaAI)": (13.6, 61.9, 21.8),
    "svd": (11.9, 42.4, 30.8),
    "zeroscope": (11.9, 30.2, 32.6),
    "gen2": (7.6, 26.6, 27.2),
    "opensora": (4.9, 18.0, 23.5),
}


@pytest.fixture
def asked(tmp_path) -> Path:
    path = tmp_path / "asked.csv"
    path.write_text("caption\n" + "".join(f'"{caption}"\n' for caption in CAPTIONS))
    return path


@pytest.fixture
def videos(tmp_path, film) -> Path:
    """One sound video a prompt, called as the authors call theirs."""
    for i, caption in enumerate(CAPTIONS):
        film(tmp_path / "videos" / (caption.replace(" ", "_") + f"_{i % 2}.mp4"), 40 * i)
    return tmp_path / "videos"


def marks(path: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in path.iterdir()}


def test_the_rater_gets_the_prompts_that_its_own_code_writes():
    examples = tables.records(DATA / "example.csv", "videopath", "caption")
    clips = [
        folder.Clip(Path(row["videopath"]), prompts.Prompt(i, row["caption"]), 0) for i, row in enumerate(examples)
    ]
    for name, made in videophy.tables_for(clips).items():
        ours = list(csv.reader(made.splitlines(keepends=True)))
        assert [row[1] for row in ours] == [row[1] for row in tables.rows(DATA / name)]
        assert ours[0] == ["videopath", "caption"]


def test_the_official_example_has_its_numbers_under_both_readings():
    sa = videophy.read(DATA / "videocon_physics_sa_testing.csv", "sa")
    pc = videophy.read(DATA / "videocon_physics_pc_testing.csv", "pc")
    system, notes = videophy.system("examples", prompts.load("videophy"), sa, pc)
    metrics = system.metrics
    assert list(pc.scores.values()) == [0.94140625, 0.5, 0.22265625, 0.1328125, 0.1064453125, 0.62109375, 0.59375]
    assert metrics["pc_mean"].value == pytest.approx(3.1181640625 / 7)
    assert metrics["pc_at_half"].value == 4 / 7  # a score of exactly one half counts
    assert metrics["sa_at_half"].value == metrics["joint_at_half"].value == 1 / 7  # coffee and milk alone
    assert system.groups["solid_fluid"]["pc_at_half"].n == 1
    assert notes == ["6 of 7 videos belong to no prompt of VideoPhy test", "343 of 344 prompts have no video here"]


def test_the_human_labels_regenerate_the_published_board(run, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_bytes(gzip.decompress((DATA / "human_labels.csv.gz").read_bytes()))
    done = run("from-official", "--benchmark", "videophy", "--human", labels, "--out", tmp_path / "board")
    assert done.exit_code == 0, done.output
    board = results.read(tmp_path / "board")
    assert board.rater.kind == "human"
    assert {system.name for system in board.systems} == BOARD.keys()
    for system in board.systems:
        ours = [100 * system.metrics[name].value for name in ("joint", "sa", "pc")]
        assert ours == pytest.approx(BOARD[system.name], abs=0.11)  # the board cuts, or rounds to whole figures
        assert sum(group["sa"].n for group in system.groups.values()) == system.metrics["sa"].n
    five = board.system("CogVideoX-5B")
    assert {state: group["joint"].n for state, group in five.groups.items()} == {
        "fluid_fluid": 55,
        "solid_fluid": 145,
        "solid_solid": 143,
    }


def test_rows_that_a_second_run_appended_count_once_and_the_last_one_counts(tmp_path):
    once = (DATA / "videocon_physics_pc_testing.csv").read_text()
    twice = tmp_path / "twice.csv"
    twice.write_text(once + once.replace("0.94140625", "0.25"))
    scores = videophy.read(twice, "pc")
    assert (len(scores.scores), scores.doubled, scores.changed) == (7, 7, 1)
    assert next(iter(scores.scores.values())) == 0.25
    _, notes = videophy.system("x", prompts.load("videophy"), None, scores)
    assert notes[0] == "PC: 7 doubled rows, 1 of them with another score; the last one of each video counts"


@pytest.mark.parametrize(
    ("file", "task", "change", "said"),
    [
        ("sa", "pc", lambda text: text, "expected the prompt of PC in row 1"),
        ("pc", "pc", lambda text: text.rstrip()[:-8], "got 2 columns"),  # the run was killed in its last row
        ("pc", "pc", lambda text: text.rstrip()[:-14], "was it cut off"),
        ("pc", "pc", lambda text: text.replace("0.94140625", "4.0"), "VideoPhy-2's rater gives 1..5"),
        ("pc", "pc", lambda text: text.replace("0.94140625", "good"), "expected a score"),
        ("pc", "pc", lambda text: text.replace("0.94", "\0"), "zero bytes"),
        ("pc", "pc", lambda text: "", "got none"),
    ],
)
def test_an_output_that_is_not_the_tasks_is_refused_with_its_row(tmp_path, file, task, change, said):
    path = tmp_path / "scores.csv"
    path.write_text(change((DATA / f"videocon_physics_{file}_testing.csv").read_text()))
    with pytest.raises(ValueError, match=said):
        videophy.read(path, task)


def test_a_score_that_is_no_number_counts_in_no_figure(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text((DATA / "videocon_physics_pc_testing.csv").read_text().replace("0.94140625", "nan"))
    system, notes = videophy.system("x", prompts.load("videophy"), None, videophy.read(path, "pc"))
    assert (system.metrics["pc_at_half"].n, system.metrics["pc_at_half"].n_valid) == (7, 6)
    assert system.metrics["pc_at_half"].value == 3 / 6
    assert "PC: 1 scores are not numbers and count nowhere" in notes


def test_a_sound_folder_gives_tables_and_scores_go_back_to_their_prompts(run, tmp_path, asked, videos):
    before = marks(videos)
    order = ("to-official", "--benchmark", "videophy", "--prompts", asked, "--videos", videos, "--out", tmp_path / "in")
    assert run(*order).exit_code == 0
    assert run(*order).exit_code == 0  # the same again is no conflict
    assert marks(videos) == before
    for task, name in (("sa", "sa_testing.csv"), ("pc", "physics_testing.csv")):
        rows = tables.records(tmp_path / "in" / name, "videopath", "caption")
        assert all(Path(row["videopath"]).is_file() for row in rows)
        with (tmp_path / f"{task}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([row["videopath"], row["caption"], 0.3 + 0.2 * i] for i, row in enumerate(rows))
    given = ("--sa", tmp_path / "sa.csv", "--pc", tmp_path / "pc.csv", "--prompts", asked)
    done = run("from-official", "--benchmark", "videophy", *given, "--name", "mine", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    result = results.read(tmp_path / "out")
    assert (result.prompt_set.name, result.rater.name) == ("asked", "VideoCon-Physics")
    assert [(i.prompt, i.seed) for i in result.system("mine").items] == [(caption, None) for caption in CAPTIONS]
    assert result.system("mine").metrics["joint_at_half"].value == pytest.approx(2 / 3)


def test_everything_that_is_wrong_with_a_folder_is_listed_and_nothing_is_touched(run, tmp_path, film):
    asked = tmp_path / "asked.csv"
    asked.write_text("caption\n" + "".join(f"prompt {i}\n" for i in range(8)))
    videos = tmp_path / "videos"
    for i in range(4):
        film(videos / f"000{i}.mp4")
    film(videos / "0004.mp4", fps=12.0)
    film(videos / "0005.mp4", size=48)
    film(videos / "0006.mp4", frames=4)
    film(videos / "=HYPERLINK(1).mp4")
    whole = film(tmp_path / "whole.mp4", frames=40).read_bytes()
    (videos / "0007.mp4").write_bytes(whole[: len(whole) - 100])
    before = marks(videos)
    out = tmp_path / "out"
    order = ("to-official", "--benchmark", "videophy2", "--prompts", asked, "--videos", videos, "--out", out)
    done = run(*order)
    assert done.exit_code == 1
    assert [file.name for file in out.iterdir()] == ["problems.csv"]
    found = {(row["problem"], row["name"]) for row in tables.records(out / "problems.csv", "problem", "name", "what")}
    assert found >= {
        ("rate", "0004.mp4"),
        ("size", "0005.mp4"),
        ("length", "0006.mp4"),
        ("unreadable", "0007.mp4"),
        ("extra", "'=HYPERLINK(1).mp4"),  # no formula in a spreadsheet
        *(("missing", f"000{i}") for i in range(4, 8)),
    }
    assert len(found) == 9
    assert run(*order, "--partial").exit_code == 0
    assert len(tables.records(out / "sa_pc.csv", "caption", "videopath")) == 4
    assert marks(videos) == before


def test_what_every_video_should_be_can_be_said(run, tmp_path, asked, videos):
    listed = prompts.load(str(asked))
    clips, problems = folder.check(videos, listed, folder.Wanted(fps=24.0))
    assert not clips
    assert {p.text for p in problems if p.kind == "rate"} == {"expected 24 fps as asked, got 8"}
    order = ("to-official", "--benchmark", "videophy", "--prompts", asked, "--videos", videos, "--out", tmp_path / "in")
    assert "expected --size WIDTHxHEIGHT" in run(*order, "--size", "32").output
    assert run(*order, "--size", "32x32", "--fps", 8, "--frames", 5).exit_code == 0


def test_a_second_video_of_a_prompt_is_one_too_many_unless_asked_for(asked, videos, film):
    film(videos / "A_ball_hits_a_wall_7.mp4")
    listed = prompts.load(str(asked))
    clips, problems = folder.check(videos, listed, folder.Wanted())
    assert (len(clips), [(p.kind, p.name) for p in problems]) == (3, [("extra", "A_ball_hits_a_wall_7.mp4")])
    clips, problems = folder.check(videos, listed, folder.Wanted(samples=2))
    assert len(clips) == 4
    assert [p.text for p in problems] == [f"1 sound videos of 2 for {CAPTIONS[i]!r}" for i in (0, 2)]


@pytest.mark.parametrize(
    ("stem", "meant"),
    [
        ("0001", (1, 0)),
        ("0001_3", (1, 3)),
        ("A_ball_hits_a_wall", (1, 0)),
        ("A_ball_hits_a_wall._1", (1, 1)),
        ("A ball hits a wall.-4", (1, 4)),
        ("Cafe\u0301_1", (3, 1)),  # e and its accent apart, as macOS writes them
        ("1", None),
        ("A_ball_hits_a_wall_x", None),
    ],
)
def test_a_name_means_one_prompt_or_none(stem, meant):
    captions = (*CAPTIONS, "Caf\u00e9.")
    listed = prompts.PromptList("few", tuple(prompts.Prompt(i, caption) for i, caption in enumerate(captions)))
    found = folder.owner(stem, listed)
    assert (found and (found[0].number, found[1])) == meant


def test_a_manifest_names_other_files_and_never_leads_out_of_the_folder(tmp_path, asked, film):
    videos = tmp_path / "videos"
    film(videos / "a" / "clip.mp4")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"videopath,caption\na/clip.mp4,{CAPTIONS[0]}\nb.mp4,{CAPTIONS[1]}\na/clip.mp4,no caption\n")
    clips, problems = folder.check(videos, prompts.load(str(asked)), folder.Wanted(), manifest=manifest)
    assert [(clip.prompt.number, clip.path.name) for clip in clips] == [(0, "clip.mp4")]
    assert ("missing", "b.mp4") in {(p.kind, p.name) for p in problems}
    film(tmp_path / "secret.mp4")
    for path in ("../secret.mp4", str(tmp_path / "secret.mp4")):
        manifest.write_text(f"videopath,caption\n{path},{CAPTIONS[0]}\n")
        with pytest.raises(ValueError, match="expected a path inside"):
            folder.check(videos, prompts.load(str(asked)), folder.Wanted(), manifest=manifest)
    (videos / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    manifest.write_text(f"videopath,caption\nlink.mp4,{CAPTIONS[0]}\n")
    with pytest.raises(ValueError, match="expected a path inside"):
        folder.check(videos, prompts.load(str(asked)), folder.Wanted(), manifest=manifest)


def test_a_table_that_says_something_else_is_not_overwritten(run, tmp_path, asked, videos):
    out = tmp_path / "in"
    out.mkdir()
    (out / "sa_testing.csv").write_text("mine")
    done = run("to-official", "--benchmark", "videophy", "--prompts", asked, "--videos", videos, "--out", out)
    assert done.exit_code == 1
    assert "nothing is overwritten" in done.output
    assert (out / "sa_testing.csv").read_text() == "mine"


def test_a_caption_that_a_spreadsheet_would_run_is_refused_where_the_rater_needs_it_as_it_is():
    with pytest.raises(ValueError, match="no spreadsheet takes for a formula"):
        tables.rater_table(("caption", "videopath"), [("=cmd|' /C calc'!A0", "/v.mp4")])


def test_a_file_beyond_all_bounds_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "large.csv"
    path.write_text("caption\nx\n")
    monkeypatch.setattr(tables, "MOST_BYTES", 5)
    with pytest.raises(ValueError, match="expected a file of at most"):
        tables.records(path, "caption")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--benchmark", "videofy"), "expected the benchmark videophy"),
        (("--benchmark", "videophy"), "expected an output of videophy's code"),
        (("--benchmark", "videophy", "--rule", "x.csv"), "--rule does not go with videophy"),
        (("--benchmark", "videophy", "--sa", "x.csv", "--human", "y.csv"), "expected --human alone"),
        (("--benchmark", "videophy", "--sa", "nowhere.csv"), "nowhere.csv which is not there"),
        (("--benchmark", "videophy", "--sa", "x.csv", "--prompts", "nothing"), "expected 'videophy', 'videophy2' or"),
        (("--benchmark", "vbench", "--results", "x", "--prompts", "videophy"), "scores its own prompts alone"),
    ],
)
def test_a_wrong_order_is_one_line(run, tmp_path, arguments, said):
    done = run("from-official", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert said in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_the_prompt_list_says_what_its_videos_may_be_called(run, tmp_path):
    assert run("prompts", "videophy", "--out", tmp_path / "prompts.csv").exit_code == 0
    rows = tables.records(tmp_path / "prompts.csv", "video", "caption", "group")
    listed = prompts.load("videophy")
    assert len(rows) == 344
    for row in rows:
        found = folder.owner(Path(row["video"]).stem, listed)
        assert found is not None
        assert found[0].caption == row["caption"]


def test_names_from_files_are_shown_as_they_are(tmp_path, run):
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "caption,states_of_matter,source,majority_sa,majority_pc\nx,[bold]wet,[/no]such[red],1,0\ny,dry,[/no]such[red],1,1\n"
    )
    done = run("from-official", "--benchmark", "videophy", "--human", labels, "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "[/no]such[red]" in done.output
