"""The size arithmetic of sliding windows, shared by convolution and pooling."""

from __future__ import annotations

Padding = int | tuple[int, int]


def as_pair(padding: Padding) -> tuple[int, int]:
    """(low, high) padding from either form of it; refuses negative values."""
    low, high = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    if low < 0 or high < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    return low, high


def output_size(size: int, window: int, stride: int = 1, padding: Padding = 0, *, round_up: bool = False) -> int:
    """How many windows fit along one axis: (size - window + low + high) / stride + 1.

    Args:
      size: pixels along the axis.
      window: pixels of the window (the kernel).
      stride: pixels between windows.
      padding: zeros before and after, as one number or as (low, high).
      round_up: False drops a last incomplete window (PyTorch's default). True lets
        the last window hang over the far edge (the 2012 source, Caffe), as long as
        it starts before the padding there.

    Raises:
      ValueError: an argument is out of range, or not even one window fits.
    """
    if window < 1 or stride < 1:
        raise ValueError(f"window and stride must be at least 1, got window {window}, stride {stride}")
    low, high = as_pair(padding)
    room = size + low + high - window
    if room < 0 or size < 1:
        raise ValueError(
            f"a window of {window} does not fit into {size} pixels with padding ({low}, {high}): use a larger image"
        )
    count = (-(-room // stride) if round_up else room // stride) + 1
    while round_up and (count - 1) * stride >= size + low:  # such a window would see only what hangs over
        count -= 1
    return count


def full_padding(size: int, window: int, stride: int, padding: Padding, *, round_up: bool) -> tuple[int, int]:
    """The (low, high) padding that makes `output_size` exact, hang-over included.

    With padding 0, window 11 and stride 4, `round_up` turns 224 pixels into 55
    windows and a padding of (0, 3), as in the 2012 source.
    """
    low, high = as_pair(padding)
    count = output_size(size, window, stride, padding, round_up=round_up)
    if round_up:
        high = max(0, (count - 1) * stride + window - size - low)
    return low, high
