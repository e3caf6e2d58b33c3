"""Generated spellings: whatever is right fuses, whatever is wrong does not, and either way the numbers stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, parser

from tests import on_models

Feeds = dict[str, NDArray[Any]]
Run = Callable[[ModelProto, Feeds], Feeds]
# The fixtures are functions without state.
generated = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(text: str, name: str, *, is_right: bool, run: Run, make_feeds: Callable[..., Feeds]) -> None:
    """Fuses once or not at all, and computes the same at sizes that were not observed."""
    plain = parser.parse_model(text)
    fused, reports = on_models.fuse(plain)
    report = next(report for report in reports if report.name == name)
    assert report.count == is_right, report.near_misses
    for seed, (batch, sequence) in enumerate([(1, 1), (4, 9)]):
        feeds = make_feeds(plain, seed=seed, batch=batch, sequence=sequence)
        if "is_seen" in feeds:  # one row in four may attend to nothing
            feeds["is_seen"] = np.indices(feeds["is_seen"].shape).sum(0) % 4 > 0
        expected, found = run(plain, feeds), run(fused, feeds)
        for output, array in expected.items():
            np.testing.assert_allclose(found[output], array, rtol=1e-5, atol=1e-5, err_msg=text)


# Rotations.

PICKED = {
    "slices": "even = Slice (x, zero, end, last, two)  odd = Slice (x, one, end, last, two)",
    "pairs": (
        "pairs_of = Reshape (x, to_pairs)  even_of, odd_of = Split <axis: int = -1, num_outputs: int = 2> (pairs_of)"
        "  even = Squeeze (even_of, last)  odd = Squeeze (odd_of, last)"
    ),
    "halves": "even, odd = Split <axis: int = -1, num_outputs: int = 2> (x)",
}
FIRST = {"minus": "first = Sub (ec, os)", "plus the negative": "no = Neg (os)  first = Add (ec, no)"}
SECOND = {"one way": "second = Add (oc, es)", "the other": "second = Add (es, oc)"}
JOINED = {
    "pairs": (
        "a = Unsqueeze (first, last)  b = Unsqueeze (second, last)  joined = Concat <axis: int = -1> (a, b)"
        "  shape = Shape (x)  y = Reshape (joined, shape)"
    ),
    "halves": "y = Concat <axis: int = -1> (first, second)",
}


@generated
@given(
    heads=st.integers(1, 4),
    pairs=st.integers(1, 4),
    halves=st.booleans(),
    picked=st.sampled_from(["slices", "pairs"]),
    first=st.sampled_from(list(FIRST)),
    second=st.sampled_from(list(SECOND)),
    wrong=st.sampled_from(["", "", "sign", "sin twice", "another second"]),
    commuted=st.booleans(),
)
def test_rotations(
    heads: int,
    pairs: int,
    halves: bool,
    picked: str,
    first: str,
    second: str,
    wrong: str,
    commuted: bool,
    run: Run,
    make_feeds: Callable[..., Feeds],
) -> None:
    c, s = ("c, even", "s, odd") if commuted else ("even, c", "odd, s")
    products = {"ec": f"Mul ({c})", "os": f"Mul ({s})", "oc": "Mul (odd, c)", "es": "Mul (even, s)"}
    if wrong == "sign":
        products["os"] = "Mul (odd, minus_s)"
        products["es"] = "Mul (even, minus_s)"
    elif wrong == "sin twice":
        products["oc"] = "Mul (odd, s)"
    elif wrong == "another second":
        products["es"] = "Mul (odd, s)"
    body = "  ".join(f"{name} = {product}" for name, product in products.items())
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    rotation (
        float[batch, {heads}, sequence, {2 * pairs}] x,
        float[1, sequence, {pairs}] cos, float[1, sequence, {pairs}] sin
    ) => (float[batch, {heads}, sequence, {2 * pairs}] y)
    <
        int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] last = {{-1}},
        int64[1] end = {{9223372036854775807}}, int64[5] to_pairs = {{0, 0, 0, {pairs}, 2}}
    >
    {{
        c = Unsqueeze (cos, one)
        s = Unsqueeze (sin, one)
        minus_s = Neg (s)
        {PICKED["halves" if halves else picked]}
        {body}
        {FIRST[first]}
        {SECOND[second]}
        {JOINED["halves" if halves else "pairs"]}
    }}
    """
    # Negated sines are sines as well; of two elements, the halves are the pair.
    is_right = wrong in ("", "sign") and (not halves or pairs == 1)
    check(text, "fuse_rotary", is_right=is_right, run=run, make_feeds=make_feeds)


# Attention.

