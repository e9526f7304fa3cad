"""`world`: make the simulated data set, train the embedded backbone on it, look at it, measure it, ship it."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from trainers.commands import friendly, hint, line, new_app
from trainers.commands import shown as console
from trainers.options import Quiet

app = new_app("Make the simulated data set, train the embedded backbone on it, look at it, measure it, ship it.")
train = new_app("Train a part of the embedded backbone.")
app.add_typer(train, name="train")
plain_errors = partial(friendly, code=2)

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when huggingface_hub is first imported

Out = Annotated[Path, typer.Option("--out", help="Folder (or file) to write.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe field: --set a.b=c (repeatable).")]
Config = Annotated[Path | None, typer.Option("--config", help="Recipe YAML; the shipped one by default.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:1.")]
Scale = Annotated[
    int | None, typer.Option("--scale", min=1, help="1: 32 pixels, 2: 64; what it was trained on by default.")
]
Weights = Annotated[str, typer.Option("--weights", help="A backbone: 'world', or a diffusers folder.")]


def place(name: str) -> None:
    """Check a device before anything is read, and leave the CPU to one thread when that is where the work is done."""
    from world.device import one_thread_on, usable

    one_thread_on(usable(name))


@app.command()
@plain_errors
def make(
    out: Out,
    clips: Annotated[int, typer.Option(min=1, help="Clips, spread over the eight mechanisms.")] = 4000,
    split: Annotated[str, typer.Option(help="train, val, test or ood (held-out combinations and ranges).")] = "train",
    scale: Annotated[int, typer.Option(min=1, help="1 draws 32 pixels, 2 draws 64.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    fields: Annotated[bool, typer.Option(help="Keep the exact fields beside each clip.")] = True,
    quiet: Quiet = False,
) -> None:
    """Make a data set, or complete one: what stands is kept."""
    from world.make import make as make_clips

    made = make_clips(out, clips=clips, split=split, scale=scale, fields=fields, workers=workers, quiet=quiet)
    console.print(f"{made.written} clips written, {made.kept} kept; records in {out / 'records.jsonl'}")
    console.print(f"look at {out}/sheet-*.png")
    hint(line("world", "train", "vae", data=out, out=f"{out}-vae"))


@train.command("vae")
@plain_errors
def train_vae(
    data: Annotated[Path, typer.Option(help="A data set of `world make`.")],
    out: Out,
    kind: Annotated[str, typer.Option(help="pca: fitted in seconds; wan: a tiny AutoencoderKLWan.")] = "pca",
    minutes: Annotated[float, typer.Option(min=0.01, help="Time budget of --kind wan.")] = 45.0,
    held_out: Annotated[int, typer.Option(min=1, help="Clips kept for the PSNR.")] = 128,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run.")] = False,
    overrides: Set = None,
) -> None:
    """Fit or train the autoencoder and report its PSNR on held-out clips."""
    from time import perf_counter

    from rich.table import Table

    from trainers import load_config
    from world import vae as autoencoder
    from world.clips import hold_out, read_clips
    from world.recipe import VAERecipe

    if kind not in ("pca", "wan"):
        raise ValueError(f"expected --kind pca or wan, got {kind!r}")
    recipe = load_config(VAERecipe, None, overrides=overrides or [])
    place(recipe.device)
    clips, held = hold_out(read_clips(data), held_out)
    began = perf_counter()
    if kind == "pca":
        vae = autoencoder.fit_pca(clips)
    else:
        vae = autoencoder.train_wan(clips, recipe, out=out / "run", minutes=minutes, resume=resume)
    report = autoencoder.measure(vae, held, kind=kind, training_clips=len(clips), seconds=perf_counter() - began)
    autoencoder.save(vae, out, report)
    table = Table("mechanism", "PSNR dB", title=f"{kind} autoencoder, {report.seconds:.0f} s, held-out clips")
    for mechanism, value in report.psnr_db_by_mechanism.items():
        table.add_row(mechanism, f"{value:.1f}")
    table.add_row("mean", f"{report.psnr_db:.1f}", style="bold")
    console.print(table)
    hint(line("world", "train", "backbone", data=data, vae=out, out=f"{data}-backbone"))


@train.command("backbone")
@plain_errors
def train_backbone(
    data: Annotated[Path, typer.Option(help="A data set of `world make`.")],
    vae: Annotated[Path, typer.Option(help="The autoencoder's folder.")],
    out: Out,
    minutes: Annotated[float, typer.Option(min=0.01, help="Time budget, over all resumed runs.")] = 50.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps instead of minutes.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run.")] = False,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Train transformer and text encoder together; what ships is their running average."""
    from world.backbone import train as train_it
    from world.recipe import read_recipe

    recipe = read_recipe(config, overrides or [])
    place(recipe.device)
    result = train_it(
        data,
        vae,
        out,
        recipe=recipe,
        minutes=None if steps else minutes,
        steps=steps,
        resume=resume,
    )
    console.print(
        f"{result.steps} steps, {result.seconds_per_step:.3f} s/step; validation loss {result.validation_loss:.4f}"
    )
    console.print(f"weights in {result.weights}")
    looks = line("world", "sample", weights=result.weights, out=out / "sample.png")
    hint(f"{looks}, {line('world', 'evaluate', weights=result.weights, out=out / 'evaluation.json')}")


