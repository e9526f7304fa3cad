"""The command line: sizes from configurations alone, one sentence for bad input, exports that prove themselves."""

import json
import shutil
import subprocess
import sys
from functools import lru_cache

import pytest
import torch

from backbones import bundle, configs, load, tiny_families, verify
from backbones.__main__ import main
from backbones.loading import save
from backbones.sizes import measure as measure_now
from backbones.skeleton import skeleton

BILLIONS = {
    "wan2.1-t2v-1.3b": 1.419,
    "wan2.2-ti2v-5b": 5.000,
    "wan2.2-t2v-a14b": 14.288,
    "cogvideox-2b": 1.694,
    "cogvideox-5b": 5.570,
}
TOKENS = {
    "wan2.1-t2v-1.3b": 32_760,
    "wan2.2-ti2v-5b": 27_280,
    "wan2.2-t2v-a14b": 75_600,
    "cogvideox-2b": 17_550,
    "cogvideox-5b": 17_550,
}


measure = lru_cache(measure_now)  # ten published models are built once each


def run(capsys, *arguments):
    status = main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("name", BILLIONS)
def test_every_family_has_its_parameters_and_tokens(name):
    found = measure(name)
    parts = {p.name: p.parameters for p in found.parts}
    assert parts["transformer"] / 1e9 == pytest.approx(BILLIONS[name], abs=0.001)
    assert ("transformer_2" in parts) == (name == "wan2.2-t2v-a14b")
    assert parts["text_encoder"] / 1e9 == pytest.approx(5.68 if name.startswith("wan") else 4.76, abs=0.01)
    assert found.tokens == TOKENS[name]


def test_memory_is_what_the_tensors_hold():
    """Against the table of a study that measured them: 96, 160 and 738 MiB for one hidden state in bfloat16."""
    mib = 2**20
    for name, expected in {"wan2.1-t2v-1.3b": 96, "wan2.2-ti2v-5b": 160, "wan2.2-t2v-a14b": 738}.items():
        memory = measure(name).to_dict()["memory"]
        assert memory["one hidden state"]["bf16"] / mib == pytest.approx(expected, abs=0.5)
    modulation = measure("wan2.2-ti2v-5b").to_dict()["memory"]["modulation (per token)"]["bf16"]
    assert modulation / 2**30 == pytest.approx(0.94, abs=0.01)
    assert "modulation (per token)" not in measure("wan2.1-t2v-1.3b").to_dict()["memory"]


@pytest.mark.parametrize("name", ["wan2.1-i2v-14b", "wan2.2-ti2v-5b", "cogvideox1.5-5b-i2v"])
def test_nothing_of_a_published_model_is_in_memory(name):
    pipe, about = skeleton(name)
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    assert {p.device.type for m in modules for p in m.parameters()} == {"meta"}
    assert about["id"] == configs.read(name)["hub"]


@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_a_folder_says_from_its_configs_what_the_loaded_model_says(family, tmp_path):
    pipe = tiny_families.family(family, layers=1)
    pipe.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()  # the configs alone
    found = measure(tmp_path)
    assert found.spec == loaded.spec
    counted = {n: sum(p.numel() for p in m.parameters()) for n, m in pipe.components.items()
               if isinstance(m, torch.nn.Module)}  # fmt: skip
    assert {p.name: p.parameters for p in found.parts} == counted
    assert found.sigma_ranges == loaded.sigma_ranges


def test_the_embedded_world_is_inspected_as_it_is_loaded(capsys):
    status, out, _ = run(capsys, "inspect", "world", "--json")
    assert status == 0
    found, world = json.loads(out), load("world")
    assert found["spec"] == world.spec.to_dict()
    assert found["latent"] == [16, 5, 8, 8]
    assert found["parts"] == [
        {"name": n, "kind": type(m).__name__, "parameters": sum(p.numel() for p in m.parameters())}
        for n, m in world.pipe.components.items()
        if isinstance(m, torch.nn.Module)
    ]


def test_a_block_pca_and_a_clip_of_any_legal_size(backbone, tmp_path):
    save(backbone, tmp_path / "b", id="mine")
    found = measure(tmp_path / "b", frames=9, height=16, width=64)
    assert (found.id, found.spec) == ("mine", backbone.spec)
    assert found.latent == tuple(backbone.encode(torch.zeros(1, 3, 9, 16, 64)).shape[1:])
    assert found.tokens == 3 * 2 * 8


def test_the_table_names_parts_experts_and_condition(capsys):
    _, out, _ = run(capsys, "inspect", "wan2.2-t2v-a14b")
    assert "transformer_2 (WanTransformer3DModel)" in out
    assert "sigma in 0.875..1 and 0..0.875" in out
    assert "14,288,491,584    26.61 GiB    53.23 GiB" in out
    _, out, _ = run(capsys, "inspect", "wan2.2-i2v-a14b")
    assert "20 of 36 channels" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inspect", "wan"], "expected a family (cogvideox-2b"),
        (["inspect", "world", "--frames", "0"], "expected 4n+1 frames, got 0"),
        (["inspect", "world", "--height", "30"], "Use 24 or 32"),
        (["inspect", "."], "with a model_index.json"),
        (["inspect", "org/name"], "nothing came from the hub for org/name"),
        (["verify-export", "."], "expected a bundle folder"),
        (["verify-export", "none"], "expected a bundle's folder, the name of a shipped bundle"),
    ],
)
def test_bad_input_is_answered_with_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert sentence in err


def test_a_folder_that_names_foreign_classes_is_refused(tmp_path, capsys):
    tiny_families.family("wan21_t2v", layers=1).save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    content = json.loads(index.read_text())
    for part, entry in {"vae": ["os", "system"], "text_encoder": ["transformers", "__loader__"]}.items():
        index.write_text(json.dumps(content | {part: entry}))
        status, _, err = run(capsys, "inspect", str(tmp_path))
        assert (status, "nothing else is built from a config" in err) == (2, True)
    index.write_text("{")
    assert "expected JSON in" in run(capsys, "inspect", str(tmp_path))[2]


def test_help_lists_the_commands():
    done = subprocess.run([sys.executable, "-m", "backbones", "--help"], capture_output=True, text=True, check=True)
    assert "inspect" in done.stdout
    assert "verify-export" in done.stdout
    assert done.stderr == ""


@pytest.fixture
def pila(tmp_path):
    """A copy of a bundle that an installed app ships."""
    if not any(e.name == "plain" for e in bundle.entry_points(group=bundle.SHIPPED)):
        pytest.skip("needs an installed app that ships a bundle")
    return shutil.copytree(bundle.shipped("plain"), tmp_path / "plain")


def test_an_export_proves_itself_in_a_new_process(pila, capsys):
    status, out, err = run(capsys, "verify-export", str(pila), "--record")
    assert (status, out, err) == (0, f"recorded in {pila / 'verify.json'}\n", "")
    found = verify.fresh(pila, "world")
    assert found.holds  # to the last bit as a rule, yet kernels may differ with where memory lies in a process
    assert found.recorded > 0
    kept = json.loads((pila / "verify.json").read_text())
    kept["corrected"] = kept["plain"]
    (pila / "verify.json").write_text(json.dumps(kept))
    status, out, _ = run(capsys, "verify-export", str(pila))
    assert (status, "NOT as recorded" in out) == (1, True)
    (pila / "verify.json").unlink()
    with pytest.raises(ValueError, match="--record"):
        verify.fresh(pila, "world")