SCALED = {
    "queries": ("qs = Mul (q, scale)", "ks = Identity (k)", "scaled = Identity (product)"),
    "keys": ("qs = Identity (q)", "ks = Div (k, divisor)", "scaled = Identity (product)"),
    "both": ("qs = Mul (q, root)", "ks = Mul (root, k)", "scaled = Identity (product)"),
    "scores": ("qs = Identity (q)", "ks = Identity (k)", "scaled = Mul (scale, product)"),
    "divided scores": ("qs = Identity (q)", "ks = Identity (k)", "scaled = Div (product, divisor)"),
    "nothing": ("qs = Identity (q)", "ks = Identity (k)", "scaled = Identity (product)"),
}
MASKED = {
    "none": "scores = Identity (scaled)",
    "added": "scores = Add (scaled, mask)",
    "added first": "scores = Add (mask, scaled)",
    "boolean": "scores = Where (is_seen, scaled, lost)",
    "boolean, the other way about": "is_hidden = Not (is_seen)  scores = Where (is_hidden, lowest, scaled)",
    "boolean, added": "bias = Where (is_seen, nothing, lost)  scores = Add (scaled, bias)",
    "causal": (
        "shape = Shape (q)  length = Gather (shape, two)  places = Range (first_place, length, step)"
        "  rows = Unsqueeze (places, second_axis)  visible = LessOrEqual (places, rows)"
        "  bias = Where (visible, nothing, lost)  scores = Add (scaled, bias)"
    ),
}
GUARDED = {
    False: "safe = Identity (weights)",
    True: "is_nothing = IsNaN (weights)  safe = Where (is_nothing, nothing, weights)",
}
SPOILED = {
    "": ("", ""),
    "axis": ("axis: int = -1", "axis: int = 2"),
    "capped": ("Softmax <axis: int = -1> (scores)", "Softmax <axis: int = -1> (capped)"),
    "powered": ("= MatMul (safe, v)", "= MatMul (squares, v)"),
}


@generated
@given(
    heads=st.integers(1, 3),
    size=st.integers(1, 5),
    scaled=st.sampled_from(list(SCALED)),
    masked=st.sampled_from(list(MASKED)),
    guarded=st.booleans(),
    places_first=st.booleans(),
    spoiled=st.sampled_from(["", "", "", "axis", "capped", "powered"]),
)
def test_attentions(
    heads: int,
    size: int,
    scaled: str,
    masked: str,
    guarded: bool,
    places_first: bool,
    spoiled: str,
    run: Run,
    make_feeds: Callable[..., Feeds],
) -> None:
    queries, keys, scores = SCALED[scaled]
    axes, perm = (f"sequence, {heads}", "0, 2, 3, 1") if places_first else (f"{heads}, sequence", "0, 1, 3, 2")
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    attention (
        float[batch, {heads}, sequence, {size}] q, float[batch, {axes}, {size}] k,
        float[batch, {heads}, sequence, {size}] v,
        float[batch, 1, 1, sequence] mask, bool[batch, 1, sequence, sequence] is_seen
    ) => (float[batch, {heads}, sequence, {size}] y)
    <
        float scale = {{{size**-0.5:.9}}}, float divisor = {{{size**0.5:.9}}}, float root = {{{size**-0.25:.9}}},
        float nothing = {{0}}, float lost = {{-inf}}, float lowest = {{-3.4028234e38}},
        int64 two = {{2}}, int64 first_place = {{0}}, int64 step = {{1}}, int64[1] second_axis = {{1}}
    >
    {{
        {queries}
        {keys}
        columns = Transpose <perm: ints = [{perm}]> (ks)
        product = MatMul (qs, columns)
        {scores}
        {MASKED[masked]}
        capped = Tanh (scores)
        weights = Softmax <axis: int = -1> (scores)
        {GUARDED[guarded]}
        squares = Mul (safe, safe)
        y = MatMul (safe, v)
    }}
    """.replace(*SPOILED[spoiled])
    check(text, "fuse_attention", is_right=not spoiled, run=run, make_feeds=make_feeds)


# Bias and GELU.

TANH = "cube = Mul (square, t)  small = Mul (cube, cubic)  inner = Add (t, small)  scaled = Mul (inner, slope)"
SPELLED = {
    "erf": "scaled = Div (t, root)  odd = Erf (scaled)",
    "erf of a product": "scaled = Mul (inverse, t)  odd = Erf (scaled)",
    "tanh": f"square = Mul (t, t)  {TANH}  odd = Tanh (scaled)",
    "tanh of a power": f"square = Pow (t, two)  {TANH}  odd = Tanh (scaled)",
}
WEIGHTED = {
    "half last": "sum = Add (odd, one)  product = Mul (t, sum)  y = Mul (product, half)",
    "half first": "half_t = Mul (half, t)  sum = Add (one, odd)  y = Mul (half_t, sum)",
    "half inside": "sum = Add (odd, one)  half_sum = Mul (sum, half)  y = Mul (half_sum, t)",
}


@generated
@given(
    spelled=st.sampled_from(list(SPELLED)),
    weighted=st.sampled_from(list(WEIGHTED)),
    bias_first=st.booleans(),
    changed=st.sampled_from(["", "", "cubic", "slope", "root", "inverse", "half", "one"]),
    factor=st.sampled_from([0.97, 1.02, 2.0]),
)
def test_gelus(
    spelled: str,
    weighted: str,
    bias_first: bool,
    changed: str,
    factor: float,
    run: Run,
    make_feeds: Callable[..., Feeds],
) -> None:
    values = {
        "cubic": 0.044715,
        "slope": (2 / np.pi) ** 0.5,
        "root": 2**0.5,
        "inverse": 0.5**0.5,
        "half": 0.5,
        "one": 1.0,
        "two": 2.0,
    }
    if changed:
        values[changed] *= factor
    constants = ", ".join(f"float {name} = {{{value:.9}}}" for name, value in values.items())
    body = f"{SPELLED[spelled]}  {WEIGHTED[weighted]}"
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    gelu (float[batch, sequence, 3] x) => (float[batch, sequence, 3] y)
    <float[3] bias = {{1, -0.5, 0}}, {constants}>
    {{ t = Add ({"bias, x" if bias_first else "x, bias"})  {body} }}
    """
    is_used = changed in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    check(text, "fuse_bias_gelu", is_right=not (changed and is_used), run=run, make_feeds=make_feeds)
