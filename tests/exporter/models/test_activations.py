"""The activation functions, against their published formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch

from exporter.models.activations import ACTIVATIONS
from exporter.models.config import Activation

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # arXiv 1706.02515


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x))


FORMULAS: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
    "selu": lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * (math.exp(x) - 1)),
    "silu": _silu,
    "swish": _silu,
    "tanh": math.tanh,
}


def test_every_documented_name_has_a_function() -> None:
    assert set(ACTIVATIONS) == set(get_args(Activation)) == set(FORMULAS)


@pytest.mark.parametrize("name", get_args(Activation))
def test_values_follow_the_formula(name: Activation) -> None:
    x = torch.linspace(-6, 6, 49, dtype=torch.float64)
    expected = torch.tensor([FORMULAS[name](value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](x), expected, atol=1e-12, rtol=0)
