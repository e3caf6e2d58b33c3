"""Sinusoids, positions of padded, cached and embedded inputs, and inputs that are too long."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

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


@pytest.mark.parametrize("past", [None, 0, 1, 11])
def test_angles_are_those_of_the_positions_after_the_past(past: int | None) -> None:
    sin, cos = SinusoidalPositions(16, 6)(5, past)
    assert sin.shape == cos.shape == (1, 5, 3)
    start = past or 0
    assert torch.cat((sin[0], cos[0]), dim=-1).tolist() == sinusoid_table(16, 6)[start : start + 5].tolist()


def test_the_table_of_angles_is_kept_but_not_learnt() -> None:
    positions = SinusoidalPositions(16, 6)
    assert list(positions.state_dict()) == ["weight"]
    assert not list(positions.parameters())


def test_an_input_beyond_the_table_of_angles_is_refused() -> None:
    positions = SinusoidalPositions(16, 6)
    positions(16)
    positions(6, 10)
    for length, past in ((17, None), (17, 0), (7, 10), (1, 16)):
        with pytest.raises(
            InputError, match=r"has 17 tokens, but max_position_embeddings is 16: .* load the model with"
        ):
            positions(length, past)


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
    assert positions(roberta(), torch.tensor([input_ids])) == [expected]


@given(
    rows=st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(st.integers(0, 5), min_size=n, max_size=n), min_size=1)),
    pad=st.integers(0, 5),
)
def test_positions_equal_those_of_transformers(rows: list[list[int]], pad: int, transformers: Any) -> None:
    modeling = transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm
    input_ids = torch.tensor(rows)
    embeddings = roberta(pad_token_id=pad, max_position_embeddings=20)
    expected = modeling.RobertaPreLayerNormEmbeddings.create_position_ids_from_input_ids(input_ids, pad)
    assert positions(embeddings, input_ids) == expected.tolist()


@given(row=st.lists(st.integers(0, 3), min_size=2, max_size=9), data=st.data())
def test_positions_after_cached_tokens_go_on_counting(row: list[int], data: st.DataObject) -> None:
    split = data.draw(st.integers(1, len(row) - 1))
    embeddings, rows = roberta(max_position_embeddings=20), torch.tensor([row, row[::-1]])
    past_tokens = (rows[:, :split] != PAD).sum(dim=1, keepdim=True)
    later = positions(embeddings, rows[:, split:], past_tokens)
    assert later == [whole[split:] for whole in positions(embeddings, rows)]


def test_embeddings_in_place_of_ids_take_a_position_each() -> None:
    words = torch.randn(2, 3, 8)
    assert roberta().positions(None, words).tolist() == [[2, 3, 4]]
    assert roberta().positions(None, words, 4).tolist() == [[6, 7, 8]]


def positions(
    embeddings: RobertaPreLayerNormEmbeddings, input_ids: Tensor, past_tokens: Tensor | int = 0
) -> list[list[int]]:
    found: list[list[int]] = embeddings.positions(input_ids, torch.empty(*input_ids.shape, 8), past_tokens).tolist()
    return found


def test_an_input_with_more_tokens_than_positions_is_refused() -> None:
    embeddings = roberta()  # 10 rows, of which 2 are not for tokens
    longest = torch.full((2, 9), 5)
    longest[:, 4] = PAD  # padding takes no position, so nine ids fit eight positions
    assert embeddings(longest, None, None).shape == (2, 9, 8)
    longest[1, 4] = 5
    with pytest.raises(InputError, match=r"reaches token 9, but the positions hold 8"):
        embeddings(longest, None, None)
    with pytest.raises(InputError, match=r"reaches token 9, but the positions hold 8"):
        embeddings(None, None, torch.randn(2, 9, 8))
    with pytest.raises(InputError, match=r"reaches token 9, but the positions hold 8"):
        embeddings(longest[:, :2], None, None, past_tokens=torch.tensor([[7], [3]]))


@pytest.mark.parametrize(
    ("position_ids", "message"),
    [
        ([[2, 3, -1], [2, 3, 4]], r"position_ids must be from 0 to 9 \(max_position_embeddings - 1\); got -1"),
        ([[2, 3, 4], [2, 10, 4]], r"position_ids must be from 0 to 9 \(max_position_embeddings - 1\); got 10"),
        ([[2, 3]], r"position_ids must have shape \(2, 3\) or \(1, 3\); got \(1, 2\)"),
        ([[2, 3, 4]] * 3, r"position_ids must have shape \(2, 3\) or \(1, 3\); got \(3, 3\)"),
        ([2, 3, 4], r"position_ids must have shape \(2, 3\) or \(1, 3\); got \(3,\)"),
        ([[2.0, 3.0, 4.0]], r"position_ids must be int64; got torch.float32"),
    ],
)
def test_wrong_positions_are_refused(position_ids: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        roberta()(torch.full((2, 3), 5), None, None, torch.tensor(position_ids))


def test_positions_may_be_given_for_all_rows_at_once() -> None:
    embeddings, input_ids = roberta(), torch.tensor([[5, 6, 7], [8, 9, 5]])
    once = embeddings(input_ids, None, None, torch.tensor([[9, 0, 4]]))
    assert once.tolist() == embeddings(input_ids, None, None, torch.tensor([[9, 0, 4]] * 2)).tolist()
    assert once.tolist() != embeddings(input_ids, None, None).tolist()


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_positions_are_no_part_of_the_embedding(kind: str) -> None:
    embeddings = roberta(position_embedding_type=kind)
    rows = embeddings(torch.tensor([[5, 6, 5]]), None, None)[0].tolist()
    assert rows[0] == rows[2] != rows[1]
    assert "position_embeddings.weight" in embeddings.state_dict()  # checkpoints carry the unused table


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
    found = embeddings(input_ids, segments, None)[0]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    words = embeddings.word_embeddings(input_ids)
    given = embeddings(None, segments, words, torch.tensor([[2, 3, 1]]))[0]
    torch.testing.assert_close(given, found, atol=0, rtol=0)


@torch.no_grad()
def test_roformer_embeddings_do_not_know_positions() -> None:
    config = RoFormerConfig(vocab_size=30, hidden_size=8, num_attention_heads=2, embedding_size=4)
    embeddings = RoFormerEmbeddings(config).eval()
    output = embeddings(torch.tensor([[7, 8, 7]]), None, None)
    assert output.tolist() == embeddings(None, None, embeddings.word_embeddings(torch.tensor([[7, 8, 7]]))).tolist()
    assert output.shape == (1, 3, 4)
    assert output[0, 0].tolist() == output[0, 2].tolist() != output[0, 1].tolist()


@pytest.mark.parametrize("kind", ["roformer", "roberta-prelayernorm"])
def test_dropout_acts_in_training_alone(kind: str) -> None:
    sizes = {"vocab_size": 30, "hidden_size": 32, "num_attention_heads": 2, "hidden_dropout_prob": 0.5}
    embeddings = RoFormerEmbeddings(RoFormerConfig.model_validate(sizes)) if kind == "roformer" else roberta(**sizes)
    inputs = torch.full((1, 8), 5), None, None
    assert embeddings.eval()(*inputs).count_nonzero() == 8 * 32
    assert 0 < embeddings.train()(*inputs).count_nonzero() < 8 * 32
