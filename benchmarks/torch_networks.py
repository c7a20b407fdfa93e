"""`paper` and `torchvision` as people write them in PyTorch, and cases that run them: peers of `step.py` and others.

PyTorch is imported where it is used, so that this file can be read without it. A process
that measures PyTorch should not have started JAX: their threads and heaps disturb each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class Form:
    """A way to run a network in PyTorch.

    Attributes:
      channels_last: the memory layout of images and kernels; else NCHW.
      compiled: by `torch.compile`, the network and its loss.
      own_norm: a hand-written LRN (`lrn_function`) instead of `nn.LocalResponseNorm`.
    """

    channels_last: bool = False
    compiled: bool = False
    own_norm: bool = False


FORMS = {
    "eager": Form(),
    "channels-last": Form(channels_last=True),
    "torch.compile": Form(channels_last=True, compiled=True),
    "channels-last, own LRN": Form(channels_last=True, own_norm=True),
    "torch.compile, own LRN": Form(channels_last=True, compiled=True, own_norm=True),
}
STOCK = ("eager", "channels-last", "torch.compile")  # without anything of one's own
NETWORKS = ("paper", "torchvision")
PRECISIONS = ("float32", "tf32", "bfloat16")


def padded(size: int) -> int:
    """Pixels of the images with which conv1 of `paper` (11×11, stride 4) misses none: 227 for 224.

    Our conv1 adds these zeros at the bottom and right. The peer gets them with its images, so
    that padding costs it nothing.
    """
    return size + (11 - size) % 4


def paper(*, classes: int = 1000, size: int = 224, narrow: int = 1, hidden: int = 4096, own_norm: bool = False) -> Any:
    """The paper's network in two groups, for (N, 3, P, P) with P = `padded(size)`; every width divided by `narrow`."""
    import torch
    from torch import nn

    def conv(channels: int, features: int, kernel: int, **options: int) -> nn.Module:
        return nn.Conv2d(channels if channels == 3 else channels // narrow, features // narrow, kernel, **options)

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    class TowerNorm(nn.Module):
        """LRN inside each of two halves of the channels. PyTorch's α is divided by the window: 5e-4 is 1e-4 a term.

        Eagerly this takes as long as halves put into the batch; under `torch.compile` a step takes an eighth less.
        """

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

        def forward(self, x: Any) -> Any:
            return torch.cat([self.norm(half) for half in x.chunk(2, 1)], 1)

    class OwnNorm(nn.Module):
        """The same by `lrn_function`."""

        def __init__(self) -> None:
            super().__init__()
            self.function = lrn_function(groups=2)

        def forward(self, x: Any) -> Any:
            return self.function(x)

    norm = OwnNorm if own_norm else TowerNorm
    maps = nn.Sequential(
        *(conv(3, 96, 11, stride=4), nn.ReLU(inplace=True), norm(), pool()),
        *(conv(96, 256, 5, padding=2, groups=2), nn.ReLU(inplace=True), norm(), pool()),
        *(conv(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(conv(384, 384, 3, padding=1, groups=2), nn.ReLU(inplace=True)),
        *(conv(384, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True), pool()),
    )
    side = _after_pools((padded(size) - 11) // 4 + 1, round_up=True)
    inputs, hidden = side * side * 256 // narrow, hidden // narrow
    dense = nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout()),
        nn.Linear(hidden, classes),
    )
    return nn.Sequential(maps, dense)


def torchvision(
    *, classes: int = 1000, size: int = 224, narrow: int = 1, hidden: int = 4096, own_norm: bool = False
) -> Any:
    """torchvision's `alexnet` for (N, 3, size, size); every width divided by `narrow`. It has no norms."""
    from torch import nn

    def conv(channels: int, features: int, kernel: int, **options: int) -> nn.Module:
        return nn.Conv2d(channels if channels == 3 else channels // narrow, features // narrow, kernel, **options)

    maps = nn.Sequential(
        *(conv(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(conv(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(conv(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(conv(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
        *(conv(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        nn.AdaptiveAvgPool2d(6),
    )
    hidden = hidden // narrow
    dense = nn.Sequential(
        nn.Flatten(),
        *(nn.Dropout(), nn.Linear(36 * 256 // narrow, hidden), nn.ReLU(inplace=True)),
        *(nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)),
        nn.Linear(hidden, classes),
    )
    return nn.Sequential(maps, dense)


def _after_pools(side: int, *, round_up: bool) -> int:
    """Pixels after three pools of window 3, stride 2."""
    for _ in range(3):
        side = (side - 3 + round_up) // 2 + 1
    return side


def lrn_function(*, groups: int, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Any:
    """LRN inside groups of channels with a backward pass of its own, which keeps x alone; α is a term's.

    What somebody writes who found out that `nn.LocalResponseNorm` is slow: for (N, C, H, W) in
    either memory layout, with an odd window; it works along the channels where they lie in memory.
    """
    import torch

    def split(x: Any) -> tuple[Any, int]:
        """x as (…, groups, channels, …), and the axis of the channels."""
        if x.is_contiguous(memory_format=torch.channels_last):
            return x.permute(0, 2, 3, 1).unflatten(-1, (groups, -1)), 4
        return x.unflatten(1, (groups, -1)), 2

    def whole(x: Any, axis: int) -> Any:
        return x.flatten(3, 4).permute(0, 3, 1, 2) if axis == 4 else x.flatten(1, 2)

    def box(x: Any, axis: int) -> Any:
        channels, pads = x.shape[axis], [size // 2] * 2
        wide = torch.nn.functional.pad(x, pads if axis == 4 else [0, 0, 0, 0, *pads])
        total = wide.narrow(axis, 0, channels)
        for first in range(1, size):
            total = total + wide.narrow(axis, first, channels)
        return total

    def factors(x: Any, axis: int) -> tuple[Any, Any]:
        r = torch.rsqrt(k + alpha * box(x * x, axis))
        return (r * r.sqrt() if beta == 0.75 else r ** (2 * beta)), r * r

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            x, axis = split(x)
            return whole(x * factors(x, axis)[0], axis)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            (x,) = ctx.saved_tensors
            x, axis = split(x)
            dy = dy.permute(0, 2, 3, 1).unflatten(-1, (groups, -1)) if axis == 4 else dy.unflatten(1, (groups, -1))
            p, inverse = factors(x, axis)
            return whole(dy * p - 2 * alpha * beta * x * box(dy * x * p * inverse, axis), axis)

    return Norm.apply


class Case:
    """A network on a device with random images that stay there, and training steps or forward passes of it.

    A training step is what users write: forward, mean cross-entropy, backward and
    `torch.optim.SGD(momentum=0.9, weight_decay=5e-4, fused=True)`.

    Args:
      network: "paper" or "torchvision".
      batch_size: images.
      form: a name of `FORMS`, or a `Form`.
      training: steps; else forward passes in inference mode.
      precision: "float32" (true), "tf32" (GPU) or "bfloat16" (autocast, float32 parameters).
      device: PyTorch's name of it.
      classes, size, narrow, hidden: of the network; every width is divided by `narrow`, `hidden` too.
    """

    def __init__(
        self,
        network: str,
        batch_size: int,
        form: str | Form = "eager",
        *,
        training: bool = True,
        precision: str = "float32",
        device: str = "cpu",
        classes: int = 1000,
        size: int = 224,
        narrow: int = 1,
        hidden: int = 4096,
    ):
        import torch

        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        torch.manual_seed(0)
        tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True  # the fastest algorithm for the shapes, found once
        self._torch, self.batch_size, self._precision, self._device = torch, batch_size, precision, device
        self.form = FORMS[form] if isinstance(form, str) else form
        make = {"paper": paper, "torchvision": torchvision}[network]
        model = make(classes=classes, size=size, narrow=narrow, hidden=hidden, own_norm=self.form.own_norm).to(device)
        self.layout = torch.channels_last if self.form.channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.layout).train(training)
        side = padded(size) if network == "paper" else size
        self.images = torch.randn(batch_size, 3, side, side, device=device).contiguous(memory_format=self.layout)
        self.labels = torch.randint(classes, (batch_size,), device=device)
        loss = torch.nn.CrossEntropyLoss()

        def forward(images: Any, labels: Any) -> Any:
            with self._autocast():
                return loss(self.model(images), labels) if training else self.model(images)

        self._forward = torch.compile(forward) if self.form.compiled else forward
        self._optimizer = None
        if training:
            self._optimizer = torch.optim.SGD(
                self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
            )

    def _autocast(self) -> Any:
        if self._precision != "bfloat16":
            return contextlib.nullcontext()
        return self._torch.autocast(self._device.split(":")[0], self._torch.bfloat16)

    def step(self, images: Any, labels: Any) -> Any:
        """A training step on a batch; gives the loss, on the device."""
        assert self._optimizer is not None, "a case with training=False takes no steps"
        loss = self._forward(images, labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return loss

    def forward(self, images: Any) -> Any:
        """Logits of a batch, without gradients."""
        with self._torch.inference_mode():
            return self._forward(images, self.labels)

    def run(self, count: int) -> float:
        """Images a second over so many steps, or forward passes, on the resident batch."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            if self._optimizer is None:
                self.forward(self.images)
            else:
                self.step(self.images, self.labels)
        self.synchronize()
        return count * self.batch_size / (time.perf_counter() - start)

    def synchronize(self) -> None:
        """Waits for the device."""
        if self._device.startswith("cuda"):
            self._torch.cuda.synchronize()
