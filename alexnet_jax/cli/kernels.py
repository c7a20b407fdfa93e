"""`alexnet-jax kernels`: the first layer's kernels as a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from alexnet_jax.cli import networks
from alexnet_jax.cli.arguments import Parser


def kernels(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax kernels`: exit code 0, 2 (refused), 130 (Ctrl-C)."""
    return networks.run(lambda: _kernels(argv, program), program)


def _kernels(argv: Sequence[str], program: str) -> int:
    import numpy as np
    from flax import nnx

    from alexnet_jax import figures
    from alexnet_jax.data.atomic import check_new, replacing

    parser = Parser(prog=program, description="Draws the first layer's kernels, a tower above the other.")
    networks.add_network(parser)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE", help="the picture: PNG, PDF or SVG")
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    options = parser.parse_args(argv)
    networks.check_figure(options.out, "--out")
    check_new(options.out, force=options.force)

    weights = networks.open_weights(options.weights, options)
    spec = weights.model.spec
    kernel = np.asarray(nnx.to_pure_dict(nnx.state(weights.model))["conv1"]["kernel"])
    if spec.input.channel_order == "bgr":
        kernel = kernel[:, :, ::-1]
    with replacing(options.out, options.out.suffix) as partial:
        figures.first_layer_kernels(kernel, spec.groups, partial)
    print(f"{'network':<10} {networks.describe(options.weights, weights)}\n{'figure':<10} {options.out}")
    return 0
