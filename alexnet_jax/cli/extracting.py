"""`alexnet-jax features` and `neighbours`: a layer's activations, and which images have similar ones."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alexnet_jax.cli import networks
from alexnet_jax.cli.arguments import Parser

if TYPE_CHECKING:
    import numpy as np

    from alexnet_jax.data.pictures import Pictures
    from alexnet_jax.inference import Network

BATCH_SIZE = 128


def features(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax features`: exit code 0, 2 (refused), 130 (Ctrl-C)."""
    return networks.run(lambda: _features(_features_options(argv, program), program), program)


def neighbours(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax neighbours`: exit code 0, 2 (refused), 130 (Ctrl-C)."""
    return networks.run(lambda: _neighbours(_neighbours_options(argv, program), program), program)


def _add_layer(parser: Parser) -> None:
    """The network, its layer, and how the images go through it."""
    networks.add_network(parser)
    parser.add_argument(
        "--layer", default="fc7", metavar="NAME", help="a stage (default: fc7, after its ReLU): docs/stages.md"
    )
    networks.add_max_broken(parser)
    networks.add_computing(parser, str(BATCH_SIZE))


def _features_options(argv: Sequence[str], program: str) -> argparse.Namespace:
    from alexnet_jax.data.atomic import check_new
    from alexnet_jax.data.rows import SUFFIXES, check_suffix, names_of

    parser = Parser(prog=program, description="A layer's activations for any number of images, in one file.")
    add = parser.add_argument
    networks.add_images(parser)
    _add_layer(parser)
    add("--out", type=pathlib.Path, required=True, metavar="FILE", help=f"ends in {', '.join(SUFFIXES)}")
    add("--force", action="store_true", help="replace FILE if it is there")
    options = networks.parsed(parser, argv)
    suffix = check_suffix(options.out)
    for path in [options.out, *([names_of(options.out)] if suffix == ".npy" else [])]:
        check_new(path, force=options.force)
    return options


def _features(options: argparse.Namespace, program: str) -> int:
    from alexnet_jax import inference
    from alexnet_jax.data import pictures
    from alexnet_jax.data.rows import writing

    chosen = pictures.find(options.images)
    weights = networks.open_weights(options.weights, options)
    network = inference.Network.of(weights, options.precision)
    shape = inference.check_layer(network, options.layer)
    print(f"{'network':<10} {networks.describe(options.weights, weights)}")
    for note in chosen.notes:
        print(f"{'note':<10} {note}")
    about = {
        "layer": options.layer,
        "weights": options.weights,
        "spec": json.dumps(network.structure.spec.to_dict()),
        "precision": options.precision,
    }
    read = networks.read(chosen, network, options.batch_size or BATCH_SIZE, max_broken=options.max_broken)
    done, left_out = 0, 0
    with writing(options.out, shape, "features", about) as file, networks.counter() as counter:
        counter(0, len(chosen), 0)
        for batch, rows in inference.activations(network, read, options.layer):
            file.add([chosen.name(index) for index in batch.indices], rows)
            networks.tell_broken(chosen, batch.broken, program)
            done, left_out = done + len(rows), left_out + len(batch.broken)
            counter(done + left_out, len(chosen), left_out)
        if not done:
            raise ValueError(f"none of the {len(chosen):,} images can be used")
    print(f"{'speed':<10} {counter.summary()}")
    if left_out:
        print(f"{'left out':<10} {left_out:,} broken images, named above")
    size = "×".join(map(str, (done, *shape)))
    print(
        f"{'written':<10} {options.out}: {options.layer}, {size}, float32, {options.out.stat().st_size / 1e6:,.1f} MB"
    )
    return 0


def _neighbours_options(argv: Sequence[str], program: str) -> argparse.Namespace:
    parser = Parser(
        prog=program, description="The images whose activations are nearest in Euclidean distance to those of others."
    )
    add = parser.add_argument
    networks.add_images(parser, "queries", "QUERY")
    add("--among", nargs="+", required=True, metavar="DIR", help="folders of images, and files, to search")
    _add_layer(parser)
    add("--count", type=int, default=6, metavar="K", help="how many for each query (default: 6)")
    add("--figure", type=pathlib.Path, metavar="FILE", help="also draw them (PNG, PDF or SVG)")
    add("--json", action="store_true", help="print one JSON object instead")
    options = networks.parsed(parser, argv)
    networks.check_figure(options.figure)
    if options.count < 1:
        raise ValueError(f"--count {options.count}: must be at least 1")
    return options


def _neighbours(options: argparse.Namespace, program: str) -> int:
    from alexnet_jax import figures, inference
    from alexnet_jax.data import pictures

    queries, among = pictures.find(options.queries), pictures.find(options.among)
    if options.figure is not None and len(queries) > figures.MOST_SHOWN:
        raise ValueError(f"--figure shows at most {figures.MOST_SHOWN} queries, these are {len(queries):,}")
    weights = networks.open_weights(options.weights, options)
    network = inference.Network.of(weights, options.precision)
    inference.check_layer(network, options.layer)
    size = options.batch_size or BATCH_SIZE
    rows = []
    for batch, found in inference.activations(network, networks.read(queries, network, size), options.layer):
        for index, reason in batch.broken:
            raise ValueError(f"{queries.name(index)}: {reason}")
        rows.append(found)
    import numpy as np

    nearest = inference.Nearest(np.concatenate(rows), options.count)
    own = _same_files(queries, among)
    left_out = 0
    with networks.counter() as counter:
        read = networks.read(among, network, size, max_broken=options.max_broken)
        for batch, found in inference.activations(network, read, options.layer):
            nearest.add(batch.indices, found, own)
            networks.tell_broken(among, batch.broken, program)
            left_out += len(batch.broken)
            counter(batch.first + len(batch.good), len(among), left_out)
    answers = [
        [{"image": among.name(index), "distance": distance} for distance, index in found] for found in nearest.found
    ]
    if options.json:
        lines = [
            {"query": queries.name(number), "nearest": nearest_ones} for number, nearest_ones in enumerate(answers)
        ]
        print(json.dumps({"weights": options.weights, "layer": options.layer, "queries": lines}, indent=1))
    else:
        print(f"{'network':<10} {networks.describe(options.weights, weights)}")
        for note in (*queries.notes, *among.notes):
            print(f"{'note':<10} {note}")
        for number, nearest_ones in enumerate(answers):
            print(f"\n{queries.name(number)}")
            for one in nearest_ones:
                print(f"  {one['distance']:>12,.4f}  {one['image']}")
    if options.figure is not None:
        _draw(options, network, queries, among, nearest.found)
        if not options.json:
            print(f"\n{'figure':<10} {options.figure}")
    return 0


def _same_files(queries: Pictures, among: Pictures) -> dict[int, int]:
    """For a query that is among the others itself, which of them it is."""
    real = {os.path.realpath(path): index for index, path in enumerate(among.paths)}
    found = ((number, real.get(os.path.realpath(path))) for number, path in enumerate(queries.paths))
    return {number: index for number, index in found if index is not None}


def _draw(
    options: argparse.Namespace,
    network: Network,
    queries: Pictures,
    among: Pictures,
    found: list[list[tuple[float, int]]],
) -> None:
    """Reads the few images of the figure again, and draws it."""
    from alexnet_jax import figures
    from alexnet_jax.data.atomic import replacing
    from alexnet_jax.data.pictures import load_one

    contract = network.structure.spec.input

    def image(pictures: Pictures, index: int) -> np.ndarray:
        return load_one(pictures.paths[index], size=contract.resize, rule=contract.resize_rule)

    def name(pictures: Pictures, index: int) -> str:
        return pathlib.Path(pictures.name(index)).name

    shown = [
        figures.Similar(
            image(queries, number),
            name(queries, number),
            [(image(among, index), name(among, index), distance) for distance, index in nearest],
        )
        for number, nearest in enumerate(found)
    ]
    with replacing(options.figure, options.figure.suffix) as partial:
        figures.neighbours(shown, options.layer, partial)
