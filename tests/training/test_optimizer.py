"""The update rule against its own words in NumPy, against optax.sgd and against PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.training.config import OptimizerConfig
from alexnet_jax.training.optimizer import momentum_sgd, update_rule
from alexnet_jax.training.schedules import steps as learning_rate

SHAPES = {"kernel": (3, 4), "bias": (4,)}
STEPS_PER_EPOCH, EPOCHS = 20, 10
CONFIG = OptimizerConfig(learning_rate=0.01, drop_epochs=(3, 7), drop_factor=0.1)


def rate_of(step: int) -> float:
    """The schedule of CONFIG, written out."""
    return 0.01 * 0.1 ** sum(step >= epoch * STEPS_PER_EPOCH for epoch in CONFIG.drop_epochs)


def start_and_gradients(steps: int):
    """Parameters, and gradients that depend on nothing, in float64."""
    draw = np.random.default_rng(0).standard_normal
    start = {name: draw(shape) for name, shape in SHAPES.items()}
    return start, [{name: draw(shape) for name, shape in SHAPES.items()} for _ in range(steps)]


def transcript(start, gradients, *, momentum=0.9, weight_decay=0.0005):
    """Krizhevsky et al. 2012, section 5: v ← 0.9·v − 0.0005·ε·w − ε·g; w ← w + v. All w after each step."""
    w = {name: value.copy() for name, value in start.items()}
    v = {name: np.zeros_like(value) for name, value in start.items()}
    found = []
    for step, g in enumerate(gradients):
        rate = rate_of(step)
        for name in w:
            v[name] = momentum * v[name] - weight_decay * rate * w[name] - rate * g[name]
            w[name] = w[name] + v[name]
        found.append(dict(w))
    return found


def steps_of(optimizer, start, gradients):
    """All parameters after each step of an optax optimizer."""

    @jax.jit
    def step(params, state, g):
        updates, state = optimizer.update(g, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, start)
    state, found = optimizer.init(params), []
    for g in gradients:
        params, state = step(params, state, g)
        found.append(jax.device_get(params))
    return found


def ours(config=CONFIG):
    """The optimizer of a config."""
    rate = learning_rate(config, STEPS_PER_EPOCH)
    return momentum_sgd(rate, momentum=config.momentum, weight_decay=config.weight_decay)


def distance(one, other) -> float:
    """The largest difference, relative to the largest value."""
    return max(np.abs(one[name] - other[name]).max() / np.abs(other[name]).max() for name in SHAPES)


@pytest.mark.usefixtures("x64")
def test_the_rule_over_two_hundred_steps_and_two_drops():
    start, gradients = start_and_gradients(STEPS_PER_EPOCH * EPOCHS)
    found, expected = steps_of(ours(), start, gradients), transcript(start, gradients)
    assert all(leaf.dtype == np.float64 for leaf in found[-1].values())
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert distance(one, other) < 1e-12, step


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("wrong", [{"momentum": 0.8}, {"weight_decay": 0.0}, {"weight_decay": -0.0005}])
def test_the_transcript_tells_rules_apart(wrong):
    start, gradients = start_and_gradients(5)
    assert distance(steps_of(ours(), start, gradients)[-1], transcript(start, gradients, **wrong)[-1]) > 1e-7


@pytest.mark.usefixtures("x64")
def test_a_drop_fades_in_where_optax_sgd_cuts():
    start, gradients = start_and_gradients(STEPS_PER_EPOCH * 4)
    rate, drop = learning_rate(CONFIG, STEPS_PER_EPOCH), STEPS_PER_EPOCH * 3
    sgd = optax.chain(optax.add_decayed_weights(CONFIG.weight_decay), optax.sgd(rate, CONFIG.momentum))
    one, other = steps_of(ours(), start, gradients), steps_of(sgd, start, gradients)
    assert distance(one[drop - 1], other[drop - 1]) < 1e-12  # the same while the rate is constant
    before = one[drop - 1]["kernel"] - one[drop - 2]["kernel"]
    our_update = one[drop]["kernel"] - before_and(one, drop)
    sgd_update = other[drop]["kernel"] - before_and(other, drop)
    g = gradients[drop]["kernel"] + CONFIG.weight_decay * one[drop - 1]["kernel"]
    np.testing.assert_allclose(our_update, 0.9 * before - 0.001 * g, atol=1e-14)
    np.testing.assert_allclose(sgd_update, 0.1 * 0.9 * before - 0.001 * g, atol=1e-14)
    assert np.abs(our_update).mean() > 5 * np.abs(sgd_update).mean()


def before_and(found, step):
    """The kernel before a step."""
    return found[step - 1]["kernel"]


def test_a_constant_rate_of_zero_moves_nothing():
    start, gradients = start_and_gradients(3)
    config = OptimizerConfig(learning_rate=0.0, drop_epochs=())
    found = steps_of(ours(config), start, gradients)
    for name in SHAPES:
        np.testing.assert_array_equal(found[-1][name], np.float32(start[name]))


@pytest.mark.usefixtures("x64")
def test_the_rate_of_every_step():
    schedule = learning_rate(CONFIG, STEPS_PER_EPOCH)
    rates = [float(schedule(step)) for step in range(STEPS_PER_EPOCH * EPOCHS)]
    np.testing.assert_allclose(rates, [rate_of(step) for step in range(len(rates))], rtol=1e-12)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-2),
        (20 * 37 - 1, 1e-2),
        (20 * 37, 1e-3),
        (20 * 37 + 1, 1e-3),
        (26 * 37 - 1, 1e-3),
        (26 * 37, 1e-4),
        (1109, 1e-4),
        (10**6, 1e-4),
    ],
)
def test_the_default_rate_drops_at_the_start_of_its_epochs(step, rate):
    config = OptimizerConfig(learning_rate=0.01, drop_epochs=(20, 26), drop_factor=0.1)
    np.testing.assert_allclose(learning_rate(config, 37)(jnp.int32(step)), rate, rtol=1e-6)


def test_other_factors_and_no_drops():
    rising = learning_rate(OptimizerConfig(learning_rate=1.0, drop_epochs=(1, 2), drop_factor=0.5), 10)
    np.testing.assert_allclose([rising(step) for step in (9, 10, 19, 20, 99)], [1, 0.5, 0.5, 0.25, 0.25])
    constant = learning_rate(OptimizerConfig(learning_rate=0.3, drop_epochs=()), 10)
    np.testing.assert_allclose([constant(step) for step in (0, 1, 10**6)], 0.3, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.usefixtures("x64")
def test_pytorch_agrees_while_the_rate_is_constant():
    torch = pytest.importorskip("torch")
    drop = STEPS_PER_EPOCH * 3
    start, gradients = start_and_gradients(drop + 5)
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    sgd = torch.optim.SGD(params.values(), lr=0.01, momentum=0.9, weight_decay=0.0005)
    theirs = []
    for step, g in enumerate(gradients):
        sgd.param_groups[0]["lr"] = rate_of(step)
        for name, value in params.items():
            value.grad = torch.tensor(g[name])
        sgd.step()
        theirs.append({name: value.detach().numpy().copy() for name, value in params.items()})
    found = steps_of(ours(), start, gradients)
    assert max(distance(one, other) for one, other in zip(found[:drop], theirs[:drop], strict=True)) < 1e-12
    assert distance(found[drop], theirs[drop]) > 1e-4


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices fuse the update by themselves")
def test_on_a_cpu_the_update_copies_neither_parameters_nor_buffer():
    rule = update_rule(momentum=0.9, decay=5e-4)
    params = {"fc6": {"kernel": jnp.ones((256, 256))}}

    def step(params, state, gradients, rate):  # the rate is known to the device only, as in training
        moves, state = rule.update(gradients, state, params, rates={"weights": rate, "biases": rate})
        return optax.apply_updates(params, moves), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, rule.init(params), params, 0.01).compile()
    assert "fusion(" in compiled.as_text()
    assert "[256,256]{1,0} copy(" not in compiled.as_text()
