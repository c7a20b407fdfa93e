"""The default run: the paper's network with half of its kernels, on scikit-learn's digits.

Cost: about a minute on two CPU cores. Result: 1.0 to 2.3 % test error over five seeds.
Command: python train.py
"""

from alexnet_jax.training.config import default_config


def get_config():
    """The default; `python train.py --help` explains every key."""
    return default_config()
