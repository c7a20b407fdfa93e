"""The program `alexnet-jax`, a module a subcommand."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from alexnet_jax.cli.arguments import refuse
from alexnet_jax.cli.training import train

__all__ = ["main", "train"]

# name: its module, its function, what it is for
COMMANDS = {
    "prepare": ("preparing", "prepare", "makes a data set ready to train on"),
    "train": ("training", "train", "trains a network"),
    "evaluate": ("evaluating", "evaluate", "the errors of a run, or of several together"),
    "convert": ("converting", "convert", "weights to safetensors, ONNX or StableHLO"),
    "predict": ("predicting", "predict", "the likeliest classes of images"),
    "features": ("extracting", "features", "a layer's activations for any number of images"),
    "neighbours": ("extracting", "neighbours", "the images with the nearest activations"),
    "kernels": ("kernels", "kernels", "the first layer's kernels as a picture"),
    "summary": ("summary", "summary", "the layer table of a network, and its layout over devices"),
    "doctor": ("doctor", "doctor", "versions, devices, memory and disks, for a bug report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = (f"  {name:<10} {words}: alexnet-jax {name} --help" for name, (_, _, words) in COMMANDS.items())
        print("usage: alexnet-jax COMMAND …\n\n" + "\n".join(lines))
        return 0
    if arguments[0] == "--version":
        from alexnet_jax import __version__

        print(f"alexnet-jax {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
        return refuse("alexnet-jax", f"there is no command {arguments[0]!r}; {hint}")
    module, function, _ = COMMANDS[arguments[0]]
    command = getattr(importlib.import_module(f"alexnet_jax.cli.{module}"), function)
    return command(arguments[1:], program=f"alexnet-jax {arguments[0]}")
