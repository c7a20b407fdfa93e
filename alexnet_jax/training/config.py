"""The configuration of a run: its default, its schema, its checks.

The dataclasses below are the schema; their defaults are the default run, which
trains the paper's network with half of its kernels on scikit-learn's digits.
Files under `configs/` and `--config.key=value` flags change a `ConfigDict` made from
them (the convention of Flax's examples); `from_dict` checks the outcome.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from alexnet_jax.data.views import COLOUR_NOISES
from alexnet_jax.models import ModelSpec, get_spec
from alexnet_jax.training.model_config import ModelConfig, changed
from alexnet_jax.training.optimizer_config import OptimizerConfig
from alexnet_jax.training.parallel_config import ParallelConfig
from alexnet_jax.training.schema import ConfigError, profile_steps
from alexnet_jax.training.schema import key as _key
from alexnet_jax.training.schema import one_of as _one_of
from alexnet_jax.training.schema import positive as _positive


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images."""

    source: str = _key(
        "digits",
        "'digits' (embedded), folder:DIR, imagenet:DIR, cifar10:DIR, tfds:NAME, or the folder of a prepared data set",
        may_change=True,
    )
    image_size: int | None = _positive(72, "side of the prepared images; None: the variant's", unit="pixels")
    crop_size: int | None = _positive(
        64, "side of the crops that the network takes; None: the variant's", unit="pixels"
    )
    flip: bool = _key(False, "mirror half of the training images")
    colour_noise: str | None = _one_of(
        None,
        COLOUR_NOISES,
        "noise along the training pixels' principal colours, a draw an image: the paper's, or the 2012 source's, "
        "which also divides the input by 1.1; None: none",
    )
    shared_draw: int = _positive(
        1, "consecutive images of a batch that share a crop and a flip; 32 in the 2012 source", unit="images"
    )
    last_batch: str = _one_of(
        "drop", ("drop", "keep"), "an epoch's incomplete last batch: left out, or a step of its own size"
    )
    val_fraction: float | None = _key(
        None,
        "share of the training images to validate on, for a source without validation images",
        allowed="between 0 and 1",
        check=lambda value: 0 < value < 1,
    )
    on_device: bool | None = _key(
        None,
        "keep the training images in the device's memory; None: on a GPU, if they take at most a sixteenth of it",
        may_change=True,
    )
    cache_dir: str | None = _key(
        None, "where prepared data is kept; None: alexnet-jax in the user's cache folder", may_change=True
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    batch_size: int = _positive(32, "images a training step", unit="images")
    accumulate_steps: int = _positive(
        1, "parts in which a step takes its batch, one after the other: the same numbers in less memory", unit="parts"
    )
    steps_per_call: int = _positive(
        1,
        "steps that the device takes at a time where no line, evaluation or checkpoint is due in between; for networks "
        "so small that Python's share of a step is felt",
        unit="steps",
        may_change=True,
    )
    num_epochs: int = _positive(30, "passes through the training images", unit="epochs", may_change=True)
    num_steps: int | None = _positive(None, "training steps; wins over num_epochs", unit="steps", may_change=True)
    seed: int = _key(
        0,
        "all random choices follow from it",
        allowed="at least 0 and less than 2**32",
        check=lambda value: 0 <= value < 2**32,
    )
    precision: str = _one_of(
        "float32",
        ("float32", "tf32", "bfloat16"),
        "arithmetic: true float32 (on a GPU too), tf32 products, or bfloat16 activations with float32 parameters",
    )
    log_every_steps: int = _positive(37, "steps between lines of training metrics", unit="steps", may_change=True)
    eval_every_epochs: int = _positive(
        1, "epochs between evaluations on the validation images", unit="epochs", may_change=True
    )
    checkpoint_every_seconds: float = _key(
        600.0,
        "a checkpoint is written at least this often, and at each evaluation",
        unit="seconds",
        allowed="more than 0",
        check=lambda value: value > 0,
        may_change=True,
    )
    checkpoint_every_steps: int | None = _positive(
        None, "a checkpoint is also written every so many steps", unit="steps", may_change=True
    )
    deterministic: bool | None = _key(
        None,
        "the same bits from every run on the same device; None: as the device likes, which is True on a CPU. On a GPU "
        "True has XLA use deterministic operations, which may be slower",
        may_change=True,
    )
    compilation_cache: bool = _key(
        True,
        "keep compiled programs in the user's cache folder, so that a restart need not compile again",
        may_change=True,
    )
    profile: str | None = _key(
        None,
        "FIRST:LAST, such as 10:20: a trace of these steps, the run's first being 1, is written into profile/ in the "
        "workdir; a resumed run traces those of them that it takes",
        unit="steps",
        allowed="FIRST:LAST with 1 <= FIRST <= LAST",
        check=lambda value: len(profile_steps(value)) > 0,
        may_change=True,
    )
    init_from: str | None = _key(
        None,
        "a workdir, or a checkpoint in one, whose network a new run's layers start from where they are the same; the "
        "head only where the classes are too; None: all layers start afresh",
        may_change=True,
    )
    init_skip: str = _key("", "layers that start afresh under init_from, such as 'fc8' or 'fc7,fc8'")
    require_gpu: bool = _key(False, "refuse to train without a GPU", may_change=True)


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the schema, for `--help`, the docs and the checks."""

    name: str
    kind: Any
    default: Any
    meaning: str
    unit: str
    allowed: str
    may_change: bool

    @property
    def optional(self) -> bool:
        """Whether None is a value of it."""
        return types.NoneType in typing.get_args(self.kind)

    def kind_in_words(self) -> str:
        """The type as a person reads it: "int or None"."""
        return _in_words(self.kind)

    def allowed_in_words(self) -> str:
        """What the key takes: its allowed values if they are restricted, else its type."""
        return _allowed_in_words(self.kind, self.allowed)


def keys(kind: type = Config, prefix: str = "") -> Iterator[Key]:
    """Every key of the schema, in order."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys(hints[field.name], f"{prefix}{field.name}.")
        else:
            about = {name: field.metadata[name] for name in ("meaning", "unit", "allowed", "may_change")}
            yield Key(prefix + field.name, hints[field.name], field.default, **about)


def _in_words(kind: Any) -> str:
    if kind == tuple[int, ...]:
        return "integers such as (20, 26)"
    words = {bool: "True or False", int: "an integer", float: "a finite number", str: "text", types.NoneType: "None"}
    return " or ".join(words[option] for option in typing.get_args(kind) or (kind,))


def _allowed_in_words(kind: Any, allowed: str) -> str:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    none = " or None" if types.NoneType in options else ""
    words = _in_words(options[0])
    return (allowed if allowed.startswith("one of") else f"{words}, {allowed}" if allowed else words) + none


def nearest_key(name: str) -> str:
    """A hint at the key that was meant, or where to find all of them."""
    names = [key.name for key in keys()]
    sections = {known.split(".")[0] for known in names if "." in known}
    section = next(iter(difflib.get_close_matches(name, sections, 1, cutoff=0.8)), None)
    if section:
        inside = [known for known in names if known.startswith(section + ".")]
        return f"{section!r} is a section: set one of {', '.join(inside)}"
    last = {known.split(".")[-1]: known for known in names}
    near = difflib.get_close_matches(name, names, 1, cutoff=0.7)
    near = near or [last[part] for part in difflib.get_close_matches(name.split(".")[-1], last, 1)]
    return f"did you mean {near[0]!r}?" if near else "--help lists all keys"


def default_config() -> config_dict.ConfigDict:
    """The default run as a `ConfigDict` that config files and flags change."""
    return to_config_dict(Config())


def to_config_dict(config: Any) -> config_dict.ConfigDict:
    """A configuration as a locked `ConfigDict`; optional values keep their type when they are None."""
    found = config_dict.ConfigDict()
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = to_config_dict(value)
            continue
        plain = [kind for kind in typing.get_args(hints[field.name]) if kind is not types.NoneType]
        if value is None:
            found[field.name] = config_dict.placeholder(plain[0])
        else:
            found[field.name] = value
    return found.lock()


def to_dict(config: Config) -> dict[str, Any]:
    """A configuration as nested plain data that JSON can hold (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: Any, kind: Any = Config, prefix: str = "") -> Any:
    """A checked `Config` from nested data, such as a `ConfigDict` or JSON.

    Raises:
      ConfigError: an unknown or missing key, a value of another type, or one that is not allowed.
    """
    if isinstance(values, config_dict.ConfigDict):
        values = values.to_dict()
    if not isinstance(values, dict):
        raise ConfigError(f"config.{prefix.rstrip('.') or 'get_config()'}: expected keys and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise ConfigError(f"there is no config.{prefix}{name}; {nearest_key(prefix + name)}")
    found = {}
    for field in dataclasses.fields(kind):
        name, wanted = prefix + field.name, hints[field.name]
        if field.name not in values:
            raise ConfigError(f"config.{name} is missing; start from default_config()")
        value = values[field.name]
        if dataclasses.is_dataclass(wanted):
            found[field.name] = from_dict(value, wanted, f"{name}.")
        else:
            found[field.name] = _checked(name, value, wanted, field.metadata)
    return kind(**found)


def _checked(name: str, value: Any, wanted: Any, about: Any) -> Any:
    options = typing.get_args(wanted) if typing.get_origin(wanted) is types.UnionType else (wanted,)
    if value is None and types.NoneType in options:
        return None
    kind = next(option for option in options if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        fits = isinstance(value, (tuple, list)) and all(type(item) is typing.get_args(kind)[0] for item in value)
        value = tuple(value) if fits else value
    elif kind is float:
        fits = type(value) in (int, float) and math.isfinite(value)
        value = float(value) if fits else value
    else:
        fits = type(value) is kind
    if not fits or not about["check"](value):
        choices = about["allowed"].removeprefix("one of ").split(", ")
        near = difflib.get_close_matches(value, choices, 1) if type(value) is str else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"config.{name}={value!r}: must be {_allowed_in_words(wanted, about['allowed'])}{hint}")
    return value


# Runs from before a key did what the key's value here says.
_EARLIER: dict[str, Any] = {
    "data.colour_noise": None,
    "data.shared_draw": 1,
    "model.pool_window": None,
    "model.padding": "",
    "model.sixth_conv": False,
    "optimizer.drop_steps": [],
    "init_skip": "",
}


def differences(config: Config, earlier: dict[str, Any]) -> list[str]:
    """What keeps a run with `earlier` (its `config.json`) from going on with this one: a line a key."""
    now, then = flat(to_dict(config)), flat(earlier)
    then = _EARLIER | then
    fixed = [key.name for key in keys() if not key.may_change]
    return [
        f"config.{name}: {then.get(name)!r} before, {now[name]!r} now" for name in fixed if now[name] != then.get(name)
    ]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their whole names, such as "data.source"."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def model_spec(config: Config) -> ModelSpec:
    """The network that a configuration describes: the variant with its changed fields.

    Raises:
      ConfigError: sizes that do not fit together; the message names the keys.
    """
    choice = config.model
    spec = get_spec(choice.name)
    crop = config.data.crop_size or spec.input.size
    size = config.data.image_size or (
        spec.input.resize if config.data.crop_size is None else spec.input.at_size(crop).resize
    )
    if size < crop:
        raise ConfigError(
            f"config.data.crop_size={crop} is larger than config.data.image_size={size}: "
            "a crop must fit into the prepared images"
        )
    spec = dataclasses.replace(spec, input=dataclasses.replace(spec.input, size=crop, resize=size))
    spec = changed(spec, choice)
    try:
        spec.walk(1)
    except ValueError as error:
        raise ConfigError(f"config.model and config.data.crop_size={crop} do not fit together: {error}") from None
    return spec
