"""Maps judged by the world's exact fields: the fields pass the bar of localisation, a random model's maps do not."""

import pytest
import torch

import physworld
from vlmdistill import VOCABULARIES, Clip, Contrast, annotate, bar, localise, macro, random_router, tiny, token_targets

BODIES = ("rigid_body", "collision")  # their law holds in a part of the picture: prevalence < .5
GRID, CATEGORIES = (5, 8, 8), VOCABULARIES["mechanisms"]


@pytest.fixture(scope="module")
def clips():
    return {mechanism: physworld.simulate_many(mechanism, [0, 1]) for mechanism in BODIES}


def truth_of(clip):
    """The exact mask of the body, and when its frames are."""
    return torch.from_numpy(clip.valid["displacement"]), torch.as_tensor(clip.times_s, dtype=torch.float32)


def score(maps_of, clips):
    """Macro score above chance of maps on the grid of a generator's tokens."""
    found = {}
    for mechanism, each in clips.items():
        found[mechanism] = []
        for clip in each:
            mask, times_s = truth_of(clip)
            tokens_s = torch.linspace(0, float(times_s[-1]), GRID[0])
            there = Contrast({mechanism: mask.float()}, times_s)
            lay = {"categories": CATEGORIES, "present": [mechanism], "grid": GRID, "times_s": tokens_s}
            truth = token_targets(there, **lay).values[CATEGORIES.index(mechanism)] > 0.25  # of the cell
            maps = token_targets(maps_of(clip, mechanism), **lay).values[CATEGORIES.index(mechanism)]
            found[mechanism].append(localise(maps, truth))
    return macro(found)


def random_score(clips):
    def of_seed(seed):
        def maps_of(clip, mechanism):
            frames = torch.from_numpy(clip.video).float().flatten(0, 2)
            column = random_router(torch.cat([frames, frames.square()], 1), 8, seed)[:, 0]
            return Contrast({mechanism: column.view(clip.video.shape[:3])}, truth_of(clip)[1])

        return score(maps_of, clips)

    return of_seed


def test_the_exact_field_passes_the_bar(clips):
    def exact(clip, mechanism):
        mask, times_s = truth_of(clip)
        return Contrast({mechanism: mask.float()}, times_s)

    verdict = bar(score(exact, clips), random_score(clips), draws=40)
    assert verdict.score > 0.9
    assert verdict.passes
    assert verdict.random_quantile > 0.3, "colour alone finds a body, which is why random routers are asked"


def test_a_random_model_s_maps_do_not_pass_the_bar(clips):
    vlm = tiny()

    def looked(clip, mechanism):
        times_s = torch.as_tensor(clip.times_s, dtype=torch.float32)
        return annotate(vlm, Clip(torch.from_numpy(clip.video), times_s), [mechanism], new_tokens=4)

    verdict = bar(score(looked, clips), random_score(clips), draws=40)
    assert abs(verdict.score) < 0.3
    assert not verdict.passes
