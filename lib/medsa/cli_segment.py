"""`medsa segment`: the mask of what points and boxes mean, from file to file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import medsa
from medsa.cli_interrupt import interrupted
from medsa.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsa.data.volume import Volume
    from medsa.prompts.prompt import Prompt
    from medsa.segmenter import Result, Segmenter, Start

SEGMENT = """\
Segment the object that points and boxes mean, and write its mask.

IMAGE is a NIfTI (.nii, .nii.gz), NRRD, PNG or JPEG file, a DICOM file, or a folder with one DICOM series.
Coordinates are voxels: i counts columns, j rows, k slices, each from 0; in a picture leave k out.
A volume is segmented slice by slice outwards from the prompts; --slice-only stays on their slice.
"""

EXAMPLES = """\
examples:
  medsa segment brain.nii.gz --point 98,120,90 -o mask.nii.gz
  medsa segment skin.png --point 210,180 --point 20,20,- -o mask.png --overlay look.png
  medsa segment ct-folder --box 100,120,180,200 --slice 42 -o liver.dcm --name liver
  medsa segment brain.nii.gz --start mask.nii.gz --point 90,110,84,- --fill-holes -o better.nii.gz
  medsa segment case.nii.gz --point 61,70,20 --slice-only --truth label.nii.gz --label 1 -o mask.nii.gz
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `segment`."""
    segment = commands.add_parser(
        "segment",
        help="segment an object in an image file",
        description=SEGMENT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    segment.set_defaults(run=_segment)
    segment.add_argument("image", metavar="IMAGE", type=Path)
    prompts = segment.add_argument_group("prompts (at least a point on the object, or a box)")
    prompts.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="I,J[,K][,+|-]",
        help="a voxel on the object (+, the default) or off it (-); may be repeated",
    )
    prompts.add_argument(
        "--box",
        metavar="I0,J0,I1,J1[,K0,K1]",
        help="a box around the object, both corners included; on one slice, or from slice K0 to K1",
    )
    prompts.add_argument("--slice", type=int, metavar="K", help="the slice of prompts that name no k")
    prompts.add_argument(
        "--slice-only", action="store_true", help="do not follow the object into the other slices of a volume"
    )
    prompts.add_argument(
        "--start",
        type=Path,
        metavar="FILE",
        help="a mask of the same image to correct with the points, instead of beginning anew",
    )
    finish = segment.add_argument_group("afterwards (parts and holes with a point on them stay)")
    finish.add_argument("--largest-component", action="store_true", help="keep the largest part alone")
    finish.add_argument("--fill-holes", action="store_true", help="fill the holes of each slice")
    finish.add_argument(
        "--smallest", type=float, default=0.0, metavar="MM3", help="drop parts smaller than so many mm³"
    )
    outputs = segment.add_argument_group("output")
    outputs.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="the mask, by its ending: .nii.gz, .nii, .nrrd, .png, or .dcm (DICOM SEG, for DICOM images)",
    )
    outputs.add_argument("--overlay", type=Path, metavar="FILE.png", help="draw slice, mask and prompts")
    outputs.add_argument(
        "--name",
        default="object",
        metavar="LABEL",
        help="what it is, for DICOM SEG and adapters that know it",
    )
    outputs.add_argument("--labels", default="default", metavar="SET", help="the label set that --name is of")
    check = segment.add_argument_group("comparison")
    check.add_argument("--truth", type=Path, metavar="FILE", help="a mask of the same image: prints Dice")
    check.add_argument("--label", type=int, metavar="N", help="the value of --truth that means this object")
    model = segment.add_argument_group("model")
    model.add_argument("--backbone", default="lite_medsam", metavar="NAME", help="see `medsa backbones`")
    model.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint of one's own for it")
    model.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="an adapter version made for it, or none; default: the one that medsa brings for it, if any",
    )
    model.add_argument("--method", metavar="NAME", help="see `medsa methods`; untrained unless --adapter")
    model.add_argument(
        "--window",
        default="auto",
        metavar="SPEC",
        help="intensity window: auto, a CT window's name (soft-tissue, lung, bone ...), mr, full or LOW,HIGH",
    )
    model.add_argument(
        "--no-zoom", action="store_true", help="look at the whole slice, however small the box is"
    )
    model.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")


def _segment(args: argparse.Namespace) -> None:
    points = [parse_point(text) for text in args.point]
    box = parse_box(args.box) if args.box else None
    if not box and not args.start and not any(positive for *_, positive in points):
        raise BadInputError("nothing says where the object is: give --point I,J,K on it, or --box")
    check_output(args.output, (".nii.gz", ".nii", ".nrrd", ".png", ".dcm"))
    if args.overlay:
        check_output(args.overlay, (".png",))

    import numpy as np

    from medsa.cli_overlay import draw_overlay
    from medsa.data.labels import load_labels
    from medsa.data.read import read_volume
    from medsa.data.read_label import read_label
    from medsa.data.seg import Algorithm
    from medsa.data.window import check_window
    from medsa.data.write import write_mask
    from medsa.files import write_atomically
    from medsa.segmenter import Finish, Start, finished

    wanted = Finish(args.largest_component, args.fill_holes, args.smallest)
    check_window(args.window)
    volume = read_volume(args.image)
    prompt = _prompt(points, box, args.slice, volume)
    labels = load_labels(args.labels)
    label = labels.by_name(args.name)
    truth = _truth(read_label(args.truth, volume), args.label) if args.truth else None
    start = Start(read_label(args.start, volume) != 0) if args.start else None

    algorithm = Algorithm("medsa", medsa.__version__)
    save = partial(write_mask, volume=volume, labels=labels, algorithm=algorithm)
    corner = np.zeros(volume.shape, np.uint8, order="F")
    corner[0, 0, 0] = label.index
    with TemporaryDirectory() as folder:  # refuse before minutes of work what cannot be written after
        save(Path(folder) / args.output.name, corner)

    segmenter = open_segmenter(args).about(label.name)
    result = _run(segmenter, volume, prompt, start, args)
    result = replace(result, mask=finished(result.mask, prompt, volume.spacing, wanted))
    k = _shown_slice(prompt, args.slice, result)
    lines = _report(result, k, truth)
    print(*lines, ", ".join(f"{name} {ms / 1e3:.2f} s" for name, ms in result.timings.items()), sep="\n")
    for warning in result.warnings:
        print(f"medsa: {warning}", file=sys.stderr)
    if interrupted():
        raise KeyboardInterrupt
    save(args.output, result.mask * label.index)
    print(f"wrote {args.output}")
    if args.overlay:
        there, window = None if truth is None else truth[:, :, k], segmenter.window(volume, args.window)
        image = draw_overlay(volume, k, window, result.mask[:, :, k], prompt, there, lines)
        image.save(buffer := BytesIO(), format="PNG")
        write_atomically(args.overlay, buffer.getvalue())
        print(f"wrote {args.overlay}")


Point = tuple[float, float, float | None, bool]
Box = tuple[list[float], tuple[float, float] | None]


def parse_point(text: str) -> Point:
    """`I,J[,K][,+|-]` as (i, j, k or None, on the object?); raises `BadInputError`."""
    *numbers, last = text.split(",")
    positive = last.strip() != "-"
    values = _numbers(numbers if last.strip() in ("+", "-") else [*numbers, last])
    if values is None or len(values) not in (2, 3):
        raise BadInputError(f"--point takes I,J or I,J,K and then + or -, as in 98,120,90,+ (not '{text}')")
    return values[0], values[1], values[2] if len(values) == 3 else None, positive


def parse_box(text: str) -> Box:
    """`I0,J0,I1,J1[,K0,K1]` as ([i0, j0, i1, j1], (k0, k1) or None); raises `BadInputError`."""
    values = _numbers(text.split(","))
    if values is None or len(values) not in (4, 6):
        raise BadInputError(f"--box takes I0,J0,I1,J1 or I0,J0,I1,J1,K0,K1, as in 4,6,90,120 (not '{text}')")
    return values[:4], (values[4], values[5]) if len(values) == 6 else None


def _numbers(texts: Sequence[str]) -> list[float] | None:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None


def _prompt(points: Sequence[Point], box: Box | None, k: int | None, volume: Volume) -> Prompt:
    """The prompts in voxels of `volume`; slices left out are `k`, or the only one there is."""
    import numpy as np

    from medsa.prompts.prompt import Prompt

    depth = volume.shape[2]
    if k is not None and not 0 <= k < depth:
        raise BadInputError(f"--slice {k} lies outside the image: it has slices 0 to {depth - 1}")

    def on_slice(given: float | None, option: str) -> float:
        if given is not None:
            return given
        if k is None and depth > 1:
            raise BadInputError(f"{option} does not say on which of the {depth} slices: add k, or --slice K")
        return float(k or 0)

    placed = [([i, j, on_slice(at, "--point")], positive) for i, j, at, positive in points]
    corners = None
    if box is not None:
        (i0, j0, i1, j1), span = box
        k0, k1 = span or (on_slice(None, "--box"),) * 2
        corners = [[i0, j0, k0], [i1, j1, k1]]
    prompt = Prompt(
        foreground=np.array([point for point, positive in placed if positive]),
        background=np.array([point for point, positive in placed if not positive]),
        box=np.array(corners) if corners else None,
    )
    prompt.check_inside(volume.shape)
    return prompt


def _truth(labels: NDArray, value: int | None) -> NDArray:
    """The mask of one object in a label map."""
    import numpy as np

    values = [int(v) for v in np.unique(labels) if v]
    known = ", ".join(map(str, values)) or "nothing"
    if value is None and len(values) > 1:
        raise BadInputError(f"--truth holds the values {known}: choose one with --label")
    if value is not None and value not in values:
        raise BadInputError(f"--truth holds no voxel of the value {value}, only {known}")
    return labels == (values[0] if value is None and values else value)


def open_segmenter(args: argparse.Namespace) -> Segmenter:
    """The model that --backbone, --weights, --adapter, --method and --device mean, ready to be asked."""
    from medsa.adapters.inject import adapt
    from medsa.adapters.state import load_adapter, read_card, starter_adapter
    from medsa.config import Options
    from medsa.sam import load_sam
    from medsa.segmenter import Segmenter
    from medsa.segmenter.served import NONE

    options = Options.from_conf(
        {"backbone": args.backbone, "device": args.device, "method": args.method or ""}
    )
    folder = None if args.adapter == Path(NONE) else args.adapter
    if args.adapter is None and not args.method and not args.weights:
        folder = starter_adapter(options.backbone)
    method = read_card(folder).method.name if folder else options.method
    if options.method not in ("", method):
        raise BadInputError(f"--adapter {folder} is of the method {method}, not {options.method}")
    sam = load_sam(options.backbone, device=options.device, weights=args.weights)
    if not method:
        return Segmenter(sam, options.cache_mb)
    if folder:
        model = load_adapter(sam, folder)
    else:
        print(
            f"medsa: {method} has learnt nothing without --adapter: it sees what {args.backbone} sees",
            file=sys.stderr,
        )
        model = adapt(sam, method).eval().to(sam.dense_pe.device)
    segmenter = Segmenter(model, options.cache_mb)
    if sam.accelerated:
        segmenter.accelerate()
    return segmenter


def _run(
    segmenter: Segmenter, volume: Volume, prompt: Prompt, start: Start | None, args: argparse.Namespace
) -> Result:
    if volume.shape[2] == 1 or args.slice_only:
        k = _one_slice(prompt, args.slice)
        return segmenter.segment_slice(
            volume, prompt, k, window=args.window, start=start, zoom=not args.no_zoom
        )
    from tqdm import tqdm

    with tqdm(total=volume.shape[2], unit="slice", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return segmenter.segment_volume(
            volume,
            prompt,
            window=args.window,
            start=start,
            zoom=not args.no_zoom,
            progress=progress,
            cancelled=interrupted,
        )


def _one_slice(prompt: Prompt, k: int | None) -> int:
    import numpy as np

    if k is not None:
        return k
    said = prompt.foreground if len(prompt.foreground) or prompt.box is not None else prompt.background
    slices = {int(k) for k in np.rint(said[:, 2])}
    if prompt.box is not None and prompt.box[0, 2] == prompt.box[1, 2]:
        slices.add(int(prompt.box[0, 2]))
    if len(slices) != 1:
        raise BadInputError(
            "the prompts lie on several slices: choose one with --slice K, or drop --slice-only"
        )
    return slices.pop()


def _shown_slice(prompt: Prompt, k: int | None, result: Result) -> int:
    """The slice that is drawn and whose Dice is printed: the user's, or where the first prompt lies."""
    if k is not None:
        return k
    for points in (prompt.foreground, prompt.background):
        if len(points):
            return round(float(points[0, 2]))
    if prompt.box is None:
        return result.slices[len(result.slices) // 2]
    middle = round(float(prompt.box[:, 2].mean()))
    return middle if middle in result.slices or not result.slices else result.slices[0]


def _report(result: Result, k: int, truth: NDArray | None) -> list[str]:
    import numpy as np

    from medsa.evaluation import dice

    def line(where: str, mask: NDArray, wanted: NDArray | None, score: float) -> str:
        compared = f", Dice {dice(mask, wanted):.3f}" if wanted is not None else ""
        return f"{where}: {np.count_nonzero(mask)} voxels, predicted IoU {score:.2f}{compared}"

    wanted = truth[:, :, k] if truth is not None else None
    lines = [line(f"slice {k}", result.mask[:, :, k], wanted, result.scores.get(k, result.score))]
    if len(result.slices) > 1:
        lines.append(line(f"volume ({len(result.slices)} slices)", result.mask, truth, result.score))
    return [*lines, f"window {result.options.get('window', '')}"]


def check_output(path: Path, endings: tuple[str, ...]) -> None:
    """Refuse at once what could not be written."""
    if not path.name.lower().endswith(endings):
        raise BadInputError(f"'{path.name}' must end in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise BadInputError(f"there is no folder '{path.parent}' to write '{path.name}' into")
    if path.is_dir():
        raise BadInputError(f"'{path}' is a folder: name a file")
    if not os.access(path.parent, os.W_OK):
        raise BadInputError(f"the folder '{path.parent}' may not be written to")
