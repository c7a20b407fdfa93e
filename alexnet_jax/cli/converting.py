"""`alexnet-jax convert`: weights from any form that is read to those that are written."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from alexnet_jax.cli import networks
from alexnet_jax.cli.arguments import Parser

FORMS = {".safetensors": "safetensors", ".onnx": "onnx", ".stablehlo": "stablehlo"}


def convert(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax convert`: exit code 0, 2 (refused), 130 (Ctrl-C)."""
    return networks.run(lambda: _convert(_options(argv, program)), program)


def _options(argv: Sequence[str], program: str) -> argparse.Namespace:
    from alexnet_jax.data.atomic import check_new
    from alexnet_jax.weights.onnx_export import check_onnx

    parser = Parser(
        prog=program,
        description="Writes weights as safetensors, ONNX or StableHLO, with class names, preprocessing and provenance.",
    )
    add = parser.add_argument
    add("source", metavar="IN", help="a file of weights, or a training run's folder: docs/weights.md")
    add("out", type=pathlib.Path, metavar="OUT", help=f"the file to write: {', '.join(FORMS)}")
    add("--to", choices=tuple(FORMS.values()), help="its form; default: by OUT's suffix")
    add(
        "--names",
        choices=("native", "torchvision"),
        help="of safetensors: ours (default), or torchvision's with PyTorch's layouts",
    )
    add("--force", action="store_true", help="replace OUT if it is there")
    networks.add_variant(parser)
    options = parser.parse_args(argv)
    options.to = options.to or FORMS.get(options.out.suffix.lower())
    if options.to is None:
        raise ValueError(f"{options.out}: its suffix is none of {', '.join(FORMS)}; give --to")
    if options.names is not None and options.to != "safetensors":
        raise ValueError(f"--names is for safetensors, not for {options.to}")
    if options.to == "onnx":
        check_onnx()
    check_new(options.out, force=options.force, what="OUT")
    return options


def _convert(options: argparse.Namespace) -> int:
    from alexnet_jax.weights.onnx_export import save_onnx
    from alexnet_jax.weights.saving import origin, save_safetensors
    from alexnet_jax.weights.stablehlo import save_stablehlo

    weights = networks.open_weights(options.source, options)
    print(f"{'network':<10} {networks.describe(options.source, weights)}")
    provenance = origin(pathlib.Path(options.source), weights)
    if options.to == "onnx":
        save_onnx(weights, options.out, provenance=provenance)
    elif options.to == "stablehlo":
        save_stablehlo(weights, options.out, provenance=provenance)
    else:
        save_safetensors(weights, options.out, names=options.names or "native", provenance=provenance)
    names = f", {options.names} names" if options.names else ""
    print(f"{'written':<10} {options.out}: {options.to}{names}, {options.out.stat().st_size / 1e6:,.1f} MB")
    if weights.model.spec.input.mean_image is not None and weights.mean_image is None:
        print(f"{'note':<10} the mean image is not known: the contract's mean pixel stands for it")
    return 0
