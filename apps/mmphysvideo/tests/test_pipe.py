"""MMPhysPipe loses nothing in silence: every clip is kept, dropped or failed, with a reason, killed or not."""

import json
import os
import signal
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import physworld
from mmphysvideo.pipe import filters, shots
from mmphysvideo.pipe.caption import caption
from mmphysvideo.pipe.command import pipe
from mmphysvideo.pipe.evidence import Evidence, NoEvidence, supported
from mmphysvideo.pipe.experts import crew_of
from mmphysvideo.pipe.rules import Rules
from mmphysvideo.pipe.run import run, sources_of
from mmphysvideo.pipe.seen import Seen
from mmphysvideo.pipe.settings import Bounds, Cut, Settings, Witness
from mmphysvideo.pipe.stages import process, slug
from mmphysvideo.pipe.vlm import Server, read_answer
from mmphysvideo.pseudo import Coding, decode
from trainers import read_records, video

SETTINGS = Settings(cut=Cut(frames=9, fps=16, long_side=32, multiple=8))
ANSWER = {
    "clip": "x",
    "process": ["free fall"],
    "subjects": [
        {"id": 1, "name": "ball", "role": "agent", "evidence_frames": [0, 4, 8], "box": [0, 0, 1, 1], "why": "it falls"}
    ],
    "camera_motion": "static",
    "keep": True,
    "caption": "A ball falls.",
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Three throws, a still picture, a broken file, a link that leads out."""
    folder = tmp_path_factory.mktemp("pool")
    for seed in range(3):
        clip = physworld.simulate("rigid_body", seed, split="val")
        video.write(folder / f"throw {seed}.mp4", clip.video, 16, lossless=True)
    (folder / "throw 1.txt").write_text("a ball is thrown")
    video.write(folder / "still.mp4", np.repeat(physworld.simulate("thermal", 0).video[:1], 12, 0), 16, lossless=True)
    (folder / "broken.mp4").write_bytes(b"no video")
    outside = tmp_path_factory.mktemp("outside") / "other.mp4"
    outside.write_bytes((folder / "throw 0.mp4").read_bytes())
    (folder / "link.mp4").symlink_to(outside)
    return folder


def goes(pool, out, **options):
    sources, skipped = sources_of(pool)
    return run(sources, out, options.pop("settings", SETTINGS), skipped=skipped, quiet=True, **options)


@pytest.fixture(scope="module")
def done(pool, tmp_path_factory):
    out = tmp_path_factory.mktemp("done")
    return out, goes(pool, out)


def test_every_file_is_kept_dropped_failed_or_skipped_with_a_reason(done):
    _, manifest = done
    assert [c["file"] for c in manifest["kept"]] == ["throw 0.mp4", "throw 1.mp4", "throw 2.mp4"]
    assert [(c["file"], c["stage"]) for c in manifest["dropped"]] == [("still.mp4", "filters")]
    assert manifest["dropped"][0]["why"].startswith("motion is 0, wanted")
    assert [f["file"] for f in manifest["files_without_clips"]] == ["broken.mp4"]
    assert [s["path"] for s in manifest["skipped"]] == ["link.mp4"]
    assert manifest["experts"] == {"witness": "rules", "segmenter": "motion", "tracker": "flow", "depth": "none"}
    assert manifest["not_measured"] == ["text", "watermarks", "aesthetics"]
    totals = manifest["totals"]
    assert (totals["files"], totals["kept"], totals["dropped"], totals["failed"], totals["pending"]) == (5, 3, 1, 0, 0)


def test_two_rows_of_one_film_stay_of_one_film(pool, tmp_path):
    lines = [{"id": i, "path": "throw 0.mp4", "caption": f"a ball, {i}"} for i in ("first", "second")]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources, _ = sources_of(tmp_path / "table.jsonl", root=pool)
    assert [source.id for source in sources] == ["first", "second"]
    assert {source.noted["film"] for source in sources} == {"throw 0.mp4"}


def test_what_is_kept_can_be_read_as_records_and_decoded(done):
    out, manifest = done
    records, skipped = read_records(out / "records.jsonl")
    assert len(records) == 3
    assert not skipped
    for record, clip in zip(records, manifest["kept"], strict=True):
        pseudo = video.read(out / record.extra["perception"])
        rgb = video.read(record.path)
        assert pseudo.frames.shape == rgb.frames.shape == (9, 32, 32, 3)
        masks = decode(pseudo.frames, Coding.of(record.extra["coding"])).masks
        assert masks.any((1, 2)).all()
        assert masks.max() == 1
        assert clip["subjects"][0]["evidence_frames"] == [0, 4, 8]
        assert record.caption == clip["caption"]
    assert manifest["kept"][1]["source_caption"] == "a ball is thrown"
    sheet = cv2.imread(str(out / "sheet.png"))
    assert sheet.shape[0] > 3 * 3 * 168
    assert sheet.std() > 20


def test_a_second_run_does_nothing_and_writes_the_same_bytes(pool, done):
    out, _ = done
    before = {p.name: p.read_bytes() for p in out.glob("*.*")}
    made = []
    goes(pool, out, watch=lambda clip, stage: made.append((clip, stage)))
    assert made == []
    assert {p.name: p.read_bytes() for p in out.glob("*.*")} == before


def test_a_changed_setting_makes_anew_what_depends_on_it_and_nothing_else(pool, done, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(done[0], out)
    made = []
    stricter = SETTINGS.model_copy(update={"checks": SETTINGS.checks.model_copy(update={"area": (0.5, 0.8)})})
    manifest = goes(pool, out, settings=stricter, watch=lambda clip, stage: made.append(stage))
    assert set(made) == {"checks", "strip"}
    assert made.count("checks") == 3
    assert [c["stage"] for c in manifest["dropped"]] == ["filters", "checks", "checks", "checks"]
    assert all("area is" in c["why"] for c in manifest["dropped"][1:])
    assert (out / "records.jsonl").read_text() == ""


def test_a_run_that_is_killed_at_every_third_stage_neither_repeats_nor_drops_work(pool, done, tmp_path):
    out, log = tmp_path / "killed", tmp_path / "log"
    cv2.setNumThreads(0)
    deaths = 0
    while True:
        child = os.fork()
        if not child:
            count = 0

            def watch(clip, stage):
                nonlocal count
                with log.open("a") as file:
                    file.write(f"{clip} {stage}\n")
                count += 1
                if count == 3:
                    os.kill(os.getpid(), signal.SIGKILL)

            code = 1
            try:
                goes(pool, out, watch=watch)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        deaths += 1
    assert os.WEXITSTATUS(status) == 0
    assert deaths >= 6
    lines = log.read_text().split("\n")[:-1]
    assert len(lines) == len(set(lines))
    for name in ("manifest.json", "records.jsonl", "sheet.png"):
        assert (out / name).read_bytes() == (done[0] / name).read_bytes()


def test_two_processes_that_share_the_files_leave_what_one_leaves(pool, done, tmp_path):
    first = goes(pool, tmp_path, rank=0, world=2)
    assert first["totals"]["pending"] == 2
    goes(pool, tmp_path, rank=1, world=2)
    for name in ("manifest.json", "records.jsonl", "sheet.png"):
        assert (tmp_path / name).read_bytes() == (done[0] / name).read_bytes()


def test_names_of_files_cannot_lead_out_of_the_run(tmp_path):
    assert "/" not in slug("../../etc/passwd")
    assert slug("a b") != slug("a_b")
    clip = physworld.simulate("rigid_body", 0, split="val")
    video.write(tmp_path / "pool" / "..hidden" / "x.mp4", clip.video, 16)
    with pytest.raises(ValueError, match="holds no videos"):
        sources_of(tmp_path / "pool")
    with pytest.raises(ValueError, match="found nothing"):
        sources_of(tmp_path / "none")


def test_a_cut_parts_two_shots_and_a_flash_does_not(tmp_path):
    dark = np.repeat(np.array([[[20, 30, 60]]], np.uint8), 48, 0).repeat(48, 1)
    bright = np.repeat(np.array([[[200, 180, 90]]], np.uint8), 48, 0).repeat(48, 1)
    frames = np.stack([dark] * 12 + [bright] * 20)
    frames[25] = 255
    path = video.write(tmp_path / "cut.mp4", frames, 16)
    found = shots.shots_of(path, Cut())
    assert [(round(s.start_s * 16), round(s.end_s * 16)) for s in found] == [(0, 12), (12, 32)]
    cut = Cut(frames=9, fps=8, least_frames=5, clips_per_shot=2, multiple=8)
    clips = [c for s in found for c in shots.clips_of(s, (48, 48), cut)]
    assert [(c.frames, c.stride, round(c.start_s * 16)) for c in clips] == [(5, 2, 0), (9, 2, 12)]
    loaded = shots.load(path, clips[1])
    assert np.allclose(np.diff(loaded.times_s), 1 / 8)
    assert loaded.frames.min() > 80


def test_filters_name_the_measure_and_its_bound():
    clip = physworld.simulate("rigid_body", 0, split="val", scale=2).video
    assert filters.refuse(filters.measure(clip), Bounds()) == ""
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in clip])
    sharp, soft = filters.measure(clip), filters.measure(blurred)
    assert soft.sharpness < 0.7 * sharp.sharpness
    between = Bounds(least_sharpness=(soft.sharpness + sharp.sharpness) / 2)
    assert filters.refuse(sharp, between) == ""
    assert filters.refuse(soft, between).startswith("sharpness is ")
    for wrong, name in (
        (clip // 12, "brightness"),
        (np.repeat(clip[:1], 9, 0), "motion"),
        (np.concatenate([np.repeat(clip[:1], 11, 0), clip[1:3]]), "frozen"),
    ):
        assert filters.refuse(filters.measure(wrong), Bounds()).startswith(f"{name} is ")


@pytest.fixture(scope="module")
def throw():
    clip = physworld.simulate("rigid_body", 0, split="val", scale=2)
    return Seen("throw", clip.video, clip.times_s)


def test_a_subject_without_evidence_is_struck_out(throw):
    good = Evidence.model_validate(ANSWER)
    subject = good.subjects[0]
    cases = [
        (subject.model_copy(update={"evidence_frames": [40]}), "cites no frame of 0 to 16"),
        (subject.model_copy(update={"why": " "}), "no reason is given"),
        (subject.model_copy(update={"box": (0.0, 0.0, 0.1, 0.1)}), "nothing changes in its box"),
    ]
    for wrong, why in cases:
        kept, struck, dropped = supported(
            good.model_copy(update={"subjects": [subject, wrong.model_copy(update={"id": 2})]}), throw.frames, most=6
        )
        assert [s.id for s in kept] == [1]
        assert why in struck[0][1]
        assert dropped == ""
        assert supported(good.model_copy(update={"subjects": [wrong]}), throw.frames, most=6)[2].startswith(
            "no subject"
        )
    assert (
        "its id 1 is" in supported(good.model_copy(update={"subjects": [subject] * 2}), throw.frames, most=6)[1][0][1]
    )
    assert supported(good.model_copy(update={"process": []}), throw.frames, most=6)[2] == "no physical process is named"
    assert "would not keep it" in supported(good.model_copy(update={"keep": False}), throw.frames, most=6)[2]


def test_the_rules_see_a_throw_and_a_collision(throw):
    heard = Rules().testify(throw)
    assert heard.process == ["motion"]
    assert heard.subjects[0].role == "agent"
    assert heard.camera_motion == "static"
    hits = [physworld.simulate("collision", seed, split="val", scale=2) for seed in range(6)]
    said = [Rules().testify(Seen("hit", clip.video, clip.times_s)) for clip in hits]
    assert sum("collision" in one.process for one in said) >= 4
    assert all(len(one.subjects) == 2 and {s.role for s in one.subjects} >= {"agent"} for one in said)
    still = Rules().testify(Seen("still", np.repeat(throw.frames[:1], 9, 0), throw.times_s[:9]))
    assert not still.keep
    assert not still.subjects


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ANSWER),
        f"Here it is:\n```json\n{json.dumps(ANSWER, indent=1)}\n```\nDone.",
        json.dumps(ANSWER)[:-1] + ",}",
        json.dumps(ANSWER | {"process": "free fall", "camera_motion": "handheld", "more": 1}),
        json.dumps(ANSWER | {"subjects": ANSWER["subjects"][0] | {"box": [0, 0, 64, 64], "role": "hero"}}),
        json.dumps(
            ANSWER | {"subjects": [ANSWER["subjects"][0] | {"box": {"left": 0, "top": 0, "right": 1, "bottom": 1}}]}
        ),
    ],
)
def test_what_a_model_plainly_means_is_read(text):
    found = read_answer(text, 64, 64)
    assert found.process == ["free fall"]
    assert found.subjects[0].box == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I cannot see videos.", "no JSON object"),
        ("[" * 5000, "no JSON object"),
        ("{}", "process: Field required"),
        (json.dumps(ANSWER | {"subjects": [{"name": "ball", "box": [1, 1, 0, 0]}]}), "subjects.0"),
        (json.dumps(ANSWER | {"keep": "perhaps"}), "keep"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(text, why):
    with pytest.raises(ValueError, match=why) as error:
        read_answer(text, 64, 64)
    assert "\n" not in str(error.value)


@dataclass
class Fake:
    """A local server that plays a list of replies: (status, text), or "hang"; the last one for ever."""

    url: str
    replies: list
    asked: list


@pytest.fixture
def fake():
    state = Fake("", [], [])
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body)
            reply = state.replies.pop(0) if len(state.replies) > 1 else state.replies[0]
            if reply == "hang":
                over.wait(5)
                return
            status, text = reply
            message = {"role": "assistant", "content": text}
            whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
            whole["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
            data = json.dumps(whole if status == 200 else {"error": {"message": text}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield state
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def serving(fake, **more):
    options = {"kind": "server", "model": "m", "url": fake.url, "frames": 3, "retries": 1, "repairs": 1, "timeout_s": 5}
    return Witness(**(options | more))


def test_a_server_sees_numbered_frames_and_a_broken_answer_is_sent_back_to_be_mended(fake, throw, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    fake.replies = [(500, "busy"), (200, "no idea"), (200, json.dumps(ANSWER))]
    heard = Server(serving(fake)).testify(throw)
    assert heard.process == ["free fall"]
    assert heard.clip == "throw"
    assert len(fake.asked) == 3  # one retry, one repair
    parts = fake.asked[0]["messages"][0]["content"]
    assert [p["text"] for p in parts if p["type"] == "text"][:3] == ["frame 0", "frame 8", "frame 16"]
    assert sum(p["type"] == "image_url" for p in parts) == 3
    assert "no JSON object" in fake.asked[2]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("replies", "why", "more"),
    [
        ([(200, "garbage")], "gave no evidence that fits in 2 answers", {}),
        ([(500, "down")], "InternalServerError", {}),
        (["hang"], "Timeout", {"timeout_s": 0.2, "retries": 0}),
        ([(401, "bad key sesame")], r"bad key \[key\]", {}),
    ],
)
def test_a_server_that_fails_loses_no_clip(fake, throw, monkeypatch, pool, tmp_path, replies, why, more):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    fake.replies = list(replies)
    with pytest.raises(NoEvidence, match=why):
        Server(serving(fake, **more)).testify(throw)
    source = next(s for s in sources_of(pool)[0] if s.id == "throw 0.mp4")
    settings = SETTINGS.model_copy(update={"witness": serving(fake, **more)})
    manifest = run([source], tmp_path, settings, quiet=True)
    (clip,) = manifest["failed"]
    assert clip["stage"] == "evidence"
    assert manifest["totals"]["failed"] == 1
    assert "sesame" not in (tmp_path / "manifest.json").read_text()

    fake.replies = [(200, json.dumps(ANSWER | {"subjects": [ANSWER["subjects"][0] | {"box": [0.0, 0.0, 1.0, 1.0]}]}))]
    again = run([source], tmp_path, settings, quiet=True)
    assert again["totals"]["failed"] == 0
    assert len(again["kept"] + again["dropped"]) == 1


def test_with_a_fallback_the_rules_testify_and_the_manifest_says_so(fake, pool, tmp_path):
    fake.replies = [(500, "down")]
    settings = SETTINGS.model_copy(update={"witness": serving(fake, retries=0, fallback=True)})
    source = next(s for s in sources_of(pool)[0] if s.id == "throw 0.mp4")
    outcome = process(source, tmp_path, settings, crew_of(settings))
    (clip,) = outcome["clips"]
    assert clip["status"] == "kept"
    assert clip["witness"] == "rules"
    assert "InternalServerError" in clip["instead"]


def test_the_command_runs_and_says_what_was_kept(pool, tmp_path):
    app = typer.Typer()
    app.command()(pipe)
    options = ["--set", "cut.frames=9", "--set", "cut.fps=16", "--set", "cut.long_side=32", "--set", "cut.multiple=8"]
    one = str(pool / "throw 0.mp4")
    said = CliRunner().invoke(app, [one, "--out", str(tmp_path), "--quiet", *options])
    assert said.exit_code == 0
    assert "1 kept, 0 dropped, 0 failed, 0 pending" in said.output
    wrong = CliRunner().invoke(app, [one, "--out", str(tmp_path), "--set", "cut.frame=9"])
    assert wrong.exit_code == 1
    assert "did you mean 'frames'" in " ".join(wrong.output.split())


@pytest.fixture
def captioning():
    app = typer.Typer()
    app.command()(caption)
    return lambda *words: CliRunner().invoke(app, [*map(str, words), "--quiet"])


def test_a_server_captions_what_has_no_caption_and_the_rest_stays(fake, pool, tmp_path, captioning):
    for name in ("throw 0.mp4", "throw 1.mp4", "throw 1.txt"):
        (tmp_path / name).write_bytes((pool / name).read_bytes())
    fake.replies = [(200, "A ball flies\nin an arc.")]
    server = ["witness.kind=server", f"witness.url={fake.url}", "witness.model=some/model", "witness.frames=3"]
    said = captioning(tmp_path, *(word for one in server for word in ("--set", one)))
    assert said.exit_code == 0, said.output
    assert len(fake.asked) == 1
    assert "3 frames of one video clip" in fake.asked[0]["messages"][0]["content"][-1]["text"]
    records = {r.id: (r.caption, r.extra) for r in read_records(tmp_path)[0]}
    assert records["throw 0.mp4"] == ("A ball flies in an arc.", {"caption_by": "model"})
    assert records["throw 1.mp4"] == ("a ball is thrown", {})
    assert [s.caption for s in sources_of(tmp_path)[0]] == ["A ball flies in an arc.", "a ball is thrown"]


def test_a_server_that_is_down_is_one_line_and_writes_nothing(fake, pool, tmp_path, captioning):
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_bytes((pool / "throw 0.mp4").read_bytes())
    fake.replies = [(500, "down")]
    server = ["witness.kind=server", f"witness.url={fake.url}", "witness.model=m", "witness.retries=0"]
    said = captioning(tmp_path, *(word for one in server for word in ("--set", one)))
    assert said.exit_code == 1
    assert "captions none of 3 clips in a row" in said.output
    assert not (tmp_path / "captions.json").exists()


def test_without_a_model_names_are_taken_where_they_are_asked_for_and_the_ways_are_named_else(
    pool, tmp_path, captioning
):
    (tmp_path / "a ball is thrown.mp4").write_bytes((pool / "throw 0.mp4").read_bytes())
    refused = captioning(tmp_path)
    assert refused.exit_code == 1
    assert all(way in refused.output for way in ("witness.kind=server", "witness.kind=local", "--names", "NAME.txt"))
    assert captioning(tmp_path, "--names").exit_code == 0
    assert read_records(tmp_path)[0][0].caption == "a ball is thrown"


def test_a_caption_that_a_person_wrote_wins_over_the_rules(done):
    records = {r.source: r.caption for r in read_records(done[0] / "records.jsonl")[0]}
    assert records["throw 1.mp4"] == "a ball is thrown"
    assert "body" in records["throw 0.mp4"]
