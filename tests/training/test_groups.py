"""The update rule with rates, decay and freezing by group, against the 2012 source's update in NumPy and PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.training.optimizer import make_optimizer, multipliers, update_rule
from alexnet_jax.training.optimizer_config import OptimizerConfig
from alexnet_jax.training.schedules import Schedule, Stage, Timetable, make_schedule
from alexnet_jax.training.schema import ConfigError

from . import timetables

SHAPES = {"conv1": {"kernel": (3, 4), "bias": (4,)}, "fc8": {"kernel": (4, 5), "bias": (5,)}}
LAYERS = tuple(SHAPES)
STEPS = 200


def drawn(seed, count):
    """Trees of random numbers in float64."""
    draw = np.random.default_rng(seed).standard_normal
    return [
        {layer: {name: draw(shape) for name, shape in leaves.items()} for layer, leaves in SHAPES.items()}
        for _ in range(count)
    ]


def source_update(w, inc, grad, *, rate, decay):
    """One update of the 2012 source for one parameter, in its words; its `grad` is the descent direction.

    weightsInc = mom * weightsInc + eps * grad - eps * wc * weights; weights += weightsInc;
    skipped as a whole where eps is 0.
    """
    if rate == 0:
        return w, inc
    inc = 0.9 * inc + rate * grad - rate * decay * w
    return w + inc, inc


def transcript(start, gradients, rate_of, decay_of):
    """Parameters and buffers after each step, by (layer, name)."""
    w = {(layer, name): value for layer, leaves in start.items() for name, value in leaves.items()}
    inc = {where: np.zeros_like(value) for where, value in w.items()}
    found = []
    for step, g in enumerate(gradients):
        for layer, name in w:
            settings = {"rate": rate_of(step, layer, name), "decay": decay_of(layer, name)}
            where = layer, name
            w[where], inc[where] = source_update(w[where], inc[where], -g[layer][name], **settings)
        found.append((dict(w), dict(inc)))
    return found


def ours(start, gradients, rule, schedule):
    """The same from the compiled rule under a schedule."""

    @jax.jit
    def update(step, params, state, g):
        rates = schedule.settings(step, {}).rates
        moves, state = rule.update(g, state, params, rates=rates)
        return optax.apply_updates(params, moves), state

    params = jax.tree.map(jnp.asarray, start)
    state, found = rule.init(params), []
    for step, g in enumerate(gradients):
        params, state = update(jnp.int32(step), params, state, g)
        (trace,) = (part.trace for part in state if isinstance(part, optax.TraceState))
        flat = [
            {(layer, name): leaf for layer, leaves in tree.items() for name, leaf in leaves.items()}
            for tree in jax.device_get((params, trace))
        ]
        found.append(tuple(flat))
    assert update._cache_size() == 1
    return found


def largest_difference(found, expected):
    """Relative to the largest value, over all steps, parameters and buffers."""
    return max(
        np.abs(one[where] - other[where]).max() / max(np.abs(other[where]).max(), 1e-300)
        for after, wanted in zip(found, expected, strict=True)
        for one, other in zip(after, wanted, strict=True)
        for where in other
    )


# Ten epochs of 20 steps: rates drop and rise, each group is frozen at some time, conv1's kernel twice.
SCRIPT = [
    # weights, biases, conv1 weights, conv1 biases
    (0.01, 0.02, 0.01, 0.02),
    (0.01, 0.02, 0.0, 0.02),
    (0.001, 0.02, 0.005, 0.0),
    (0.001, 0.002, 0.0, 0.0),
    (0.0, 0.002, 0.03, 0.01),
    (0.0, 0.0, 0.03, 0.01),
    (0.05, 0.01, 0.0, 0.0),
    (0.0001, 0.0, 0.0, 0.0),
    (0.0001, 0.01, 0.001, 0.001),
    (0.01, 0.02, 0.01, 0.02),
]


def scripted():
    """The script as a schedule."""
    groups = ("weights", "biases", "conv1.weights", "conv1.biases")
    return Timetable(tuple(Stage(i, dict(zip(groups, row, strict=True))) for i, row in enumerate(SCRIPT)), 20)


def scripted_rate(step, layer, name):
    """The script read by hand."""
    weights, biases, first_weights, first_biases = SCRIPT[step // 20]
    if layer == "conv1":
        return first_weights if name == "kernel" else first_biases
    return weights if name == "kernel" else biases


def no_decay_of_biases(layer, name):
    """The 2012 source's weight decay."""
    return 0.0005 if name == "kernel" else 0.0


