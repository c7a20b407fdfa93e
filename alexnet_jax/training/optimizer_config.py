"""The section `optimizer` of a configuration: the update rule, its groups, its rates in time."""

from __future__ import annotations

import dataclasses

from alexnet_jax.training.schema import key, one_of, positive

SCHEDULES = (
    "steps",
    "constant",
    "plateau",
    "source2012_145",
    "source2012_145_2010",
    "source2012_finetune",
    "warmup_cosine",
)
BIAS_READINGS = ("constant", "first_drop")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule v ← momentum·v − weight_decay·ε·w − ε·g, w ← w + v (Krizhevsky et al. 2012, section 5)."""

    schedule: str = one_of(
        "steps",
        SCHEDULES,
        "how ε goes with time: multiplied by drop_factor at drop_epochs or drop_steps (steps) or when the validation "
        "error stops improving (plateau), the 2012 source's timetables of three runs, or a warm-up and half a cosine",
    )
    learning_rate: float = key(
        0.01,
        "ε of the weights at the start, for warmup_cosine its peak; the 2012 timetables are those of 0.01, scaled",
        allowed="at least 0",
        check=lambda value: value >= 0,
    )
    bias_rate_multiplier: float = key(
        1.0,
        "ε of the biases over that of the weights (Caffe: 2); the 2012 timetables have their own",
        allowed="at least 0",
        check=lambda value: value >= 0,
    )
    layer_rate_multipliers: str = key(
        "", "layers whose ε, weights and biases, is multiplied, such as 'conv1=0.1,fc8=10'; 0 freezes a layer"
    )
    momentum: float = key(
        0.9,
        "share of the last update that is kept",
        allowed="from 0 to less than 1",
        check=lambda value: 0 <= value < 1,
    )
    weight_decay: float = key(5e-4, "weight decay", allowed="at least 0", check=lambda value: value >= 0)
    decay_biases: bool = key(True, "weight decay on biases too; the 2012 source and Caffe have none there")
    layer_decay_multipliers: str = key(
        "", "layers whose weight decay is multiplied, such as 'conv1=0,fc8=2'; 0 turns it off"
    )
    drop_epochs: tuple[int, ...] = key(
        (20, 26),
        "steps: epochs at whose start ε is multiplied by drop_factor",
        allowed="rising positive numbers",
        check=lambda value: all(a < b for a, b in zip((0, *value), value, strict=False)),
    )
    drop_steps: tuple[int, ...] = key(
        (),
        "steps: the same in steps, instead of drop_epochs",
        allowed="rising positive numbers",
        check=lambda value: all(a < b for a, b in zip((0, *value), value, strict=False)),
    )
    drop_factor: float = key(
        0.1, "steps, plateau: factor of ε at each drop", allowed="more than 0", check=lambda value: value > 0
    )
    plateau_patience: int = positive(
        5, "plateau: evaluations in a row without an improvement before a drop", unit="evaluations"
    )
    plateau_threshold: float = key(
        0.1,
        "plateau: what the top-1 error must be below the lowest so far, by more than this, to have improved",
        unit="percentage points",
        allowed="from 0 to less than 100",
        check=lambda value: 0 <= value < 100,
    )
    plateau_max_drops: int = key(
        3, "plateau: drops at most", allowed="from 0 to 100", check=lambda value: 0 <= value <= 100
    )
    source2012_biases: str = one_of(
        "constant",
        BIAS_READINGS,
        "2012 timetables: ε of the biases is 0.02 throughout (run 145's last file), or 0.002 from the weights' first "
        "drop on (run 120-4gpu); conv1's is 0 when it is frozen",
    )
    warmup_epochs: int = key(
        5,
        "warmup_cosine: epochs in which ε rises to learning_rate",
        unit="epochs",
        allowed="at least 0",
        check=lambda value: value >= 0,
    )
    cosine_epochs: int = positive(
        30, "warmup_cosine: epochs, those of the warm-up among them, after which ε is 0", unit="epochs"
    )
