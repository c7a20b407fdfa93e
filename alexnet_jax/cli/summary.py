"""`alexnet-jax summary`."""

from __future__ import annotations

from collections.abc import Sequence

from alexnet_jax.cli.arguments import Parser, refuse


def summary(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax summary`: the layer table of a variant, or of the default run's network."""
    from alexnet_jax.models import get_spec, list_models
    from alexnet_jax.models import summary as tables
    from alexnet_jax.training import flags
    from alexnet_jax.training.config import model_spec

    parser = Parser(prog=program, description="The layers of a network, with exact counts.")
    parser.add_argument(
        "name", nargs="?", help=f"a variant: {', '.join(list_models())}; none: the default run's network"
    )
    parser.add_argument("--config", metavar="FILE", help="the network of a config file instead")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the crop; default: the variant's own")
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="classes; default: 1000, or 10 for the default run"
    )
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    parser.add_argument(
        "--compare", action="store_true", help="all variants side by side (with NAME or --config: that and paper)"
    )
    try:
        options = parser.parse_args(argv)
        if options.name and options.config:
            raise ValueError("give a name or --config, not both")
        classes = 1000 if options.num_classes is None else options.num_classes
        if options.name:
            specs = [get_spec(options.name)]
        elif options.compare and not options.config:
            specs = [get_spec(name) for name in list_models()]
        else:
            config = flags.parse([f"--config={options.config}"] if options.config else []).config
            specs = [model_spec(config)]
            classes = (
                (10 if config.data.source == "digits" else 1000) if options.num_classes is None else options.num_classes
            )
        if options.compare and (options.name or options.config):
            specs = (
                [get_spec("paper"), *specs] if options.name != "paper" else [get_spec(name) for name in list_models()]
            )
        if options.image_size is not None:
            specs = [spec.at_image_size(options.image_size) for spec in specs]
        lines = tables.comparison(specs, classes) if options.compare else tables.cells(specs[0], classes)
    except ValueError as error:
        return refuse(program, str(error))
    if not options.name and not options.compare:
        where = options.config or "python train.py"
        print(f"The network of {where}, made from the variant {specs[0].name!r}, with {classes} classes:\n")
    print(tables.as_markdown(lines) if options.markdown else tables.as_text(lines))
    return 0
