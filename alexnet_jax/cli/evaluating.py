"""`alexnet-jax evaluate`: the errors of a run, or of several as an ensemble."""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alexnet_jax.cli.arguments import Parser, refuse

if TYPE_CHECKING:
    from alexnet_jax.evaluation import Examples
    from alexnet_jax.trained import Trained

FILES = ("evaluation.json", "confusion.csv", "per_class.csv", "confusion.png")


def evaluate(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax evaluate`: exit code 0, 2 (refused), 130 (Ctrl-C)."""
    from alexnet_jax.checkpoint import CheckpointError
    from alexnet_jax.training.devices import keep_heap

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax and Grain tell of every restore and thread
    keep_heap()
    try:
        return _evaluate(_options(argv, program))
    except (ValueError, CheckpointError) as error:
        return refuse(program, str(error))
    except KeyboardInterrupt:
        return refuse(program, "stopped", code=130)


def _options(argv: Sequence[str], program: str) -> argparse.Namespace:
    from alexnet_jax.evaluation import BATCH_SIZES, CROPS, TIES

    parser = Parser(
        prog=program,
        description="Top-1 and top-5 error and loss on every image of a split once. Several runs are an ensemble: "
        "their probabilities are averaged.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="a run's workdir, or one of its checkpoints")
    add("--split", default="val", metavar="NAME", help="val (default), test or train")
    add(
        "--crops",
        default="centre",
        choices=CROPS,
        help="the central crop (default), or ten whose probabilities are averaged",
    )
    add(
        "--checkpoint",
        default="best",
        metavar="WHICH",
        help="best by validation (default), latest, or a step",
    )
    add("--data", metavar="SOURCE", help="other data, or where the data is now; default: what the run was trained on")
    add(
        "--ties",
        default="index",
        choices=TIES,
        help="equal scores: the lower index comes first (default), or the 2012 source's fractional credit",
    )
    sizes = ", ".join(f"{size} with --crops {crops}" for crops, size in BATCH_SIZES.items())
    add("--batch-size", type=int, metavar="N", help=f"images at a time, which changes no result (default: {sizes})")
    add("--per-class", action="store_true", help="also print each class's errors")
    add("--json", action="store_true", help="print one JSON object instead")
    add("--out", type=pathlib.Path, metavar="DIR", help=f"also write {', '.join(FILES)} there")
    options = parser.parse_args(argv)
    if options.checkpoint not in ("best", "latest"):
        if not options.checkpoint.isdecimal():
            raise ValueError(f"--checkpoint {options.checkpoint}: must be best, latest or a step such as 1000")
        options.checkpoint = int(options.checkpoint)
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size}: must be at least 1")
    if len({run.resolve() for run in options.runs}) < len(options.runs):
        raise ValueError("the same RUN is given twice: it would count twice in the average")
    return options


def _evaluate(options: argparse.Namespace) -> int:
    from alexnet_jax import evaluation, trained
    from alexnet_jax.training.progress import Counter

    networks = [trained.open_trained(run, options.checkpoint) for run in options.runs]
    with Counter("images prepared") as counter:
        data, notes = trained.open_data(networks, options.data, progress=counter)
    split = trained.choose_split(data, options.split)
    _writable(options.out)
    examples = evaluation.score(networks, split, crops=options.crops, batch_size=options.batch_size)
    rows = examples.per_class(data.classes, options.ties)
    found: dict[str, Any] = {
        "split": options.split,
        "crops": options.crops,
        "ties": options.ties,
        "images": len(examples),
        **examples.errors(len(data.classes), options.ties),
        "runs": [
            {"run": str(network.place), "checkpoint": network.step, "chosen": network.chosen} for network in networks
        ],
        "data": str(data.directory),
        "notes": notes,
    }
    if options.per_class:
        found["per_class"] = rows
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found, networks, data.image_size)
        if options.per_class:
            _print_classes(rows)
    if options.out is not None:
        _write(options.out, found, examples, rows, data.classes)
        if not options.json:
            print(f"{'written':<10} {options.out}: {', '.join(FILES)}")
    return 0


def _print(found: dict[str, Any], networks: Sequence[Trained], size: int) -> None:
    for network in networks:
        print(
            f"{'network':<10} {network.place}: {network.spec.name}, {len(network.classes):,} classes, "
            f"checkpoint {network.step} ({network.chosen}), {network.structure.precision}"
        )
    print(f"{'data':<10} {found['data']}: {found['images']:,} {found['split']} images of {size} pixels")
    for note in found["notes"]:
        print(f"{'note':<10} {note}")
    crops = {"centre": "the central crop", "ten": "ten crops averaged"}[found["crops"]]
    ensemble = f", {len(networks)} networks averaged" if len(networks) > 1 else ""
    ties = ", fractional credit for ties" if found["ties"] == "fractional" else ""
    print(f"{'views':<10} {crops}{ensemble}{ties}")
    top5 = f"top-5 error {_percent(found['top5_error'])}"
    if found["top5_error"] is None:
        top5 = f"top-5 error: meaningless, every label is among the top five of {len(networks[0].classes)} classes"
    print(f"{'result':<10} top-1 error {_percent(found['top1_error'])}, {top5}, loss {found['loss']:.4f}")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"


def _print_classes(rows: Sequence[dict[str, Any]]) -> None:
    width = min(40, max(len(row["class"]) for row in rows))
    print(f"\n{'label':>5}  {'class':<{width}}  {'images':>7}  {'top-1':>8}  {'top-5':>8}  mostly taken for")
    for row in rows:
        other = f"{row['mostly_taken_for']} ({row['times']:,})" if row["times"] else ""
        print(
            f"{row['label']:>5}  {row['class'][:width]:<{width}}  {row['images']:>7,}  "
            f"{_percent(row['top1_error']):>8}  {_percent(row['top5_error']):>8}  {other}".rstrip()
        )


def _writable(out: pathlib.Path | None) -> None:
    """Refuses a folder that can't be written before the work, not after it."""
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / FILES[0]).touch()
        except OSError as error:
            raise ValueError(f"--out {out} can't be written: {error}") from None


def _write(
    out: pathlib.Path,
    found: dict[str, Any],
    examples: Examples,
    rows: Sequence[dict[str, Any]],
    classes: Sequence[str],
) -> None:
    from alexnet_jax import evaluation, figures

    table = examples.confusion(len(classes))
    try:
        (out / FILES[0]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        evaluation.write_confusion(table, classes, out / FILES[1])
        evaluation.write_per_class(rows, out / FILES[2])
        figures.confusion(table, classes, out / FILES[3])
    except OSError as error:
        raise ValueError(f"--out {out} can't be written: {error}") from None
