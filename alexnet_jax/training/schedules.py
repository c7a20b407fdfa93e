"""What each step trains with, as time goes on: learning rates, frozen layers, colour noise.

One mechanism serves all. A `Schedule` has a pure function `settings(step, state)` that runs
inside the compiled step; the step's number and the state are data, so no drop, freezing or
switch of the noise compiles anything again. The state is a small dictionary of scalars in
`TrainState.schedule`, so every checkpoint holds it. Only `Plateau` has one, and only
`observed` changes it, which the loop calls after an evaluation.

- `Following` takes any optax schedule: `steps`, `constant` and `warmup_cosine` are such.
- `Timetable` is scripted, stage by stage: the 2012 source's. Its epoch is an integer
  division of the step's number, and its rates are constants, so no rounding moves either.
- `Plateau` drops the rate when the validation error stops improving.

Sources: P is Krizhevsky et al. 2012, section 5; S is the 2012 source code
(`computerhistory/AlexNet-Source-Code`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax.training.optimizer_config import OptimizerConfig
from alexnet_jax.training.schema import ConfigError

State = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """What one step trains with, scalars on the device.

    Attributes:
      rates: ε by group. "weights" and "biases" are there always; "conv1.weights" and the
        like stand for the parameters of one layer. 0 is frozen.
      noise_on: bool, whether colour noise may be added, and with it S's ÷ 1.1 of the input.
    """

    rates: dict[str, jax.Array]
    noise_on: jax.Array


class Schedule:
    """Settings as a function of the step; this class's own state is empty and never changes."""

    def describe(self) -> str:
        """What a run says of it when it begins, after the word "rate"."""
        raise NotImplementedError

    def init(self) -> State:
        """The state before the first step."""
        return {}

    def settings(self, step: jax.Array, state: State) -> Settings:
        """What a step trains with; may be traced.

        Args:
          step: int32 scalar, how many steps were taken before it.
          state: of this schedule.
        """
        raise NotImplementedError

    def observed(self, state: State, top1_error: float) -> State:
        """The state after an evaluation on the validation images; `top1_error` is in percent."""
        del top1_error
        return state

    def noise_on(self, step: int, state: State | None = None) -> bool:
        """Whether the step has colour noise if the run has any; on the host."""
        return bool(self.settings(jnp.asarray(step, jnp.int32), self.init() if state is None else state).noise_on)


