"""Adapters of models with weights: the real loading code, on tiny random checkpoints."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from mmphysvideo.pipe.evidence import NoEvidence, Subject
from mmphysvideo.pipe.experts import crew_of, observe
from mmphysvideo.pipe.models import CoTracker, DepthAnything, Sam2
from mmphysvideo.pipe.seen import Seen
from mmphysvideo.pipe.settings import Experts, Settings, Witness

SUBJECTS = [
    Subject(id=1, name="a", evidence_frames=[1], box=(0.1, 0.1, 0.5, 0.5), why="moves"),
    Subject(id=2, name="b", evidence_frames=[0, 2], box=(0.5, 0.4, 0.9, 0.9), why="moves"),
]


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    return Seen("clip", rng.integers(0, 255, (4, 48, 64, 3), np.uint8), np.arange(4) / 8)


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    pytest.importorskip("torchvision", reason="SAM 2's processor in transformers resizes with torchvision")
    from transformers import Sam2ImageProcessor, Sam2VideoConfig, Sam2VideoModel, Sam2VideoProcessor
    from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor

    folder = tmp_path_factory.mktemp("sam2")
    side = {"height": 128, "width": 128}
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [128, 128],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 2, 4, 2],
        "global_attention_blocks": [3],  # never the first of a stage, which pools
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 128,
    }
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 128, "image_size": 128, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": 128,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
        image_size=128,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=64,
        memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,  # transformers knows no other
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32,
    )
    torch.manual_seed(0)
    model = Sam2VideoModel(config)
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 9.0)  # sure that there is something
    model.save_pretrained(folder)
    processor = Sam2VideoProcessor(Sam2ImageProcessor(size=side), Sam2VideoVideoProcessor(size=side))
    processor.save_pretrained(folder)
    return folder


def test_sam2_labels_every_pixel_of_every_frame_with_a_subject_or_none(sam2, clip):
    labels = Sam2(str(sam2)).segment(clip, SUBJECTS)
    assert labels.shape == (4, 48, 64)
    assert labels.dtype == np.uint8
    assert labels.max() <= 2
    assert (Sam2(str(sam2)).segment(clip, SUBJECTS) == labels).all()
    assert not Sam2(str(sam2)).segment(clip, []).any()


@pytest.mark.parametrize("frames", [([1], [0, 2]), ([2], [2]), ([3], [0])])
def test_sam2_follows_each_subject_both_ways_from_its_own_first_frame(sam2, clip, frames):
    subjects = [s.model_copy(update={"evidence_frames": f}) for s, f in zip(SUBJECTS, frames, strict=True)]
    both = Sam2(str(sam2)).segment(clip, subjects)
    alone = [Sam2(str(sam2)).segment(clip, [s]) > 0 for s in subjects]
    assert all(each.any(axis=(1, 2)).all() for each in alone)  # in every frame
    assert ((both > 0) == (alone[0] | alone[1])).all()
    assert all((alone[k - 1][both == k]).all() for k in (1, 2))


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    folder = tmp_path_factory.mktemp("depth")
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        patch_size=14,
    )
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=14).save_pretrained(folder)
    return folder


def test_depth_gives_points_before_the_camera_and_the_manifest_its_name(depth_anything, clip):
    crew = crew_of(Settings(experts=Experts(depth=str(depth_anything))))
    assert crew.names["depth"] == str(depth_anything)
    z, focal = crew.depth.depth(clip, np.zeros((4, 48, 64), np.uint8))
    assert z.shape == (4, 48, 64)
    assert z.min() >= 1
    assert z.max() <= 10.001
    assert focal == pytest.approx(32 / np.tan(np.pi / 6))
    seen = observe(clip, [], crew)
    assert seen.space.focal_px == focal
    again = seen.points[..., 0] * focal / seen.points[..., 2] + 31.5
    assert np.abs(again - np.arange(64)).max() < 1e-3


def test_frames_are_laid_on_the_first_one_s_scale(clip):
    from mmphysvideo.pipe.models import _aligned

    rng = np.random.default_rng(0)
    first = rng.uniform(1, 2, (6, 8)).astype(np.float32)
    ground = np.ones((6, 8), bool)
    assert np.abs(_aligned(3 * first - 2, first, ground) - first).max() < 1e-5


class Predictor(torch.nn.Module):
    """Stands for the package's predictor: everything moves 2 px right a frame; asks for (t, x, y) in floats."""

    def __init__(self, checkpoint):
        super().__init__()
        assert checkpoint is None
        self.model = torch.nn.Linear(1, 1)

    def forward(self, video, queries, backward_tracking):
        assert video.shape[2] == 3
        assert backward_tracking
        steps = torch.arange(video.shape[1])[:, None] - queries[0, :, 0]
        tracks = queries[0, None, :, 1:] + torch.stack([2 * steps, 0 * steps], -1)
        return tracks[None], torch.ones(tracks.shape[:2], dtype=torch.bool)[None]


