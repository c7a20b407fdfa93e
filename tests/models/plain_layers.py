"""AlexNet's layers in plain NumPy, float64, written from their formulas and nothing of the package."""

from __future__ import annotations

import numpy as np


def conv(x, kernel, bias, *, stride=1, low=0, high=0, groups=1):
    """x (N, H, W, C), kernel (k, k, C/groups, K): patches times kernel, group by group."""
    k, _, per_group, features = kernel.shape
    x = np.pad(x, ((0, 0), (low, high), (low, high), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::stride, ::stride]
    share, found = features // groups, []
    for g in range(groups):
        own = patches[:, :, :, g * per_group : (g + 1) * per_group]  # (N, H', W', C/groups, k, k)
        matrix = kernel[..., g * share : (g + 1) * share].transpose(2, 0, 1, 3).reshape(-1, share)
        found.append(own.reshape(*own.shape[:3], -1) @ matrix)
    return np.concatenate(found, -1) + bias


def relu(x):
    return np.maximum(x, 0)


def across_maps(x, *, size, alpha, beta, k, groups=1):
    """Local response normalisation with alpha on the plain sum, inside each group of channels."""
    y, channels = np.empty_like(x), x.shape[-1] // groups
    for i in range(x.shape[-1]):
        first = i // channels * channels
        low, high = max(first, i - size // 2), min(first + channels, i + size // 2 + 1)
        y[..., i] = x[..., i] / (k + alpha * (x[..., low:high] ** 2).sum(-1)) ** beta
    return y


def within_map(x, *, size, scale, beta):
    """a / (1 + scale / size² Σ a²)^beta over a square of the same map, cut at the edges."""
    half = size // 2
    padded = np.pad(x * x, ((0, 0), (half, half), (half, half), (0, 0)))
    height, width = x.shape[1:3]
    energy = sum(padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size))
    return x / (1 + scale / size**2 * energy) ** beta


def pool(x, kind, *, window=3, stride=2):
    """Every window that starts on the map counts while the map is not covered; an average divides by what it covers."""
    starts = [0]
    while starts[-1] + window < x.shape[1]:
        starts.append(starts[-1] + stride)
    reduce = {"max": np.max, "avg": np.mean}[kind]
    rows = [[reduce(x[:, i : i + window, j : j + window], axis=(1, 2)) for j in starts] for i in starts]
    return np.stack([np.stack(row, 1) for row in rows], 1)


def linear(x, layer):
    return x.reshape(len(x), -1) @ layer["kernel"] + layer["bias"]
