"""The page stands alone, escapes what came from data, and says how far its figures go."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import cards, plots, report, results
from bench.cli import app
from bench.results import Item, Metric, PromptSet, Rater, Result, System
from trainers import video

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'&$x$"


class Tags(HTMLParser):
    """Collects what a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.count: dict[str, int] = {}
        self.handlers: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "poster")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def read(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    return tags


@pytest.fixture(scope="module")
def page(folder):
    return report.render([folder])


def test_the_page_fetches_nothing_and_runs_one_script(page):
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in page
    tags = read(page)
    assert all(link.startswith("#") for link in tags.links)
    assert tags.count["script"] == 2  # the data and the code
    assert not tags.handlers
    assert "script-src &#39;sha256-" in page or "script-src 'sha256-" in page
    assert "demo, not a claim" in page
    assert "currentColor" in page


def test_every_panel_holds_its_video_with_paths_and_motion(page, folder):
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[0])
    keys = re.findall(r'data-video="([^"]+)"', page)
    assert set(keys) == set(data["videos"])
    assert len(keys) == 2 * 7
    one = data["videos"][keys[0]]
    assert one["frames"] == 17
    assert len(one["motion"]) == 16
    assert {len(v["motion"]) for v in data["videos"].values()} == {16, 0}  # none for floors and controls
    assert any("tracks" in v for v in data["videos"].values())
    assert any("series" in v for v in data["videos"].values())


def test_a_shown_video_is_the_clip_up_to_the_codec(folder, tmp_path):
    item = results.read(folder).system("real").items[0]
    film = video.read(folder / str(item.video)).frames
    assert film.shape == (17, 192, 192, 3)
    import physworld

    real = physworld.simulate("rigid_body", 0, split="test").video.astype(float)
    assert np.abs(film[:, ::6, ::6].astype(float) - real).mean() < 12


def evil(tmp_path):
    """A result whose every text tries to break out of the page."""
    film = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), np.uint8)
    name = "<img src=x onerror=alert(1)>&'.mp4"
    (tmp_path / "evil").mkdir(exist_ok=True)
    video.write(tmp_path / "evil" / name, film, 8)
    item = Item(
        id=EVIL,
        group=EVIL,
        prompt=EVIL,
        video=name,
        values={EVIL: 1.0, "score": 0.5},
        details={"failed": [EVIL], "series": [], "tracks": [{"name": EVIL, "points": [[0.1, 0.1]], "law": None}]},
    )
    metric = {EVIL: Metric(value=0.5, n=1, unit=EVIL, low=0.1, high=0.9, interval=EVIL)}
    systems = tuple(
        System(name=n, kind=EVIL, bundle=EVIL, backbone=EVIL, metrics=metric, groups={EVIL: metric}, items=(item,))
        for n in (EVIL, f"other {EVIL}")
    )
    result = Result(
        benchmark=EVIL,
        title=EVIL,
        prompt_set=PromptSet(name=EVIL, count=1, style=EVIL),
        rater=Rater(name=EVIL, kind="law", version=EVIL),
        systems=systems,
        comparisons=(
            results.Comparison(a=EVIL, b=f"other {EVIL}", metric=EVIL, mean=0.1, n=9, low=0.0, high=0.2, method=EVIL),
        ),
        settings={EVIL: EVIL, "badge": EVIL, "group": EVIL},
        versions={EVIL: EVIL},
        notes=(EVIL,),
    )
    results.write(result, tmp_path / "evil")
    return tmp_path / "evil"


def test_nothing_that_came_from_data_becomes_markup(tmp_path, page):
    text = report.render([evil(tmp_path)])
    tags, clean = read(text), read(page)
    assert "window.hacked=1</script>" not in text.replace("&lt;/script&gt;", "")
    assert tags.count["script"] == clean.count["script"] == 2
    assert "img" not in tags.count
    assert not tags.handlers


def test_the_report_gives_no_interval_and_no_verdict_for_a_clip_or_two(page, eight, tmp_path):
    assert "too few for an interval" in page
    assert 'class="interval">[' not in page
    enough = report.render([results.write(eight(), tmp_path)])
    assert "nudge is higher in score than base on these 16 paired clips" in enough
    assert 'class="interval">[' in enough
    assert "too few" not in enough
    assert "hold after Holm" in enough


def test_published_numbers_are_marked_and_keep_their_blocks_apart(eight, tmp_path):
    result = eight().model_copy(update={"benchmark": "physics-iq"})
    content = {
        **json.loads(result.model_dump_json()),
        "score": 1,
        "verified": 1,
        "physical_variance": 1,
        "per_view": [],
    }
    (tmp_path / "result.json").write_text(json.dumps(content))
    text = report.render([tmp_path])
    assert text.count("reported, not measured here") >= 3
    assert "29.59" in text
    assert "arXiv 2604.08503" in text


