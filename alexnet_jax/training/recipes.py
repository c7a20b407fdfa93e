"""What the files under `configs/` share: the beginning of a recipe for large images, and its tiny form."""

from __future__ import annotations

from ml_collections import config_dict

from alexnet_jax.training.config import default_config, from_dict, model_spec
from alexnet_jax.training.schema import ConfigError

TINY_CROP, TINY_SIZE = 80, 88  # pixels; the smallest at which every recipe's layers fit together


def imagenet(name: str | None = None) -> config_dict.ConfigDict:
    """The default run with a whole variant at its own size and initialisation, on prepared ImageNet, mirrored.

    Args:
      name: the variant; None is the default run's, `paper`.
    """
    config = default_config()
    if name is not None:
        config.model.name = name
    config.model.width = config.model.hidden_width = 1.0
    config.model.init = None
    config.data.source = "data/imagenet-256"
    config.data.image_size = config.data.crop_size = None
    config.data.flip = True
    config.batch_size = 128
    config.log_every_steps = 100
    return config


def sized(config: config_dict.ConfigDict, argument: str | None) -> config_dict.ConfigDict:
    """The recipe itself, or changed in place by the argument after its file's name.

    Args:
      config: the recipe.
      argument: None; or "tiny": two steps of a network with a few kernels on the embedded digits,
        to see on any machine that the recipe runs. Rates and the rest stay the recipe's.

    Raises:
      ConfigError: another argument.
    """
    if argument is None:
        return config
    if argument != "tiny":
        raise ConfigError(f"this recipe has no form {argument!r}; its argument is none, or tiny")
    config.data.source = "digits"
    if model_spec(from_dict(config)).input.size > TINY_CROP:
        config.data.crop_size, config.data.image_size = TINY_CROP, TINY_SIZE
    config.model.width, config.model.hidden_width = 1 / 12, 1 / 128
    config.batch_size = min(config.batch_size, 32)
    config.num_steps = 2
    return config
