"""The mask, the rotation, and the attention that uses both."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exporter.models.attention import SelfAttention, additive_mask, rotate_interleaved
from exporter.models.config import RoFormerConfig
from exporter.models.embeddings import sinusoid_table

seeds = st.integers(0, 2**32 - 1)


def angles(positions: int, head_size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    sin, cos = sinusoid_table(positions, head_size).to(dtype)[None].chunk(2, dim=-1)
    return sin, cos


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def attention(**config: Any) -> SelfAttention:
    rotary_value = config.pop("rotary_value", False)
    tiny = {"vocab_size": 9, "hidden_size": 12, "num_attention_heads": 2}
    return SelfAttention(RoFormerConfig.model_validate(tiny | config), rotary_value=rotary_value).eval()


# The mask.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
def test_padding_becomes_the_lowest_finite_number(dtype: torch.dtype, mask_dtype: torch.dtype) -> None:
    mask = additive_mask(torch.tensor([[1, 1, 0], [0, 1, 0]], dtype=mask_dtype), dtype)
    lowest = torch.finfo(dtype).min
    assert (mask.shape, mask.dtype) == ((2, 1, 1, 3), dtype)
    assert mask[:, 0, 0].tolist() == [[0, 0, lowest], [lowest, 0, lowest]]


@torch.no_grad()
def test_padding_gets_no_attention() -> None:
    layer, states = attention(), torch.randn(1, 4, 12)
    mask = additive_mask(torch.tensor([[1, 1, 0, 1]]), torch.float32)
    before = layer(states, mask)
    states[0, 2] = 100 * torch.randn(12)
    after = layer(states, mask)
    torch.testing.assert_close(after[0, [0, 1, 3]], before[0, [0, 1, 3]], rtol=0, atol=0)


@torch.no_grad()
def test_a_row_that_is_all_padding_attends_uniformly() -> None:
    layer, states = attention(), torch.randn(1, 4, 12)
    output = layer(states, additive_mask(torch.zeros(1, 4), torch.float32))
    torch.testing.assert_close(output, layer.value(states).mean(1, keepdim=True).expand_as(output))


# The rotation.


def as_complex(x: Tensor) -> Tensor:
    """Adjacent pairs as complex numbers: (…, D) -> (…, D/2)."""
    return torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))


@given(seed=seeds, length=st.integers(1, 9), pairs=st.integers(1, 5))
def test_rotation_is_multiplication_by_a_complex_number(seed: int, length: int, pairs: int) -> None:
    x, angle = normal(2, 3, length, 2 * pairs, seed=seed), normal(1, length, pairs, seed=seed + 1)
    rotated = rotate_interleaved(x, angle.sin(), angle.cos())
    expected = as_complex(x) * torch.exp(1j * angle)
    torch.testing.assert_close(as_complex(rotated), expected, atol=1e-12, rtol=0)


@given(seed=seeds)
def test_rotation_keeps_the_length_of_every_pair(seed: int) -> None:
    x = normal(2, 3, 11, 8, seed=seed)
    rotated = rotate_interleaved(x, *angles(11, 8, torch.float64))
    # The table is float32, so sin² + cos² is 1 within 2e-7.
    torch.testing.assert_close(as_complex(rotated).abs(), as_complex(x).abs(), atol=0, rtol=2e-7)


@given(seed=seeds, m=st.integers(0, 60), n=st.integers(0, 60), shift=st.integers(0, 60))
def test_scores_depend_on_the_distance_alone(seed: int, m: int, n: int, shift: int) -> None:
    """q at m and k at n score as q at m + shift and k at n + shift: the property that the paper derives RoPE from."""
    sin, cos = angles(121, 8, torch.float64)
    query, key = normal(1, 1, 1, 8, seed=seed), normal(1, 1, 1, 8, seed=seed + 1)

    def score(query_at: int, key_at: int) -> float:
        rotated_query = rotate_interleaved(query, sin[:, [query_at]], cos[:, [query_at]])
        rotated_key = rotate_interleaved(key, sin[:, [key_at]], cos[:, [key_at]])
        return float((rotated_query * rotated_key).sum())

    assert score(m + shift, n + shift) == pytest.approx(score(m, n), abs=1e-5)


def test_scores_do_depend_on_the_distance() -> None:
    x = torch.ones(1, 1, 3, 8)
    first, second, third = rotate_interleaved(x, *angles(3, 8))[0, 0]
    assert abs(first @ second - first @ third) > 0.1


def test_the_first_position_is_not_rotated() -> None:
    x = torch.randn(1, 2, 1, 8)
    assert rotate_interleaved(x, *angles(1, 8)).tolist() == x.tolist()


def test_each_row_may_have_its_own_angles() -> None:
    x, angle = normal(2, 3, 4, 6, seed=0), normal(2, 4, 3, seed=1)
    together = rotate_interleaved(x, angle.sin(), angle.cos())
    for row in (0, 1):
        alone = rotate_interleaved(x[[row]], angle[[row]].sin(), angle[[row]].cos())
        assert together[[row]].tolist() == alone.tolist()


def test_rotation_equals_that_of_transformers(transformers: Any) -> None:
    query, key = torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    table = sinusoid_table(7, 8)
    layer = transformers.models.roformer.modeling_roformer.RoFormerSelfAttention
    expected = layer.apply_rotary_position_embeddings(table[None, None], query, key)
    for found, wanted in zip((query, key), expected, strict=True):
        torch.testing.assert_close(rotate_interleaved(found, *angles(7, 8)), wanted, atol=1e-6, rtol=0)


# Both together.


@torch.no_grad()
@pytest.mark.parametrize("rotary", ["none", "query and key", "value too"])
def test_attention_follows_its_formula(rotary: str) -> None:
    """softmax(q kᵀ / √D + mask) v, one batch row, head and query at a time."""
    layer, states = attention(rotary_value=rotary == "value too"), torch.randn(2, 5, 12)
    for parameter in layer.parameters():
        parameter.copy_(0.5 * torch.randn_like(parameter))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    turned = None if rotary == "none" else angles(5, 6)
    found = layer(states, additive_mask(mask, torch.float32), turned)

    projected = {name: getattr(layer, name)(states) for name in ("query", "key", "value")}
    for row in range(2):
        for head in range(2):
            part = {name: x[row, :, 6 * head : 6 * head + 6] for name, x in projected.items()}
            for name in {"none": [], "query and key": ["query", "key"], "value too": list(part)}[rotary]:
                part[name] = rotate_interleaved(part[name][None, None], *angles(5, 6))[0, 0]
            for position in range(5):
                scores = part["key"] @ part["query"][position] / math.sqrt(6)
                weights = scores[mask[row] == 1].exp()
                expected = (weights / weights.sum()) @ part["value"][mask[row] == 1]
                torch.testing.assert_close(found[row, position, 6 * head : 6 * head + 6], expected, atol=2e-6, rtol=0)


def test_dropout_acts_on_the_weights_in_training_alone() -> None:
    layer, states = attention(attention_probs_dropout_prob=0.5), torch.randn(1, 6, 12)
    mask = torch.zeros(1, 1, 1, 6)
    assert layer(states, mask).tolist() == layer(states, mask).tolist()
    layer.train()
    assert layer(states, mask).tolist() != layer(states, mask).tolist()