@train.command("encoder")
@plain_errors
def train_encoder(
    data: Annotated[Path, typer.Option(help="A data set of `world make`.")],
    out: Out,
    minutes: Annotated[float, typer.Option(min=0.01, help="Time budget, over all resumed runs.")] = 30.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps instead of minutes.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run.")] = False,
    overrides: Set = None,
) -> None:
    """Train the tiny V-JEPA 2 by masked latent prediction: Phantom's physics latent on the embedded default."""
    from trainers import load_config
    from world.encoder import EncoderRecipe
    from world.encoder import train as train_it

    recipe = load_config(EncoderRecipe, None, overrides=overrides or [])
    place(recipe.device)
    result = train_it(data, out, recipe=recipe, minutes=None if steps else minutes, steps=steps, resume=resume)
    console.print(f"{result.steps} steps; held-out loss {result.held_out:.4f}, spread {result.spread:.2f}")
    console.print(f"weights in {result.weights}")
    hint(line("world", "probe", weights=result.weights, out=out / "probe.json"))


@app.command()
@plain_errors
def probe(
    weights: Annotated[str, typer.Option("--weights", help="Folder of a V-JEPA 2, or 'world' for the shipped one.")],
    out: Annotated[Path | None, typer.Option("--out", help="JSON file.")] = None,
    fit: Annotated[int, typer.Option(min=16, help="Clips a mechanism to fit on.")] = 320,
    test: Annotated[int, typer.Option(min=8, help="Clips a mechanism to test on.")] = 128,
    seeds: Annotated[int, typer.Option(min=1, help="Networks at random weights to compare with.")] = 3,
) -> None:
    """Read parameters of the laws from an encoder's features, beside the same network at random weights."""
    place("cpu")
    from world.encoder_export import save_probe
    from world.probe import probe as probe_it
    from world.probe import table

    ratios = probe_it(weights, fit=fit, test=test, seeds=seeds)
    console.print(table(ratios), soft_wrap=True)
    if out is not None:
        save_probe(ratios, out)


@app.command("export-encoder")
@plain_errors
def export_encoder(
    run: Annotated[Path, typer.Option(help="A finished run of `world train encoder`.")],
    probe: Annotated[Path, typer.Option(help="JSON of `world probe`, quoted in the card.")],
    out: Out,
    most_mb: Annotated[float, typer.Option(help="Refuse a larger folder.")] = 8.0,
) -> None:
    """Write the encoder as a stock transformers folder with a card."""
    from world.encoder_export import export as export_it

    size = export_it(run, out, probe=probe, most_mb=most_mb)
    console.print(f"{out}: {size / 1e6:.1f} MB")


