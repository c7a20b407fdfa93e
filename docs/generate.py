"""Writes the generated pages of the documentation (variants.md, stages.md, configuration.md) and towers.png.

python docs/generate.py            writes them
python docs/generate.py --check    fails if a page is not up to date, or the picture is not there
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

from alexnet_jax.figures import two_towers
from alexnet_jax.models import InputSpec, ModelSpec, get_spec, list_models
from alexnet_jax.models.summary import as_markdown, layer_table, totals
from alexnet_jax.nn import Init
from alexnet_jax.nn.windows import full_padding
from alexnet_jax.training.config import keys

SOURCES = """\
- **P** Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural
  Networks", NIPS 2012.
- **S** the 2012 source code, released by the Computer History Museum in 2025
  (`computerhistory/AlexNet-Source-Code`), run 145.
- **C** Caffe's `bvlc_alexnet` and `bvlc_reference_caffenet`.
- **T** torchvision's `alexnet` ("One weird trick", arXiv 1404.5997).
- **B** the note that started this project: a layer table, formulas and a half-width PyTorch listing.
"""

COMPARED = ("paper", "source2012", "bvlc_alexnet", "caffenet", "torchvision", "half")

TRAINING = [
    ["point", "P", "S", "C", "T", "B"],
    ["batch, length", "128, about 90 epochs", "128, 91 epochs", "256, 450,000 steps", "–", "–"],
    ["weight decay", "5e-4", "5e-4, none on biases", "5e-4, none on biases", "–", "5e-4"],
    [
        "learning rate",
        "0.01, divided by 10 three times on a plateau",
        "weights 0.01 with scripted drops, biases 0.02",
        "0.01, divided by 10 every 100,000 steps; biases twice that",
        "–",
        "lowered in steps",
    ],
    [
        "crops and flips",
        "a draw for each image",
        "a draw for 32 images",
        "a draw for each image",
        "–",
        "random crops and mirror images",
    ],
    [
        "colour noise",
        "eigenvalue × N(0, 0.1)",
        "√eigenvalue × N(0, 1) × 0.1, then the input ÷ 1.1 while it is on",
        "none",
        "–",
        "as P",
    ],
    ["shuffling", "not said", "none: fixed consecutive batches", "–", "–", "–"],
]


def _init(init: Init) -> str:
    words = {"normal": f"N(0, {init.value:g}²)", "constant": f"{init.value:g}"}
    return words.get(init.kind, {"kaiming_normal": "Kaiming normal", "pytorch": "PyTorch's default"}.get(init.kind, ""))


def _each(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else ", ".join(values)


def _contract(contract: InputSpec) -> str:
    mean = "the mean pixel" if contract.mean_image is None else f"the mean image ({contract.mean_image})"
    std = "" if contract.std == (1.0, 1.0, 1.0) else ", over the standard deviation"
    return f"{contract.channel_order.upper()} 0–{contract.scale:g} minus {mean}{std}"


def _order(spec: ModelSpec, index: int) -> str:
    return " → ".join(["conv", *spec.convs[index].following()]).replace("activation", spec.activation)


def _padding(spec: ModelSpec) -> str:
    conv = spec.convs[0]
    low, high = full_padding(spec.input.size, conv.kernel, conv.stride, conv.padding, round_up=conv.round_up)
    return f"({low}, {high})"


def _norm(spec: ModelSpec) -> str:
    norm = spec.convs[0].norm
    if norm is None:
        return "none"
    where = f"inside each of {norm.groups} towers" if norm.groups > 1 else "across all channels"
    alpha = f"{norm.alpha:g}" + (" / n" if norm.alpha_per == "window" else "")
    return f"n={norm.size}, k={norm.k:g}, α={alpha}, β={norm.beta:g}, {where}"


def _map_norm(spec: ModelSpec) -> str:
    found = [(i + 1, conv.map_norm) for i, conv in enumerate(spec.convs) if conv.map_norm is not None]
    return ", ".join(f"conv{i}: {norm.size}×{norm.size}, scale {norm.scale:g}" for i, norm in found) or "none"


def _dropout(spec: ModelSpec) -> str:
    if not spec.dense:
        return "none"
    layer = spec.dense[0]
    where = "after the ReLU of" if layer.dropout_at == "output" else "before"
    return f"{layer.dropout:g} {where} {' and '.join(spec.dense_names())}, {spec.dropout_form} form"


def _pools(spec: ModelSpec) -> str:
    pools = [conv.pool for conv in spec.convs if conv.pool is not None]
    words = _each([f"{pool.kind} {pool.window}/{pool.stride}" for pool in pools])
    return f"{words}, sizes rounded {'up' if pools[0].round_up else 'down'}"


# point -> (the sources that say it, the words of a spec)
POINTS: dict[str, tuple[str, Callable[[ModelSpec], str]]] = {
    "input pixels": ("P 3, S, C, T", lambda s: str(s.input.size)),
    "input values": ("P 2, S, C, T; B says nothing: T's", lambda s: _contract(s.input)),
    "resize": ("P 2, S, C, T", lambda s: f"{s.input.resize_rule.replace('_', ' ')} to {s.input.resize}"),
    "conv1 padding (low, high)": ("P leaves it open: S; C; T; B's listing", _padding),
    "kernels": ("P 3.5, C, T, B", lambda s: "-".join(str(conv.features) for conv in s.convs)),
    "groups": ("P 3.5, S, C, T", lambda s: ", ".join(str(conv.groups) for conv in s.convs)),
    "conv1 block": ("P 3.5, S, C, T", lambda s: _order(s, 0)),
    "conv2 block": ("P 3.5, S, C, T", lambda s: _order(s, 1)),
    "conv5 block": ("P 3.5, S, C, T", lambda s: _order(s, 4)),
    "LRN": ("P 3.3, S, C; B writes α = 10e-4, a slip", _norm),
    "within-map norm": ("S", _map_norm),
    "pools": ("P 3.4; rounding S, C, T", _pools),
    "hidden units": ("P 3.5, B", lambda s: "-".join(str(layer.features) for layer in s.dense)),
    "dropout": ("P 4.2, S, C, T, B", _dropout),
    "kernels start at": ("P 5, S, C, T", lambda s: _each([_init(conv.kernel_init) for conv in s.convs])),
    "fc6, fc7, fc8 start at": (
        "P 5, S, C, T",
        lambda s: _each([_init(layer.kernel_init) for layer in s.dense] + [_init(s.head.kernel_init)]),
    ),
    "biases of the convolutions": ("P 5, S, C, T", lambda s: _each([_init(conv.bias_init) for conv in s.convs])),
    "biases of fc6, fc7, fc8": (
        "P 5, S, C, T",
        lambda s: _each([_init(layer.bias_init) for layer in s.dense] + [_init(s.head.bias_init)]),
    ),
}


def variants() -> str:
    """The page that puts the variants and their sources side by side."""
    table = [["point", *(f"`{name}`" for name in COMPARED), "said by"]]
    specs = [get_spec(name) for name in COMPARED]
    for point, (source, words) in POINTS.items():
        table.append([point, *(words(spec) for spec in specs), source])
    counts = [["name", "what it is", "parameters", "multiply-accumulates"]]
    about = {
        "paper": "P's text",
        "source2012": "the network that S trained",
        "single": "`paper` with no groups: one column",
        "one_tower": "P 3.2's one-GPU network: half of the kernels, except in conv5",
        "half": "B's listing",
        "torchvision": "T",
        "bvlc_alexnet": "C, norm before pool",
        "caffenet": "C, pool before norm",
        "cifar": "three convolutions and one linear layer, assumed for P's figure 1 (S, cuda-convnet's 18 % net)",
    }
    for name in list_models():
        classes = 10 if name == "cifar" else 1000
        parameters, macs = totals(layer_table(get_spec(name), classes))
        label = about[name] + (" (10 classes)" if classes == 10 else "")
        counts.append([f"`{name}`", label, f"{parameters:,}", f"{macs:,}"])
    return f"""\
