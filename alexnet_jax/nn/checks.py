"""What every block asks of its arguments, refused with the remedy."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp


def floating(x: jax.typing.ArrayLike, what: str) -> jax.Array:
    """`x` as a JAX array; a TypeError for integers and booleans."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{what} takes floating-point arrays, got {x.dtype}: convert first, e.g. x.astype(jnp.float32)")
    return x


def maps(x: jax.typing.ArrayLike, what: str) -> jax.Array:
    """`x` as a floating-point JAX array of rank 4 (NHWC)."""
    x = floating(x, what)
    if x.ndim != 4:
        raise ValueError(f"{what} takes NHWC arrays of rank 4, got shape {x.shape}: for one image use x[None]")
    return x


def choice(value: str, name: str, allowed: Iterable[str]) -> str:
    """`value` if it is one of `allowed`, otherwise a ValueError that lists them."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def forms_name(forms: str) -> str:
    """The keyword `forms` of the blocks, checked."""
    return choice(forms, "forms", ("auto", "reference"))


def groups_of(channels: int, groups: int, what: str) -> int:
    """Channels of one group; a ValueError where they do not divide."""
    if groups < 1 or channels % groups:
        raise ValueError(f"{what}: {channels} channels are not divisible by groups={groups}")
    return channels // groups
