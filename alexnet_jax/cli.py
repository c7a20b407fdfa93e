"""The program `alexnet-jax`: train, summary."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": train, "summary": summary}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: alexnet-jax COMMAND …\n\n"
            "  train     trains a network: alexnet-jax train --help\n"
            "  summary   the layer table of a network: alexnet-jax summary --help"
        )
        return 0
    if arguments[0] == "--version":
        from alexnet_jax import __version__

        print(f"alexnet-jax {__version__}")
        return 0
    if arguments[0] not in commands:
        near = difflib.get_close_matches(arguments[0], commands, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(commands)}"
        return _refuse("alexnet-jax", f"there is no command {arguments[0]!r}; {hint}")
    return commands[arguments[0]](arguments[1:], program=f"alexnet-jax {arguments[0]}")


def train(argv: Sequence[str] | None = None, *, program: str = "train.py") -> int:
    """`alexnet-jax train` and `train.py`: exit code 0, 2 (refused), 130 or 143 (stopped by a signal)."""
    from alexnet_jax.checkpoint import CheckpointError
    from alexnet_jax.data.prepared import DataError
    from alexnet_jax.training import flags
    from alexnet_jax.training.config import ConfigError
    from alexnet_jax.training.loop import Diverged
    from alexnet_jax.training.loop import train as run

    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument in ("-h", "--help", "-help", "--helpfull") for argument in arguments):
        print(flags.help_text(program), end="")
        return 0
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax and Grain tell of every save and thread
    try:
        command = flags.parse(arguments)
        outcome = run(command.config, command.workdir)
    except (ConfigError, DataError, CheckpointError) as error:
        return _refuse(program, str(error))
    except Diverged as error:
        return _refuse(program, str(error), code=1)
    except KeyboardInterrupt:
        return _refuse(program, "stopped at once; the same command resumes from the last checkpoint", code=130)
    return 128 + outcome.stopped_by if outcome.stopped_by else 0


def summary(argv: Sequence[str], *, program: str) -> int:
    """`alexnet-jax summary`: the layer table of a variant, or of the default run's network."""
    from alexnet_jax.models import get_spec, list_models
    from alexnet_jax.models import summary as tables
    from alexnet_jax.training import flags
    from alexnet_jax.training.config import model_spec

    parser = _Parser(prog=program, description="The layers of a network, with exact counts.")
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
        return _refuse(program, str(error))
    if not options.name and not options.compare:
        where = options.config or "python train.py"
        print(f"The network of {where}, made from the variant {specs[0].name!r}, with {classes} classes:\n")
    print(tables.as_markdown(lines) if options.markdown else tables.as_text(lines))
    return 0


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, with the nearest option."""

    def error(self, message: str) -> NoReturn:
        options = [name for action in self._actions for name in action.option_strings]
        wrong = next((word.partition("=")[0] for word in message.split() if word.startswith("--")), "")
        near = difflib.get_close_matches(wrong, options, 1)
        raise ValueError(message + (f"; did you mean {near[0]}?" if near and near[0] != wrong else "; see --help"))


def _refuse(program: str, message: str, code: int = 2) -> int:
    """One line on standard error."""
    print(f"{program}: {message}", file=sys.stderr)
    return code
