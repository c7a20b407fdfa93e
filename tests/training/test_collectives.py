"""What crosses between devices in the compiled step, and what each computes and holds."""

from __future__ import annotations

import collections
import math
import re

import jax
import pytest

from alexnet_jax.models import get_spec
from alexnet_jax.models.traffic import exchanges
from alexnet_jax.parallel import Layout

from .layouts import NAMES, Case, eighth, layout

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")
BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "u8": 1, "pred": 1}
BATCH = 8


def collectives(hlo: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """(collective, dtype, shape) of each array that one puts out on a device; a joined one has several."""
    found = []
    for line in hlo.splitlines():
        for kind in KINDS:
            # "%name = f32[2,3]{1,0} all-gather(…", "(f32[2], s32[]) all-reduce(…"; an asynchronous
            # one's "-start" has operands and results in its tuple, so the "-done" is read instead.
            _, _, instruction = line.partition(" = ")
            result, named, _ = instruction.partition(f" {kind}(")
            if not named:
                result, named, _ = instruction.partition(f" {kind}-done(")
            if named:
                arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
                assert arrays, line
                found += [(kind, dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in arrays]
    return found


def size(dtype: str, shape: tuple[int, ...]) -> int:
    return BYTES[dtype] * math.prod(shape)


def counted(found):
    """How often which collective puts out how many bytes."""
    return collections.Counter((kind, size(dtype, shape)) for kind, dtype, shape in found)


def test_every_form_of_a_collective_is_read():
    hlo = """
  %all-gather.1 = f32[8,4]{1,0} all-gather(f32[8,2]{1,0} %x), channel_id=1, dimensions={1}
  ROOT %r = (f32[3]{0}, /*index=1*/s32[]) all-reduce(%a, %b), channel_id=2, to_apply=%add
  %s = (u8[2]{0}, u8[4]{0}) all-gather-start(u8[2]{0} %y), channel_id=3
  %d = u8[4]{0} all-gather-done((u8[2]{0}, u8[4]{0}) %s)
  %f = f32[2]{0} fusion(f32[8,4]{1,0} %all-gather.1), kind=kLoop
  %c = pred[1,5]{1,0} collective-permute(pred[1,5]{1,0} %z), source_target_pairs={{0,1}}
"""
    assert collectives(hlo) == [
        ("all-gather", "f32", (8, 4)),
        ("all-reduce", "f32", (3,)),
        ("all-reduce", "s32", ()),
        ("all-gather", "u8", (4,)),
        ("collective-permute", "pred", (1, 5)),
    ]


def analytic(spec, batch_size, *, side, towers=1, data=1, classes=10):
    """The collectives of a float32 step, of the spec's sizes: `exchanges` leaves the scalars out.

    Two towers. Forward, all-gathers: the batch, of which each device was fed half (images,
    labels, mask); then activations of which each has half the channels: pool2 for conv3, pool5
    for fc6, fc6 for fc7, fc7 for fc8, and the logits. Where a norm crosses the seam, two
    channels each way are permuted. Backward, each of the five gathers of activations is a
    reduce-scatter and each permutation a permutation back; the batch has no gradient.

    Data: an all-reduce of each parameter's gradient; and of scalars: the count of the images
    (of the step, and of its metrics), the sum of losses, two numbers of errors.
    """
    options = {"towers": towers, "data": data, "image_size": side}
    return collections.Counter(
        (one.collective, one.result_bytes)
        for one in exchanges(spec, classes, batch_size, **options)
        if one.collective != "all-reduce"
    )


TWO_TOWERS = {"paper": (8, 5, 0), "source2012": (8, 5, 0), "caffenet": (8, 5, 8), "bvlc_alexnet": (8, 5, 8)}


@pytest.mark.parametrize(
    ("name", "mapping"),
    [("paper", "pmap"), ("caffenet", "shard_map"), pytest.param("caffenet", "pmap", marks=pytest.mark.slow)],
)
def test_two_towers_exchange_what_the_paper_says(name, mapping):
    check_two_towers(eighth(name), mapping, TWO_TOWERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "source2012"])
def test_two_towers_of_the_whole_network(name):
    check_two_towers(get_spec(name), "pmap", TWO_TOWERS[name])


def check_two_towers(spec, mapping, numbers):
    case = Case(spec, dtype="float32", keep_gradients=False)
    hlo = case.lowered(Layout(towers=2, mapping=mapping), BATCH).compile().as_text()
    found = counted(collectives(hlo))
    assert found == analytic(spec, BATCH, towers=2, side=spec.input.resize)
    by_kind = collections.Counter()
    for (kind, _), n in found.items():
        by_kind[kind] += n
    assert tuple(by_kind[kind] for kind in ("all-gather", "reduce-scatter", "collective-permute")) == numbers


def gradients_and_scalars(params, towers=1):
    """Shapes of what a data-parallel step adds up: every parameter's gradient; counts, the loss, errors."""
    shapes = [(*x.shape[:-1], x.shape[-1] // towers) for x in jax.tree.leaves(params)]
    return shapes, 4 * sum(map(math.prod, shapes))


@pytest.mark.parametrize("where", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("2x1", "4x1")), "2x2"])
def test_the_parts_of_a_batch_exchange_gradients_alone(where):
    """No collective carries the batch: neither images nor activations, as XLA's grouped convolutions would."""
    spec, over = eighth("paper"), layout(where)
    case = Case(spec, dtype="float32", keep_gradients=False)
    hlo = case.lowered(over, BATCH).compile().as_text()
    found = collectives(hlo)
    reduced = [(dtype, shape) for kind, dtype, shape in found if kind == "all-reduce"]
    shapes, gradient_bytes = gradients_and_scalars(case.step(Layout())[1].params, over.towers)
    scalars = [one for one in reduced if not one[1]]
    assert sorted(shape for _, shape in reduced if shape) == sorted(shapes)
    assert collections.Counter(dtype for dtype, _ in scalars) == {"f32": 1, "s32": len(scalars) - 1}
    assert 3 <= len(scalars) - 1 <= 4  # the step's count and the metrics' may be one
    assert sum(size(*one) for one in reduced) == gradient_bytes + 4 * len(scalars)
    others = counted([one for one in found if one[0] != "all-reduce"])
    wanted = analytic(spec, BATCH, towers=over.towers, data=over.data, side=spec.input.resize)
    assert others == (wanted if over.towers > 1 else {})


@pytest.mark.slow
def test_the_compiler_alone_would_gather_the_batch():
    """The trap: the step of one device, given a batch that lies on four. The test above would see it."""
    case = Case(eighth("paper"), dtype="float32", forms="reference", keep_gradients=False)
    step, initial = case.step(Layout())
    over = layout("4x1")
    arguments = over.place(initial), over.place_whole(case.mean_image()), *over.place_rows(case.batch(0, BATCH))
    found = collectives(step.lower(*arguments).compile().as_text())
    assert any(kind != "all-reduce" and math.prod(shape) >= BATCH * 16 for kind, _, shape in found), found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", [2, 4])
def test_flops_a_device(name, data):
    """On reference forms, where the work is in convolutions that the compiler counts; the update left out."""
    check_flops(eighth(name), data)


@pytest.mark.slow
def test_flops_a_device_of_the_paper():
    check_flops(eighth("paper"), 2)


def check_flops(spec, data):
    case = Case(spec, dtype="float32", forms="reference", learning_rate=None, keep_gradients=False)

    def flops(over):
        return case.lowered(over, 32).compile().cost_analysis()["flops"]

    assert flops(Layout(data)) * data == pytest.approx(flops(Layout()), rel=0.05)


def held(tree):
    """Bytes of a tree of arrays on each device."""
    found = collections.Counter()
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            found[shard.device] += shard.data.nbytes
    return found


def check_held(spec, over, num_steps, batch_size=8):
    case = Case(spec, dtype="float32", keep_gradients=False)
    step, initial = case.step(over)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves((initial.params, initial.opt_state)))
    state, mean = over.place(initial), over.place_whole(case.mean_image())
    del initial
    for number in range(num_steps):
        state, _ = step(state, mean, *over.place_rows(case.batch(number, batch_size)))
    found = held((state.params, state.opt_state))
    assert set(found) == set(over.devices)
    assert max(found.values()) <= 0.505 * whole
    assert sum(found.values()) >= over.data * whole


@pytest.mark.parametrize(
    "where", ["1x2 pmap", *(pytest.param(name, marks=pytest.mark.slow) for name in ("1x2 shard_map", "2x2"))]
)
def test_a_device_holds_half_of_parameters_and_momentum(where):
    """After twenty steps: nothing became whole on the way."""
    check_held(eighth("paper"), layout(where), 20)


@pytest.mark.slow
def test_a_device_holds_half_of_the_whole_network():
    check_held(get_spec("paper"), Layout(towers=2), 2, batch_size=4)
