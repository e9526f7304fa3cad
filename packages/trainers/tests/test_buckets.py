"""Buckets crop least; their order loses and doubles nothing, and is the same for every process and after a resume."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from trainers import TrainingWarning
from trainers.buckets import BucketOrder, Buckets, sizes_of
from trainers.decode import Header

SIZES = ((480, 832), (832, 480), (640, 640), (544, 720))


def table(**change):
    return Buckets(**{"sizes": SIZES, "frames": (17, 49, 81), "fps": 16} | change)


def left(header, spec):
    """The share of the picture that a cover crop keeps, worked out the long way."""
    scale = max(spec.height / header.height, spec.width / header.width)
    return spec.height * spec.width / (header.height * header.width * scale**2)


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_bucket_keeps_most_of_the_picture_and_of_the_time(seed):
    rng, buckets = np.random.default_rng(seed), table()
    for _ in range(100):
        width, height = (int(v) for v in rng.integers(100, 2000, 2))
        header = Header(width, height, int(rng.integers(20, 300)), float(rng.choice([16, 24, 25, 29.97, 30, 50, 60])))
        if 0.9 < header.duration_s < 1.2:  # 60 fps in steps of four make 15: a clip may be 8 % longer than its nominal
            continue
        if header.duration_s < 1:
            with pytest.raises(ValueError, match="at least 17 frames"):
                buckets.nearest(header)
            continue
        chosen = buckets.specs[buckets.nearest(header)]
        assert left(header, chosen) >= max(left(header, spec) for spec in buckets.specs) - 1e-5
        assert (chosen.frames - 1) / 16 <= 1.08 * header.duration_s
        assert chosen.frames == 81 or header.duration_s < (49 if chosen.frames == 17 else 81) / 16 * 1.1


def test_of_sizes_of_one_aspect_the_larger_is_taken():
    buckets = table(sizes=((240, 416), (480, 832)))
    assert buckets.specs[buckets.nearest(Header(1280, 720, 200, 30))].height == 480


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sizes": ((480, 830),)}, r"divisible by 16.*use \(480, 832\)"),
        ({"sizes": ()}, "at least 1 item"),
        ({"sizes": ((480, 832), (480, 832))}, "different sizes"),
        ({"frames": (18,)}, r"4n\+1"),
        ({"frames": (21,), "time_stride": 8}, r"8n\+1 frames.*use 17 or 25"),
        ({"fps": 0}, "greater than 0"),
        ({"width": 3}, "unknown key"),
    ],
)
def test_a_table_that_no_model_takes_is_refused(change, what):
    with pytest.raises(ValueError, match=what):
        table(**change)


@pytest.mark.parametrize("multiple", [8, 16, 32])
@pytest.mark.parametrize("pixels", [256 * 256, 480 * 832])
def test_sizes_are_divisible_of_about_one_area_and_cover_the_aspects(multiple, pixels):
    sizes = sizes_of(pixels, multiple=multiple, max_aspect=2.0)
    assert all(height % multiple == 0 and width % multiple == 0 for height, width in sizes)
    assert all(0.85 < height * width / pixels < 1.15 for height, width in sizes)
    aspects = [width / height for height, width in sizes]
    assert aspects == sorted(aspects)
    assert aspects[0] >= 0.5
    assert aspects[-1] <= 2.0
    assert {(width, height) for height, width in sizes} & set(sizes)  # tall ones as well as wide ones
    assert max(b / a for a, b in pairwise(aspects)) < 1.6  # no aspect is far from one of them
    Buckets(sizes=sizes, frames=(17,), fps=16, multiple=multiple)


def shuffled_buckets(seed, most=6):
    rng = np.random.default_rng(seed)
    counts = rng.integers(4, 40, rng.integers(1, most))
    return torch.from_numpy(rng.permutation(np.repeat(np.arange(len(counts)), counts)))


def orders(bucket, *, world, batch, seed=0, digest="", **where):
    return [
        BucketOrder(bucket, batch_size=batch, seed=seed, digest=digest, rank=rank, world_size=world, **where)
        for rank in range(world)
    ]


CASES = [(seed, world, batch) for seed in range(4) for world, batch in ((1, 1), (1, 3), (2, 2), (4, 1))]


@pytest.mark.parametrize(("seed", "world", "batch"), CASES)
def test_every_step_holds_one_bucket_and_every_process_other_samples_of_it(seed, world, batch):
    bucket = shuffled_buckets(seed)
    ranks = orders(bucket, world=world, batch=batch, seed=seed)
    joined = orders(bucket, world=1, batch=batch * world, seed=seed)[0]
    for _ in range(3 * len(bucket) // (world * batch)):
        deals = [order.deal(batch) for order in ranks]
        indices = torch.cat([deal.indices for deal in deals])
        assert len(bucket[indices].unique()) == 1
        assert torch.equal(indices, joined.take(batch * world))  # a step is the same whoever takes it
        assert len({str(order.state()) for order in ranks}) == 1


@pytest.mark.parametrize(("seed", "world", "batch"), CASES)
def test_no_sample_is_lost_or_doubled_within_its_epoch(seed, world, batch):
    bucket = shuffled_buckets(seed)
    ranks = orders(bucket, world=world, batch=batch, seed=seed)
    shown = {}
    while ranks[0].epoch < 5:
        for deal in [order.deal(batch) for order in ranks]:
            for index, epoch in zip(deal.indices.tolist(), deal.epochs.tolist(), strict=True):
                shown.setdefault(epoch, []).append(index)
    for epoch in range(5):
        assert sorted(shown[epoch]) == list(range(len(bucket)))
    ahead = [len(shown.get(epoch, [])) for epoch in range(5, 8)]
    assert sum(ahead) < world * batch * len(bucket.unique())  # of what comes later, less than a step of each bucket


@pytest.mark.parametrize(("seed", "world", "batch"), CASES)
def test_three_integers_bring_the_order_back_anywhere(seed, world, batch):
    bucket = shuffled_buckets(seed)
    straight = orders(bucket, world=world, batch=batch, seed=seed)[-1]
    steps = 3 * len(bucket) // (world * batch) + 2
    states, taken = [], []
    for _ in range(steps):
        states.append(straight.state())
        taken.append(straight.take(batch))
    assert all(set(state) == {"seed", "epoch", "index"} for state in states)
    for stop in np.random.default_rng(seed).choice(steps, 6):
        again = orders(bucket, world=world, batch=batch, **states[stop])[-1]
        assert all(torch.equal(again.take(batch), indices) for indices in taken[stop:])


def test_seed_data_batch_and_processes_each_make_another_order():
    bucket = shuffled_buckets(1)

    def start(**how):
        order = BucketOrder(bucket, **{"batch_size": 2, "seed": 0, "digest": "a"} | how)
        return torch.cat([order.take(order.batch_size) for _ in range(8)]).tolist()

    assert start() == start()
    others = [start(seed=1), start(digest="b"), start(batch_size=4)[: len(start())], start(world_size=2)]
    assert all(other != start() for other in others)


def test_the_buckets_of_an_epoch_are_mixed():
    bucket = torch.arange(2).repeat_interleave(50)
    order = BucketOrder(bucket, batch_size=2, seed=0)
    sequence = [int(bucket[order.take(2)[0]]) for _ in range(50)]
    assert sum(sequence) == 25
    assert sequence != sorted(sequence)
    assert sum(a != b for a, b in pairwise(sequence)) > 15


def test_a_bucket_smaller_than_a_step_is_said_and_still_shown_as_often_as_the_others():
    bucket = torch.tensor([0] * 20 + [1] * 3)
    with pytest.warns(TrainingWarning, match="1 of 2 buckets hold fewer samples than one step takes"):
        order = BucketOrder(bucket, batch_size=8, seed=0)
    counts = torch.zeros(23)
    while order.epoch < 16:
        counts += torch.bincount(order.take(8), minlength=23)
    assert counts.min() >= 16
    assert counts.max() <= 16 + 3


def test_an_order_left_by_other_batches_is_refused_with_the_remedy():
    bucket = shuffled_buckets(0)
    with pytest.raises(ValueError, match="put batch_size and the number of processes back"):
        BucketOrder(bucket, batch_size=4, seed=0, epoch=1, index=6)
    with pytest.raises(ValueError, match="batches of 4"):
        BucketOrder(bucket, batch_size=4, seed=0).take(3)
    with pytest.raises(ValueError, match="empty data set"):
        BucketOrder(torch.zeros(0, dtype=torch.int64), batch_size=4, seed=0)
