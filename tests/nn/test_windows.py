"""The window arithmetic against windows laid one by one."""

from __future__ import annotations

import brute_force
import jax
import jax.numpy as jnp
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alexnet_jax.nn import conv, output_size
from alexnet_jax.nn.windows import as_pair, full_padding

CASES = settings(max_examples=300, deadline=None, derandomize=True)
AXES = {
    "size": st.integers(1, 40),
    "window": st.integers(1, 12),
    "stride": st.integers(1, 13),
    "low": st.integers(0, 6),
    "high": st.integers(0, 6),
    "round_up": st.booleans(),
}


@CASES
@given(**AXES)
def test_output_size_counts_the_windows(size, window, stride, low, high, round_up):
    assume(window <= size + low + high)
    starts = brute_force.window_starts(size, window, stride, low, high, round_up)
    assert output_size(size, window, stride, (low, high), round_up=round_up) == len(starts)


@CASES
@given(**AXES)
def test_full_padding_holds_the_last_window(size, window, stride, low, high, round_up):
    assume(window <= size + low + high)
    starts = brute_force.window_starts(size, window, stride, low, high, round_up)
    got_low, got_high = full_padding(size, window, stride, (low, high), round_up=round_up)
    assert got_low == low
    assert got_high >= starts[-1] + window - size
    if not round_up:
        assert got_high == high


@CASES
@given(**AXES)
def test_full_padding_makes_output_size_exact(size, window, stride, low, high, round_up):
    """`lax` rounds down on the full padding and must find as many windows as `output_size` says."""
    assume(window <= size + low + high)
    full = full_padding(size, window, stride, (low, high), round_up=round_up)
    found = len(brute_force.window_starts(size, window, stride, *full))
    assert found == output_size(size, window, stride, (low, high), round_up=round_up)


@pytest.mark.parametrize(("window", "padding"), [(1, 1), (2, (0, 2)), (1, (0, 3)), (3, (1, 5))])
def test_conv_has_output_size_where_padding_is_wider_than_the_window(window, padding):
    y = conv(jnp.ones((1, 5, 5, 1)), jnp.ones((window, window, 1, 1)), padding=padding, round_up=True)
    assert y.shape[1] == output_size(5, window, 1, padding, round_up=True)


def test_sizes_of_the_paper():
    assert output_size(224, 11, 4, (0, 3)) == 55
    assert output_size(224, 11, 4, round_up=True) == 55
    assert output_size(224, 11, 4) == 54
    assert output_size(227, 11, 4) == 55
    assert output_size(224, 11, 4, 2) == 55
    assert full_padding(224, 11, 4, 0, round_up=True) == (0, 3)
    assert [output_size(n, 3, 2) for n in (55, 27, 13)] == [27, 13, 6]
    # cifar, sizes rounded up
    assert [output_size(n, 3, 2, round_up=True) for n in (32, 16, 8)] == [16, 8, 4]
    assert [output_size(n, 3, 2) for n in (32, 16, 8)] == [15, 7, 3]
    # the paper's network without overlapping pooling
    assert [output_size(n, 2, 2, round_up=True) for n in (55, 26, 11)] == [28, 13, 6]


def test_no_window_starts_on_what_hangs_over():
    assert output_size(3, 1, 5, round_up=True) == 1  # a second one would start at pixel 5
    assert output_size(4, 2, 3, round_up=True) == 2  # this one starts at pixel 3
    assert output_size(3, 2, 3, round_up=True) == 1  # this one would start at pixel 3 of 0…2
    assert output_size(3, 2, 2, 1, round_up=True) == 2  # it would start on the padding after the image


def test_the_arithmetic_needs_no_arrays_and_gives_python_integers():
    with jax.transfer_guard("disallow"):
        assert type(output_size(224, 11, 4, (0, 3))) is int
        assert all(type(p) is int for p in full_padding(224, 11, 4, (0, 3), round_up=True))


def test_padding_in_both_forms():
    assert as_pair(2) == (2, 2)
    assert as_pair((1, 3)) == (1, 3)
    assert as_pair(0) == (0, 0)


@pytest.mark.parametrize("function", [output_size, lambda *a: full_padding(*a, round_up=False)])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 0, 1, 0), "window 0"),
        ((5, 3, 0, 0), "stride 0"),
        ((5, 3, -1, 0), "stride -1"),
        ((5, 3, 1, -2), "not be negative, got -2"),
        ((5, 3, 1, (0, -1)), r"not be negative, got \(0, -1\)"),
        ((5, 3, 1, (-1, 0)), r"not be negative, got \(-1, 0\)"),
        ((5, 6, 1, 0), r"window of 6 does not fit into 5 pixels with padding \(0, 0\)"),
        ((5, 9, 1, (1, 2)), r"window of 9 does not fit into 5 pixels with padding \(1, 2\)"),
        ((0, 1, 1, 2), "0 pixels"),
    ],
)
def test_bad_arguments_are_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_a_window_that_does_not_fit_is_refused_when_rounding_up_too():
    with pytest.raises(ValueError, match="window of 3 does not fit into 2 pixels"):
        output_size(2, 3, 2, round_up=True)