def test_a_video_that_no_browser_plays_is_encoded_once_more(tmp_path):
    film = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    lossless = video.write(tmp_path / "a.mp4", film, 8, lossless=True)
    plain = video.write(tmp_path / "b.mp4", film, 8, scale=6)
    assert cards.playable(plain)["mp4"] != cards.playable(lossless)["mp4"]
    import base64

    assert base64.b64decode(cards.playable(plain)["mp4"]) == plain.read_bytes()
    (tmp_path / "again.mp4").write_bytes(base64.b64decode(cards.playable(lossless)["mp4"]))
    assert video.read(tmp_path / "again.mp4").frames.shape == (3, 192, 192, 3)


def test_pairs_without_an_interval_are_counted_apart_and_corrections_hold_on_short_pages_too(eight, tmp_path):
    one = next(c for c in eight().comparisons if not c.group)
    few = one.model_copy(update={"low": None, "high": None, "p": None, "p_corrected": None})
    chance = one.model_copy(update={"mean": 0.2, "low": 0.1, "high": 0.3, "p": 0.04, "p_corrected": 0.4})
    told = report._headlines([few, few, chance, *[chance] * 5])
    assert told == [
        "6 of 8 pairs: no difference that stands after the correction for comparisons.",
        "2 of 8 pairs: too few paired clips for an interval.",
    ]
    assert "that stands after the correction for comparisons (+0.200," in report.headline(chance)
    assert "too few for an interval" in report.headline(few)


def test_many_pairs_and_notes_do_not_bury_what_a_page_says(eight, tmp_path):
    result = eight()
    one = next(c for c in result.comparisons if not c.group)
    same = one.model_copy(update={"mean": 0.0, "low": -0.1, "high": 0.1, "p": 0.9, "p_corrected": 1.0})
    pairs = (one, *(same.model_copy(update={"a": f"row {i}"}) for i in range(8)))
    notes = tuple(f"note {i}" for i in range(9))
    results.write(result.model_copy(update={"comparisons": pairs, "notes": notes}), tmp_path)
    text = report.render([tmp_path])
    assert report.headline(one) in text
    assert "8 of 9 pairs: no difference that stands after the correction for comparisons." in text
    assert "row 3 against" not in text
    assert "5 more notes" in text
    assert all(note in text for note in notes)


def test_a_figure_of_100_is_not_called_one_of_1():
    metric = results.Metric(value=60.0, n=4, unit="of 100")
    assert report._column("score", one_metric(metric)).label == "score (of 100)"
    assert report._column("score", one_metric(metric.model_copy(update={"unit": ""}))).label == "score (0 to 1)"


def one_metric(metric):
    prompts, rater = results.PromptSet(name="p", count=4), results.Rater(name="r", kind="formula")
    system = System(name="a", metrics={"score": metric})
    return results.Result(benchmark="b", prompt_set=prompts, rater=rater, systems=(system,))


def test_several_results_stand_on_one_page_and_a_wrong_path_says_so(eight, folder, tmp_path):
    results.write(eight(), tmp_path / "eight")
    out = tmp_path / "pages" / "report.html"
    answer = CliRunner().invoke(app, ["report", str(folder), str(tmp_path / "eight"), "--out", str(out), "--each", "1"])
    assert answer.exit_code == 0, answer.stderr
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    assert {'id="r0"', 'id="r1"'} <= set(re.findall(r'id="r\d"', out.read_text()))
    answer = CliRunner().invoke(app, ["report", str(tmp_path / "none")])
    assert answer.exit_code == 1
    assert "expected a result file or a folder" in answer.stderr


def test_the_systems_all_look_different():
    assert len({plots.look(i) for i in range(len(plots.COLOURS) * len(plots.MARKERS))}) == 36
    systems = [System(name="a"), System(name="real", role="real"), System(name="b")]
    assert list(plots.colours(systems).values()) == [plots.COLOURS[0], plots.FAINT, plots.COLOURS[1]]


def test_a_star_stands_for_what_holds_after_the_correction():
    def one(**given):
        return results.Comparison(a="x", b="y", metric="s", mean=0.1, n=9, low=0.05, high=0.2, **given)

    assert plots.holds(one())
    assert plots.holds(one(p=0.01, p_corrected=0.04))
    assert not plots.holds(one(p=0.01, p_corrected=0.06))
