"""Smoothing, rounding noise and ranges of static int8, by numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rerank_plugins.export.quantizing import NOISIEST, ChannelRange, noise, smoothing_scales


def seen(values: list[list[float]]) -> ChannelRange:
    """Return the ranges of one pair's activations, (tokens, channels)."""
    array = np.array(values, np.float32)
    found = ChannelRange(array.min(axis=0), array.max(axis=0), np.zeros(array.shape[1]))
    found.add(array)
    return found


def test_smoothing_evens_out_most_of_a_hot_channel() -> None:
    """SmoothQuant: |x|^0.7 / |w|^0.3, here with equal weights, around a geometric mean of 1."""
    scales = smoothing_scales(seen([[1.0, -100.0], [0.5, 3.0]]), [np.ones((2, 3), np.float32)])

    np.testing.assert_allclose(scales, [10**-0.7, 10**0.7], rtol=1e-5)


def test_smoothing_spares_the_channel_whose_weights_are_large() -> None:
    weights = np.array([[1.0], [16.0]], np.float32)

    scales = smoothing_scales(seen([[4.0, 4.0]]), [weights])

    np.testing.assert_allclose(scales, [16**0.15, 16**-0.15], rtol=1e-5)


def test_noise_is_a_twelfth_of_a_squared_step_over_the_power() -> None:
    """From -1 to 1 in 255 steps; the power of ±1 is 1."""
    one = np.ones(1, np.float32)

    assert noise(seen([[-1.0], [1.0]]), one) == pytest.approx((2 / 255) ** 2 / 12)


def test_one_outlier_among_many_tokens_makes_the_noise_that_leaves_a_product_in_float32() -> None:
    """The step follows from the largest value, the power hardly."""
    values = np.random.default_rng(0).normal(size=(4096, 8))
    plain = np.ones(8, np.float32)
    assert noise(seen(values.tolist()), plain) < NOISIEST / 5

    values[7, 3] = 150

    assert noise(seen(values.tolist()), plain) > NOISIEST


def test_smoothing_takes_away_most_of_what_a_hot_channel_hides() -> None:
    """The channel of 300 takes all steps: smoothed, the others have a tenth of its range."""
    values = np.random.default_rng(0).normal(size=(64, 8))
    values[:, 3] *= 300

    scales = smoothing_scales(seen(values.tolist()), [np.ones((8, 4), np.float32)])

    ranges = np.abs(values / scales).max(axis=0)
    assert ranges.max() / np.median(ranges) < 10
