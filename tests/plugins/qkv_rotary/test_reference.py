"""The float64 truth of ``QKVRotary``, against linear layers and complex numbers in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from plugins.qkv_rotary.reference import reference


def problem(batch: int, heads: int, length: int, size: int, *, tables: int) -> list[NDArray[np.float64]]:
    """qkv, its bias and the angles."""
    random = np.random.default_rng(0)
    width = 3 * heads * size
    shapes = [(batch, length, width), (width,)]
    return [*map(random.standard_normal, shapes), random.uniform(-7, 7, (tables, length, size // 2))]


@pytest.mark.parametrize("rotary_value", [0, 1])
@pytest.mark.parametrize("tables", ["one", "batch"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (2, 3, 5, 6), (3, 1, 1, 10), (1, 2, 9, 14)])
def test_it_equals_three_linear_layers_and_a_rotation_of_complex_numbers(
    sizes: tuple[int, int, int, int], tables: str, rotary_value: int
) -> None:
    """The product is one with the identity, so the weights side by side are its columns."""
    batch, heads, length, size = sizes
    arrays = problem(*sizes, tables=1 if tables == "one" else batch)
    qkv, bias, angle = map(torch.from_numpy, arrays)
    turn = torch.polar(torch.ones_like(angle), angle)[:, :, None]
    expected = []
    for index, (factor, is_rotated) in enumerate([(0.3, True), (1.0, True), (1.0, bool(rotary_value))]):
        weight = torch.eye(qkv.shape[-1], dtype=torch.float64).chunk(3)[index]
        split = torch.nn.functional.linear(qkv, weight, bias.chunk(3)[index]).view(batch, length, heads, size)
        if is_rotated:
            split = torch.view_as_real(torch.view_as_complex(split.view(batch, length, heads, -1, 2)) * turn).flatten(
                -2
            )
        expected.append(factor * split.transpose(1, 2))
    cos, sin = np.cos(arrays[2]), np.sin(arrays[2])
    found = reference(arrays[0], arrays[1], cos, sin, num_heads=heads, scale=0.3, rotary_value=rotary_value)
    for array, tensor in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), rtol=0, atol=1e-13)


def test_it_computes_in_float64_whatever_comes_in() -> None:
    qkv, bias, angle = problem(2, 3, 5, 6, tables=1)
    arrays = [array.astype(np.float16) for array in (qkv, bias, np.cos(angle), np.sin(angle))]
    found = reference(*arrays, num_heads=3, scale=0.3, rotary_value=1)
    wide = reference(*(array.astype(np.float64) for array in arrays), num_heads=3, scale=0.3, rotary_value=1)
    for one, other in zip(found, wide, strict=True):
        assert one.dtype == np.float64
        np.testing.assert_array_equal(one, other)
