"""An estimate is honest: it comes from work that was done, at its present rate, and from no other."""

import io
import sys
from types import SimpleNamespace

import pytest
import toy

from trainers import fit, show
from trainers.show import Bar


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    held = Clock()
    monkeypatch.setattr(show, "time", SimpleNamespace(monotonic=held.monotonic))
    return held


def works(bar, clock, steps, *, each, start=0):
    """Do so many pieces of work after one another."""
    for done in range(start + 1, start + steps + 1):
        clock.now += each
        bar.update(done)


def test_there_is_no_estimate_before_a_second_piece_was_measured_and_then_it_is_exact(clock):
    bar = Bar("x", 100)
    works(bar, clock, 2, each=10.0)
    assert bar.seconds_left() is None
    works(bar, clock, 3, each=10.0, start=2)
    assert bar.seconds_left() == pytest.approx(96 * 10)  # as of the fourth, which was measured when the fifth ended
    assert bar.note(clock.now) == "5/100 15.8 min left"


def test_what_was_there_is_no_work(clock):
    bar = Bar("cache", 10_010)
    for done in range(1, 10_001):
        clock.now += 0.001
        bar.skip()
        bar.update(done)
    assert bar.seconds_left() is None
    works(bar, clock, 5, each=60.0, start=10_000)
    assert bar.seconds_left() == pytest.approx(6 * 60)


def test_what_is_found_in_between_takes_nothing_from_what_a_piece_takes(clock):
    bar = Bar("cache", 400)
    for done in range(1, 201):
        if done % 2:
            bar.skip()
        else:
            clock.now += 5.0
        bar.update(done)
    assert bar.seconds_left() == pytest.approx(5 * (400 - 100 - 99))  # what is left may all be work


def test_a_first_step_that_compiles_does_not_spoil_the_estimate(clock):
    bar = Bar("train", 1000)
    works(bar, clock, 1, each=600.0)
    works(bar, clock, 200, each=2.0, start=1)
    assert bar.seconds_left() == pytest.approx(800 * 2, rel=0.01)


def test_the_estimate_follows_a_change_of_pace(clock):
    bar = Bar("train", 1000)
    works(bar, clock, 100, each=1.0)
    works(bar, clock, 100, each=5.0, start=100)  # the second half of the time is at the new pace
    assert bar.seconds_left() == pytest.approx(801 * 5, rel=0.01)


def test_pieces_that_end_at_once_are_one_batch(clock):
    bar = Bar("cache", 100)
    done = 0
    for _ in range(4):
        clock.now += 40.0
        for _ in range(8):
            clock.now += 0.01
            done += 1
            bar.update(done)
    assert bar.seconds_left() == pytest.approx(76 * 40.08 / 8, rel=1e-3)


def test_many_pieces_are_remembered_in_little_room(clock):
    bar = Bar("train", 10**6)
    works(bar, clock, 4000, each=0.5)
    assert len(bar._recent) < 200
    assert bar.seconds_left() == pytest.approx((10**6 - 3999) * 0.5)


def test_off_a_terminal_lines_come_ever_more_seldom_and_the_last_one_comes(clock, capsys):
    bar = Bar("train", 3600)
    works(bar, clock, 3600, each=10.0)
    lines = capsys.readouterr().err.splitlines()
    assert 50 < len(lines) < 300
    assert lines[0].startswith("train: 2/3600")
    assert lines[-1] == "train: 3600/3600 0 s left"


def test_quiet_is_silent(clock, capsys):
    bar = Bar("train", 100, quiet=True)
    works(bar, clock, 100, each=30.0)
    bar.close()
    assert capsys.readouterr() == ("", "")
    assert bar.done == 100


class Terminal(io.StringIO):
    """A terminal that keeps what is written on it."""

    def isatty(self):
        return True


def test_on_a_terminal_one_bar_within_another_shows_both_and_leaves_the_outer_one(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with show.bar("outer", 2) as outer:
        outer.update(1)
        with show.bar("inner", 3) as inner:
            inner(2, 3)
            outer._live.refresh()
        outer.update(2, "loss 0.5")
    said = screen.getvalue()
    assert "inner" in said
    assert "2/3" in said
    assert "outer" in said.rpartition("inner")[2]
    assert "2/2 0 s left loss 0.5" in said
    assert show._live is None
    with show.bar("next", 1) as following:  # the place is free again
        following.update(1)
    assert "next" in screen.getvalue()


def test_a_stage_tells_what_the_whole_run_takes_by_what_each_stage_costs(tmp_path, clock, monkeypatch):
    told = []
    monkeypatch.setattr(Bar, "update", _noting(Bar.update, told))
    parts = toy.groups()
    stages = [
        toy.stage(parts, "a", steps=40, cost=1.0, before=_passing(clock, 10.0)),
        toy.stage(parts, "b", steps=100, cost=3.0, before=_passing(clock, 30.0)),
    ]
    fit(stages, parts, out=tmp_path)
    labels = dict.fromkeys(label for label, *_ in told)
    assert list(labels) == ["a (1 of 2)", "b (2 of 2)"]
    text = next(text for label, done, text in told if label == "a (1 of 2)" and done == 30)
    assert text.startswith(f"({show.duration(12 * 10 + 100 * 30)} for all) ")  # before step 30 is counted
    assert not any("for all" in text for label, _, text in told if label == "b (2 of 2)")


def test_where_it_is_not_known_what_a_later_stage_costs_nothing_is_said_of_the_whole_run(tmp_path, clock, capsys):
    parts, before = toy.groups(), _passing(clock, 25.0)
    fit([toy.stage(parts, name, steps=9, before=before) for name in ("a", "b")], parts, out=tmp_path)
    said = capsys.readouterr().err
    assert "for all" not in said
    assert "a (1 of 2): 5/9 1.7 min left" in said


def test_a_resumed_stage_takes_no_rate_from_the_steps_of_another_session(tmp_path, clock, monkeypatch):
    parts = toy.groups()
    fit([toy.stage(parts, "a", steps=50)], parts, out=tmp_path, quiet=True)
    told = []
    monkeypatch.setattr(Bar, "update", _noting(Bar.update, told))
    parts = toy.groups()
    longer = toy.stage(parts, "a", steps=60, before=_passing(clock, 10.0))
    fit([longer], parts, out=tmp_path, resume=True)
    assert [done for _, done, _ in told] == list(range(51, 61))


def test_a_stage_that_costs_nothing_is_refused():
    with pytest.raises(ValueError, match="expected cost > 0, got 0"):
        toy.stage(toy.groups(), "a", cost=0)


def _passing(clock, seconds):
    def before(_progress):
        clock.now += seconds

    return before


def _noting(update, told):
    def noted(self, done, text=""):
        update(self, done, text)
        told.append((self.label, done, text))

    return noted
