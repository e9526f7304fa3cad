"""A judge of one's own: a planted agreement is found again, runs go on, and nothing unread becomes a 0."""

import base64
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from scipy import stats

from bench import results
from bench.judge import calibrate
from bench.judge.calibrate import kappa, spearman
from bench.judge.client import LocalModel, NoAnswer, Server
from bench.judge.frames import Look, chosen
from bench.judge.questions import Question, rating

# People's "at least 4" in rows, the judge's in columns: 20 5 / 10 25, so p_o = .75, p_e = .5, kappa = .5.
PLANTED = [(2, 2)] * 12 + [(3, 2)] * 8 + [(3, 4)] * 5 + [(4, 3)] * 10 + [(5, 5)] * 15 + [(4, 5)] * 10
STEP = 4


class Fake:
    """An OpenAI-compatible server that knows a video by its grey, and answers as it is told."""

    def __init__(self) -> None:
        self.answers: dict[tuple[int, str], str] = {}
        self.asked: list[tuple[int, str]] = []
        self.failures: list[int] = []
        self.bodies: list[dict] = []
        self.lock = threading.Lock()

    def reply(self, body: dict) -> str:
        *pictures, words = body["messages"][-1]["content"]
        data = base64.b64decode(pictures[0]["image_url"]["url"].split(",", 1)[1])
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE).mean()
        task = "rule" if "physical rule" in words["text"] else "sa" if "description" in words["text"] else "pc"
        key = (round(grey / STEP), task)
        with self.lock:
            self.asked.append(key)
            self.bodies.append(body)
        return self.answers.get(key, "3")


