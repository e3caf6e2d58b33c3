"""The float64 truth of ``FusedBiasGelu``, against that of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from plugins.fused_bias_gelu.reference import reference

FORMS = ["none", "tanh"]


def problem(batch: int, length: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and the bias."""
    random = np.random.default_rng(0)
    return 3 * random.standard_normal((batch, length, width)), random.standard_normal(width)


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 5, 7), (3, 1, 48), (1, 9, 33)])
def test_it_equals_that_of_pytorch(sizes: tuple[int, int, int], approximate: str) -> None:
    x, bias = problem(*sizes)
    total = torch.from_numpy(x) + torch.from_numpy(bias)
    expected = torch.nn.functional.gelu(total, approximate=approximate)
    np.testing.assert_allclose(reference(x, bias, approximate=approximate), expected.numpy(), rtol=0, atol=1e-14)


def test_the_two_forms_differ_in_the_fourth_digit() -> None:
    x, bias = problem(2, 9, 33)
    exact, near = (reference(x, bias, approximate=form) for form in FORMS)
    assert 1e-4 < np.abs(exact - near).max() < 1e-3


@pytest.mark.parametrize("approximate", FORMS)
def test_its_ends_are_nothing_and_all(approximate: str) -> None:
    x = np.array([[[-np.finfo(np.float32).max, -40.0, 0.0, 40.0, np.inf, np.nan]]])
    with np.errstate(invalid="ignore"):
        found = reference(x, np.zeros(6), approximate=approximate)
    np.testing.assert_array_equal(found, [[[0, 0, 0, 40, np.inf, np.nan]]])


@pytest.mark.parametrize("approximate", FORMS)
def test_it_computes_in_float64_whatever_comes_in(approximate: str) -> None:
    x, bias = (array.astype(np.float16) for array in problem(2, 3, 5))
    found = reference(x, bias, approximate=approximate)
    assert found.dtype == np.float64
    wide = reference(x.astype(np.float64), bias.astype(np.float64), approximate=approximate)
    np.testing.assert_array_equal(found, wide)


def test_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match='approximate must be "none" or "tanh"; got \'sigmoid\''):
        reference(*problem(1, 1, 1), approximate="sigmoid")
