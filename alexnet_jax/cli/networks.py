"""What the subcommands share that use a trained network: its arguments, opening it, the images' progress."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from alexnet_jax.cli.arguments import Parser, refuse

if TYPE_CHECKING:
    from alexnet_jax.data.pictures import Batch, Pictures
    from alexnet_jax.inference import Network
    from alexnet_jax.training.progress import Counter
    from alexnet_jax.weights import Weights

FIGURES = (".png", ".pdf", ".svg")
_MAX_BROKEN = 0.01  # as `prepare` has it


def run(command: Callable[[], int], program: str) -> int:
    """Runs a subcommand; its exit code, 2 (refused) or 130 (Ctrl-C). What it writes is whole or not there."""
    from alexnet_jax.checkpoint import CheckpointError
    from alexnet_jax.training.devices import keep_heap

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every restore
    keep_heap()
    try:
        return command()
    except (ValueError, CheckpointError) as error:
        return refuse(program, str(error))
    except OSError as error:
        return refuse(program, f"{error}: nothing was written")
    except KeyboardInterrupt:
        return refuse(program, "stopped; nothing was written", code=130)


def counter() -> Counter:
    """A bar of images, on standard error."""
    from rich.console import Console

    from alexnet_jax.training.progress import Counter

    return Counter("images", console=Console(stderr=True, highlight=False, soft_wrap=True, markup=False))


def add_network(parser: Parser) -> None:
    """--weights and what goes with it."""
    add = parser.add_argument
    add(
        "--weights",
        required=True,
        metavar="W",
        help="a file of weights, a training run's folder, or a published name: docs/weights.md",
    )
    add_variant(parser)


def add_images(parser: Parser, name: str = "images", metavar: str = "IMAGE") -> None:
    """Image files and folders, one at least."""
    parser.add_argument(name, nargs="+", metavar=metavar, help="image files, and folders of them")


def add_variant(parser: Parser) -> None:
    """--variant and --classes."""
    add = parser.add_argument
    add("--variant", metavar="NAME", help="the network, where the file does not say which it is")
    add(
        "--classes", type=pathlib.Path, metavar="FILE", help="the classes' names, a line each, if the weights lack them"
    )


def add_computing(parser: Parser, batch_size: str) -> None:
    """--batch-size and --precision; the first says its default in words."""
    add = parser.add_argument
    add(
        "--batch-size", type=int, metavar="N", help=f"images at a time, which changes no result (default: {batch_size})"
    )
    add(
        "--precision",
        default="float32",
        choices=("float32", "tf32", "bfloat16"),
        help="of the arithmetic (default: float32, true also on a GPU)",
    )


def open_weights(named: str, options: argparse.Namespace) -> Weights:
    """The weights of a path, or published ones by name, with the names of --classes. A path wins over a name.

    Raises:
      ValueError, CheckpointError: they can't be used.
    """
    from alexnet_jax import weights
    from alexnet_jax.weights.pretrained import PUBLISHED, published_file

    names = None if options.classes is None else _names(options.classes)
    place, variant = pathlib.Path(named), options.variant
    if named in PUBLISHED and not place.exists():
        place, variant = published_file(named), variant or named
    found = weights.open_weights(place, variant=variant)
    if names is None:
        return found
    if len(names) != found.model.num_classes:
        raise ValueError(
            f"--classes {options.classes} has {len(names):,} lines, the network has {found.model.num_classes:,} classes"
        )
    return dataclasses.replace(found, classes=names)


def _names(path: pathlib.Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--classes {path} can't be read: {error}") from None


def parsed(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The options; refuses a batch size below 1, and a --max-broken that is no share."""
    options = parser.parse_args(argv)
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size}: must be at least 1")
    if "max_broken" in options and not 0 <= options.max_broken <= 1:
        raise ValueError(f"--max-broken {options.max_broken:g}: must be a share from 0 to 1, such as 0.01 for 1 %")
    return options


def check_figure(path: pathlib.Path | None, what: str = "--figure") -> None:
    """Refuses a picture's file before the work that comes before it; an earlier picture is replaced."""
    from alexnet_jax.data.atomic import check_new

    if path is not None:
        if path.suffix.lower() not in FIGURES:
            raise ValueError(f"{what} {path}: must end in {', '.join(FIGURES)}")
        check_new(path, force=True, what=what)


def describe(named: str, weights: Weights) -> str:
    """A network in a line."""
    names = "" if weights.classes is None else " with names"
    return f"{named}: {weights.model.spec.name}, {weights.model.num_classes:,} classes{names} ({weights.kind})"


def read(pictures: Pictures, network: Network, batch_size: int, *, max_broken: float | None = None) -> Iterator[Batch]:
    """The images as the network takes them, decoded ahead.

    Args:
      pictures: which.
      network: whose contract says how they are scaled.
      batch_size: images at a time.
      max_broken: the share of broken images above which it stops; None never does.

    Raises:
      ValueError: too many are broken.
    """
    from alexnet_jax.data.pictures import batches

    contract = network.structure.spec.input
    broken: list[tuple[int, str]] = []
    for batch in batches(pictures, size=contract.resize, rule=contract.resize_rule, batch_size=batch_size):
        broken += batch.broken
        if max_broken is not None and len(broken) > max_broken * len(pictures):
            first = "; ".join(f"{pictures.name(index)}: {reason}" for index, reason in broken[:5])
            raise ValueError(
                f"{len(broken):,} of {len(pictures):,} images can't be used, more than --max-broken {max_broken:g} "
                f"allows ({first}{'; …' if len(broken) > 5 else ''}): mend or remove them, or raise --max-broken"
            )
        yield batch


def add_max_broken(parser: Parser) -> None:
    """--max-broken, as `prepare` has it."""
    parser.add_argument(
        "--max-broken",
        type=float,
        default=_MAX_BROKEN,
        metavar="SHARE",
        help=f"stop when more than this share of the images is broken (default: {_MAX_BROKEN:g}); "
        "up to it they are left out and listed",
    )


def tell_broken(pictures: Pictures, broken: Iterable[tuple[int, str]], program: str) -> None:
    """A line on standard error for each image that can't be used."""
    for index, reason in broken:
        print(f"{program}: {pictures.name(index)}: {reason}", file=sys.stderr)
