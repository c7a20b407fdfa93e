"""Trains AlexNet: the same as `alexnet-jax train`. See `python train.py --help`."""

import sys

from alexnet_jax.cli import train

if __name__ == "__main__":
    sys.exit(train())