@pytest.mark.usefixtures("x64")
def test_the_source_over_two_hundred_steps_with_every_group_frozen_at_some_time():
    (start,), gradients = drawn(0, 1), drawn(1, STEPS)
    rule = make_optimizer(OptimizerConfig(decay_biases=False), LAYERS)
    found = ours(start, gradients, rule, scripted())
    expected = transcript(start, gradients, scripted_rate, no_decay_of_biases)
    assert found[-1][0]["conv1", "kernel"].dtype == np.float64
    assert largest_difference(found, expected) < 1e-12


@pytest.mark.usefixtures("x64")
def test_run_145_over_a_hundred_epochs_of_two_steps():
    """The timetable and the rule together; it is frozen from step 144 on."""
    (start,), gradients = drawn(0, 1), drawn(1, STEPS)
    config = OptimizerConfig(schedule="source2012_145", decay_biases=False)
    schedule = make_schedule(config, 2, num_steps=STEPS, layers=LAYERS)
    table = timetables.RUN_145 + timetables.RUN_145_LATER

    def rate(step, layer, name):
        row = table[step // 2]
        first = {"kernel": row.conv1_weights, "bias": row.conv1_biases}
        return first[name] if layer == "conv1" else {"kernel": row.weights, "bias": row.biases}[name]

    found = ours(start, gradients, make_optimizer(config, LAYERS), schedule)
    expected = transcript(start, gradients, rate, no_decay_of_biases)
    assert largest_difference(found, expected) < 1e-12
    for name in ("kernel", "bias"):
        for part in (0, 1):  # the parameter and its buffer, to the bit
            held = [after[part]["conv1", name] for after in found]
            assert not np.array_equal(held[142], held[143])
            assert all(np.array_equal(held[143], later) for later in held[144:])
            assert np.abs(held[143]).min() > 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("wrong", ["coasts", "decays biases", "rate outside the buffer"])
def test_the_transcript_tells_other_rules_apart(wrong):
    (start,), gradients = drawn(0, 1), drawn(1, STEPS)
    expected = transcript(start, gradients, scripted_rate, no_decay_of_biases)
    if wrong == "coasts":  # a rate that is almost 0 moves like plain SGD with a rate of 0
        other = transcript(start, gradients, lambda *a: scripted_rate(*a) or 1e-300, no_decay_of_biases)
    elif wrong == "decays biases":
        other = transcript(start, gradients, scripted_rate, lambda *_: 0.0005)
    else:
        other = transcript(start, gradients, lambda step, *a: scripted_rate(max(step - 1, 0), *a), no_decay_of_biases)
    assert largest_difference(other, expected) > 1e-6


class Constant(Schedule):
    """0.01 for weights and 0.02 for biases."""

    def settings(self, step, state):
        return Timetable((Stage(0, {"weights": 0.01, "biases": 0.02}),), 1).settings(step, state)


@pytest.mark.usefixtures("x64")
def test_multipliers_of_layers_for_rate_and_decay():
    (start,), gradients = drawn(0, 1), drawn(1, 20)
    config = OptimizerConfig(layer_rate_multipliers="conv1=0.5", layer_decay_multipliers="conv1=0, fc8=3")
    found = ours(start, gradients, make_optimizer(config, LAYERS), Constant())
    expected = transcript(
        start,
        gradients,
        lambda _, layer, name: (0.01 if name == "kernel" else 0.02) * (0.5 if layer == "conv1" else 1),
        lambda layer, _: 0.0 if layer == "conv1" else 0.0015,
    )
    assert largest_difference(found, expected) < 1e-12


def test_a_layer_frozen_for_good_stays():
    rule = make_optimizer(OptimizerConfig(layer_rate_multipliers="conv1=0"), LAYERS)
    (start,), (gradient,) = drawn(0, 1), drawn(1, 1)
    gradient["conv1"]["kernel"][:] = np.nan
    ((params, buffers),) = ours(start, [gradient], rule, Constant())
    np.testing.assert_array_equal(params["conv1", "kernel"], np.float32(start["conv1"]["kernel"]))
    assert not np.any(buffers["conv1", "kernel"])
    assert np.any(buffers["fc8", "kernel"])


@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_of_a_layer_frozen_for_good_is_not_computed(frozen):
    """Only conv1's gradient has the cosine."""
    rule = make_optimizer(OptimizerConfig(layer_rate_multipliers="conv1=0" if frozen else ""), LAYERS)
    (start,) = drawn(0, 1)

    def loss(params, x):
        hidden = jnp.sin(x @ params["conv1"]["kernel"])
        return jnp.sum(hidden @ params["fc8"]["kernel"])

    @jax.jit
    def step(params, x, rate):
        rates = {"weights": rate, "biases": rate}
        return rule.update(jax.grad(loss)(params, x), rule.init(params), params, rates=rates)[0]

    text = step.lower(jax.tree.map(np.float32, start), jnp.ones((7, 3)), jnp.float32(0.01)).compile().as_text()
    assert ("cosine" in text) == (not frozen)


@pytest.mark.parametrize("rule", [update_rule(momentum=0.9, decay=0.0005)])
def test_nothing_moves_at_a_rate_of_zero_whatever_the_gradient(rule):
    (start,), gradients = drawn(0, 1), drawn(1, 2)
    gradients[1]["fc8"]["kernel"][:] = np.inf
    stages = (Stage(0, {"weights": 0.01, "biases": 0.01}), Stage(1, {"weights": 0.0, "biases": 0.01}))
    before, after = ours(start, gradients, rule, Timetable(stages, 1))
    for part in (0, 1):
        np.testing.assert_array_equal(before[part]["fc8", "kernel"], after[part]["fc8", "kernel"])
        assert not np.array_equal(before[part]["fc8", "bias"], after[part]["fc8", "bias"])


@pytest.mark.parity
@pytest.mark.usefixtures("x64")
def test_pytorch_agrees_on_groups_until_one_is_frozen():
    """Two parameter groups, biases at twice the rate without decay; at a rate of 0 theirs coasts and ours stays."""
    torch = pytest.importorskip("torch")
    (start,), gradients = drawn(0, 1), drawn(1, 40)
    params = {
        layer: {k: torch.nn.Parameter(torch.tensor(v)) for k, v in leaves.items()} for layer, leaves in start.items()
    }
    groups = [
        {"params": [leaves["kernel"] for leaves in params.values()], "lr": 0.01, "weight_decay": 0.0005},
        {"params": [leaves["bias"] for leaves in params.values()], "lr": 0.02, "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, momentum=0.9)
    theirs = []
    for step, g in enumerate(gradients):
        if step == 30:
            sgd.param_groups[0]["lr"] = 0.0
        for layer, leaves in params.items():
            for name, value in leaves.items():
                value.grad = torch.tensor(g[layer][name])
        sgd.step()
        flat = {(layer, k): v.detach().numpy().copy() for layer, leaves in params.items() for k, v in leaves.items()}
        theirs.append(flat)
    stages = (Stage(0, {"weights": 0.01, "biases": 0.02}), Stage(1, {"weights": 0.0, "biases": 0.02}))
    rule = make_optimizer(OptimizerConfig(decay_biases=False), LAYERS)
    found = [(after,) for after, _ in ours(start, gradients, rule, Timetable(stages, 30))]
    assert largest_difference(found[:30], [(after,) for after in theirs[:30]]) < 1e-12
    biases = {where for where in theirs[-1] if where[1] == "bias"}
    for step in range(30, 40):
        for where in biases:
            np.testing.assert_allclose(found[step][0][where], theirs[step][where], rtol=1e-12)
    # A rate of 0 cuts theirs at once, as its rate stands outside the buffer; its buffer goes on gathering gradients.
    kernel = "fc8", "kernel"
    np.testing.assert_array_equal(found[39][0][kernel], found[29][0][kernel])
    buffer = sgd.state[params["fc8"]["kernel"]]["momentum_buffer"].numpy()
    expected = np.zeros_like(buffer)
    weights = [start["fc8"]["kernel"], *(after["fc8", "kernel"] for after in theirs)]
    for step, g in enumerate(gradients):
        expected = 0.9 * expected + g["fc8"]["kernel"] + 0.0005 * weights[step]
    np.testing.assert_allclose(buffer, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("conv1", "'conv1' is no layer with a number"),
        ("conv1=fast", "'conv1=fast'"),
        ("conv1=-1", "'conv1=-1'"),
        ("conv1=inf", "'conv1=inf'"),
        ("conv1=nan", "'conv1=nan'"),
        ("conv9=1", "there is no layer 'conv9'; there are conv1, fc8"),
        ("conv1=1, conv1=2", "conv1 is there twice"),
    ],
)
def test_multipliers_that_can_not_be_read_are_refused(text, words):
    for key in ("layer_rate_multipliers", "layer_decay_multipliers"):
        with pytest.raises(ConfigError, match=rf"^config\.optimizer\.{key}='{text}': ") as caught:
            make_optimizer(OptimizerConfig(**{key: text}), LAYERS)
        assert words in str(caught.value)


def test_multipliers_in_text():
    assert multipliers("k", "", LAYERS) == {}
    assert multipliers("k", " conv1 = 0.1,fc8=10,", LAYERS) == {"conv1": 0.1, "fc8": 10.0}
