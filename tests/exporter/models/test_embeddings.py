"""Sinusoids, positions of padded inputs, and inputs that are too long."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import InputError
from exporter.models.config import RobertaPreLayerNormConfig, RoFormerConfig
from exporter.models.embeddings import (
    RobertaPreLayerNormEmbeddings,
    RoFormerEmbeddings,
    SinusoidalPositions,
    sinusoid_table,
)

PAD = 1


def roberta(**config: Any) -> RobertaPreLayerNormEmbeddings:
    tiny = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 10}
    return RobertaPreLayerNormEmbeddings(RobertaPreLayerNormConfig.model_validate(tiny | config)).eval()


@pytest.mark.parametrize("head_size", [2, 6, 64])
def test_sinusoids_follow_the_paper(head_size: int) -> None:
    """Section 3.2.2: pair i turns by theta_i = 10000^(-2(i-1)/d) per position, i from 1 to d/2."""
    table = sinusoid_table(1536, head_size)
    assert (table.shape, table.dtype) == ((1536, head_size), torch.float32)
    for position in (0, 1, 2, 511, 1000, 1535):
        for i in range(1, head_size // 2 + 1):
            angle = position * math.pow(10000, -2 * (i - 1) / head_size)
            # Half a step of float32 below 1: nothing but the last rounding may differ.
            assert table[position, i - 1].item() == pytest.approx(math.sin(angle), abs=2**-25, rel=0)
            assert table[position, head_size // 2 + i - 1].item() == pytest.approx(math.cos(angle), abs=2**-25, rel=0)


@pytest.mark.parametrize(("num_positions", "head_size"), [(1536, 64), (20, 4), (1, 2)])
def test_sinusoids_equal_those_of_transformers(num_positions: int, head_size: int, transformers: Any) -> None:
    modeling = transformers.models.roformer.modeling_roformer
    reference = modeling.RoFormerSinusoidalPositionalEmbedding(num_positions, head_size).create_weight()
    torch.testing.assert_close(sinusoid_table(num_positions, head_size), reference, atol=1e-7, rtol=0)


def test_angles_are_those_of_the_first_positions() -> None:
    sin, cos = SinusoidalPositions(16, 6)(5)
    assert sin.shape == cos.shape == (1, 5, 3)
    torch.testing.assert_close(torch.cat((sin[0], cos[0]), dim=-1), sinusoid_table(5, 6), rtol=0, atol=0)


def test_the_table_of_angles_is_kept_but_not_learnt() -> None:
    positions = SinusoidalPositions(16, 6)
    assert list(positions.state_dict()) == ["weight"]
    assert not list(positions.parameters())


def test_an_input_beyond_the_table_of_angles_is_refused() -> None:
    positions = SinusoidalPositions(16, 6)
    positions(16)
    with pytest.raises(InputError, match=r"has 17 tokens, but max_position_embeddings is 16"):
        positions(17)


@pytest.mark.parametrize(
    ("input_ids", "expected"),
    [
        ([5, 6, 7], [2, 3, 4]),
        ([5, 6, PAD, PAD], [2, 3, 1, 1]),
        ([PAD, PAD, 5, 6], [1, 1, 2, 3]),
        ([5, PAD, 6, PAD, 7], [2, 1, 3, 1, 4]),
        ([PAD, PAD], [1, 1]),
        ([0], [2]),
    ],
)
def test_positions_count_the_tokens_from_beyond_the_padding_index(input_ids: list[int], expected: list[int]) -> None:
    assert roberta().position_ids(torch.tensor([input_ids])).tolist() == [expected]


@given(
    rows=st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(st.integers(0, 5), min_size=n, max_size=n), min_size=1)),
    pad=st.integers(0, 5),
)
def test_positions_equal_those_of_transformers(rows: list[list[int]], pad: int, transformers: Any) -> None:
    modeling = transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm
    input_ids = torch.tensor(rows)
    embeddings = roberta(pad_token_id=pad, max_position_embeddings=20)
    expected = modeling.RobertaPreLayerNormEmbeddings.create_position_ids_from_input_ids(input_ids, pad)
    assert embeddings.position_ids(input_ids).tolist() == expected.tolist()


def test_an_input_with_more_tokens_than_positions_is_refused() -> None:
    embeddings = roberta()  # 10 rows, of which 2 are not for tokens
    segments = torch.zeros(2, 9, dtype=torch.int64)
    longest = torch.full((2, 9), 5)
    longest[:, 4] = PAD  # padding takes no position, so nine ids fit eight positions
    assert embeddings(longest, segments).shape == (2, 9, 8)
    longest[1, 4] = 5
    with pytest.raises(InputError, match=r"has 9 tokens, but the positions hold 8"):
        embeddings(longest, segments)


@torch.no_grad()
def test_every_table_adds_to_the_embedding_before_the_norm() -> None:
    embeddings = roberta()
    embeddings.LayerNorm.weight.uniform_(0.5, 2)
    embeddings.LayerNorm.bias.uniform_(-1, 1)
    input_ids, segments = torch.tensor([[7, 8, PAD]]), torch.tensor([[0, 1, 1]])
    total = (
        embeddings.word_embeddings.weight[[7, 8, PAD]]
        + embeddings.token_type_embeddings.weight[[0, 1, 1]]
        + embeddings.position_embeddings.weight[[2, 3, 1]]
    )
    centred = total - total.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    expected = expected * embeddings.LayerNorm.weight + embeddings.LayerNorm.bias
    torch.testing.assert_close(embeddings(input_ids, segments)[0], expected, atol=2e-6, rtol=0)


@torch.no_grad()
def test_roformer_embeddings_do_not_know_positions() -> None:
    config = RoFormerConfig(vocab_size=30, hidden_size=8, num_attention_heads=2, embedding_size=4)
    embeddings = RoFormerEmbeddings(config).eval()
    output = embeddings(torch.tensor([[7, 8, 7]]), torch.zeros(1, 3, dtype=torch.int64))
    assert output.shape == (1, 3, 4)
    assert output[0, 0].tolist() == output[0, 2].tolist() != output[0, 1].tolist()


@pytest.mark.parametrize("kind", ["roformer", "roberta-prelayernorm"])
def test_dropout_acts_in_training_alone(kind: str) -> None:
    sizes = {"vocab_size": 30, "hidden_size": 32, "num_attention_heads": 2, "hidden_dropout_prob": 0.5}
    embeddings = RoFormerEmbeddings(RoFormerConfig.model_validate(sizes)) if kind == "roformer" else roberta(**sizes)
    inputs = torch.full((1, 8), 5), torch.zeros(1, 8, dtype=torch.int64)
    assert embeddings.eval()(*inputs).count_nonzero() == 8 * 32
    assert 0 < embeddings.train()(*inputs).count_nonzero() < 8 * 32
