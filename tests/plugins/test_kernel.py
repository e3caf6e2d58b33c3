"""How kernels are launched: the sizes of their tiles, and formulas that are numbers and text alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.compile import kernels
from plugins.kernel import Formula, Kernel, Launch, Request, Tactic, heads_tile, power_of_two
from plugins.ops import OPS

each_kernel = pytest.mark.parametrize("kernel", kernels().values(), ids=kernels().keys())
ATTRIBUTES = {"epsilon": 1e-12, "num_heads": 5, "scale": 0.125, "rotary_value": 1}
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda one, other: one + other,
    "-": lambda one, other: one - other,
    "*": lambda one, other: one * other,
    "//": lambda one, other: one // other,
    "<": lambda one, other: one < other,
}


def launches(kernel: Kernel, sizes: dict[str, Any]) -> list[Launch]:
    """With each tactic and each variant of outputs."""
    attributes = {spec.name: ATTRIBUTES[spec.name] for spec in kernel.contract.attributes}
    return [
        kernel.launch(Request(sizes, attributes, outputs, tactic))
        for tactic in kernel.tactics
        for outputs in kernel.contract.variants
    ]


@given(size=st.integers(1, 2**40))
def test_the_power_of_two_is_the_smallest_that_is_no_less(size: int) -> None:
    power = power_of_two(size)
    assert bin(power).count("1") == 1
    assert power / 2 < size <= power


@pytest.mark.parametrize(("size", "power"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (768, 1024), (1024, 1024)])
def test_the_power_of_two_of_some_sizes(size: int, power: int) -> None:
    assert power_of_two(size) == power


@given(heads=st.integers(1, 40), size=st.integers(1, 128).map(lambda pairs: 2 * pairs), log=st.integers(0, 13))
def test_a_tile_holds_a_head_and_about_as_many_elements_as_it_should(heads: int, size: int, log: int) -> None:
    tile = heads_tile(heads, size, Tactic(2**log, 4))
    assert tile.keys() == {"ROWS", "HEADS", "BLOCK_D"}
    assert all(power_of_two(extent) == extent for extent in tile.values()), "Triton has no other blocks"
    assert size <= tile["BLOCK_D"] < 2 * size
    assert tile["HEADS"] in (1, 2, 4)
    assert tile["HEADS"] < 2 * heads
    elements = tile["ROWS"] * tile["HEADS"] * tile["BLOCK_D"]
    assert elements == max(2**log, tile["HEADS"] * tile["BLOCK_D"])


@st.composite
def formulas(draw: st.DrawFn, depth: int = 4) -> tuple[Formula, int]:
    """A formula of a, b and c, and what ints give in its place."""
    name = draw(st.sampled_from("abc"))
    formula, number = Formula(name), VALUES[name]
    for _ in range(draw(st.integers(0, depth))):
        operator = draw(st.sampled_from(list(OPERATORS)))
        other: tuple[Any, int] = draw(
            st.integers(1, 50).map(lambda constant: (constant, constant)) if depth == 0 else formulas(depth=depth - 1)
        )
        if operator == "//" and other[1] == 0:
            operator = "+"
        formula, number = OPERATORS[operator](formula, other[0]), OPERATORS[operator](number, other[1])
    return formula, number


VALUES = {"a": 7, "b": 12, "c": 512}


@given(formulas())
def test_the_text_of_a_formula_gives_the_number_that_ints_give(pair: tuple[Formula, int]) -> None:
    formula, number = pair
    assert eval(str(formula), {"__builtins__": {}}, VALUES) == number


def test_a_formula_keeps_its_order() -> None:
    a, b = Formula("a"), Formula("b")
    assert str((a - (b - 1)) * 2) == "((a - (b - 1)) * 2)"
    assert str(a // (b // 3) < 4) == "((a // (b // 3)) < 4)"


@each_kernel
@given(data=st.data())
def test_a_launch_in_letters_is_that_in_numbers(kernel: Kernel, data: st.DataObject) -> None:
    letters = {letter for spec in kernel.contract.inputs for letter in spec.shape if len(letter) == 1}
    letters |= {spec.size for spec in kernel.contract.attributes if spec.size} | set(kernel.fixed)
    sizes = {letter: data.draw(st.integers(1, 3000), letter) for letter in sorted(letters)}
    if "P" in sizes:
        sizes["P"] = data.draw(st.sampled_from([1, sizes["B"]]), "P")
    texts: dict[str, Any] = {name: Formula(name) for name in sizes} | {name: sizes[name] for name in kernel.fixed}
    for numbers, formulas_of in zip(launches(kernel, sizes), launches(kernel, texts), strict=True):
        assert numbers.constants == formulas_of.constants
        assert numbers.num_warps == formulas_of.num_warps
        for number, text in [
            *zip(numbers.grid, formulas_of.grid, strict=True),
            *zip(numbers.arguments.values(), formulas_of.arguments.values(), strict=True),
        ]:
            assert isinstance(number, int)
            assert eval(str(text), {"__builtins__": {}}, sizes) == number


@each_kernel
@given(data=st.data())
def test_a_grid_has_a_program_for_everything_and_none_for_nothing(kernel: Kernel, data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 3000))
    heads, size = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 64)) * 2
    sizes = {"B": batch, "S": length, "H": heads, "D": size, "E": heads * size, "P": 1}
    for launch in launches(kernel, sizes):
        tile = launch.constants
        assert (launch.grid[0] - 1) * tile["ROWS"] < batch * length <= launch.grid[0] * tile["ROWS"]
        if "HEADS" in tile:
            assert (launch.grid[1] - 1) * tile["HEADS"] < heads <= launch.grid[1] * tile["HEADS"]
        else:
            assert launch.grid[1] == 1
            assert tile["BLOCK_E"] >= tile["E"] == heads * size
        assert launch.grid[2] == 1
        assert launch.num_warps in (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize("name", ["InterleavedRotary", "QKVRotary"])
@pytest.mark.parametrize(("tables", "stride"), [(1, 0), (3, 7)])
def test_one_table_of_angles_is_for_all_rows_of_the_batch(name: str, tables: int, stride: int) -> None:
    for launch in launches(kernels()[name], {"B": 3, "S": 7, "H": 5, "D": 6, "P": tables}):
        assert launch.arguments == {"rows": 21, "length": 7, "angle_stride": stride}


@each_kernel
def test_a_kernel_takes_inputs_arguments_and_outputs_in_order_and_then_constants(kernel: Kernel) -> None:
    """What a variant of the op lacks, of its sister's, is a constant: None."""
    contract = kernel.contract
    assert OPS[contract.op_type].contract is contract
    names = list(kernel.function.arg_names)
    sizes = {"B": 3, "S": 7, "H": 5, "D": 6, "E": 30, "P": 1}
    for launch in launches(kernel, sizes):
        assert tuple(launch.arguments) == kernel.arguments
    for outputs in contract.variants:
        attributes = {spec.name: ATTRIBUTES[spec.name] for spec in contract.attributes}
        launch = kernel.launch(Request(sizes, attributes, outputs, kernel.tactics[0]))
        passed = [*(spec.name for spec in contract.inputs), *kernel.arguments, *outputs]
        assert [name for name in names if name in passed] == passed
        assert sorted(passed + list(launch.constants)) == sorted(names)
        annotated = [name for name in names if name in launch.constants and launch.constants[name] is not None]
        assert names[-len(annotated) :] == annotated


@each_kernel
def test_a_kernel_has_tactics_and_what_is_fixed_are_letters_of_its_contract(kernel: Kernel) -> None:
    letters = {letter for spec in kernel.contract.outputs for letter in spec.shape}
    assert kernel.tactics
    assert len(set(kernel.tactics)) == len(kernel.tactics)
    assert set(kernel.fixed) <= letters