@pytest.fixture
def fake():
    made = Fake()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with made.lock:
                status = made.failures.pop(0) if made.failures else 200
            if status == 200:
                content = {"choices": [{"index": 0, "message": {"role": "assistant", "content": made.reply(body)}}]}
            else:
                content = {"error": {"message": f"no: {self.headers['Authorization']}"}}
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After-Ms", "1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, film):
    """Sixty videos of a grey each, and people's labels of them."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = []
    for i, (people, _) in enumerate(PLANTED):
        model = "wan" if i % 2 else "sora"
        film(folder / "videos" / model / f"{i}.mp4", STEP * (i + 1), frames=2, size=16)
        row = {"caption": f"video {i}", "video_url": f"https://host/some%20folder/{i}.mp4", "model_name": model}
        row |= {"sa": people, "pc": people, "is_hard": i % 2, "physics_rules_followed": [f"rule {i}"]}
        rows.append(row)
    for name, some in (("labels", rows), ("few", rows[::6])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def order(labelled, fake, out, *more, labels="few"):
    where = ("--videos", labelled / "videos", "--labels", labelled / f"{labels}.jsonl", "--out", out)
    return ("judge", "calibrate", *where, "--server", fake.url, "--model", "fake", "--frames", 2, "--quiet", *more)


def test_a_planted_agreement_is_found_again(labelled, fake, run, tmp_path):
    fake.answers = {(i + 1, "pc"): f"Rating: {judged}/5" for i, (_, judged) in enumerate(PLANTED)}
    fake.failures = [503, 429, 500]
    done = run(*order(labelled, fake, tmp_path, "--tasks", "pc", labels="labels"))
    assert done.exit_code == 0, done.output
    found = calibrate.Calibration.model_validate_json((tmp_path / "calibration.json").read_text())
    assert (found.judge, found.videos, found.missing) == ("fake", 60, 0)
    task = found.tasks["pc"]
    figures = task.figures
    assert figures["kappa"].value == pytest.approx(0.5, abs=0.02)
    assert figures["kappa"].low < 0.5 < figures["kappa"].high
    assert figures["agreement"].value == pytest.approx(27 / 60)
    assert figures["within_one"].value == 1.0
    assert figures["bias"].value == pytest.approx((-8 + 5 - 10 + 10) / 60)
    assert figures["spearman"].value == pytest.approx(stats.spearmanr(*zip(*PLANTED, strict=True))[0])
    assert task.bias == {"1": (None, 0), "2": (0, 12), "3": (-3 / 13, 13), "4": (0, 20), "5": (0, 15)}
    assert task.table[2] == (0, 8, 0, 5, 0)
    assert (task.n, task.unread, task.failed) == (60, 0, 0)
    assert sum(metrics["pc_bias"].n for metrics in found.models.values()) == 60


def test_captions_and_rules_are_asked_about_and_pc_sees_neither(labelled, fake, run, tmp_path):
    fake.answers = {(6 * i + 1, "rule"): "1" for i in range(10)}
    assert run(*order(labelled, fake, tmp_path)).exit_code == 0
    found = calibrate.Calibration.model_validate_json((tmp_path / "calibration.json").read_text())
    assert {task: entry.n for task, entry in found.tasks.items()} == {"sa": 10, "pc": 10, "rule": 10}
    assert found.tasks["rule"].figures["agreement"].value == 1.0
    assert found.tasks["rule"].figures["kappa"].value is None  # everybody said the same
    words = [body["messages"][-1]["content"][-1]["text"] for body in fake.bodies]
    assert sum('description: "video 6"' in said for said in words) == 1
    assert sum('rule: "rule 6"' in said for said in words) == 1
    assert not any("video 6" in said or "rule 6" in said for said in words if "physical laws" in said)


def test_answers_that_cannot_be_read_are_counted_and_are_no_zeros(labelled, fake, run, tmp_path):
    for i, (people, _) in enumerate(PLANTED):
        fake.answers[i + 1, "pc"] = "It depends." if i in (0, 30) else str(people)
    done = run(*order(labelled, fake, tmp_path, "--tasks", "pc"))
    assert done.exit_code == 0, done.output
    task = calibrate.Calibration.model_validate_json((tmp_path / "calibration.json").read_text()).tasks["pc"]
    assert (task.n, task.unread, task.failed) == (8, 2, 0)
    assert task.figures["kappa"].value == task.figures["agreement"].value == 1.0
    assert "2, 0" in done.output


def test_a_run_that_stopped_asks_only_what_is_open(labelled, fake, run, tmp_path):
    fake.failures = [400] * 5
    usual = order(labelled, fake, tmp_path, "--tasks", "pc", "--workers", 1)
    assert run(*usual).exit_code == 0
    assert len(fake.asked) == 5
    answers = tmp_path / "answers.jsonl"
    lines = answers.read_text().splitlines()
    assert len(lines) == 5
    answers.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # killed while it wrote
    assert run(*usual).exit_code == 0
    assert (len(fake.asked), len(set(fake.asked))) == (5 + 6, 10)
    assert run(*usual).exit_code == 0
    assert len(fake.asked) == 11
    assert run(*usual, "--side", 16).exit_code == 0
    assert len(fake.asked) == 21  # another look is another judge


def test_a_server_that_is_not_there_ends_the_run_soon(labelled, fake, run, tmp_path):
    fake.failures = [404] * 100
    done = run(*order(labelled, fake, tmp_path, "--workers", 1))
    assert done.exit_code == 1
    assert "fake answered none of 8 questions" in done.output
    assert not (tmp_path / "calibration.json").exists()


def test_a_key_is_sent_and_never_said(fake, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    fake.failures = [401]
    judge = Server(fake.url, "fake", "MY_KEY", retries=0)
    with pytest.raises(NoAnswer, match="AuthenticationError") as caught:
        judge.ask(Question("pc"), [np.zeros((16, 16, 3), np.uint8)])
    assert "[key]" in str(caught.value)
    assert "sk-very-secret" not in str(caught.value) + repr(judge) + json.dumps(judge.settings)


def test_a_server_that_does_not_answer_in_time_is_no_answer(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as mute:  # accepts, and never answers
        judge = Server(f"http://127.0.0.1:{mute.server_port}/v1", "mute", timeout_s=0.2, retries=0)
        with pytest.raises(NoAnswer, match="APITimeoutError"):
            judge.ask(Question("pc"), [np.zeros((16, 16, 3), np.uint8)])


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host/v1", "http://user:pass@host/v1", ""])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ValueError, match="expected"):
        Server(address, "model")


def test_a_folder_is_rated_under_the_judges_own_name(fake, run, tmp_path, film):
    (tmp_path / "asked.csv").write_text("caption\na ball\na wall\na cup\n")
    for i in range(2):
        film(tmp_path / "videos" / f"000{i}.mp4", STEP * (i + 1), size=32 + 16 * i)  # a judge sees any size
    (tmp_path / "videos" / "0002.mp4").write_bytes(b"no video")
    (tmp_path / "rules.csv").write_text("videopath,rule\n0000.mp4,It falls.\n0001.mp4,It stands.\n")
    fake.answers = {(1, "sa"): "5", (1, "pc"): "4", (2, "sa"): "4", (2, "pc"): "3 or 4", (1, "rule"): "0"}
    fake.answers[2, "rule"] = "2"
    where = ("--videos", tmp_path / "videos", "--prompts", tmp_path / "asked.csv", "--out", tmp_path / "out")
    who = ("--server", fake.url, "--model", "fake", "--name", "mine", "--quiet")
    done = run("judge", "run", *where, *who, "--rules", tmp_path / "rules.csv")
    assert done.exit_code == 0, done.output
    result = results.read(tmp_path / "out")
    assert (result.benchmark, result.rater.kind, result.rater.name) == ("videophy2-judge", "judge", "fake")
    metrics = result.system("mine").metrics
    assert (metrics["sa_at_4"].value, metrics["sa_at_4"].n) == (1.0, 2)
    assert (metrics["pc_at_4"].value, metrics["pc_at_4"].n, metrics["pc_at_4"].n_valid) == (1.0, 2, 1)
    assert (metrics["rule"].value, metrics["rule_undecidable"].value) == (0.0, 0.5)
    assert metrics["unread"].value == 1 / 6
    assert result.systems[0].items[1].details["answers"]["pc"] == "3 or 4"
    assert any("has not been compared with people" in note for note in result.notes)
    assert any("problems.csv" in note for note in result.notes)
    text = (tmp_path / "out" / "result.json").read_text()
    assert "127.0.0.1" not in text


def test_a_calibration_goes_with_the_figures_of_its_own_judge_alone(labelled, fake, run, tmp_path, film):
    assert run(*order(labelled, fake, tmp_path / "c", "--tasks", "sa")).exit_code == 0
    (tmp_path / "asked.csv").write_text("caption\na ball\n")
    film(tmp_path / "videos" / "0000.mp4")
    where = ("--videos", tmp_path / "videos", "--prompts", tmp_path / "asked.csv", "--out", tmp_path / "out")
    known = ("--calibration", tmp_path / "c" / "calibration.json", "--server", fake.url, "--quiet", "--model")
    assert run("judge", "run", *where, *known, "fake").exit_code == 0
    result = results.read(tmp_path / "out")
    assert set(result.rater.settings["calibration"]["sa"]) == {"kappa", "spearman"}
    assert not any("compared with people" in note for note in result.notes)
    assert "expected the calibration of another" in run("judge", "run", *where, *known, "another").output


def test_labels_find_their_videos_by_model_and_never_outside_the_folder(labelled, tmp_path, film):
    questions, missing = calibrate.labelled(labelled / "labels.jsonl", labelled / "videos", ["sa"])
    assert (len(questions), missing) == (60, [])
    assert {q.asked.video.parent.name for q in questions} == {"wan", "sora"}
    row = json.loads((labelled / "labels.jsonl").read_text().splitlines()[0])
    film(tmp_path / "secret.mp4")
    (tmp_path / "videos").mkdir()
    labels = tmp_path / "labels.jsonl"
    labels.write_text(json.dumps(row | {"model_name": "..", "video_url": "https://host/x/secret.mp4"}))
    with pytest.raises(ValueError, match="expected a path inside"):
        calibrate.labelled(labels, tmp_path / "videos", ["sa"])
    labels.write_text(json.dumps(row | {"sa": 6}))
    with pytest.raises(ValueError, match="expected ratings from 1 to 5 in line 1"):
        calibrate.labelled(labels, tmp_path / "videos", ["sa"])
    labels.write_text(json.dumps({"caption": "x"}))
    with pytest.raises(ValueError, match="expected caption, video_url"):
        calibrate.labelled(labels, tmp_path / "videos", ["sa"])


@pytest.mark.parametrize(
    ("answer", "task", "read"),
    [
        ("5", "sa", 5),
        ("**Rating:** 2 out of 5", "pc", 2),
        ("The answer is four.", "pc", 4),
        ("On a scale from 1 to 5, I give it a 3.", "pc", 3),
        ("0", "pc", None),
        ("None", "pc", None),
        ("10", "pc", None),
        ("-4", "pc", None),
        ("4.5", "pc", None),
        ("between 3 and 4", "pc", None),
        ("3, because 2 balls collide", "pc", None),
        ("2", "rule", 2),
        ("3", "rule", None),
        ("9" * 100_000, "pc", None),
    ],
)
def test_an_answer_holds_one_rating_of_the_scale_or_none(answer, task, read):
    assert rating(answer, task) == read


def test_kappa_is_1_for_equal_0_for_chance_and_negative_for_opposite_ratings():
    other = 1 - np.eye(2)
    assert kappa(np.array([[2, 0], [0, 2]]), other) == 1.0
    assert kappa(np.array([[1, 1], [1, 1]]), other) == 0.0
    assert kappa(np.array([[0, 2], [2, 0]]), other) == -1.0
    assert kappa(np.array([[2, 0], [2, 0]]), other) == 0.0  # a judge that says one thing only
    assert np.isnan(kappa(np.array([[4, 0], [0, 0]]), other))
    squares = (np.arange(5)[:, None] - np.arange(5)[None, :]) ** 2
    near, far = np.eye(5, dtype=int), np.eye(5, dtype=int)
    near[4], far[4] = (0, 0, 0, 1, 0), (1, 0, 0, 0, 0)
    assert kappa(near, squares) > 0.9 > kappa(far, squares)  # unweighted, a miss is a miss:
    assert kappa(near, 1 - np.eye(5)) == pytest.approx(kappa(far, 1 - np.eye(5)), abs=0.05)


def test_rank_correlation_of_a_table_is_that_of_its_ratings():
    rng = np.random.default_rng(0)
    people = rng.integers(0, 5, 200)
    judge = np.clip(people + rng.integers(-2, 3, 200), 0, 4)
    table = np.zeros((5, 5), int)
    np.add.at(table, (people, judge), 1)
    assert spearman(table) == pytest.approx(stats.spearmanr(people, judge)[0], abs=1e-12)
    assert spearman(table.T[::-1]) == pytest.approx(-spearman(table))
    assert np.isnan(spearman(np.array([[1, 1], [0, 0]])))


def test_a_judge_sees_frames_from_the_first_to_the_last(tmp_path, film):
    path = film(tmp_path / "a.mp4", 90, frames=9, size=64)
    seen = chosen(path, Look(frames=4, side=32))
    assert [frame.shape for frame in seen] == [(32, 32, 3)] * 4
    assert len(chosen(path, Look(frames=64))) == 9
    with pytest.raises(ValueError, match="expected 1 to 256 frames"):
        Look(frames=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a random LLaVA of some ten thousand parameters, which can say digits and nothing else."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Qwen2Tokenizer,
    )
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    template = (
        "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}assistant: "
    )
    letters = sorted(bytes_to_unicode().values())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], pad_token="<pad>", eos_token="<end>", extra_special_tokens=["<image>"]
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **small),
            text_config=LlamaConfig(vocab_size=len(tokenizer), **small),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        )
    )
    digits = set(tokenizer.convert_tokens_to_ids(list("12345")))
    llava.generation_config.suppress_tokens = sorted({*range(len(tokenizer))} - digits)
    llava.generation_config.pad_token_id = tokenizer.pad_token_id
    folder = tmp_path_factory.mktemp("llava")
    processor.save_pretrained(folder)
    llava.save_pretrained(folder)
    return folder


def test_a_model_on_this_machine_answers_the_same_question_alike(model):
    judge = LocalModel(str(model), max_tokens=1)
    frames = [np.full((20, 30, 3), grey, np.uint8) for grey in (0, 200)]
    said = judge.ask(Question("pc"), frames)
    assert rating(said, "pc") in range(1, 6)
    assert judge.ask(Question("pc"), frames) == said
    assert judge.name == model.name
    assert judge.settings["served"] is False


def test_without_transformers_one_sentence_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install transformers"):
        LocalModel(str(model)).ask(Question("pc"), [np.zeros((16, 16, 3), np.uint8)])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--tasks", "beauty"), "expected tasks among sa, pc, rule"),
        (("--tasks", "rule"), "the task rule needs a table of rules"),
        (("--server", "localhost"), "expected a server such as"),
        (("--calibration", "nowhere.json"), "nowhere.json which is not there"),
        (("--prompts", "nowhere"), "expected 'videophy', 'videophy2' or"),
        (("--videos", "nowhere"), "expected a folder of videos"),
    ],
)
def test_a_wrong_order_is_one_line(run, tmp_path, more, said):
    usual = ("--videos", tmp_path, "--server", "http://127.0.0.1:9/v1", "--model", "m", "--out", tmp_path / "out")
    done = run("judge", "run", *usual, "--prompts", "videophy2", *more)
    assert done.exit_code == 1
    assert said in done.output
    assert "Traceback" not in done.output
