"""Pseudo-RGB says who is where and what went where, and says it after a codec as well, within stated errors."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import physworld
from mmphysvideo import colours
from mmphysvideo.perception import Perception, Space, Tracks, planar_points, spread
from mmphysvideo.pseudo import MODALITIES, Coding, compare, decode, encode
from mmphysvideo.pseudo_world import of_clip, perception_of
from trainers import video

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
EYES = {
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]


@pytest.fixture(scope="module")
def collision():
    return physworld.simulate("collision", 1, split="val", scale=2)


def lab(colour, eye):
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.array(eye).T, 0, 1) @ np.array(XYZ).T / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def test_the_six_colours_and_the_grey_differ_for_colour_blind_eyes_as_well():
    shades = np.stack([colours.middle(None), *(colours.middle(k) for k in range(colours.MOST))])
    for eye in EYES.values():
        seen = lab(shades, eye)
        apart = np.linalg.norm(seen[:, None] - seen, axis=-1)[np.triu_indices(len(seen), 1)]
        assert apart.min() > 23


def test_the_legend_shows_each_subject_in_the_middle_of_its_cell():
    picture = colours.legend(["ball", "cup"], cells=[2, 0])
    for row, cell in enumerate((None, 2, 0)):
        assert np.abs(picture[row * 20 + 8, 20] - 255 * colours.middle(cell)).max() < 1


@pytest.mark.parametrize("mechanism", ["rigid_body", "collision", "elastic"])
def test_decoding_gives_back_masks_points_and_tracks(mechanism):
    truth = perception_of(physworld.simulate(mechanism, 0, split="val"))
    for modality in MODALITIES:
        made = encode(truth, modality, seed=3)
        found = compare(decode(made.frames, made.coding, queries=truth.tracks), truth, modality)
        assert found.mask_iou in (None, 1.0)
        # half a level of 255 in a cell: .32 of the cube for subjects, .2 for the background
        assert found.point_rms is None or found.point_rms < (0.004 if modality == "xyz" else 0.02)
        assert found.track_px is None or found.track_px < 0.25
        assert found.visible is None or found.visible > 0.97
    assert decode(made.frames, made.coding).off.max() < 0.005


def test_what_a_coding_does_not_say_is_none(collision):
    truth = perception_of(collision)
    said = {m: decode(encode(truth, m).frames, encode(truth, m).coding) for m in MODALITIES}
    assert [m for m in MODALITIES if said[m].masks is None] == ["xyz"]
    assert [m for m in MODALITIES if said[m].points is None] == ["seg", "track"]
    assert [m for m in MODALITIES if said[m].tracks is None] == ["xyz", "seg"]


def test_an_h264_round_trip_keeps_it_within_stated_errors(collision, tmp_path):
    truth = perception_of(collision)
    for modality, iou, track in (("unified", 0.85, 1.5), ("track", 0.98, 1.0), ("seg", 0.9, None), ("xyz", None, None)):
        made = encode(truth, modality)
        back = video.read(video.write(tmp_path / f"{modality}.mp4", made.frames, 16)).frames
        found = compare(decode(back, made.coding, queries=truth.tracks), truth, modality)
        assert iou is None or found.mask_iou > iou
        assert track is None or found.track_px < track
    assert found.point_rms < 0.03


def test_the_worlds_autoencoder_keeps_it_within_stated_errors(collision, backbone):
    truth = perception_of(collision)
    for modality, iou, track in (("unified", 0.7, 5.0), ("seg", 0.7, None)):
        made = encode(truth, modality)
        with torch.no_grad():
            latent = backbone.encode(torch.from_numpy(made.signal).permute(3, 0, 1, 2)[None])
            back = backbone.decode(latent)[0].permute(1, 2, 3, 0).clamp(-1, 1).numpy()
        found = compare(decode(back, made.coding, queries=truth.tracks), truth, modality)
        assert found.mask_iou > iou
        assert track is None or found.track_px < track


def test_bytes_and_the_signal_say_the_same(collision):
    made = of_clip(collision)
    assert made.signal.min() >= -1
    assert made.signal.max() <= 1
    a, b = decode(made.frames, made.coding), decode(made.signal, made.coding)
    assert (a.masks == b.masks).all()
    assert np.abs(a.points - b.points).max() < 1e-3


def test_a_surface_point_keeps_its_colour_while_it_moves(collision):
    truth = perception_of(collision)
    made, tracks = encode(truth), truth.tracks
    moved = np.linalg.norm(tracks.position[:, -1] - tracks.position[:, 0], axis=1) > 6
    inner = np.flatnonzero(moved & tracks.visible.all(1))
    assert len(inner) >= 5
    for k in inner:
        y, x = np.rint(tracks.position[k]).astype(int).T
        shades = made.frames[np.arange(17), y, x].astype(int)
        assert np.abs(shades - shades[0]).max() <= 3  # a pixel of 64 is 1.3 levels


def test_seeds_deal_colours_and_the_coding_survives_json(collision):
    truth = perception_of(collision)
    dealt = {encode(truth, "seg", seed=seed).coding.cells for seed in range(12)}
    assert len(dealt) > 5
    made = encode(truth, seed=5)
    coding = Coding.of(json.loads(json.dumps(made.about)))
    assert coding == made.coding
    assert (decode(made.frames, coding).masks == truth.masks).all()


def test_too_many_subjects_and_subjects_without_a_name_are_refused(collision):
    truth = perception_of(collision)
    with pytest.raises(ValueError, match="at most 6 subjects, got 7"):
        encode(replace(truth, subjects=tuple("abcdefg")))
    with pytest.raises(ValueError, match="a name for each of 2 subjects"):
        replace(truth, subjects=("one",))


def slab(focal=40.0):
    """A square that recedes and moves sideways before a slanted wall, as a pinhole camera sees it."""
    t, h, w = 5, 48, 64
    y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    z = np.repeat((4 + 0.02 * x)[None], t, 0).astype(np.float32)
    masks = np.zeros((t, h, w), np.uint8)
    ys, xs = np.meshgrid(np.arange(12, 28, 4), np.arange(12, 28, 4), indexing="ij")
    start = np.stack([ys.ravel(), xs.ravel()], -1).astype(np.float32)
    for k in range(t):
        masks[k, 10:30, 10 + 4 * k : 30 + 4 * k] = 1
        z[k][masks[k] == 1] = 2 + 0.1 * k
    position = start[:, None] + np.arange(t)[None, :, None] * np.array([0, 4], np.float32)
    points = np.stack([(x - 31.5) * z / focal, (y - 23.5) * z / focal, z], -1).astype(np.float32)
    tracks = Tracks(position.astype(np.float32), np.ones((len(start), t), bool), np.ones(len(start), np.uint8))
    return Perception(masks, points, tracks, Space.robust(points, focal), ("slab",))


def test_with_depth_points_come_back_within_the_robust_bounds():
    truth = slab()
    xyz = encode(truth, "xyz")
    assert compare(decode(xyz.frames, xyz.coding), truth, "xyz").point_rms < 0.004
    unified = encode(truth)
    found = compare(decode(unified.frames, unified.coding, queries=truth.tracks), truth, "unified")
    assert found.mask_iou == 1.0
    assert found.point_rms < 0.02
    assert found.track_px < 0.5


def test_a_new_seed_on_a_known_surface_goes_on_with_its_colour():
    truth = slab()
    late = truth.tracks.visible.copy()
    late[::2, :2] = False  # half of the points are found in frame 2 only
    again = replace(truth, tracks=replace(truth.tracks, visible=late))
    a, b = spread(truth), spread(again)
    inside = truth.masks > 0
    assert np.abs(a[inside] - b[inside]).max() < 0.01
    alone = late.copy()
    alone[1::2] = False
    fresh = spread(replace(truth, tracks=replace(truth.tracks, visible=alone)))
    assert (fresh[3][truth.masks[3] == 1][:, 0] == 2).all()  # without the older ones, it is new in frame 2


def test_a_subject_without_tracks_is_new_in_every_frame():
    masks = np.ones((2, 4, 4), np.uint8)
    none = Tracks(np.zeros((0, 2, 2), np.float32), np.zeros((0, 2), bool), np.zeros(0, np.uint8))
    found = spread(Perception(masks, planar_points(2, 4, 4), none, Space.planar(4, 4), ("all",)))
    assert (found[1, ..., 0] == 1).all()
    assert (found[1, 2, 3] == [1, 2, 3]).all()


@pytest.mark.parametrize("mechanism", ["fluid", "compressible_flow", "phase_change", "thermal", "optical"])
def test_media_have_a_subject_by_their_level_and_tracks_carried_by_their_velocity(mechanism):
    clip = physworld.simulate(mechanism, 1)
    truth = perception_of(clip)
    assert truth.masks.max() == 1
    assert len(truth.subjects) == 1
    assert len(truth.tracks)
    moved = np.linalg.norm(truth.tracks.position[:, -1] - truth.tracks.position[:, 0], axis=1).max()
    assert (moved > 0.5) == ("velocity" in clip.fields)