@app.command()
@plain_errors
def export(
    run: Annotated[Path, typer.Option(help="A run of `world train backbone`, finished or not.")],
    out: Out,
    evaluation: Annotated[Path | None, typer.Option(help="JSON of `world evaluate`, quoted in the card.")] = None,
    most_mb: Annotated[float, typer.Option(help="Refuse a larger folder.")] = 15.0,
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16: half the size, loaded as float32 again.")
    ] = "float32",
) -> None:
    """Write the averaged weights as a stock diffusers folder with a model card."""
    place("cpu")
    from world.export import export as export_it

    size = export_it(run, out, evaluation=evaluation, most_mb=most_mb, dtype=dtype)
    console.print(f"{out}: {size / 1e6:.1f} MB")


@app.command()
@plain_errors
def sample(
    out: Out,
    weights: Weights = "world",
    seed: Annotated[int, typer.Option(help="Seed of the first clip's noise.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 1.5,
    image: Annotated[bool, typer.Option("--image", help="Give the true first frame (image to video).")] = False,
    scale: Scale = None,
    device: Device = "cpu",
) -> None:
    """Draw one sample per scenario as a contact sheet."""
    place(device)
    from world.evaluate import sample_sheet

    sheet = sample_sheet(
        out, weights, seed=seed, steps=steps, guidance=guidance, image=image, scale=scale, device=device
    )
    console.print(str(sheet))


@app.command()
@plain_errors
def evaluate(
    weights: Weights = "world",
    clips: Annotated[int, typer.Option(min=1, help="Clips a mechanism.")] = 32,
    split: Annotated[str, typer.Option(help="Split of the captions and real clips.")] = "test",
    seed: Annotated[int, typer.Option(help="Seed of the first clip's noise.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 1.5,
    thresholds: Annotated[
        Path | None, typer.Option("--thresholds", help="JSON of `world thresholds`; the shipped one by default.")
    ] = None,
    scale: Scale = None,
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="JSON file.")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure the law from pixels: real clips, controls, the autoencoder's floor and the backbone's samples."""
    place(device)
    from physworld.metrics import Thresholds
    from world.evaluate import evaluate as evaluate_it
    from world.evaluate import tables

    result = evaluate_it(
        weights,
        clips=clips,
        split=split,
        seed=seed,
        steps=steps,
        guidance=guidance,
        thresholds=Thresholds.load(thresholds),
        scale=scale,
        device=device,
        quiet=quiet,
    )
    for table in tables(result):
        console.print(table)
    if out is None:
        console.print_json(result.to_json())
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(result.to_json() + "\n", encoding="utf-8")


@app.command()
@plain_errors
def thresholds(
    out: Annotated[Path | None, typer.Option("--out", help="JSON file; the one in physworld by default.")] = None,
    vae: Annotated[
        Path | None, typer.Option("--vae", help="An autoencoder's folder; that of 'world' by default.")
    ] = None,
    clips: Annotated[int, typer.Option(min=8, help="Clips a mechanism.")] = 128,
    split: Annotated[str, typer.Option(help="Split whose seeds set the thresholds; never the tested one.")] = "val",
    scale: Annotated[int, typer.Option(min=1, help="1: clips of 32 pixels, 2: 64.")] = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Fit the pass thresholds to clips that went through the autoencoder: what any of its generators could reach."""
    if scale != 1 and out is None:
        raise ValueError("expected --out for another scale than 1: the thresholds in physworld are those of 32 pixels")
    place(device)
    import backbones
    from world import vae as autoencoder
    from world.evaluate import fit_thresholds

    model = backbones.load("world").pipe.vae if vae is None else autoencoder.load(vae)
    written = fit_thresholds(model.to(device), out, clips=clips, split=split, scale=scale, quiet=quiet)
    console.print(f"thresholds written to {written}")
