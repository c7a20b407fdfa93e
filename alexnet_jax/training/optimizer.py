"""The paper's update rule, of optax's parts.

    v ← momentum · v − weight_decay · ε · w − ε · ⟨∂L/∂w⟩ ;   w ← w + v

(Krizhevsky et al. 2012, section 5). The step's ε is inside the buffer: after a drop
of the rate the old, larger updates fade out by the momentum, where `optax.sgd`,
which multiplies by ε last, would cut them at once.
"""

from __future__ import annotations

import optax

from alexnet_jax.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps_per_epoch: int) -> optax.Schedule:
    """ε as a function of the step: multiplied by `drop_factor` at the start of each of `drop_epochs`."""
    drops = {epoch * steps_per_epoch: config.drop_factor for epoch in config.drop_epochs}
    return optax.piecewise_constant_schedule(config.learning_rate, drops)


def momentum_sgd(rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """The update rule above; its state is v and the number of steps taken."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
        optax.trace(decay=momentum),
    )