def test_cotracker_s_points_come_back_as_y_and_x(clip, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    package, module = ModuleType("cotracker"), ModuleType("cotracker.predictor")
    module.CoTrackerPredictor = Predictor
    monkeypatch.setitem(sys.modules, "cotracker", package)
    monkeypatch.setitem(sys.modules, "cotracker.predictor", module)
    save_file(torch.nn.Linear(1, 1).state_dict(), tmp_path / "tracker.safetensors")
    masks = np.zeros((4, 48, 64), np.uint8)
    masks[1:, 10:20, 30:40] = 1
    tracks = CoTracker(str(tmp_path / "tracker.safetensors")).track(clip, masks)
    assert len(tracks)
    assert (tracks.subject == 1).all()
    assert tracks.visible.all()
    assert (tracks.position[:, 1] >= [10, 30]).all()
    assert (tracks.position[:, 1] < [20, 40]).all()
    assert np.allclose(np.diff(tracks.position, axis=1), [0, 2])
    with pytest.raises(ValueError, match="safetensors file, found none"):
        CoTracker(str(tmp_path / "none")).track(clip, masks)


def test_what_is_not_there_is_named_with_its_remedy(tmp_path, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "cotracker", None)
    masks = np.ones((4, 48, 64), np.uint8)
    with pytest.raises(ValueError, match=r"pip install git\+https"):
        CoTracker("x").track(clip, masks)
    with pytest.raises(ValueError, match=r"SAM 2 for video (cannot be loaded|needs more than is installed)"):
        Sam2(str(tmp_path)).segment(clip, SUBJECTS)
    with pytest.raises(ValueError, match="a depth model cannot be loaded"):
        DepthAnything(str(tmp_path)).depth(clip, masks)
    with pytest.raises(ValueError, match=r"witness\.model"):
        crew_of(Settings(witness=Witness(kind="local")))
    with pytest.raises(ValueError, match=r"witness\.url"):
        crew_of(Settings(witness=Witness(kind="server", model="m", url="localhost")))


class Talk(dict):
    """Stands for a processor and its inputs: keeps what it was asked, answers one text."""

    def apply_chat_template(self, messages, **how):
        self["messages"], self["input_ids"] = messages, torch.zeros(1, 3, dtype=torch.long)
        return self

    def to(self, device):
        return self

    def batch_decode(self, ids, **how):
        assert ids.shape == (1, 2)
        return ["no idea"]


class Mumbler:
    """Stands for a model that goes on with two tokens."""

    device = "cpu"

    def generate(self, do_sample, max_new_tokens, **inputs):
        assert (do_sample, max_new_tokens) == (False, 8)
        return torch.zeros(1, 5, dtype=torch.long)


def test_a_local_model_that_answers_nonsense_is_asked_to_mend_it_and_gives_no_evidence_in_the_end(clip):
    from mmphysvideo.pipe.vlm import LocalModel

    model, talk = LocalModel(Witness(kind="local", model="tiny", frames=2, repairs=1, max_tokens=8)), Talk()
    model.__dict__["_loaded"] = (talk, Mumbler())
    with pytest.raises(NoEvidence, match="in 2 answers; the last: it is no JSON object"):
        model.testify(clip)
    first, answer, mend = talk["messages"]
    assert [part.get("text") for part in first["content"]][:3] == ["frame 0", None, "frame 3"]
    assert answer["content"][0]["text"] == "no idea"
    assert "Answer again" in mend["content"][0]["text"]
    with pytest.raises(ValueError, match="no vision-language model can be loaded"):
        LocalModel(Witness(kind="local", model="/nowhere")).testify(clip)
