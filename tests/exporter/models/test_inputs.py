"""What a model cannot take is refused in the caller's own names, in every class."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from exporter import models
from exporter.errors import InputError
from exporter.models.config import FAMILIES, RobertaPreLayerNormConfig, RoFormerConfig
from exporter.models.inputs import check_inputs

PREFIXES = {"roformer": "RoFormer", "roberta-prelayernorm": "RobertaPreLayerNorm"}
HEADS = [
    "Model",
    "ForCausalLM",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
]
TINY: dict[str, Any] = {
    "vocab_size": 9,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 12,
    "pad_token_id": 1,
}
DECODER = {"is_decoder": True}
READER = DECODER | {"add_cross_attention": True}
both_families = pytest.mark.parametrize("family", PREFIXES)
every_class = pytest.mark.parametrize(("family", "head"), list(itertools.product(PREFIXES, HEADS)))


def tiny(family: str, head: str, **config: Any) -> Any:
    return getattr(models, PREFIXES[family] + head)(FAMILIES[family].model_validate(TINY | config)).eval()


def ids(*shape: int) -> Tensor:
    return torch.randint(2, 9, shape)


def cache(batch: int = 2, heads: int = 2, length: int = 3, size: int = 4, tensors: int = 2, layers: int = 2) -> Any:
    return tuple(tuple(torch.randn(batch, heads, length, size) for _ in range(tensors)) for _ in range(layers))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds; got neither"),
        ({"input_ids": ids(2, 5), "inputs_embeds": torch.randn(2, 5, 8)}, "exactly one of .*; got both"),
        ({"input_ids": torch.full((2, 5), 9)}, r"input_ids must be from 0 to 8 \(vocab_size - 1\); got 9"),
        ({"input_ids": torch.full((2, 5), -1)}, r"input_ids must be from 0 to 8 \(vocab_size - 1\); got -1"),
        ({"input_ids": torch.ones(2, 5)}, r"input_ids must be int64; got torch\.float32"),
        ({"input_ids": ids(2, 0)}, r"with at least one token; got torch\.int64 of shape \(2, 0\)"),
        ({"input_ids": ids(0, 2)}, r"with at least one token; got torch\.int64 of shape \(0, 2\)"),
        ({"inputs_embeds": torch.randn(2, 5, 7)}, r"\(batch, sequence, 8\).*; got torch\.float32 of shape \(2, 5, 7\)"),
        ({"inputs_embeds": torch.ones(2, 5, 8).long()}, r"\(batch, sequence, 8\).*; got torch\.int64 of shape"),
        (
            {"input_ids": ids(2, 5), "token_type_ids": torch.full((2, 5), 2)},
            r"token_type_ids must be from 0 to 1 \(type_vocab_size - 1\); got 2",
        ),
        (
            {"input_ids": ids(2, 5), "token_type_ids": ids(2, 4)},
            r"token_type_ids must have shape \(2, 5\); got \(2, 4\)",
        ),
        (
            {"input_ids": ids(2, 5), "attention_mask": torch.ones(2, 4)},
            r"attention_mask must have shape \(2, 5\) or \(2, 5, 5\); got \(2, 4\)",
        ),
        (
            {"input_ids": ids(2, 5), "attention_mask": torch.ones(2, 5, 4)},
            r"attention_mask must have shape \(2, 5\) or \(2, 5, 5\); got \(2, 5, 4\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
@every_class
def test_wrong_tokens_are_refused_by_every_class(
    family: str, head: str, given: dict[str, Tensor], message: str
) -> None:
    if head == "ForMultipleChoice":
        given = {name: value[None] for name, value in given.items()}
    with pytest.raises(InputError, match=message):
        tiny(family, head)(**given)


@pytest.mark.parametrize("shape", [(5,), (1, 2, 5), ()])
@both_families
def test_input_ids_have_two_axes(family: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"input_ids must be \(batch, sequence\), .*; got torch\.int64 of shape \("):
        tiny(family, "Model")(ids(*shape))


@pytest.mark.parametrize("shape", [(), (5,), (2,), (2, 1, 1, 5), (1, 5)])
@both_families
def test_masks_have_two_or_three_axes(family: str, shape: tuple[int, ...]) -> None:
    given = {"input_ids": ids(2, 5), "encoder_hidden_states": torch.randn(2, 4, 8)}
    model = tiny(family, "Model", **READER)
    with pytest.raises(InputError, match=r"^attention_mask must have shape \(2, 5\) or \(2, 5, 5\); got"):
        model(**given, attention_mask=torch.ones(shape))
    with pytest.raises(InputError, match=r"encoder_attention_mask must have shape \(2, 4\) or \(2, 5, 4\); got"):
        model(**given, encoder_attention_mask=torch.ones(shape))


@pytest.mark.parametrize("head", ["Model", "ForCausalLM", "ForMaskedLM"])
@both_families
def test_states_that_no_attention_reads_are_refused(family: str, head: str) -> None:
    states = torch.randn(2, 4, 8)
    for config in ({}, DECODER):
        with pytest.raises(InputError, match=r"encoder_hidden_states were given, but .* add_cross_attention=false"):
            tiny(family, head, **config)(ids(2, 5), encoder_hidden_states=states)
    with pytest.raises(InputError, match="encoder_attention_mask was given without encoder_hidden_states"):
        tiny(family, head, **READER)(ids(2, 5), encoder_attention_mask=torch.ones(2, 4))


@pytest.mark.parametrize("shape", [(1, 4, 8), (2, 4, 7), (2, 8), (8,), (2, 4, 8, 1)])
@both_families
def test_states_of_a_wrong_shape_are_refused(family: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"encoder_hidden_states must have shape \(2, \d, 8\); got"):
        tiny(family, "Model", **READER)(ids(2, 5), encoder_hidden_states=torch.randn(shape))


@both_families
def test_an_encoder_has_no_cache(family: str) -> None:
    with pytest.raises(InputError, match="only a decoder has a cache: is_decoder is false"):
        tiny(family, "ForCausalLM")(ids(2, 1), past_key_values=cache())


@pytest.mark.parametrize(
    ("past", "message"),
    [
        ((), r"a tuple of 2 layers.*; got a tuple of \[\]"),
        (cache(layers=3), r"a tuple of 2 layers.*; got a tuple of \[2, 2, 2\]"),
        (cache(tensors=3), r"a tuple of 2 layers.*; got a tuple of \[3, 3\]"),
        ((None, None), r"a tuple of 2 layers.*; got a tuple of \[0, 0\]"),
        ("cache", r"a tuple of 2 layers.*; got a str of \[\]"),
        (cache(batch=1), r"past_key_values\[0\] must have shape \(2, 2, 3, 4\); got \(1, 2, 3, 4\)"),
        (cache(heads=4), r"past_key_values\[0\] must have shape \(2, 2, 3, 4\); got \(2, 4, 3, 4\)"),
        (cache(size=8), r"past_key_values\[0\] must have shape \(2, 2, 3, 4\); got \(2, 2, 3, 8\)"),
        ((cache()[0], cache(length=2)[0]), r"past_key_values\[1\] must have shape \(2, 2, 3, 4\); got \(2, 2, 2, 4\)"),
        (((torch.ones(2, 2), torch.ones(2, 2)),) * 2, r"past_key_values\[0\] must have shape .*; got \(2, 2\)"),
        (cache(tensors=4), r"past_key_values\[0\] holds keys of an encoder, but encoder_hidden_states were not given"),
    ],
)
@both_families
def test_wrong_caches_are_refused(family: str, past: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(family, "Model", **READER)(ids(2, 1), past_key_values=past)


@both_families
def test_cached_keys_of_an_encoder_must_fit_its_states(family: str) -> None:
    model = tiny(family, "Model", **READER)
    model(ids(2, 1), past_key_values=cache(tensors=4), encoder_hidden_states=torch.randn(2, 3, 8))
    with pytest.raises(InputError, match=r"past_key_values\[0\] must have shape \(2, 2, 5, 4\); got \(2, 2, 3, 4\)"):
        model(ids(2, 1), past_key_values=cache(tensors=4), encoder_hidden_states=torch.randn(2, 5, 8))


@both_families
def test_the_mask_of_a_step_covers_the_cache(family: str) -> None:
    model = tiny(family, "ForCausalLM", **DECODER)
    model(ids(2, 1), torch.ones(2, 4), past_key_values=cache())
    model(ids(2, 1), torch.ones(2, 1, 4), past_key_values=cache())
    for shape in ((2, 1), (3, 4), (2, 5), (2, 4, 4)):
        with pytest.raises(InputError, match=r"attention_mask must have shape \(2, 4\) or \(2, 1, 4\); got"):
            model(ids(2, 1), torch.ones(shape), past_key_values=cache())


@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
@every_class
def test_an_input_that_is_too_long_is_refused_by_every_class(family: str, head: str, kind: str) -> None:
    config = {} if family == "roformer" else {"position_embedding_type": kind}
    model = tiny(family, head, **config)
    limit = model.config.max_tokens
    assert limit == (10 if (family, kind) == ("roberta-prelayernorm", "absolute") else 12)

    def run(length: int) -> None:
        model(ids(1, 1, length) if head == "ForMultipleChoice" else ids(1, length))

    run(limit)
    with pytest.raises(InputError, match=rf"\b{limit + 1}\b.*\b{limit}\b") as caught:
        run(limit + 1)
    assert "max_position_embeddings" in str(caught.value)


@pytest.mark.parametrize("kind", ["absolute", "relative_key"])
@both_families
def test_cached_tokens_count_towards_the_limit(family: str, kind: str) -> None:
    config = {} if family == "roformer" else {"position_embedding_type": kind}
    model = tiny(family, "ForCausalLM", **DECODER, **config)
    limit = model.config.max_tokens
    model(ids(2, 3), past_key_values=cache(length=limit - 3))
    with pytest.raises(InputError, match=f"{limit + 1}.*{limit}"):
        model(ids(2, 4), past_key_values=cache(length=limit - 3))


@pytest.mark.parametrize("config_class", [RoFormerConfig, RobertaPreLayerNormConfig])
def test_only_a_decoder_reads_an_encoder(config_class: Any) -> None:
    with pytest.raises(ValueError, match="add_cross_attention needs is_decoder"):
        config_class.model_validate(TINY | {"add_cross_attention": True})


@pytest.mark.parametrize("value", [-1, 12])
def test_wrong_positions_are_refused(value: int) -> None:
    for head in HEADS:
        shape = (1, 1, 3) if head == "ForMultipleChoice" else (1, 3)
        with pytest.raises(InputError, match=rf"position_ids must be from 0 to 11 .*; got {value}"):
            tiny("roberta-prelayernorm", head)(ids(*shape), position_ids=torch.full(shape, value))


def test_values_are_not_looked_at_while_a_model_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are unknown then. What is given at all is known."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    nothing: dict[str, Any] = dict.fromkeys(
        ("token_type_ids", "inputs_embeds", "attention_mask", "encoder_hidden_states", "encoder_attention_mask")
    )
    unknown = torch.empty(2, 5, dtype=torch.int64, device="meta")
    assert check_inputs(RoFormerConfig(), 768, input_ids=unknown, past_key_values=None, **nothing) is None
    past = ((torch.empty(2, 12, 7, 64, device="meta"),) * 2,) * 12
    decoder = RoFormerConfig(is_decoder=True)
    assert check_inputs(decoder, 768, input_ids=unknown, past_key_values=past, **nothing) == 7
    with pytest.raises(InputError, match="got neither"):
        check_inputs(decoder, 768, input_ids=None, past_key_values=past, **nothing)
