"""`alexnet-jax predict`: what a network sees in images."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alexnet_jax.cli import networks
from alexnet_jax.cli.arguments import Parser

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from alexnet_jax.figures import Predicted
    from alexnet_jax.inference import Network


def predict(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax predict`: exit code 0, 1 (some images can't be used), 2 (refused), 130 (Ctrl-C)."""
    return networks.run(lambda: _predict(_options(argv, program), program), program)


def _options(argv: Sequence[str], program: str) -> argparse.Namespace:
    from alexnet_jax.evaluation import BATCH_SIZES, CROPS

    parser = Parser(prog=program, description="The five likeliest classes of each image.")
    add = parser.add_argument
    networks.add_images(parser)
    networks.add_network(parser)
    add(
        "--crops",
        default="centre",
        choices=CROPS,
        help="the central crop (default), or ten whose probabilities are averaged",
    )
    sizes = ", ".join(f"{size} with --crops {crops}" for crops, size in BATCH_SIZES.items())
    networks.add_computing(parser, sizes)
    add("--json", action="store_true", help="print one JSON object instead")
    add("--figure", type=pathlib.Path, metavar="FILE", help="also draw images and bars (PNG, PDF or SVG)")
    options = networks.parsed(parser, argv)
    networks.check_figure(options.figure)
    return options


def _predict(options: argparse.Namespace, program: str) -> int:
    from rich.console import Console

    from alexnet_jax import figures, inference
    from alexnet_jax.data import pictures
    from alexnet_jax.evaluation import BATCH_SIZES

    chosen = pictures.find(options.images)
    weights = networks.open_weights(options.weights, options)
    network = inference.Network.of(weights, options.precision)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not options.json:
        crops = {"centre": "the central crop", "ten": "ten crops averaged"}[options.crops]
        print(f"{'network':<10} {networks.describe(options.weights, weights)}\n{'views':<10} {crops}")
        for note in chosen.notes:
            print(f"{'note':<10} {note}")
    found: list[dict[str, Any]] = []
    shown: list[figures.Predicted] = []
    failed = 0
    read = networks.read(chosen, network, options.batch_size or BATCH_SIZES[options.crops])
    for batch, rows in inference.probabilities(network, read, crops=options.crops):
        networks.tell_broken(chosen, batch.broken, program)
        failed += len(batch.broken)
        lines = {index: {"image": chosen.name(index), "error": reason} for index, reason in batch.broken}
        for index, image, row in zip(batch.indices, batch.images[batch.good], rows, strict=True):
            one = lines[index] = _one(chosen.paths[index], chosen.name(index), row, network)
            if not options.json:
                _print(console, one)
            if options.figure is not None and len(shown) < figures.MOST_SHOWN:
                shown.append(_drawn(one, image))
        found += [lines[index] for index in sorted(lines)] if options.json else []
    if options.json:
        about = {"weights": options.weights, "variant": network.structure.spec.name, "crops": options.crops}
        print(json.dumps({**about, "notes": chosen.notes, "images": found}, indent=1))
    if shown:
        _draw(shown, options.figure)
        if not options.json:
            few = f" (the first {len(shown)} images)" if len(shown) < len(chosen) - failed else ""
            print(f"\n{'figure':<10} {options.figure}{few}")
    return 1 if failed else 0


def _one(path: str, name: str, row: np.ndarray, network: Network) -> dict[str, Any]:
    """An image's predictions as plain data; its class is known where its folder is called so."""
    from alexnet_jax.inference import top

    likeliest = [
        {"label": label, "class": network.name(label), "probability": probability} for label, probability in top(row)
    ]
    folder = pathlib.Path(path).absolute().parent.name
    known = {"true_class": folder} if network.classes is not None and folder in network.classes else {}
    return {"image": name, **known, "top": likeliest}


def _print(console: Console, one: dict[str, Any]) -> None:
    """The image, and a line with a bar for each class."""
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    truth = one.get("true_class")
    console.print(f"\n{one['image']}" + (f"  (true class: {truth})" if truth else ""))
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", min_width=5)
    table.add_column(min_width=24, max_width=40, no_wrap=True, overflow="ellipsis")
    table.add_column(width=24)
    table.add_column(justify="right", min_width=9)
    for line in one["top"]:
        probability = line["probability"]
        color = "green" if line["class"] == truth else "blue"
        label = "" if line["class"] == str(line["label"]) else str(line["label"])
        name = Text(line["class"], style="bold" if line["class"] == truth else "")
        table.add_row(label, name, Bar(1.0, 0.0, probability, width=24, color=color), f"{100 * probability:.2f} %")
    console.print(table)


def _drawn(one: dict[str, Any], image: np.ndarray) -> Predicted:
    from alexnet_jax.figures import Predicted

    top = [(line["class"], line["probability"]) for line in one["top"]]
    return Predicted(image.copy(), pathlib.Path(one["image"]).name, one.get("true_class"), top)


def _draw(shown: list[Predicted], path: pathlib.Path) -> None:
    from alexnet_jax import figures
    from alexnet_jax.data.atomic import replacing

    with replacing(path, path.suffix) as partial:
        figures.predictions(shown, partial)
