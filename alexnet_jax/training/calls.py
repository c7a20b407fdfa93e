"""How many steps the device takes at a time: `config.steps_per_call`."""

from __future__ import annotations

from alexnet_jax.training.config import Config
from alexnet_jax.training.schema import ConfigError, profile_steps


def steps_at_once(config: Config, step: int, *, steps_per_epoch: int, num_steps: int, rest: int) -> int:
    """How many steps the call after `step` takes: `config.steps_per_call`, or one where something is due before.

    A line, an evaluation, a checkpoint, the edge of a profile, an epoch's incomplete batch of
    `rest` images (0: none), or the end.
    """
    several = config.steps_per_call
    if several == 1:
        return 1
    places = [(step // period + 1) * period for period in _periods(config, steps_per_epoch).values()]
    if rest:  # a step of another size
        places.append((step // steps_per_epoch + 1) * steps_per_epoch - 1)
    if config.profile:
        traced = profile_steps(config.profile)
        places += [edge for edge in (traced[0] - 1, traced[-1]) if edge > step]
    return several if min(*places, num_steps) - step >= several else 1


def check_calls(config: Config, steps_per_epoch: int, rest: int) -> None:
    """Refuses calls of more steps than ever come without something due.

    Raises:
      ConfigError: `steps_per_call` is larger than the steps between two lines, evaluations or checkpoints, or
        than an epoch's before its incomplete batch of `rest` images (0: none).
    """
    if config.steps_per_call == 1:
        return
    periods = _periods(config, steps_per_epoch)
    if rest and steps_per_epoch > 1:
        periods['an incomplete batch after them, config.data.last_batch="keep"'] = steps_per_epoch - 1
    name, period = min(periods.items(), key=lambda item: item[1])
    if config.steps_per_call > period:
        raise ConfigError(
            f"config.steps_per_call={config.steps_per_call}: something is due every {period} steps ({name}), so there "
            f"would be no such call: set it to {period} or less, best a divisor of it, or have that less often"
        )


def _periods(config: Config, steps_per_epoch: int) -> dict[str, int]:
    periods = {
        f"config.log_every_steps={config.log_every_steps}": config.log_every_steps,
        f"config.eval_every_epochs={config.eval_every_epochs}": config.eval_every_epochs * steps_per_epoch,
    }
    if config.checkpoint_every_steps is not None:
        periods[f"config.checkpoint_every_steps={config.checkpoint_every_steps}"] = config.checkpoint_every_steps
    return periods
