"""The masks, the rotation, the scores of distances, and the attention that uses them."""

from __future__ import annotations

import itertools
import math
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exporter.models.attention import CrossAttention, SelfAttention, additive_mask, rotate_interleaved
from exporter.models.config import RobertaPreLayerNormConfig, RoFormerConfig
from exporter.models.embeddings import sinusoid_table

seeds = st.integers(0, 2**32 - 1)


def angles(positions: int, head_size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    sin, cos = sinusoid_table(positions, head_size).to(dtype)[None].chunk(2, dim=-1)
    return sin, cos


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


TINY = {"vocab_size": 9, "hidden_size": 12, "num_attention_heads": 2}


def attention(**config: Any) -> SelfAttention:
    return randomized(SelfAttention(RoFormerConfig.model_validate(TINY | config)))


def relative_attention(kind: str) -> SelfAttention:
    """With distances up to 6."""
    config = TINY | {"position_embedding_type": kind, "max_position_embeddings": 7}
    return randomized(SelfAttention(RobertaPreLayerNormConfig.model_validate(config)))


AttentionT = TypeVar("AttentionT", SelfAttention, CrossAttention)


@torch.no_grad()
def randomized(layer: AttentionT) -> AttentionT:
    """The layer in evaluation mode, with weights that make scores of the order of 1."""
    for parameter in layer.parameters():
        parameter.copy_(0.5 * torch.randn_like(parameter))
    return layer.eval()


# The masks.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
def test_padding_becomes_the_lowest_finite_number(dtype: torch.dtype, mask_dtype: torch.dtype) -> None:
    mask = additive_mask(torch.tensor([[1, 1, 0], [0, 1, 0]], dtype=mask_dtype), dtype)
    lowest = torch.finfo(dtype).min
    assert (mask.shape, mask.dtype) == ((2, 1, 1, 3), dtype)
    assert mask[:, 0, 0].tolist() == [[0, 0, lowest], [lowest, 0, lowest]]


@given(data=st.data(), queries=st.integers(1, 4), past=st.integers(0, 4))
def test_a_causal_mask_hides_padding_and_what_comes_later(data: st.DataObject, queries: int, past: int) -> None:
    row = st.lists(st.integers(0, 1), min_size=past + queries, max_size=past + queries)
    rows = data.draw(st.lists(row, min_size=1, max_size=3))
    mask = additive_mask(torch.tensor(rows), torch.float32, causal_queries=queries)
    lowest = torch.finfo(torch.float32).min
    assert mask[:, 0].tolist() == [
        [
            [0 if row[key] and key <= past + query else lowest for key in range(past + queries)]
            for query in range(queries)
        ]
        for row in rows
    ]


@pytest.mark.parametrize("causal_queries", [None, 2])
def test_a_mask_for_each_query_is_taken_as_it_is(causal_queries: int | None) -> None:
    given = torch.tensor([[[1, 0, 1], [0, 1, 1]], [[0, 0, 0], [1, 1, 1]]])
    mask = additive_mask(given, torch.float32, causal_queries=causal_queries)
    assert mask.shape == (2, 1, 2, 3)
    assert (mask[:, 0] == 0).tolist() == (given == 1).tolist()
    assert mask.min() == torch.finfo(torch.float32).min


@torch.no_grad()
def test_padding_gets_no_attention() -> None:
    layer, states = attention(), torch.randn(1, 4, 12)
    mask = additive_mask(torch.tensor([[1, 1, 0, 1]]), torch.float32)
    before = layer(states, mask).context
    states[0, 2] = 100 * torch.randn(12)
    after = layer(states, mask).context
    torch.testing.assert_close(after[0, [0, 1, 3]], before[0, [0, 1, 3]], rtol=0, atol=0)


@torch.no_grad()
def test_a_row_that_is_all_padding_attends_uniformly() -> None:
    layer, states = attention(), torch.randn(1, 4, 12)
    output = layer(states, additive_mask(torch.zeros(1, 4), torch.float32))
    assert (output.weights == 0.25).all()
    torch.testing.assert_close(output.context, layer.value(states).mean(1, keepdim=True).expand(1, 4, 12))


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


# Distances.


@torch.no_grad()
@pytest.mark.parametrize("past", [0, 1, 3])
@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_scores_of_distances_follow_their_papers(kind: str, past: int) -> None:
    """q·a of Shaw et al. (arXiv 1803.02155); and k·a with it, Huang et al., method 4 (arXiv 2009.13658)."""
    layer, states = relative_attention(kind), torch.randn(2, 7, 12)
    assert layer.distance_embedding is not None
    assert layer.distance_embedding.num_embeddings == 2 * 7 - 1
    query, key = (projection(states).reshape(2, 7, 2, 6).transpose(1, 2) for projection in (layer.query, layer.key))
    scores = torch.empty(2, 2, 7 - past, 7)
    for row, head, at, other in itertools.product(range(2), range(2), range(past, 7), range(7)):
        distance = layer.distance_embedding.weight[at - other + 6]
        asked, offered = query[row, head, at], key[row, head, other]
        score = asked @ offered + asked @ distance + (offered @ distance if kind == "relative_key_query" else 0)
        scores[row, head, at - past, other] = score / math.sqrt(6)
    cached = None if past == 0 else tuple(split(layer, states)[name][:, :, :past] for name in ("key", "value"))
    found = layer(states[:, past:], torch.zeros(1, 1, 1, 7), None, cached)
    # Scores of about 3 decide the weights: rounding of a few 1e-7 of them, and of as much of the sums.
    torch.testing.assert_close(found.weights, scores.softmax(-1), atol=2e-6, rtol=0)


def split(layer: SelfAttention, states: Tensor) -> dict[str, Tensor]:
    """Queries, keys and values by head, (B, H, S, D)."""
    size = states.shape[0], states.shape[1], 2, 6
    return {name: getattr(layer, name)(states).reshape(size).transpose(1, 2) for name in ("query", "key", "value")}


# All together.


@torch.no_grad()
@pytest.mark.parametrize("rotary", ["none", "query and key", "value too"])
def test_attention_follows_its_formula(rotary: str) -> None:
    """softmax(q kᵀ / √D + mask) v, one batch row, head and query at a time."""
    layer, states = attention(rotary_value=rotary == "value too"), torch.randn(2, 5, 12)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    turned = None if rotary == "none" else angles(5, 6)
    found = layer(states, additive_mask(mask, torch.float32), turned).context

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
    assert layer(states, mask).context.tolist() == layer(states, mask).context.tolist()
    layer.train()
    assert layer(states, mask).context.tolist() != layer(states, mask).context.tolist()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["rotated", "rotated values", "relative_key", "relative_key_query"])