# The variants

"AlexNet" means several networks. Each is a name for `create_model`, and a spec that
`get_spec` returns as plain data. Counts are for one image; biases are not counted as
multiply-accumulates. (This page is written by `python docs/generate.py`.)

{as_markdown(counts)}

## Sources

{SOURCES}
## The networks, point by point

From the specs themselves. Three numbers or five stand for the layers in order.

{as_markdown(table)}

With conv1's three pixels of padding the paper's sizes divide exactly at 224; at others `paper`
rounds up, as S does. P's figure prints 253,440 neurons for conv1, which is not
55·55·96 = 290,400. P says that the sum of LRN runs over "the total number of kernels in
the layer", and that the GPUs talk only in certain layers: `paper` follows the second,
as S does, so channels 47 and 48 of conv1 are not neighbours. Caffe's norm is not grouped.

`half` is B's listing. B's own table mixes it with the paper: it gives "pad = 3" for conv1,
which fits its formula only as the total of S's (0, 3), and puts LRN after pooling, as
`caffenet` does. B's initialisation (Kaiming normal with fan out for convolutions, N(0, 0.01²)
for linear layers, biases 0) is `with_init(get_spec("half"), "kaiming")`.

## The training, point by point

These are properties of a run, not of a network. [recipes.md](recipes.md) has a configuration for each
source; the update rule and the rates in time are in [training.md](training.md).

{as_markdown(TRAINING)}
"""


def stages() -> str:
    """The page with every stage's name and shape."""
    parts = []
    for name in list_models():
        classes = 10 if name == "cifar" else 1000
        lines = [["stage", "shape of one image"]]
        for stage, shape in get_spec(name).stages(classes).items():
            lines.append([f"`{stage}`", " × ".join(map(str, shape))])
        parts.append(f"## `{name}`\n\n{as_markdown(lines)}\n")
    head = """\
# Stages

The names that `model.activations(images, names)` takes. `convN.pre` is before any
non-linearity, `convN` after the activation (wherever the variant puts it), `fcN` after the
activation and before dropout. (This page is written by `python docs/generate.py`.)

"""
    return head + "\n".join(parts)


def configuration() -> str:
    """The page with every key of a run's configuration."""
    lines = [["key", "type", "default", "unit", "meaning", "allowed", "at resume"]]
    for key in keys():
        may = "may change" if key.may_change else "must agree"
        kind = key.kind_in_words()
        lines.append([f"`{key.name}`", kind, f"`{key.default!r}`", key.unit, key.meaning, key.allowed, may])
    return f"""\
# Configuration

The keys of a run: `python train.py --config.KEY=VALUE`, or assignments in a file under
`configs/`. The defaults are those of `python train.py` without flags. (This page is
written by `python docs/generate.py`.)

{as_markdown(lines)}
"""


PAGES = {"variants.md": variants, "stages.md": stages, "configuration.md": configuration}


def main(arguments: list[str]) -> int:
    """Writes or checks the pages and the picture; returns the exit code."""
    folder = pathlib.Path(__file__).parent
    stale = []
    for name, page in PAGES.items():
        path, text = folder / name, page()
        if arguments == ["--check"]:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    picture = folder / "towers.png"
    if arguments != ["--check"]:
        two_towers(get_spec("paper"), 1000, picture)
    elif not picture.exists():  # its bytes depend on matplotlib's version
        stale.append(picture.name)
    if stale:
        print(f"out of date: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
