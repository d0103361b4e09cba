"""The starter adapter: clicks for LiteMedSAM, taught without a label that a person drew.

`python -m medsa.training.starter --out FOLDER` (or `make starter-adapter`) makes it from drawn scenes with
their truth, and from pictures that installed packages ship with the frozen base's own masks. `--clean` adds
folders of labelled cases whose licence allows it.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from medsa.adapters.inject import adapt
from medsa.adapters.state import save_adapter
from medsa.data.phantom import draw_abdomen
from medsa.data.volume import Volume
from medsa.files import write_atomically
from medsa.sam import Sam, load_sam
from medsa.training.cases import read_cases
from medsa.training.embeddings import EmbeddingStore
from medsa.training.engine import EMBEDDINGS, Run, grid_of
from medsa.training.items import Grid, Item, Picture, Pictures, items_of
from medsa.training.length import Length
from medsa.training.model_card import write_model_card
from medsa.training.pictures import as_volume, brain_slices, packaged, varied
from medsa.training.scenes import KINDS, draw_scene
from medsa.training.settings import read_settings
from medsa.training.teacher import teacher_items

BACKBONE, METHOD, SETTINGS = "lite_medsam", "decoder_prompt", "starter"
TEACHER = "teacher"
DATA = (
    "drawn scenes with their truth (dermoscopy, endoscopy, ultrasound, fundus, sections, threads, shapes), "
    "and pictures that installed packages ship, with the frozen base's own masks; no label that a person drew"
)
LIMITS = (
    "Rings are its weak place: a click in the hole takes too much away.",
    "No patient's study of a hospital was among what it learnt from: a site's own labels improve it much.",
)


@dataclass(frozen=True)
class Amounts:
    """How many pictures of each source there are; of drawn ones so many `held_out` are for validation."""

    drawn: int = 320
    packaged: int = 60
    brain: int = 24
    abdomen: int = 16
    clean: int = 8
    held_out: int = 42


def main(argv: Sequence[str] | None = None) -> int:
    """Make the starter adapter; returns the exit status."""
    parser = argparse.ArgumentParser("medsa.training.starter", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the run and its candidate/")
    parser.add_argument("--minutes", type=float, default=45.0, help="of training, after preparing (45)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clean", type=Path, nargs="*", default=[], help="folders of images/ and labels/")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the usual amount of pictures")
    args = parser.parse_args(argv)
    make(args.out, args.minutes, args.seed, args.clean, args.scale, args.resume)
    return 0


def make(
    out: Path,
    minutes: float,
    seed: int = 0,
    clean: Sequence[Path] = (),
    scale: float = 1,
    resume: bool = False,
) -> None:
    """Prepare, train and write `out`/candidate; tensors are stored in half precision, rounded before."""
    sam = load_sam(BACKBONE)
    model = adapt(sam, METHOD)
    model.trained_prompts, model.multimask = ("point", "box", "mask"), True
    training, validation = material(sam, out, seed, clean, scale)
    sys.stderr.write(f"{len(training)} objects to learn from, {len(validation)} held out\n")
    with tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed} {postfix}") as bar:
        run = Run(
            model, training, validation, read_settings(SETTINGS), out, Length(minutes=minutes), seed=seed,
            report=lambda now: _show(bar, now.part, f"loss {now.loss:.3f}, best Dice {now.best:.3f}"),
        )  # fmt: skip
        outcome = run.go(resume=resume)
    with torch.no_grad():
        for _, _, parameter in model.trained_parameters():
            parameter.copy_(parameter.half())
    before, after = (
        outcome.rows[0],
        max(outcome.rows, key=lambda row: row["1 pt"] + row["3 pts"] + row["box"]),
    )
    metrics = {
        name: {prompt: round(row[prompt], 4) for prompt in ("1 pt", "3 pts", "box")}
        for name, row in (("drawn scenes, before", before), ("drawn scenes, after", after))
    }
    command = f"python -m medsa.training.starter --minutes {minutes:g} --seed {seed} --scale {scale:g}"
    named = "".join(f" --clean {folder.name}" for folder in clean)
    save_adapter(
        model, out / "candidate", half=True, labels=("object",), metrics=metrics, made_by=command + named
    )
    about = f"settings '{SETTINGS}', {outcome.steps} steps, {outcome.seconds / 60:.0f} minutes, seed {seed}"
    write_model_card(
        out / "candidate", data=f"{DATA}{named.replace(' --clean', ';')}", training=about, limits=LIMITS
    )


def _show(bar: tqdm, part: float, text: str) -> None:
    bar.n = round(100 * part, 1)
    bar.set_postfix_str(text)


def material(
    sam: Sam, out: Path, seed: int, clean: Sequence[Path] = (), scale: float = 1
) -> tuple[list[Item], list[Item]]:
    """Objects to learn from, and others to validate with: drawn ones only, whose truth is known."""
    amounts, grid = Amounts(), grid_of(sam)
    store = EmbeddingStore(sam, out / EMBEDDINGS)
    count = round(scale * amounts.drawn)
    scenes = (_drawn(grid, seed, n) for n in tqdm(range(count), "drawing", unit="scene"))
    training = [item for items in scenes for item in items]
    training += _abdomen(grid, round(scale * amounts.abdomen), seed)
    sources = _sources(seed, round(scale * amounts.packaged), round(scale * amounts.brain))
    for n, pixels in enumerate(tqdm(list(sources), "asking the base", unit="picture")):
        picture = Pictures(as_volume(pixels), grid).around(0)
        training += _taught(sam, store, picture, out / TEACHER, np.random.default_rng((seed, 3, n)))
    for folder in clean:
        for n, case in enumerate(read_cases(folder)):
            volume, mask, names = case.read()
            training += items_of(volume, mask, names, grid, f"{folder.name} {n}", most=amounts.clean)
    held = [item for n in range(round(scale * amounts.held_out)) for item in _drawn(grid, seed + 1, n)]
    return training, held


def _taught(
    sam: Sam, store: EmbeddingStore, picture: Picture, folder: Path, rng: np.random.Generator
) -> list[Item]:
    """The objects that the base knows on a picture; what it said is kept in `folder` for a resumed run."""
    path = folder / f"{picture.digest}.npy"
    if path.is_file():
        packed = np.load(path, allow_pickle=False)
        return [Item(picture, bits, grid_of(sam).cells, "object", "picture") for bits in packed]
    items = teacher_items(sam, picture, store.get(picture).float(), "picture", rng)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    bits = np.array([item.packed for item in items], np.uint8)
    np.save(buffer := io.BytesIO(), bits, allow_pickle=False)
    write_atomically(path, buffer.getvalue())
    return items


def _drawn(grid: Grid, seed: int, n: int) -> list[Item]:
    """The objects of drawn scene n: the kinds take turns."""
    scene = draw_scene(np.random.default_rng((seed, 2, n)), list(KINDS)[n % len(KINDS)])
    pictures = Pictures(as_volume(scene.pixels), grid)
    return [
        Item.of(pictures.around(0), pictures.frame.mask_to_model(mask.T, grid.cells), name, f"scene {n}")
        for name, mask in scene.objects.items()
    ]


def _abdomen(grid: Grid, count: int, seed: int) -> list[Item]:
    """The demo's drawn abdomen, a body a slice."""
    found = []
    for n in range(count):
        hounsfield, truth, spacing = draw_abdomen((192, 192, 8), seed + 100 + n)
        k = 1 + n % 6
        volume = Volume(hounsfield[:, :, k : k + 1], np.diag([*spacing, 1.0]), "CT")
        mask, names = np.zeros(volume.shape, np.uint8, order="F"), dict(enumerate(truth, start=1))
        for value, name in names.items():
            mask[truth[name][:, :, k : k + 1]] = value
        found += items_of(volume, mask, names, grid, f"abdomen {n}")
    return found


def _sources(seed: int, pictures: int, brains: int) -> Iterator[np.ndarray]:
    """Pictures for the teacher."""
    rng = np.random.default_rng((seed, 4))
    every, brain = list(packaged().values()), brain_slices()
    for n in range(pictures):
        yield varied(every[n % len(every)], rng)
    for _ in range(brains):
        yield varied(brain(rng), rng)


if __name__ == "__main__":
    sys.exit(main())