@dataclasses.dataclass(frozen=True)
class Following(Schedule):
    """Any optax schedule, for the weights; the biases follow.

    Attributes:
      rate: step -> ε of the weights.
      bias_multiplier: the biases' ε over it.
      words: what a run says of it.
    """

    rate: optax.Schedule
    bias_multiplier: float = 1.0
    words: str = "of an optax schedule"

    def describe(self) -> str:
        """See `Schedule`."""
        return self.words

    def settings(self, step: jax.Array, state: State) -> Settings:
        """See `Schedule`."""
        return _settings(jnp.asarray(self.rate(step)), self.bias_multiplier)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a timetable.

    Attributes:
      epoch: at whose start it begins.
      rates: as in `Settings`; every stage of a timetable names the same groups.
      noise_on: whether colour noise is on.
    """

    epoch: int
    rates: Mapping[str, float]
    noise_on: bool = True


@dataclasses.dataclass(frozen=True)
class Timetable(Schedule):
    """Scripted stages; the last one goes on.

    Attributes:
      stages: from epoch 0 on.
      steps_per_epoch: batches an epoch.
      words: what a run says of it.

    Raises:
      ValueError: stages that do not begin at epoch 0 and rise, or with other groups.
    """

    stages: tuple[Stage, ...]
    steps_per_epoch: int
    words: str = "of a timetable"

    def describe(self) -> str:
        """See `Schedule`."""
        return self.words

    def __post_init__(self) -> None:
        """Checks the stages."""
        epochs = [stage.epoch for stage in self.stages]
        if not epochs or epochs[0] != 0 or any(a >= b for a, b in itertools.pairwise(epochs)):
            raise ValueError(f"stages must begin at epoch 0 and rise, got {epochs}")
        groups = [sorted(stage.rates) for stage in self.stages]
        if any(group != groups[0] for group in groups) or not {"weights", "biases"} <= set(groups[0]):
            raise ValueError(f"every stage needs weights, biases and the same other groups, got {groups}")

    def settings(self, step: jax.Array, state: State) -> Settings:
        """See `Schedule`."""
        begun = jnp.asarray(step) // self.steps_per_epoch >= np.asarray([stage.epoch for stage in self.stages])
        now = jnp.sum(begun, dtype=jnp.int32) - 1
        groups = self.stages[0].rates
        rates = {group: jnp.asarray([stage.rates[group] for stage in self.stages])[now] for group in groups}
        return Settings(rates, jnp.asarray([stage.noise_on for stage in self.stages])[now])


@dataclasses.dataclass(frozen=True)
class Plateau(Schedule):
    """P's rule: the rate is divided by 10 when the validation error stops improving, three times.

    An error improves when it is below the lowest so far by more than `threshold`. After
    `patience` evaluations in a row without that, the rate drops, and the count begins anew.

    The state: `best`, float32, the lowest error so far in percent; `since`, int32, the
    evaluations since it; `drops`, int32.
    """

    learning_rate: float
    factor: float = 0.1
    patience: int = 5
    threshold: float = 0.1
    max_drops: int = 3
    bias_multiplier: float = 1.0

    def describe(self) -> str:
        """See `Schedule`."""
        return (
            f"{self.learning_rate:g}, × {self.factor:g} after {self.patience} evaluations without an improvement, "
            f"at most {self.max_drops} times"
        )

    def init(self) -> State:
        """See `Schedule`."""
        return {"best": jnp.full((), jnp.inf, jnp.float32), "since": jnp.int32(0), "drops": jnp.int32(0)}

    def settings(self, step: jax.Array, state: State) -> Settings:
        """See `Schedule`."""
        rates = [self.learning_rate * self.factor**drops for drops in range(self.max_drops + 1)]
        return _settings(jnp.asarray(rates)[state["drops"]], self.bias_multiplier)

    def observed(self, state: State, top1_error: float) -> State:
        """See `Schedule`."""
        # On arrays throughout: the new scalars then lie where the old ones do, and the step is not compiled again.
        best, since, drops = state["best"], state["since"], state["drops"]
        error = jnp.float32(top1_error)  # as the best one is kept: an equal error is no improvement
        better = error < best - self.threshold
        since = jnp.where(better, 0, since + 1)
        drop = (since >= self.patience) & (drops < self.max_drops)
        return {
            "best": jnp.where(better, error, best),
            "since": jnp.where(drop, 0, since),
            "drops": drops + drop.astype(jnp.int32),
        }


def _settings(weights: jax.Array, bias_multiplier: float) -> Settings:
    biases = weights if bias_multiplier == 1 else weights * bias_multiplier
    return Settings({"weights": weights, "biases": biases}, jnp.asarray(True))


# S: (epoch, ε of the weights, of conv1's weights, colour noise on), from its two runs of this network.
# 145 was stopped at 91 for the published figures, then pushed up again until 135.
SOURCE2012 = {
    "source2012_145": (
        (0, 1e-2, 1e-2, True),
        (25, 1e-3, 1e-3, True),
        (51, 1e-4, 1e-4, True),
        (67, 1e-4, 1e-5, False),
        (72, 1e-4, 0.0, False),
        (79, 1e-5, 0.0, False),
        (91, 1e-3, 0.0, True),
        (107, 1e-4, 0.0, True),
        (124, 1e-5, 0.0, False),
    ),
    "source2012_145_2010": (
        (0, 1e-2, 1e-2, True),
        (23, 1e-3, 1e-3, True),
        (51, 1e-4, 1e-4, True),
        (68, 1e-4, 1e-5, False),
        (72, 1e-4, 0.0, False),
        (78, 1e-5, 0.0, False),
    ),
}

# S's 146-2012-2011, the "1 CNN*" of P's table 2: (epoch, ε of the weights, conv1's, the new head's, colour noise on);
# stopped at 54. It starts from a network trained on the Fall 2011 release.
SOURCE2012_FINETUNE = (
    (0, 1e-3, 1e-4, 1e-2, True),
    (5, 1e-3, 1e-5, 1e-2, True),
    (7, 1e-3, 0.0, 1e-2, True),
    (9, 1e-3, 0.0, 1e-3, True),
    (22, 1e-4, 0.0, 1e-4, True),
    (38, 1e-4, 0.0, 1e-4, False),
    (42, 1e-5, 0.0, 1e-5, False),
)


def source2012_finetune(steps_per_epoch: int, head: str, *, learning_rate: float = 0.01) -> Timetable:
    """S's timetable of a fine-tuning.

    Its biases' ε are not recorded; here each is twice that of its weights, as at the start of S's other runs.

    Args:
      steps_per_epoch: batches an epoch.
      head: the name of the new last layer.
      learning_rate: of the head's weights at the start; all rates scale with it.
    """
    scale = learning_rate / 0.01
    stages = []
    for epoch, weights, first, last, noise_on in SOURCE2012_FINETUNE:
        each = {"": weights, "conv1.": first, f"{head}.": last}
        rates = {f"{layer}weights": rate * scale for layer, rate in each.items()}
        rates |= {f"{layer}biases": 2 * rate * scale for layer, rate in each.items()}
        stages.append(Stage(epoch, rates, noise_on))
    words = f"{learning_rate:g} for {head}, a tenth of it below, then the timetable source2012_finetune"
    return Timetable(tuple(stages), steps_per_epoch, words)


def source2012(name: str, steps_per_epoch: int, *, learning_rate: float = 0.01, biases: str = "constant") -> Timetable:
    """One of S's timetables.

    Args:
      name: a key of `SOURCE2012`.
      steps_per_epoch: batches an epoch.
      learning_rate: of the weights at the start; all rates scale with it.
      biases: "constant" is 0.02 throughout (run 145's last file); "first_drop" is 0.002 from
        the weights' first drop on (run 120-4gpu, the only one with a file a stage). conv1's are 0
        while its weights are.
    """
    scale = learning_rate / 0.01  # exactly 1 for S's own
    stages: list[Stage] = []
    for epoch, weights, first, noise_on in SOURCE2012[name]:
        bias = 0.02 if biases == "constant" or not stages else 0.002
        rates = {"weights": weights, "biases": bias, "conv1.weights": first, "conv1.biases": bias if first else 0.0}
        stages.append(Stage(epoch, {group: rate * scale for group, rate in rates.items()}, noise_on))
    words = f"{learning_rate:g}, then the timetable {name}"
    return Timetable(tuple(stages), steps_per_epoch, words)


def steps(config: OptimizerConfig, steps_per_epoch: int) -> optax.Schedule:
    """ε as a function of the step: multiplied by `drop_factor` at `drop_steps`, or at the start of `drop_epochs`."""
    drops = dict.fromkeys(_drops(config, steps_per_epoch), config.drop_factor)
    return optax.piecewise_constant_schedule(config.learning_rate, drops)


def _drops(config: OptimizerConfig, steps_per_epoch: int) -> list[int]:
    return list(config.drop_steps) or [epoch * steps_per_epoch for epoch in config.drop_epochs]


def warmup_cosine(config: OptimizerConfig, steps_per_epoch: int) -> optax.Schedule:
    """ε rises in a line from one part in `warmup` steps, then falls as half a cosine to 0."""
    warmup, total = config.warmup_epochs * steps_per_epoch, config.cosine_epochs * steps_per_epoch
    if not warmup:
        return optax.cosine_decay_schedule(config.learning_rate, total)
    return optax.warmup_cosine_decay_schedule(config.learning_rate / warmup, config.learning_rate, warmup, total)


def make_schedule(config: OptimizerConfig, steps_per_epoch: int, *, num_steps: int, layers: Sequence[str]) -> Schedule:
    """The schedule that a configuration names.

    Args:
      config: the section `optimizer`.
      steps_per_epoch: batches an epoch.
      num_steps: the length of the run.
      layers: the names of the network's layers.

    Raises:
      ConfigError: values that do not fit together.
    """
    start = f"{config.learning_rate:g}"
    if config.schedule == "constant":
        return Following(optax.constant_schedule(config.learning_rate), config.bias_rate_multiplier, start)
    if config.schedule == "plateau":
        if config.drop_factor >= 1:
            raise ConfigError(
                f"config.optimizer.drop_factor={config.drop_factor}: under schedule='plateau' it must be less than 1"
            )
        return Plateau(
            config.learning_rate,
            config.drop_factor,
            config.plateau_patience,
            config.plateau_threshold,
            config.plateau_max_drops,
            config.bias_rate_multiplier,
        )
    if config.schedule in (*SOURCE2012, "source2012_finetune"):
        if config.bias_rate_multiplier != 1:
            raise ConfigError(
                f"config.optimizer.bias_rate_multiplier={config.bias_rate_multiplier}: schedule={config.schedule!r} "
                "has the biases' own rates; leave it at 1 (source2012_biases chooses between two readings)"
            )
        if "conv1" not in layers:
            raise ConfigError(f"config.optimizer.schedule={config.schedule!r} freezes conv1, which the network lacks")
        if config.schedule == "source2012_finetune":
            return source2012_finetune(steps_per_epoch, list(layers)[-1], learning_rate=config.learning_rate)
        return source2012(
            config.schedule, steps_per_epoch, learning_rate=config.learning_rate, biases=config.source2012_biases
        )
    if config.schedule == "warmup_cosine":
        if config.warmup_epochs >= config.cosine_epochs:
            raise ConfigError(
                f"config.optimizer.warmup_epochs={config.warmup_epochs}: must be less than "
                f"cosine_epochs={config.cosine_epochs}, which the warm-up is a part of"
            )
        if num_steps > config.cosine_epochs * steps_per_epoch:
            raise ConfigError(
                f"config.optimizer.cosine_epochs={config.cosine_epochs}: the run has {num_steps:,} steps, "
                f"{num_steps / steps_per_epoch:.4g} epochs; the rate would be 0 at its end, so make it at least that"
            )
        words = f"up to {start} in {config.warmup_epochs} epochs, down by a cosine until {config.cosine_epochs}"
        return Following(warmup_cosine(config, steps_per_epoch), config.bias_rate_multiplier, words)
    if config.drop_steps and config.drop_epochs:
        raise ConfigError(
            f"config.optimizer.drop_steps={config.drop_steps} and drop_epochs={config.drop_epochs} are both set: "
            "clear one of them, as in --config.optimizer.drop_epochs='()'"
        )
    unit, places = ("steps", config.drop_steps) if config.drop_steps else ("epochs", config.drop_epochs)
    drops = ", ".join(f"{place:,}" for place in places)
    words = start + (f", × {config.drop_factor:g} at {unit} {drops}" if drops else "")
    return Following(steps(config, steps_per_epoch), config.bias_rate_multiplier, words)
