"""Every class, variant, input and output against ``transformers``, and against what its older release computed.

Shape letters: B batch, C choices, S sequence, P past, K keys in all, T encoder sequence.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporter import models
from exporter.models.checkpoint import PreTrainedModel
from exporter.models.config import FAMILIES, Activation, RoFormerConfig
from exporter.models.outputs import ModelOutput

# Values are of the order of 1 to 10, and a few hundred float32 additions apart: rounding stays below 2e-6.
TOLERANCE = 5e-6
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
GENERATIVE = ("Model", "ForCausalLM")  # these take and give a cache
READERS = (*GENERATIVE, "ForMaskedLM")  # these take the states of an encoder
FLAGS = ["output_attentions", "output_hidden_states", "return_dict"]
PAD, VOCAB_SIZE, HIDDEN_SIZE, CHOICES = 1, 41, 16, 2

DECODER = {"is_decoder": True}
READER = DECODER | {"add_cross_attention": True}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "roformer": {
        "plain": {},
        "narrow embeddings, one layer": {"embedding_size": 6, "num_hidden_layers": 1, "summary_type": "first"},
        "wide embeddings, one head of selu": {
            "embedding_size": 24,
            "num_attention_heads": 1,
            "hidden_act": "selu",
            "tie_word_embeddings": False,
            "summary_use_proj": True,
        },
        "rotated values, relu, one segment": {
            "rotary_value": True,
            "hidden_act": "relu",
            "type_vocab_size": 1,
            "summary_type": "mean",
            "summary_activation": "tanh",
        },
        "three layers of gelu_new": {
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 0.1,
            "pad_token_id": None,
            "num_labels": 5,
            "summary_type": "cls_index",
            "summary_use_proj": True,
            "summary_activation": "relu",
        },
        "decoder": DECODER,
        "decoder of rotated values": DECODER | {"rotary_value": True, "embedding_size": 6, "num_labels": 1},
        "decoder with an encoder": READER,
    },
    "roberta-prelayernorm": {
        "plain": {},
        "one layer of relu, one segment": {"num_hidden_layers": 1, "hidden_act": "relu", "type_vocab_size": 1},
        "odd heads of silu, untied": {
            "hidden_size": 15,
            "num_attention_heads": 5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "classifier_dropout": 0.5,
        },
        "three layers of gelu_new": {
            "num_hidden_layers": 3,
            "num_attention_heads": 1,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 0.1,
            "num_labels": 5,
        },
        "padding at zero": {"pad_token_id": 0, "classifier_dropout": 0.0, "num_labels": 1},
        "decoder": DECODER,
        "decoder of one head": DECODER | {"num_attention_heads": 1, "tie_word_embeddings": False},
        "decoder with an encoder": READER,
    },
}

both_families = pytest.mark.parametrize("family", VARIANTS)
every_class = pytest.mark.parametrize(("family", "head"), list(itertools.product(VARIANTS, HEADS)))
Model = PreTrainedModel[Any]
Pair = Callable[..., tuple[Model, Any]]


@pytest.fixture
def pair(
    write_checkpoint: Callable[..., Path],
    load_reference: Callable[[Path], Any],
    transformers: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Pair:
    """``pair(family, head, **config)``: our model and theirs, of one folder."""
    # "selu" is documented, but missing from its table of functions.
    monkeypatch.setitem(transformers.activations.ACT2FN, "selu", torch.nn.SELU)

    def load(family: str, head: str, **config: Any) -> tuple[Model, Any]:
        if head == "ForQuestionAnswering":
            config["num_labels"] = 2
        # It refuses to write a config that asks for attentions, but reads one.
        later = {name: config.pop(name) for name in FLAGS if name in config}
        folder = write_checkpoint(family, head, **config)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | later))
        ours: type[Model] = getattr(models, PREFIXES[family] + head)
        return ours.from_pretrained(folder), load_reference(folder)

    return load


# What a model is given.


def batch(config: Any, kind: str = "no padding", rows: int = 4, length: int = 7) -> dict[str, Tensor]:
    """Random ids and segments; padding is where ``kind`` says, of another length in every row."""
    length = {"single token": 1, "longest": config.max_tokens}.get(kind, length)
    pad = PAD if config.pad_token_id is None else config.pad_token_id
    input_ids = torch.randint(2, VOCAB_SIZE, (rows, length))
    attention_mask = torch.ones_like(input_ids)
    for row in range(rows):
        padded = row % 4
        if kind == "left padding":
            attention_mask[row, :padded] = 0
        elif kind == "right padding":
            attention_mask[row, length - padded :] = 0
    if kind == "fully masked row":
        attention_mask[1] = 0
    input_ids = input_ids.where(attention_mask == 1, pad)
    token_type_ids = torch.randint(0, config.type_vocab_size, (rows, length))
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}


def with_encoder(inputs: dict[str, Tensor], length: int = 5) -> dict[str, Tensor]:
    """The same with the states of an encoder, of which the second row is all padding."""
    rows = len(inputs["input_ids"])
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[0, 3:] = 0
    mask[1] = 0
    return inputs | {"encoder_hidden_states": torch.randn(rows, length, HIDDEN_SIZE), "encoder_attention_mask": mask}


def with_choices(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """(B * C, …) -> (B, C, …)."""
    return {name: value.reshape(-1, CHOICES, *value.shape[1:]) for name, value in inputs.items()}


def all_inputs(model: Model, family: str, head: str) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """For each kind of input, what our model is given and what theirs is given."""
    config = model.config
    rows = 4 * CHOICES if head == "ForMultipleChoice" else 4
    kinds = ["no padding", "left padding", "right padding", "fully masked row", "single token", "longest"]
    ours = {kind: batch(config, kind, rows) for kind in kinds}
    ours["ids alone"] = {"input_ids": batch(config, rows=rows)["input_ids"]}
    embedded = batch(config, "left padding", rows)
    width = getattr(config, "embedding_width", config.hidden_size)
    embedded["inputs_embeds"] = torch.randn(*embedded.pop("input_ids").shape, width)
    ours["embeddings"] = embedded
    if family == "roberta-prelayernorm":
        places = {"position_ids": torch.randint(0, config.max_position_embeddings, (rows, 7))}
        ours["positions"] = batch(config, rows=rows) | places
        ours["positions of embeddings"] = embedded | places
    if config.add_cross_attention:
        ours |= {f"{kind}, encoder": with_encoder(inputs) for kind, inputs in ours.items() if "input_ids" in inputs}
        ours["encoder without a mask"] = {
            name: value for name, value in ours["left padding, encoder"].items() if name != "encoder_attention_mask"
        }
    theirs = {kind: dict(inputs) for kind, inputs in ours.items()}
    if head == "ForMultipleChoice":
        for inputs in (*ours.values(), *theirs.values()):
            inputs |= with_choices(inputs)
    else:  # its multiple choice cannot take a mask for each query
        masks = (torch.rand(rows, 7, 7) < 0.6).long()
        ours["mask for each query"] = batch(config) | {"attention_mask": masks}
        theirs["mask for each query"] = ours["mask for each query"] | {"attention_mask": added(masks)}
        if config.add_cross_attention:
            masks = (torch.rand(rows, 7, 5) < 0.6).long()
            ours["encoder mask for each query"] = with_encoder(batch(config)) | {"encoder_attention_mask": masks}
            theirs["encoder mask for each query"] = ours["encoder mask for each query"] | {
                "encoder_attention_mask": added(masks)
            }
    return {kind: (ours[kind], theirs[kind]) for kind in ours}


def added(mask: Tensor) -> Tensor:
    """(B, S, K) of 1 and 0 as the (B, 1, S, K) that is added to the scores."""
    return torch.zeros(mask.shape).masked_fill(mask == 0, torch.finfo(torch.float32).min)[:, None]


def labels_for(head: str, config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    given = inputs.get("input_ids", inputs.get("inputs_embeds"))
    assert given is not None
    rows, length = given.shape[0], given.shape[-1 if "input_ids" in inputs else -2]
    if head == "ForSequenceClassification":
        if config.num_labels == 1:
            return {"labels": torch.randn(rows)}
        return {"labels": torch.randint(0, config.num_labels, (rows,))}
    if head == "ForMultipleChoice":
        return {"labels": torch.randint(0, CHOICES, (rows,))}
    if head == "ForQuestionAnswering":
        start, end = torch.randint(0, length, (2, rows))
        end[0] = length + 3  # a place beyond the sequence does not count
        return {"start_positions": start, "end_positions": end}
    classes = config.num_labels if head == "ForTokenClassification" else config.vocab_size
    labels = torch.randint(0, classes, (rows, length))
    labels[1] = -100
    return {"labels": labels}


# What it gives.


def as_tuples(value: Any) -> Any:
    """A cache of ``transformers`` as ours: for each layer (key, value[, cross key, cross value])."""
    if hasattr(value, "self_attention_cache"):
        caches = value.self_attention_cache, value.cross_attention_cache
        return tuple(own + cross for own, cross in zip(*map(as_tuples, caches), strict=True))
    return tuple((layer.keys, layer.values) for layer in value.layers) if hasattr(value, "layers") else value


def assert_close(found: Any, expected: Any, name: str, tolerance: float = TOLERANCE) -> None:
    """Both are tensors, or tuples of the same shape."""
    if isinstance(expected, tuple):
        assert isinstance(found, tuple), name
        assert len(found) == len(expected), name
        for place, pair in enumerate(zip(found, expected, strict=True)):
            assert_close(*pair, f"{name}[{place}]", tolerance)
    else:
        torch.testing.assert_close(
            found, expected, atol=tolerance, rtol=0, equal_nan=True, msg=lambda text: f"{name}: {text}"
        )


def assert_same_outputs(found: ModelOutput, expected: Any, where: str = "") -> set[str]:
    """Every field of either is in the other, and equal. Returns their names."""
    # "()" stands for no cross-attention there.
    wanted = {name: as_tuples(value) for name, value in expected.items() if value is not None and value != ()}
    assert set(found.keys()) == set(wanted), where
    for name, value in wanted.items():
        assert_close(found[name], value, f"{where}: {name}")
    return set(wanted)


def asked(head: str, config: Any, inputs: dict[str, Tensor]) -> dict[str, bool]:
    """Everything that can be asked for. Theirs fails on attentions of a RoFormer that reads no encoder."""
    blind = config.add_cross_attention and "encoder_hidden_states" not in inputs
    return {"output_hidden_states": True, "output_attentions": not (blind and isinstance(config, RoFormerConfig))}


@pytest.mark.parametrize(
    ("family", "head", "variant"),
    [
        (family, head, variant)
        for family, variants in VARIANTS.items()
        for head, (variant, config) in itertools.product(HEADS, variants.items())
        if head in READERS or not config.get("add_cross_attention")
    ],
)
@torch.no_grad()
def test_outputs_and_losses_equal_those_of_transformers(family: str, head: str, variant: str, pair: Pair) -> None:
    ours, theirs = pair(family, head, **VARIANTS[family][variant])
    seen: set[str] = set()
    for kind, (inputs, given) in all_inputs(ours, family, head).items():
        flags = asked(head, ours.config, inputs)
        found, expected = ours(**inputs, **flags), theirs(**given, **flags)
        seen |= assert_same_outputs(found, expected, kind)
        assert found[0].std() > 0.01, "outputs that hardly vary would not show an error"
        if head != "Model":
            labels = labels_for(head, ours.config, inputs)
            seen |= assert_same_outputs(ours(**inputs, **labels), theirs(**given, **labels), f"{kind}, labels")
    documented = {field.name for field in fields(found)}
    if not ours.config.add_cross_attention:
        documented -= {"cross_attentions"}
    if not ours.config.is_decoder:
        documented -= {"past_key_values"}
    assert seen == documented


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])  # these have an activation of their own
@pytest.mark.parametrize("name", get_args(Activation))
@both_families
@torch.no_grad()
def test_every_activation_computes_the_same(family: str, head: str, name: str, pair: Pair) -> None:
    ours, theirs = pair(family, head, hidden_act=name, num_hidden_layers=1)
    inputs = batch(ours.config)
    assert_same_outputs(ours(**inputs), theirs(**inputs))


@pytest.mark.parametrize("name", [None, *get_args(Activation)])
@pytest.mark.parametrize("kind", ["last", "first", "mean", "cls_index"])
@torch.no_grad()
def test_every_summary_of_multiple_choice_computes_the_same(kind: str, name: str | None, pair: Pair) -> None:
    config = {"summary_type": kind, "summary_activation": name, "summary_use_proj": name != "tanh"}
    ours, theirs = pair("roformer", "ForMultipleChoice", num_hidden_layers=1, **config)
    inputs = with_choices(batch(ours.config, "right padding"))
    assert_same_outputs(ours(**inputs), theirs(**inputs))


@both_families
@torch.no_grad()
def test_a_mask_for_each_query_of_each_choice_is_read(family: str) -> None:
    """Theirs cannot take one. What holds for every query is said as well for each."""
    model = untrained(family, "ForMultipleChoice")
    inputs = with_choices(batch(model.config, "right padding"))
    mask = inputs["attention_mask"]
    for_each = inputs | {"attention_mask": mask[:, :, None].expand(-1, -1, 7, -1)}
    assert_close(model(**for_each).to_tuple(), model(**inputs).to_tuple(), family, 0)
    assert not model(**inputs | {"attention_mask": torch.ones_like(mask)}).logits.allclose(model(**inputs).logits)


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@both_families
@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({}, torch.tensor([0, 2])),
        ({}, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
        ({"num_labels": 1}, torch.tensor([0.5, -2.0])),
        ({"num_labels": 1}, torch.tensor([[0.5], [-2.0]])),
        ({"problem_type": SINGLE}, torch.tensor([0, 2])),
        ({"problem_type": SINGLE}, torch.tensor([[0], [2]])),
        ({"problem_type": SINGLE}, torch.tensor([-100, 2])),
        ({"problem_type": MULTI}, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])),
        ({"problem_type": MULTI, "num_labels": 1}, torch.tensor([[1.0], [0.0]])),
        ({"problem_type": REGRESSION}, torch.tensor([[0.5, 1.0, -1.0], [0.0, 0.3, 2.0]])),
        ({"problem_type": REGRESSION, "num_labels": 1}, torch.tensor([0.5, -2.0])),
    ],
    ids=str,
)
@torch.no_grad()
def test_every_kind_of_sequence_loss_equals_that_of_transformers(
    family: str, config: dict[str, Any], labels: Tensor, pair: Pair
) -> None:
    ours, theirs = pair(family, "ForSequenceClassification", num_hidden_layers=1, **config)
    inputs = batch(ours.config, rows=2)
    found = ours(**inputs, labels=labels)
    assert_same_outputs(found, theirs(**inputs, labels=labels))
    assert found.loss > 0.01


@every_class
def test_gradients_equal_those_of_transformers(family: str, head: str, pair: Pair) -> None:
    config = READER if head in READERS else {}
    ours, theirs = pair(family, head, **config)
    inputs = batch(ours.config, "right padding")
    if config:
        inputs = with_encoder(inputs)
    if head == "ForMultipleChoice":
        inputs = with_choices(inputs)
    labels = {} if head == "Model" else labels_for(head, ours.config, inputs)
    weights = None
    for model in (ours, theirs):
        output = model(**inputs, **labels)
        loss = output[0]
        if head == "Model":
            weights = torch.randn_like(loss) if weights is None else weights
            loss = (loss * weights).mean()
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    checked = 0
    for name, parameter in ours.named_parameters():
        if name in gradients:  # an alias goes by either of its names
            assert parameter.grad is not None, name
            # Gradients reach about 10 here: as many steps of rounding as the outputs' 5e-6.
            torch.testing.assert_close(parameter.grad, gradients[name], atol=5e-5, rtol=0, msg=name)
            checked += 1
    assert checked > 30


# How it is called.


@every_class
def test_parameters_have_the_names_order_and_defaults_of_transformers(
    family: str, head: str, transformers: Any
) -> None:
    name = PREFIXES[family] + head
    theirs = {
        parameter.name: parameter.default
        for parameter in inspect.signature(getattr(transformers, name).forward).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    parameters = inspect.signature(getattr(models, name).forward).parameters.values()
    ours = {parameter.name: parameter.default for parameter in parameters}
    names = list(theirs) if "return_dict" in theirs else [*theirs, *FLAGS]
    assert list(ours) == names
    assert ours == dict.fromkeys(FLAGS) | theirs
    assert all(parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)


@every_class
@torch.no_grad()
def test_flags_of_the_call_and_of_the_config_equal_those_of_transformers(family: str, head: str, pair: Pair) -> None:
    configs: list[dict[str, Any]] = [
        {},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"output_attentions": True, "output_hidden_states": True},
    ]
    for config in configs:
        ours, theirs = pair(family, head, num_hidden_layers=1, **config)
        inputs = batch(ours.config)
        if head == "ForMultipleChoice":
            inputs = with_choices(inputs)
        for name in (None, *FLAGS[:2]):
            for value in (True, False):
                flags = {} if name is None else {name: value}
                assert_same_outputs(ours(**inputs, **flags), theirs(**inputs, **flags), f"{config} {flags}")


@pytest.mark.parametrize("tuples_of", ["call", "config"])
@every_class
@torch.no_grad()
def test_tuples_equal_those_of_transformers(family: str, head: str, tuples_of: str, pair: Pair) -> None:
    ours, theirs = pair(family, head, **({"return_dict": False} if tuples_of == "config" else {}))
    inputs = batch(ours.config)
    if head == "ForMultipleChoice":
        inputs = with_choices(inputs)
    labels = {} if head == "Model" else labels_for(head, ours.config, inputs)
    wanted = {"output_attentions": True, "output_hidden_states": True}
    for flags in ({}, wanted, labels, labels | wanted):
        as_tuple = flags | ({"return_dict": False} if tuples_of == "call" else {})
        found, expected = ours(**inputs, **as_tuple), theirs(**inputs, **as_tuple)
        assert type(found) is tuple
        expected = tuple(value for value in expected if not isinstance(value, tuple) or value)  # "()": no attention
        assert_close(found, expected, str(list(flags)))
        assert_close(found, ours(**inputs, **flags, return_dict=True).to_tuple(), str(list(flags)), 0)


@both_families
@pytest.mark.parametrize("head", GENERATIVE)
@torch.no_grad()
def test_tuples_of_decoders_follow_the_documented_order(family: str, head: str, pair: Pair) -> None:
    """As the fields of the output class stand in the definition of transformers."""
    ours, theirs = pair(family, head, **READER)
    inputs = with_encoder(batch(ours.config)) | {"output_attentions": True, "output_hidden_states": True}
    expected = theirs(**inputs)
    order = [field.name for field in fields(expected) if getattr(expected, field.name) is not None]
    found = ours(**inputs)
    assert list(found.keys()) == order
    for value, wanted in zip(ours(**inputs, return_dict=False), found.to_tuple(), strict=True):
        assert_close(value, wanted, head, 0)


@both_families
@pytest.mark.parametrize("places", [0, 1, 3, 7, 9, torch.tensor([2]), torch.tensor([5, 0, -1])], ids=str)
@torch.no_grad()
def test_logits_to_keep_equal_those_of_transformers(family: str, places: int | Tensor, pair: Pair) -> None:
    ours, theirs = pair(family, "ForCausalLM", **DECODER)
    inputs = batch(ours.config, "left padding")
    found = ours(**inputs, logits_to_keep=places)
    assert_same_outputs(found, theirs(**inputs, logits_to_keep=places))
    assert found.logits.shape[1] == (len(places) if isinstance(places, Tensor) else min(places or 7, 7))


# Caches.


@pytest.mark.parametrize("config", [DECODER, READER], ids=["decoder", "decoder with an encoder"])
@pytest.mark.parametrize("head", GENERATIVE)
@both_families
@torch.no_grad()
def test_no_cache_unless_it_is_wanted(family: str, head: str, config: dict[str, Any], pair: Pair) -> None:
    for use_cache in (True, False):
        ours, theirs = pair(family, head, use_cache=use_cache, **config)
        inputs = batch(ours.config)
        if "add_cross_attention" in config:
            inputs = with_encoder(inputs)
        for flags in ({}, {"use_cache": True}, {"use_cache": False}):
            found = ours(**inputs, **flags)
            assert_same_outputs(found, theirs(**inputs, **flags))
            assert ("past_key_values" in found) == flags.get("use_cache", use_cache)


@pytest.mark.parametrize("config", [DECODER, READER], ids=["decoder", "decoder with an encoder"])
@pytest.mark.parametrize("head", GENERATIVE)
@both_families
@torch.no_grad()
def test_cached_steps_equal_those_of_transformers(family: str, head: str, config: dict[str, Any], pair: Pair) -> None:
    ours, theirs = pair(family, head, **config)
    inputs = batch(ours.config, "left padding", length=9)
    encoder = {}
    if "add_cross_attention" in config:
        encoder = {name: value for name, value in with_encoder(inputs).items() if name.startswith("encoder")}
    past = their_past = None
    for start, end in ((0, 5), (5, 6), (6, 8), (8, 9)):
        step = {name: value[:, start:end] for name, value in inputs.items()} | encoder
        step["attention_mask"] = inputs["attention_mask"][:, :end]
        flags = {"output_attentions": True, "output_hidden_states": True, "use_cache": True}
        found = ours(**step, **flags, past_key_values=past)
        if family == "roberta-prelayernorm":  # it would count the padding as tokens in all later steps
            counts = inputs["attention_mask"].cumsum(1)[:, start:end] * inputs["attention_mask"][:, start:end]
            step["position_ids"] = counts + PAD
        expected = theirs(**step, **flags, past_key_values=their_past)
        assert_same_outputs(found, expected, f"{start} to {end}")
        past, their_past = found.past_key_values, expected.past_key_values


CHUNKS = [(1,) * 9, (5, 4), (3, 1, 5), (8, 1), (2, 2, 2, 3)]


@pytest.mark.parametrize("kind", ["left padding", "embeddings", "mask for each query"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("roformer", DECODER),
        ("roformer", READER | {"rotary_value": True}),
        ("roberta-prelayernorm", DECODER),
        ("roberta-prelayernorm", READER),
        ("roberta-prelayernorm", READER | {"position_embedding_type": "relative_key"}),
        ("roberta-prelayernorm", DECODER | {"position_embedding_type": "relative_key_query"}),
    ],
    ids=str,
)
@torch.no_grad()
def test_chunked_decoding_equals_the_uncached_pass(
    family: str, config: dict[str, Any], chunks: tuple[int, ...], kind: str
) -> None:
    model = untrained(family, "ForCausalLM", **config)
    inputs = batch(model.config, "left padding", length=9)
    tokens = inputs["attention_mask"] == 1
    if kind == "embeddings":
        inputs["inputs_embeds"] = torch.randn(*inputs.pop("input_ids").shape, HIDDEN_SIZE)
    elif kind == "mask for each query":
        masks = (torch.rand(4, 9, 9) < 0.7).tril() & tokens[:, None]
        inputs["attention_mask"] = masks | torch.eye(9, dtype=torch.bool)
    encoder = {}
    if config.get("add_cross_attention"):
        encoder = with_encoder(batch(model.config))
        encoder = {name: value for name, value in encoder.items() if name.startswith("encoder")}
    positions = {}
    if family == "roberta-prelayernorm" and kind == "mask for each query":
        # Such a mask does not tell which of the cached tokens are padding.
        positions = {"position_ids": (tokens.cumsum(1) * tokens + PAD)}
    whole = model(**inputs, **encoder, **positions, use_cache=False).logits

    parts, past, start = [], None, 0
    for size in chunks:
        end = start + size
        step = {name: value[:, start:end] for name, value in (inputs | positions).items()}
        mask = inputs["attention_mask"]
        step["attention_mask"] = mask[:, :end] if mask.ndim == 2 else mask[:, start:end, :end]
        output = model(**step, **encoder, past_key_values=past)
        past, start = output.past_key_values, end
        assert past[0][0].shape == (4, 4, end, HIDDEN_SIZE // 4)
        parts.append(output.logits)
    # The same products, summed in other orders.
    torch.testing.assert_close(torch.cat(parts, dim=1)[tokens], whole[tokens], atol=TOLERANCE, rtol=0)


@both_families
@torch.no_grad()
def test_an_empty_cache_is_no_cache(family: str) -> None:
    model = untrained(family, "Model", **DECODER)
    inputs = batch(model.config)
    empty = tuple((torch.zeros(4, 4, 0, 4), torch.zeros(4, 4, 0, 4)) for _ in range(2))
    found, expected = model(**inputs, past_key_values=empty), model(**inputs)
    assert_close(found.to_tuple(), expected.to_tuple(), family, 0)


@both_families
@torch.no_grad()
def test_encoder_keys_are_read_from_the_cache(family: str) -> None:
    """After the first step, the states of the encoder are there for their shape alone."""
    model = untrained(family, "Model", **READER)
    inputs = with_encoder(batch(model.config))
    past = model(**inputs).past_key_values
    assert [len(layer) for layer in past] == [4, 4]
    step = {"input_ids": torch.full((4, 1), 5), "encoder_attention_mask": inputs["encoder_attention_mask"]}
    states = inputs["encoder_hidden_states"]
    expected = model(**step, encoder_hidden_states=states, past_key_values=past)
    found = model(**step, encoder_hidden_states=torch.randn_like(states), past_key_values=past)
    assert_close(found.to_tuple(), expected.to_tuple(), family, 0)
    for before, after in zip(past, found.past_key_values, strict=True):
        assert [tensor is other for tensor, other in zip(before[2:], after[2:], strict=True)] == [True, True]


def untrained(family: str, head: str, **config: Any) -> Model:
    """A model of ours with every parameter random."""
    tiny = {"vocab_size": VOCAB_SIZE, "hidden_size": HIDDEN_SIZE, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = {"intermediate_size": 24, "max_position_embeddings": 20, "pad_token_id": PAD}
    config_class = FAMILIES[family]
    model: Model = getattr(models, PREFIXES[family] + head)(config_class.model_validate(tiny | sizes | config)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


@both_families
@torch.no_grad()
def test_a_decoder_looks_back_alone(family: str) -> None:
    model = untrained(family, "ForCausalLM", **DECODER)
    inputs = batch(model.config)
    before = model(**inputs).logits
    inputs["input_ids"][:, 4] = (inputs["input_ids"][:, 4] - 1) % 39 + 2
    after = model(**inputs).logits
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=0, rtol=0)
    assert ((after[:, 4:] - before[:, 4:]).abs().amax(-1) > 1e-4).all()


# More positions.


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_extended_positions_equal_those_of_a_larger_config(
    head: str, write_checkpoint: Callable[..., Path], load_reference: Callable[[Path], Any]
) -> None:
    config = {"num_labels": 2, "is_decoder": head in GENERATIVE}
    folder = write_checkpoint("roformer", head, **config)
    loaded: type[Model] = getattr(models, f"RoFormer{head}")
    short, long = loaded.from_pretrained(folder), loaded.from_pretrained(folder, max_position_embeddings=33)
    assert (short.config.max_tokens, long.config.max_tokens) == (20, 33)

    def given(length: int) -> dict[str, Tensor]:
        inputs = batch(long.config, "left padding", length=length)
        if head == "ForMultipleChoice":
            return with_choices(inputs)
        return inputs

    inputs = given(20)
    assert_close(long(**inputs).to_tuple(), short(**inputs).to_tuple(), head, 0)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"max_position_embeddings": 33}))
    prefix = "" if head == "Model" else "roformer."
    state = load_file(folder / "model.safetensors")
    del state[f"{prefix}encoder.embed_positions.weight"]  # a table of 20 rows; theirs computes one of 33
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    inputs = given(33)
    assert_same_outputs(long(**inputs), load_reference(folder)(**inputs))


# Relative positions.

GOLDEN = Path(__file__).parents[2] / "golden" / "relative_positions.safetensors"
with safe_open(GOLDEN, "pt") as _recorded:
    RELATIVE: dict[str, dict[str, Any]] = json.loads(_recorded.metadata()["cases"])


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.mark.parametrize("case", RELATIVE)
@torch.no_grad()
def test_relative_positions_equal_those_of_transformers_4(
    case: str, recorded: dict[str, Tensor], tmp_path: Path
) -> None:
    """``tests/golden/relative_positions.py`` recorded them: the fifth release has no relative positions."""

    def part(name: str) -> dict[str, Tensor]:
        start = f"{case}/{name}/"
        return {key.removeprefix(start): value for key, value in recorded.items() if key.startswith(start)}

    save_file(part("weights"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(RELATIVE[case]["config"]), encoding="utf-8")
    model: Model = getattr(models, RELATIVE[case]["class"]).from_pretrained(tmp_path)
    for length in (1, 9):
        found = model(**part(f"inputs/{length}"), output_attentions=True)
        flat: dict[str, Tensor] = {}
        for name in set(found.keys()) - {"past_key_values"}:
            value = found[name]
            flat |= {f"{name}.{i}": x for i, x in enumerate(value)} if isinstance(value, tuple) else {name: value}
        expected = part(f"outputs/{length}")
        assert flat.keys() == expected.keys()
        for name, wanted in expected.items():
            assert_close(flat[name], wanted, name)


def test_both_kinds_of_relative_positions_were_recorded_for_encoders_and_decoders() -> None:
    kinds = {(case["config"]["position_embedding_type"], "is_decoder" in case["config"]) for case in RELATIVE.values()}
    assert kinds == set(itertools.product(("relative_key", "relative_key_query"), (True, False)))
