"""What float32 PyTorch computes: computed on every case, and kept exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from exporter.errors import BundleError
from exporter.models import RobertaPreLayerNormForCausalLM, RoFormerForCausalLM
from exporter.parity import Case, Reference, compute_reference, load_reference, make_cases, save_reference
from exporter.tasks import TASKS, TensorSpec
from exporter.trace import Interface

SIZES: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 40,
    "is_decoder": True,
    "add_cross_attention": True,
}
ROWS = (
    TensorSpec(name="input_ids", axes=("batch", "sequence"), dtype="int64", limit=9),
    TensorSpec(name="attention_mask", axes=("batch", "sequence"), dtype="int64", limit=2),
)
CASES = make_cases(ROWS, pad_token_id=0, max_tokens=12, output_width=4, seed=0)


class Sums(torch.nn.Module):
    """``total`` (B, 1) and ``each`` (B, S), of ids by their mask and a weight."""

    inputs = ROWS
    outputs = (
        TensorSpec(name="total", axes=("batch", 1)),
        TensorSpec(name="each", axes=("batch", "sequence")),
    )

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        each = self.weight * input_ids * attention_mask
        assert not each.requires_grad
        return each.sum(1, keepdim=True), each


@pytest.fixture
def reference() -> Reference:
    sums: Any = Sums()
    return compute_reference(sums, CASES)


class Decoded(NamedTuple):
    """A decoder with cross-attention, its cases and what it computes for them."""

    interface: Interface
    cases: list[Case]
    reference: Reference


@pytest.fixture(scope="module", params=[RoFormerForCausalLM, RobertaPreLayerNormForCausalLM])
def decoded(request: pytest.FixtureRequest, seed: int) -> Decoded:
    torch.manual_seed(seed)
    model = request.param(request.param.config_class(**SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    interface = Interface(model, TASKS["text-generation"])
    config = model.config
    cases = make_cases(
        interface.inputs,
        pad_token_id=config.pad_token_id,
        max_tokens=config.max_tokens,
        output_width=config.vocab_size,
        seed=seed,
    )
    return Decoded(interface, cases, compute_reference(interface, cases))


def test_every_case_is_computed(reference: Reference) -> None:
    assert [case for case, _ in reference] == CASES
    for case, outputs in reference:
        each = 0.5 * case.inputs["input_ids"] * case.inputs["attention_mask"]
        assert list(outputs) == ["total", "each"]
        np.testing.assert_array_equal(outputs["each"], each)
        np.testing.assert_array_equal(outputs["total"], each.sum(1, keepdims=True))


def test_a_step_gets_the_cache_of_the_case_that_it_follows(decoded: Decoded) -> None:
    outputs = {case.name: found for case, found in decoded.reference}
    for case, (computed, found) in zip(decoded.cases, decoded.reference, strict=True):
        assert computed.name == case.name
        assert list(computed.inputs) == [spec.name for spec in decoded.interface.inputs]
        for name, array in computed.inputs.items():
            if case.follows is None or not name.startswith("past_key_values."):
                np.testing.assert_array_equal(array, case.inputs[name])
            else:
                kept = outputs[case.follows][name.replace("past_key_values.", "present.")]
                np.testing.assert_array_equal(array, kept)
                assert array.shape[2] + case.inputs["input_ids"].shape[1] == found["present.0.key"].shape[2]
    assert any(case.follows for case in decoded.cases)


def test_a_step_computes_what_one_pass_without_a_cache_does(decoded: Decoded) -> None:
    cases = {case.name: case for case in decoded.cases}
    for case, found in decoded.reference:
        before = cases[case.name].follows
        if before is None:
            continue
        mask = torch.from_numpy(case.inputs["attention_mask"])
        whole = {
            name: torch.from_numpy(np.concatenate((cases[before].inputs[name], case.inputs[name]), axis=1))
            for name in ("input_ids", "token_type_ids")
            if name in case.inputs
        }
        encoder = {name: torch.from_numpy(case.inputs[name]) for name in case.inputs if name.startswith("encoder_")}
        with torch.no_grad():
            output = decoded.interface.model(**whole, **encoder, attention_mask=mask, use_cache=True)
        new = case.inputs["input_ids"].shape[1]
        # float32 twice, where only the order of sums differs.
        np.testing.assert_allclose(found["logits"], output.logits[:, -new:], rtol=1e-5, atol=1e-5, err_msg=case.name)
        seen = mask[:, None, :, None] == 1
        for layer, kept in enumerate(output.past_key_values):
            for kind, tensor in zip(("key", "value"), kept[:2], strict=True):
                np.testing.assert_allclose(
                    found[f"present.{layer}.{kind}"] * seen.numpy(),
                    (tensor * seen).numpy(),
                    rtol=1e-5,
                    atol=1e-5,
                    err_msg=f"{case.name}, layer {layer}, {kind}",
                )


def test_empty_caches_are_saved_and_loaded(decoded: Decoded, tmp_path: Path) -> None:
    save_reference(decoded.reference, tmp_path / "reference")
    loaded = {case.name: (case.inputs, outputs) for case, outputs in load_reference(tmp_path / "reference")}
    assert loaded.keys() == {case.name for case in decoded.cases}
    for case, outputs in decoded.reference:
        for kept, found in zip((case.inputs, outputs), loaded[case.name], strict=True):
            assert found.keys() == kept.keys()
            for name, array in kept.items():
                assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
                np.testing.assert_array_equal(found[name], array)
    assert loaded["one token"][0]["past_key_values.1.value"].shape == (1, 2, 0, 4)


def test_what_is_saved_is_loaded(reference: Reference, tmp_path: Path) -> None:
    save_reference(reference, tmp_path / "reference.safetensors")
    loaded = {case.name: (case.inputs, outputs) for case, outputs in load_reference(tmp_path / "reference.safetensors")}
    assert loaded.keys() == {case.name for case in CASES}
    for case, outputs in reference:
        for kept, found in zip((case.inputs, outputs), loaded[case.name], strict=True):
            assert found.keys() == kept.keys()
            for name, array in kept.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(found[name], array)


def test_arrays_are_saved_as_they_read_not_as_they_lie(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save_reference([(Case("one", {"ids": array.astype(np.int64)}), {"y": array})], tmp_path / "reference")
    [(case, outputs)] = load_reference(tmp_path / "reference")
    np.testing.assert_array_equal(outputs["y"], array)
    np.testing.assert_array_equal(case.inputs["ids"], array)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"reference is missing: .* Export again"):
        load_reference(tmp_path / "reference")


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_damaged_file(keep: int, reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference"
    save_reference(reference, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"reference is damaged \(.*export again"):
        load_reference(path)


@pytest.mark.parametrize("name", ["one", "one/inputs", "one/inputs/ids/more", "one/weights/ids"])
def test_names_of_another_kind(name: str, tmp_path: Path) -> None:
    save_file({"good/inputs/ids": np.zeros(1), name: np.zeros(1)}, tmp_path / "reference")
    with pytest.raises(BundleError, match="is damaged"):
        load_reference(tmp_path / "reference")


def test_a_file_without_cases(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {}
    save_file(nothing, tmp_path / "reference")
    with pytest.raises(BundleError, match=r"holds no case: export again"):
        load_reference(tmp_path / "reference")
