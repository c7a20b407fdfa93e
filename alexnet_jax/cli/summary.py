"""`alexnet-jax summary`."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alexnet_jax.cli.arguments import Parser, refuse

if TYPE_CHECKING:
    from alexnet_jax.models import ModelSpec
    from alexnet_jax.training.config import Config


def summary(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax summary`: the layer table of a network, and its layout over devices; exit code 0 or 2."""
    from alexnet_jax.models import summary as tables

    draw = tables.as_text
    try:
        options = _options(argv, program)
        specs, classes, config = _networks(options)
        if options.markdown:
            draw = tables.as_markdown
        lines = tables.comparison(specs, classes) if options.compare else tables.cells(specs[0], classes)
        layout = _layout(options, specs[0], classes, config) if (options.towers, options.data) != (None, None) else []
        if options.figure is not None:
            from alexnet_jax.figures import two_towers

            two_towers(specs[0], classes, options.figure)
    except (ValueError, OSError) as error:
        return refuse(program, str(error))
    if config is not None and not options.compare:
        where = options.config or "python train.py"
        print(f"The network of {where}, made from the variant {specs[0].name!r}, with {classes} classes:\n")
    print(draw(lines))
    for title, table in layout:
        print(f"\n{title}\n\n{draw(table)}")
    if options.figure is not None:
        print(f"\nThe two towers are drawn in {options.figure}")
    return 0


def _options(argv: Sequence[str], program: str) -> argparse.Namespace:
    from alexnet_jax.models import list_models

    parser = Parser(prog=program, description="The layers of a network, with exact counts.")
    add = parser.add_argument
    add("name", nargs="?", help=f"a variant: {', '.join(list_models())}; none: the default run's network")
    add("--config", metavar="FILE", help="the network of a config file instead")
    add("--image-size", type=int, metavar="PIXELS", help="side of the crop; default: the variant's own")
    add("--num-classes", type=int, metavar="N", help="classes; default: 1000, or 10 for the default run")
    add("--markdown", action="store_true", help="as a Markdown table")
    add("--compare", action="store_true", help="all variants side by side (with NAME or --config: that and paper)")
    add(
        "--towers",
        type=int,
        metavar="T",
        help="also what each device holds, and what crosses between devices in a training step, with the "
        "network over so many devices",
    )
    add("--data", type=int, metavar="D", help="the same with the batch over so many sets of devices")
    add("--figure", type=pathlib.Path, metavar="FILE", help="with --towers=2: draws the two towers (PNG, SVG, PDF)")
    add("--batch-size", type=int, metavar="N", help="images of the whole batch; default: 128, or the config's")
    options = parser.parse_args(argv)
    if options.name and options.config:
        raise ValueError("give a name or --config, not both")
    if options.compare and (options.towers or options.data):
        raise ValueError("--compare shows layers only: leave out --towers and --data")
    if options.batch_size is not None and options.towers is None and options.data is None:
        raise ValueError("--batch-size goes with --towers or --data")
    if options.figure is not None and options.towers != 2:
        raise ValueError("--figure draws two towers: it goes with --towers=2")
    return options


def _networks(options: argparse.Namespace) -> tuple[list[ModelSpec], int, Config | None]:
    """The networks to show, their classes, and the configuration that the first comes from, if any."""
    from alexnet_jax.models import get_spec, list_models
    from alexnet_jax.training import flags
    from alexnet_jax.training.config import model_spec

    classes, config = 1000, None
    if options.name:
        specs = [get_spec(options.name)]
    elif options.compare and not options.config:
        specs = [get_spec(name) for name in list_models()]
    else:
        config = flags.parse([f"--config={options.config}"] if options.config else []).config
        specs = [model_spec(config)]
        classes = 10 if config.data.source == "digits" else 1000
    if options.compare and (options.name or options.config):
        specs = [get_spec("paper"), *specs] if options.name != "paper" else [get_spec(name) for name in list_models()]
    if options.image_size is not None:
        specs = [spec.at_image_size(options.image_size) for spec in specs]
    return specs, classes if options.num_classes is None else options.num_classes, config


def _layout(
    options: argparse.Namespace, spec: ModelSpec, classes: int, config: Config | None
) -> list[tuple[str, list[list[str]]]]:
    """Tables of a layout with their titles."""
    from alexnet_jax.models import traffic

    towers = 1 if options.towers is None else options.towers
    data = 1 if options.data is None else options.data
    batch = options.batch_size
    if batch is None:
        batch = 128 if config is None else config.batch_size
    itemsize = 2 if config is not None and config.precision == "bfloat16" else 4
    held = traffic.holdings(spec, classes, batch, towers=towers, data=data, itemsize=itemsize)
    crossing = traffic.exchanges(
        spec,
        classes,
        batch,
        towers=towers,
        data=data,
        itemsize=itemsize,
        image_size=None if config is None else config.data.image_size,
    )
    where = f"towers={towers}, data={data}, batch {batch}, {8 * itemsize}-bit activations"
    return [
        (f"What each device holds, in bytes ({where}; activations are an estimate):", traffic.held_cells(held)),
        ("What crosses between devices in a training step, in bytes of one device:", traffic.exchanged_cells(crossing)),
    ]
