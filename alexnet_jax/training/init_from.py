"""A new run that starts from another run's layers."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from alexnet_jax.checkpoint import CheckpointError
from alexnet_jax.models import ModelSpec
from alexnet_jax.trained import open_trained
from alexnet_jax.training.schema import ConfigError


@dataclasses.dataclass(frozen=True)
class Start:
    """Parameters to start from, and which of them were loaded.

    Attributes:
      params: nested dictionaries.
      lines: what a run says of them: a heading and its words.
    """

    params: Any
    lines: tuple[tuple[str, str], ...] = ()


def start_from(place: str, skip: str, params: Any, spec: ModelSpec, classes: Sequence[str]) -> Start:
    """Takes another run's layers where they are the same.

    A layer is taken if the other network has one of that name and shape; the head also has to
    have the same classes in the same order. The mean image stays that of the new run's own data.

    Args:
      place: a workdir (its best checkpoint is taken) or a checkpoint in one.
      skip: names of layers that start afresh, separated by commas.
      params: the new run's fresh parameters.
      spec: the new run's network.
      classes: the names of its classes.

    Raises:
      ConfigError: unknown layers in `skip`, or a layer of another shape that is neither the head nor in it.
      CheckpointError: there is no network to start from.
    """
    try:
        other = open_trained(pathlib.Path(place))
    except CheckpointError as error:
        raise CheckpointError(f"config.init_from: {error}") from None
    names = [*spec.conv_names(), *spec.dense_names(), spec.head_name()]
    skipped = [name for name in skip.replace(" ", "").split(",") if name]
    for name in skipped:
        if name not in names:
            raise ConfigError(f"config.init_skip={skip!r}: there is no layer {name!r}; there are {', '.join(names)}")
    found, fresh, taken = dict(params), [], []
    for name in names:
        reason = _reason(name, skipped, params, other.params, spec.head_name(), other.spec.head_name())
        if reason is None and name == spec.head_name() and tuple(classes) != other.classes:
            reason = "other classes"
        if reason is None:
            taken.append(name)
            found[name] = jax.tree.map(lambda old, new: old.astype(new.dtype), other.params[name], params[name])
        elif reason.startswith("is ") and name != spec.head_name():
            raise ConfigError(
                f"config.init_from={place}: {name} {reason}: make the networks the same there, or start that layer "
                f"afresh with config.init_skip={','.join([*skipped, name])}"
            )
        else:
            fresh.append(f"{name} ({reason})")
    if not taken:
        raise ConfigError(f"config.init_from={place}: no layer would be taken from it ({'; '.join(fresh)})")
    lines = [("start", f"{other.place}, checkpoint {other.step} ({other.chosen}): {', '.join(taken)}")]
    lines += [("afresh", ", ".join(fresh) or "nothing")]
    left = [name for name in other.params if name not in names]
    lines += [("not used", f"{', '.join(left)} of that network")] if left else []
    return Start(found, tuple(lines))


def _reason(name: str, skipped: Sequence[str], new: Any, old: Any, head: str, old_head: str) -> str | None:
    """Why a layer is not taken; None where it is. Begins with "is " where that should not be passed over."""
    if name in skipped:
        return "in init_skip"
    if name not in old:
        return "not there"
    if (name == head) != (name == old_head):
        return "is the head of one network and not of the other"
    if _shape(new[name]) != _shape(old[name]):
        return f"is {_shape(new[name])} here and {_shape(old[name])} there"
    return None


def _shape(layer: Any) -> str:
    """A layer's kernel shape in words; its bias has the last of them."""
    return "×".join(map(str, layer["kernel"].shape))
