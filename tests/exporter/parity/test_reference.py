"""What float32 PyTorch computes: computed on every case, and kept exactly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from exporter.errors import BundleError
from exporter.parity import Case, Reference, compute_reference, load_reference, make_cases, save_reference

CASES = make_cases(
    input_names=("input_ids", "attention_mask"),
    vocab_size=9,
    type_vocab_size=1,
    pad_token_id=0,
    max_tokens=12,
    output_width=4,
    seed=0,
)


class Sums(torch.nn.Module):
    """``total`` (B, 1) and ``each`` (B, S), of ids by their mask and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        each = self.weight * input_ids * attention_mask
        assert not each.requires_grad
        return SimpleNamespace(each=each, total=each.sum(1, keepdim=True), unused=None)


@pytest.fixture
def reference() -> Reference:
    return compute_reference(Sums(), CASES, ["total", "each"])


def test_every_case_is_computed(reference: Reference) -> None:
    assert [case for case, _ in reference] == CASES
    for case, outputs in reference:
        each = 0.5 * case.inputs["input_ids"] * case.inputs["attention_mask"]
        assert list(outputs) == ["total", "each"]
        np.testing.assert_array_equal(outputs["each"], each)
        np.testing.assert_array_equal(outputs["total"], each.sum(1, keepdims=True))


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
