"""The paper's update rule, of optax's parts, with settings for groups of parameters.

    v ← momentum · v − weight_decay · ε · w − ε · ⟨∂L/∂w⟩ ;   w ← w + v

(Krizhevsky et al. 2012, section 5). The step's ε is inside the buffer: after a drop
of the rate the old, larger updates fade out by the momentum, where `optax.sgd`,
which multiplies by ε last, would cut them at once.

Where ε is 0 a parameter and its v stay as they are, as in the 2012 source code, which
skips the update; by the formula alone the parameter would coast on its momentum.

A parameter's group follows from its path: the layer is the path's first name, and its
kind is "biases" if the last name is "bias", else "weights".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.training.optimizer_config import OptimizerConfig
from alexnet_jax.training.schema import ConfigError

ByGroup = Callable[[str, str], float]  # of a layer's name and "weights" or "biases"


def by_group(tree: Any, value: Callable[[str, str], Any]) -> Any:
    """A tree of the same structure that holds `value(layer, kind)` for each parameter."""

    def of(path: tuple[Any, ...], _leaf: Any) -> Any:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return value(names[0], "biases" if names[-1] == "bias" else "weights")

    return jax.tree_util.tree_map_with_path(of, tree)


def update_rule(
    *, momentum: float, decay: float | ByGroup, multiplier: ByGroup | None = None
) -> optax.GradientTransformationExtraArgs:
    """The update rule above, with ε given to every update.

    `update(gradients, state, params, rates=…)` takes ε by group, as `schedules.Settings` holds
    it: "weights", "biases", and for a layer alone "conv1.weights" and so on; numbers or
    scalars on the device. The state is v, in the structure and dtypes of the parameters.

    Args:
      momentum: share of v that is kept.
      decay: the weight decay, or (layer, kind) -> weight decay.
      multiplier: (layer, kind) -> what ε is multiplied by; 1 by default, 0 freezes.
    """

    def decayed(gradients: Any, params: Any) -> Any:
        amounts = by_group(params, decay if callable(decay) else lambda layer, kind: decay)
        return jax.tree.map(lambda g, w, amount: g + amount * w if amount else g, gradients, params, amounts)

    parts = optax.chain(optax.stateless(decayed), _scale_by_rates(), _trace_unless_frozen(momentum))

    def update(updates: Any, state: Any, params: Any = None, *, rates: Mapping[str, Any], **_: Any) -> tuple[Any, Any]:
        def rate(layer: str, kind: str) -> Any:
            factor = 1.0 if multiplier is None else multiplier(layer, kind)
            if factor == 0:
                return 0.0  # no traced value: XLA then leaves out the gradient as well
            found = rates.get(f"{layer}.{kind}", rates[kind])
            return found if factor == 1 else found * factor

        return parts.update(updates, state, params, rates=by_group(updates, rate))

    return optax.GradientTransformationExtraArgs(parts.init, update)


def _scale_by_rates() -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate` with a rate for each parameter, given to every update."""

    def update(updates: Any, state: Any, params: Any = None, *, rates: Any, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda g, rate: jnp.asarray(-rate, g.dtype) * g, updates, rates), state

    return optax.GradientTransformationExtraArgs(lambda _params: optax.EmptyState(), update)


def _trace_unless_frozen(momentum: float) -> optax.GradientTransformationExtraArgs:
    """`optax.trace` that leaves the buffer alone, and updates nothing, where the rate is 0."""
    trace = optax.trace(momentum)

    def update(updates: Any, state: Any, params: Any = None, *, rates: Any, **_: Any) -> tuple[Any, Any]:
        _, after = trace.update(updates, state)
        kept = jax.tree.map(lambda rate, new, old: jnp.where(rate == 0, old, new), rates, after.trace, state.trace)
        # Of the buffer that is kept: of a second one XLA on a CPU computes the formula twice, and copies what it reads.
        moves = jax.tree.map(lambda rate, v: jnp.where(rate == 0, jnp.zeros_like(v), v), rates, kept)
        return moves, optax.TraceState(trace=kept)

    return optax.GradientTransformationExtraArgs(trace.init, update)


class CountedState(NamedTuple):
    """The steps taken, int32 scalar, and the rule's own state."""

    step: jax.Array
    inner: optax.OptState


def momentum_sgd(rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """The update rule as a plain optax optimizer, which counts its own steps, with one ε for all parameters.

    Args:
      rate: ε, or any optax schedule of it.
      momentum: share of v that is kept.
      weight_decay: for every parameter.
    """
    rule = update_rule(momentum=momentum, decay=weight_decay)

    def init(params: Any) -> CountedState:
        return CountedState(jnp.zeros((), jnp.int32), rule.init(params))

    def update(updates: Any, state: CountedState, params: Any = None) -> tuple[Any, CountedState]:
        now = rate(state.step) if callable(rate) else rate
        moves, inner = rule.update(updates, state.inner, params, rates={"weights": now, "biases": now})
        return moves, CountedState(optax.safe_increment(state.step), inner)

    return optax.GradientTransformation(init, update)


def multipliers(key: str, text: str, layers: Sequence[str]) -> dict[str, float]:
    """Reads "conv1=0.1,fc8=10" into numbers by layer.

    Args:
      key: of the configuration, for the error.
      text: its value; empty for none.
      layers: the names that there are.

    Raises:
      ConfigError: another form, an unknown layer or one twice, a number that is negative or not finite.
    """
    found: dict[str, float] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        layer, equals, number = part.partition("=")
        try:
            value = float(number) if equals else math.nan
        except ValueError:
            value = math.nan
        if not (0 <= value < math.inf):
            raise ConfigError(
                f"config.{key}={text!r}: {part!r} is no layer with a number of at least 0, such as 'conv1=0.1'"
            )
        if layer not in layers:
            raise ConfigError(f"config.{key}={text!r}: there is no layer {layer!r}; there are {', '.join(layers)}")
        if layer in found:
            raise ConfigError(f"config.{key}={text!r}: {layer} is there twice")
        found[layer] = value
    return found


def make_optimizer(config: OptimizerConfig, layers: Sequence[str]) -> optax.GradientTransformationExtraArgs:
    """The update rule that a configuration describes.

    Args:
      config: the section `optimizer`.
      layers: the names of the network's layers.

    Raises:
      ConfigError: multipliers that can't be read, or of layers that are not there.
    """
    rates = multipliers("optimizer.layer_rate_multipliers", config.layer_rate_multipliers, layers)
    decays = multipliers("optimizer.layer_decay_multipliers", config.layer_decay_multipliers, layers)

    def decay(layer: str, kind: str) -> float:
        return 0.0 if kind == "biases" and not config.decay_biases else config.weight_decay * decays.get(layer, 1.0)

    return update_rule(momentum=config.momentum, decay=decay, multiplier=lambda layer, _kind: rates.get(layer, 1.0))
