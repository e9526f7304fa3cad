"""What is missing is asked for when it is needed, with the line that installs it, and never before."""

import subprocess
import sys
import textwrap


def run(code, *, blocked=()):
    """Run code in a fresh interpreter where some libraries are not installed, warnings being errors."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n"  # None: as if it were not there
    program = block + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


OPTIONAL = ("cv2", "torchvision", "peft", "huggingface_hub", "typer", "rich", "sentencepiece")
HEAVY = ("diffusers", "transformers", "accelerate", "tokenizers", "ftfy", "matplotlib")


def test_the_package_and_its_light_modules_need_torch_alone():
    lines = run(
        """
        import backbones
        from backbones import bundle, configs, contract, flow, hub, lora, paths
        import backbones.__main__
        print(backbones.__version__, len(backbones.__all__) > 10)
        """,
        blocked=(*OPTIONAL, *HEAVY),
    )
    assert len(lines) == 1
    assert lines[0].endswith("True")


def test_every_missing_part_answers_with_its_install_line():
    lines = run(
        """
        import tempfile
        import numpy as np
        import torch
        from backbones import flow, hub, lora

        weights = tempfile.NamedTemporaryFile(suffix=".safetensors")
        video = np.zeros((2, 32, 32, 3), np.uint8)

        def said(call, *arguments, **named):
            try:
                call(*arguments, **named)
            except ImportError as error:
                print(error)

        said(flow.optical_flow, video)
        said(hub.upload, {}, "org/name", message="")
        said(hub.download, "org/name", ["bundle.json"])
        said(lora.state, torch.nn.Linear(1, 1))
        said(lora.load, None, ".")
        del sys.modules["cv2"]
        said(flow.optical_flow, video, "raft", weights=weights.name)
        """,
        blocked=OPTIONAL,
    )
    assert lines == [
        "optical flow needs OpenCV: uv pip install opencv-python-headless",
        "the hub needs its client: uv pip install huggingface-hub",
        "the hub needs its client: uv pip install huggingface-hub",
        "LoRA needs peft: uv pip install 'physbackbones[lora]'",
        "LoRA needs peft: uv pip install 'physbackbones[lora]'",
        "RAFT needs torchvision: uv pip install 'physbackbones[raft]'",
    ]


def test_importing_costs_torch_alone():
    [loaded] = run("import backbones; print(*sorted({m.split('.')[0] for m in sys.modules}))")
    assert not {*loaded.split()} & {*OPTIONAL, *HEAVY}


def test_everything_that_needs_no_extra_works_without_the_extras(tmp_path):
    """The embedded backbone loads, is attached to and inspected where only the base dependencies are installed."""
    lines = run(
        """
        import backbones
        from backbones.__main__ import main
        print(backbones.load("world").spec.latent.channels, main(["inspect", "world"]))
        """,
        blocked=("torchvision", "peft", "typer", "rich", "sentencepiece", "cv2"),
    )
    assert lines[-1] == "16 0"