@pytest.mark.parametrize("past", [1, 4, 6])
def test_what_is_cached_counts_as_if_it_were_computed_anew(kind: str, past: int) -> None:
    is_rotated = kind.startswith("rotated")
    layer = attention(rotary_value=kind == "rotated values") if is_rotated else relative_attention(kind)
    states, turned = torch.randn(2, 7, 12), angles(7, 6) if is_rotated else None
    mask = additive_mask(torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]]), torch.float32, causal_queries=7)
    whole = layer(states, mask, turned)
    before, after = (
        None if turned is None else (turned[0][:, part], turned[1][:, part])
        for part in (slice(past), slice(past, None))
    )
    first = layer(states[:, :past], mask[:, :, :past, :past], before)
    second = layer(states[:, past:], mask[:, :, past:], after, first.cache)
    # The same products, summed by other kernels.
    torch.testing.assert_close(second.context, whole.context[:, past:], atol=2e-6, rtol=0)
    torch.testing.assert_close(second.weights, whole.weights[:, :, past:], atol=2e-6, rtol=0)
    torch.testing.assert_close(second.cache, whole.cache, atol=2e-6, rtol=0)


@torch.no_grad()
def test_cross_attention_reads_the_encoder_by_content_alone() -> None:
    layer = randomized(CrossAttention(RoFormerConfig.model_validate(TINY)))
    states, encoder = torch.randn(2, 3, 12), torch.randn(2, 5, 12)
    mask = additive_mask(torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]), torch.float32)
    found = layer(states, mask, encoder)
    query, key, value = (
        projection(x).reshape(2, -1, 2, 6).transpose(1, 2)
        for projection, x in ((layer.query, states), (layer.key, encoder), (layer.value, encoder))
    )
    weights = (query @ key.transpose(-1, -2) / math.sqrt(6) + mask).softmax(-1)
    torch.testing.assert_close(found.weights, weights, atol=2e-6, rtol=0)  # scaled before the product or after it
    torch.testing.assert_close(found.context, (weights @ value).transpose(1, 2).flatten(-2), atol=2e-6, rtol=0)
    assert [tensor.tolist() for tensor in found.cache] == [key.tolist(), value.tolist()]

    shuffled = layer(states, mask[..., [1, 0, 2, 3, 4]], encoder[:, [1, 0, 2, 3, 4]])
    torch.testing.assert_close(shuffled.context, found.context, atol=2e-6, rtol=0)
    again = layer(states, mask, torch.zeros_like(encoder), found.cache)  # what is cached is not computed again
    assert again.context.tolist() == found.context.tolist()
