"""The kernels of an engine, read from the detailed log of its build: no GPU is needed, and nothing has to be run.

    log = [...]  # every message of a VERBOSE logger, from parsing on; DETAILED verbosity
    schedule = read_schedule(log, sizes={"batch": 1, "sequence": 128})
    estimate(schedule, bandwidth=1.0e12, fp16_peak=165e12, fp32_peak=83e12, int8_peak=330e12).estimated_seconds

Three passages of the log are read. ``Layers:`` lists the kernels with their tensors, dtypes and the ONNX nodes that
each computes; axes that vary are -1 in it. ``GRAPH NODES`` gives the shapes of all nodes as formulas of the named axes,
from which those of the kernels' tensors follow: a tensor is what a node of the kernel that writes it makes, and what
those of the kernels that read it take. ``NODE [Op] inputs: …``, from the parser, is the graph: parts of the model are
found in it by what attention and feed-forward are, for names that an exporter chose say little.

Counted are the bytes that a kernel must move if each tensor is read once from and written once to device memory
(of a table of which rows are taken, those rows), and the operations of matrix products, 2 · batch · M · N · K each, so
4 · B · H · S · S · D for an attention. All other arithmetic is bound by its bytes and counts as none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import cycle, permutations
from typing import Literal, NamedTuple

from pydantic import BaseModel

from exporter.errors import CompileError

__all__ = [
    "Comparison",
    "Estimate",
    "Kernel",
    "KernelEstimate",
    "KernelTensor",
    "Product",
    "Row",
    "Schedule",
    "Step",
    "compare",
    "estimate",
    "read_schedule",
]

DTYPES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "FP8": "float8",
    "Int8": "int8",
    "UInt8": "uint8",
    "Int32": "int32",
    "Int64": "int64",
    "Bool": "bool",
}
BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8": 1,
    "int8": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}
# In the list of layers, but nothing that a GPU computes. Types that are not here are kernels, known or not.
NO_KERNELS = re.compile(r"shape_call|(de)?allocate|.*(host|wait|signal).*", re.IGNORECASE)
PRODUCTS = {"MatMul", "Gemm", "MatMulInteger"}
UNCOUNTED = {"CONVOLUTION", "DECONVOLUTION", "EINSUM", "ATTENTION_INPUT", "PLUGIN", "PLUGIN_V2", "PLUGIN_V3"}
TOTAL = "total"


class Axis(NamedTuple):
    """How long an axis is at the optimum, and at sizes that are large primes: by these, axes are told apart."""

    size: int
    probe: int

    @property
    def is_fixed(self) -> bool:
        return self.size == self.probe


View = tuple[int, ...]
Shape = tuple[Axis, ...]
PADDING = 16  # elements that a compiler may add to an axis
PRIMES = (10007, 20011, 30011, 40009, 50021, 60013, 70001, 80021)


class KernelTensor(BaseModel):
    """A tensor as a kernel sees it: another kernel may see the same memory by another shape.

    Attributes:
        dtype: By numpy's name; as in the log if that is new.
        format: The order of elements, in the log's words.
        shape: At the optimum of the profile; ``None`` if it does not follow from the log.
        bytes: What is moved: once where a kernel is given a tensor twice, 0 where the size is not known.
    """

    name: str
    dtype: str
    format: str
    shape: list[int] | None
    bytes: int


class Product(BaseModel):
    """A matrix product of the model, and how a kernel computes it: (batch, rows, depth) x (batch, depth, columns).

    Attributes:
        node: Of the ONNX graph.
        dtype: The widest of what the kernel multiplies: ``int8`` is a true product of integers, while int8 weights
            that meet half precision make ``float16``. ``""`` if the kernel's tensors do not tell.
    """

    node: str
    kernel: str
    part: str
    batch: int
    rows: int
    columns: int
    depth: int
    dtype: str

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.batch * self.rows * self.columns * self.depth


class Kernel(BaseModel):
    """One kernel.

    Attributes:
        type: As in the log.
        part: ``embeddings`` (all before the first layer, masks and angles too), ``layer 0 attention``,
            ``layer 0 feed-forward``, …, ``head``; ``""`` if not known. Norms and sums belong to the product before
            them. Layers count from 0, as in checkpoints.
        nodes: The ONNX nodes that it computes, wholly or in part.
        inputs: Of the engine or of other kernels.
        constants: Weights, and numbers that the compiler computed.
        products: The matrix products among the nodes.
    """

    name: str
    type: str
    part: str
    nodes: list[str]
    inputs: list[KernelTensor]
    constants: list[KernelTensor]
    outputs: list[KernelTensor]
    products: list[Product]
    stream: int

    @property
    def bytes_read(self) -> int:
        """From device memory."""
        return sum(tensor.bytes for tensor in (*self.inputs, *self.constants))

    @property
    def bytes_written(self) -> int:
        """To device memory."""
        return sum(tensor.bytes for tensor in self.outputs)

    @property
    def operations(self) -> int:
        """Of the matrix products."""
        return sum(product.operations for product in self.products)


class Step(BaseModel):
    """What the engine does between kernels: a wait for another stream, shapes computed on the host."""

    name: str
    type: str
    stream: int


class Schedule(BaseModel):
    """The kernels of an engine in the order in which they are launched.

    Attributes:
        steps: What is no kernel.
        unsized: Tensors whose shape does not follow from the log; their bytes are missing from the sums.
        uncounted: Nodes whose operations are not counted although they are no mere element-wise work: convolutions,
            einsums, plugins, and products that no kernel names.
    """

    kernels: list[Kernel]
    steps: list[Step]
    unsized: list[str]
    uncounted: list[str]

    @property
    def bytes_read(self) -> int:
        """Of all kernels."""
        return sum(kernel.bytes_read for kernel in self.kernels)

    @property
    def bytes_written(self) -> int:
        """Of all kernels."""
        return sum(kernel.bytes_written for kernel in self.kernels)

    @property
    def operations(self) -> int:
        """Of all matrix products."""
        return sum(kernel.operations for kernel in self.kernels)

    @property
    def waits(self) -> int:
        """How often a stream waits for another."""
        return sum("wait" in step.type.lower() for step in self.steps)

    @property
    def products(self) -> list[Product]:
        """Every matrix product of the model that a kernel computes, in order."""
        return [product for kernel in self.kernels for product in kernel.products]

    @property
    def parts(self) -> dict[str, list[Kernel]]:
        """The kernels by part, parts in order."""
        found: dict[str, list[Kernel]] = {}
        for kernel in self.kernels:
            found.setdefault(kernel.part, []).append(kernel)
        return dict(sorted(found.items(), key=lambda entry: _order_of(entry[0])))

    @property
    def kernels_per_layer(self) -> dict[int, int]:
        """How many kernels each layer has, by its number."""
        counts: dict[int, int] = {}
        for part, kernels in self.parts.items():
            if part.startswith("layer "):
                layer = int(part.split()[1])
                counts[layer] = counts.get(layer, 0) + len(kernels)
        return counts


class KernelEstimate(BaseModel):
    """The least time that a kernel can take, and by what."""

    name: str
    part: str
    estimated_seconds: float
    bound: Literal["bandwidth", "operations"]


class Estimate(BaseModel):
    """The least time that a schedule can take: an estimate, never a measurement.

    Waits, caches and kernels that do not reach the peaks are not in it, so that a real run takes longer; what it is
    good for is to set schedules of one model side by side.
    """

    estimated_seconds: float
    kernels: list[KernelEstimate]


class Row(BaseModel):
    """A part of the model in two schedules."""

    part: str
    kernels: tuple[int, int]
    bytes: tuple[int, int]
    operations: tuple[int, int]


class Comparison(BaseModel):
    """Two schedules side by side.

    Attributes:
        rows: The parts in order, those that are not known under ``""``; the last row, ``total``, is their sum.
        steps: How many steps that are no kernels each has.
        waits: How many of these are waits for another stream.
    """

    rows: list[Row]
    steps: tuple[int, int]
    waits: tuple[int, int]


def read_schedule(
    log_lines: Iterable[str],
    *,
    sizes: Mapping[str, int] | None = None,
    profile: int = 0,
    bound: Literal["opt", "max"] = "opt",
    fixed: Collection[str] = (),
) -> Schedule:
    """Reads the kernels of an engine, those of one of its profiles, from the log of its build.

    Args:
        log_lines: Every message of a logger of severity VERBOSE, whole, from before the model is parsed. It needs
            ``ProfilingVerbosity.DETAILED``. If several engines were built, the last one is read.
        sizes: The optimum of the profile by the names of the axes that vary: ``{"batch": 1, "sequence": 128}``. The
            axis ``past + sequence`` follows from its terms.
        profile: Its number; each has kernels of its own.
        bound: Whether ``sizes`` are the optimum or the maximum; the log has the shapes of the inputs at both.
        fixed: The axes that have one size in this profile: to its kernels they do not vary.

    Raises:
        CompileError: If the log has no detailed list of kernels, it has another form, or a size is missing.
    """
    log = _read_log(log_lines, sizes or {}, profile, bound, fixed)
    ranks, layers = _parts(log)
    doers = _kernels_of_products(log)
    shapes = _shapes(log, doers)
    kernels: list[Kernel] = []
    steps = []
    part_of_tensor: dict[str, str] = {}
    for layer in log.layers:
        if NO_KERNELS.fullmatch(layer.type):
            steps.append(Step(name=layer.name, type=layer.type, stream=layer.stream))
            continue
        known = [ranks[node] for node in layer.nodes if node in ranks]
        copied = {part_of_tensor.get(use.name, "") for use in layer.inputs}  # by a kernel that the compiler put in
        part = _part_of(max(known), layers) if known else copied.pop() if len(copied) == 1 else ""
        part_of_tensor |= {use.name: part for use in layer.outputs}
        kernel = Kernel(
            name=layer.name,
            type=layer.type,
            part=part,
            nodes=layer.nodes,
            inputs=_tensors(log, layer, layer.inputs, shapes),
            constants=_tensors(log, layer, layer.constants, shapes),
            outputs=_tensors(log, layer, layer.outputs, shapes),
            products=[],
            stream=layer.stream,
        )
        products = [node for node in log.nodes if node.is_product and doers.get(node.name) == kernel.name]
        kernel.products.extend(_product(node, kernel) for node in products)
        kernels.append(kernel)
    tensors = [tensor for kernel in kernels for tensor in (*kernel.inputs, *kernel.constants, *kernel.outputs)]
    sized = {tensor.name for tensor in tensors if tensor.bytes}
    return Schedule(
        kernels=kernels,
        steps=steps,
        unsized=list(dict.fromkeys(tensor.name for tensor in tensors if tensor.name not in sized)),
        uncounted=[
            node.name
            for node in log.nodes
            if node.type in UNCOUNTED or (node.type == "MATRIX_MULTIPLY" and node.name not in doers)
        ],
    )


def estimate(
    schedule: Schedule,
    *,
    bandwidth: float,
    fp16_peak: float,
    fp32_peak: float,
    int8_peak: float,
    launch_seconds: float = 0.0,
) -> Estimate:
    """Estimates the least time of a schedule on a device: for every kernel, that of its bytes or of its operations.

    Args:
        bandwidth: Of the device memory, in bytes per second.
        fp16_peak, fp32_peak, int8_peak: Operations per second of dense products, an addition and a multiplication being
            two; float8 counts as int8.
        launch_seconds: What every kernel takes beside its work. Schedules of one model move nearly the same bytes, and
            differ by how many kernels they are: at 0, a plain roofline, that counts for nothing.
    """
    peaks = dict.fromkeys(("float16", "bfloat16"), fp16_peak) | dict.fromkeys(("int8", "uint8", "float8"), int8_peak)
    found = []
    for kernel in schedule.kernels:
        moving = (kernel.bytes_read + kernel.bytes_written) / bandwidth
        computing = sum(product.operations / peaks.get(product.dtype, fp32_peak) for product in kernel.products)
        found.append(
            KernelEstimate(
                name=kernel.name,
                part=kernel.part,
                estimated_seconds=launch_seconds + max(moving, computing),
                bound="operations" if computing > moving else "bandwidth",
            )
        )
    return Estimate(estimated_seconds=math.fsum(entry.estimated_seconds for entry in found), kernels=found)


def compare(first: Schedule, second: Schedule) -> Comparison:
    """Sets two schedules side by side, part by part."""
    both = first.parts, second.parts
    rows = [
        _row(part, both[0].get(part, []), both[1].get(part, []))
        for part in sorted({**both[0], **both[1]}, key=_order_of)
    ]
    return Comparison(
        rows=[*rows, _row(TOTAL, first.kernels, second.kernels)],
        steps=(len(first.steps), len(second.steps)),
        waits=(first.waits, second.waits),
    )


def _row(part: str, first: list[Kernel], second: list[Kernel]) -> Row:
    return Row(
        part=part,
        kernels=(len(first), len(second)),
        bytes=(_moved(first), _moved(second)),
        operations=(sum(kernel.operations for kernel in first), sum(kernel.operations for kernel in second)),
    )


def _moved(kernels: list[Kernel]) -> int:
    return sum(kernel.bytes_read + kernel.bytes_written for kernel in kernels)


# The log.


class Use(NamedTuple):
    """A tensor as a line of the log has it: axes that vary are -1."""

    name: str
    axes: View
    dtype: str
    format: str


class Layer(NamedTuple):
    """A line of the list of layers."""

    name: str
    type: str
    inputs: list[Use]
    constants: list[Use]
    outputs: list[Use]
    nodes: list[str]
    stream: int


class Node(NamedTuple):
    """A node of the network that was built, by the name of the ONNX node that it belongs to; shapes at the optimum."""

    type: str
    name: str
    inputs: list[Shape | None]
    outputs: list[Shape | None]

    @property
    def is_product(self) -> bool:
        shapes = (*self.inputs, *self.outputs)
        return self.type == "MATRIX_MULTIPLY" and all(shape is not None and len(shape) > 1 for shape in shapes)


class Parsed(NamedTuple):
    """A node as the ONNX parser read it, with the last axis of its first output."""

    op_type: str
    inputs: list[str]
    outputs: list[str]
    width: str


class Log(NamedTuple):
    """What is read from a log."""

    layers: list[Layer]
    nodes: list[Node]
    graph: dict[str, Parsed]
    inputs: dict[str, View]


def _read_log(
    log_lines: Iterable[str], sizes: Mapping[str, int], profile: int, bound: str, fixed: Collection[str]
) -> Log:
    listed = ""
    drawn: list[str] = []
    graph: dict[str, Parsed] = {}
    owners: dict[str, str] = {}
    for message in log_lines:
        if message.startswith("Layers:"):
            listed = message
        elif message == "GRAPH NODES":
            drawn = []
        elif found := re.fullmatch(r"(.+) \[(\w+)\] (inputs|outputs): (.*)", message.strip()):
            name, op_type, side, tensors = found.groups()
            names = re.findall(r"\[([^\[\]]+?) -> \(", tensors)
            if side == "inputs":
                graph[name] = Parsed(op_type, names, [], "")
            elif name in graph:
                width = re.search(r"([^(), ]+)\)", tensors)
                graph[name] = graph[name]._replace(outputs=names, width=width.group(1) if width else "")
        elif found := re.fullmatch(r"Registering layer: (.+) for ONNX node: (.+)", message):
            owners[found.group(1)] = found.group(2)
        elif re.match(r"[A-Z_0-9]+ \S|    (Input|Output) \d|        .*\t", message):
            drawn.append(message)
    if "LayerType: " not in listed:
        raise CompileError(
            "The build log has no detailed list of kernels: expected a message that begins with 'Layers:' and has "
            f"'LayerType', found {listed[:60]!r}. Build with ProfilingVerbosity.DETAILED and a logger of severity "
            "VERBOSE; TensorRT-RTX 1.7 writes it."
        )
    lines, _, rest = listed.partition("\n\n")
    inputs: dict[str, View] = {}
    for name, profiles in re.findall(r" Name: (.+?), IOMode: Input,(.*)", rest):
        if shapes := re.findall(rf"{bound.capitalize()}Shape: \[([\d,]*)\]", profiles):
            inputs[name] = tuple(int(size) for size in shapes[profile].split(",") if size)
    layers = [_layer(line) for line in _of_profile(lines.split("\n")[1:], profile) if line]
    return Log(layers, list(_nodes(drawn, owners, sizes, fixed)), graph, inputs)


def _of_profile(lines: list[str], profile: int) -> list[str]:
    """The layers of a profile. Those of one are numbered alike, and all but the first profile's name it here and there.

    ``Name: __myl_Fc_myl3_8, …`` belongs to profile 1 if any layer of ``myl3`` has a tensor ``… [profile 1]``, which is
    left out of the names: nodes and inputs of the model are called the same in every profile.
    """
    found = [(re.match(r"Name: .*?(_myl\d+)_\d+, LayerType: ", line), line) for line in lines]
    groups = [(match.group(1) if match else line, line) for match, line in found]
    named = [(group, re.search(r" \[profile (\d+)\]", line)) for group, line in groups]
    profiles = {group: int(match.group(1)) for group, match in named if match}
    own = [line for group, line in groups if profiles.get(group, 0) == profile]
    return [line.replace(f" [profile {profile}]", "") for line in own]


def _layer(line: str) -> Layer:
    head = re.match(r"Name: (.*?), LayerType: (.*?), ", line)
    stream = re.search(r", StreamId: (\d+)", line)
    metadata = line.rpartition(", Metadata: ")[2] if ", Metadata: " in line else ""
    if head is None or stream is None:
        raise CompileError(
            f"The build log has a layer of another form: {line[:200]!r}; expected 'Name: …, LayerType: …, Inputs: […], "
            "Outputs: […], …, StreamId: …, Metadata: …', as TensorRT-RTX 1.7 writes it."
        )
    return Layer(
        head.group(1),
        head.group(2),
        list(_uses(line, "Inputs")),
        list(_uses(line, "Constants")),
        list(_uses(line, "Outputs")),
        re.findall(r"\[ONNX Layer: (.*?)\](?=\W?\[ONNX Layer: |\W*$)", metadata),
        int(stream.group(1)),
    )


def _uses(line: str, of: str) -> Iterator[Use]:
    """The tensors of a list in a line."""
    start = line.find(f", {of}: [")
    if start < 0:
        return
    start += len(of) + 4
    depth = 0
    for end in range(start, len(line)):
        depth += {"[": 1, "]": -1}.get(line[end], 0)
        if not depth:
            break
    for name, axes, dtype, order in re.findall(
        r"\{ Name: (.*?),(?: Location: \w+,)? Dimensions: \[(.*?)\],.*? Datatype: (\w+), Format: (.*?) \}",
        line[start : end + 1],
    ):
        yield Use(name, tuple(int(axis) for axis in axes.split(",") if axis), DTYPES.get(dtype, dtype), order)


def _nodes(
    drawn: list[str], owners: Mapping[str, str], sizes: Mapping[str, int], fixed: Collection[str]
) -> Iterator[Node]:
    """The nodes of the passage that lists each with its shapes, an axis to a line: its range, a tab, its formula."""
    found: list[tuple[str, str, dict[str, list[list[str]]]]] = []
    axes: list[str] = []
    for message in drawn:
        if message.startswith("        "):
            axes.append(message.split("\t", 1)[1])
            continue
        axes = []
        if not message.startswith("    "):
            node_type, _, name = message.partition(" ")
            found.append((node_type, name, {"Input": [], "Output": []}))
        elif found:
            found[-1][2][message.split()[0]].append(axes)
    probes = dict(zip((name for name in sizes if " + " not in name), cycle(PRIMES), strict=False))
    probes |= {name: sizes[name] for name in fixed if name in probes}
    for node_type, name, shapes in found:
        inputs, outputs = ([_shape(shape, sizes, probes) for shape in shapes[side]] for side in ("Input", "Output"))
        if node_type == "ATTENTION_INPUT" and all(inputs[:3]):
            yield from _products_of_attention(name.removesuffix("_AttentionInput"), inputs)
        elif node_type != "ATTENTION_OUTPUT":
            yield Node(node_type, owners.get(name, name), inputs, outputs)


def _products_of_attention(name: str, inputs: list[Shape | None]) -> Iterator[Node]:
    """The two products in the op ``Attention``: of q and k, transposed, and of their weights and v."""
    q, k, v = (shape or () for shape in inputs[:3])
    weights = (*q[:-1], k[-2])
    yield Node("MATRIX_MULTIPLY", name, [q, (*k[:-2], k[-1], k[-2])], [weights])
    yield Node("MATRIX_MULTIPLY", name, [weights, v], [(*q[:-1], v[-1])])


def _shape(formulas: list[str], sizes: Mapping[str, int], probes: Mapping[str, int]) -> Shape | None:
    """A shape; ``None`` if it is written in a way that is not known here."""
    try:
        return tuple(Axis(_evaluate(formula, sizes), _evaluate(formula, probes)) for formula in formulas)
    except (ArithmeticError, IndexError, NotImplementedError):
        return None


def _evaluate(formula: str, sizes: Mapping[str, int]) -> int:
    """A number, the name of an axis, or ``(* 4 E0) where E0=(+ past sequence)``.

    Raises:
        CompileError: If an axis is not in ``sizes``.
        NotImplementedError: If there is another operator in it.
    """
    known = dict(sizes)
    body, _, definitions = formula.partition(" where ")
    for definition in reversed(re.split(r",\s*(?=E\d+=)", definitions) if definitions else []):
        name, _, value = definition.partition("=")
        known[name] = _evaluate(value, known)
    words = re.findall(r'"[^"]*"|[()]|[^\s()]+', body)
    value = _term(words, known)
    if words:
        raise NotImplementedError(formula)
    return value


def _term(words: list[str], sizes: Mapping[str, int]) -> int:
    """Takes one term off the front of the words."""
    word = words.pop(0)
    if word != "(":
        if re.fullmatch(r"-?\d+", word):
            return int(word)
        name = word.strip('"')
        if name in sizes:
            return sizes[name]
        terms = name.split(" + ")
        if len(terms) > 1 and all(term in sizes for term in terms):  # the axis past + sequence
            return sum(sizes[term] for term in terms)
        raise CompileError(
            f"The model has an axis {name!r}, which varies; its size is not among {dict(sizes)}. Give the optimum of "
            "the profile as sizes={...}, by the names of all axes."
        )
    operator = words.pop(0)
    if operator not in OPERATORS:
        raise NotImplementedError(operator)
    arguments = []
    while words[0] != ")":
        arguments.append(_term(words, sizes))
    words.pop(0)
    return OPERATORS[operator](arguments)


OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "*": math.prod,
    "+": sum,
    "-": lambda terms: terms[0] - sum(terms[1:]) if len(terms) > 1 else -terms[0],
    "/": lambda terms: terms[0] // terms[1],
    "FLOOR_DIV": lambda terms: terms[0] // terms[1],
    "CEIL_DIV": lambda terms: -(-terms[0] // terms[1]),
    "MAX": max,
    "MIN": min,
    "BROADCAST_SIZE": lambda terms: next((term for term in terms if term != 1), 1),
}


# Shapes: the list of layers has -1 for what varies.


def _shapes(log: Log, doers: Mapping[str, str]) -> dict[tuple[str, View], Shape]:
    """The shape of each view of a tensor that varies, as a node has it; those of which it does not follow are left out.

    Every kernel that makes or takes the tensor must have a node that makes or takes this shape. Where none agree, as
    with sums that a compiler splits or axes that it pads, a shape less its last axis will do, and then what those say
    that have this view: a kernel may take a part of what another makes.
    """
    found: dict[tuple[str, View], Shape] = {}
    for name, views in _sides(log, doers).items():
        every = [side for sides in views.values() for side in sides]
        shape = _agreed(views, every) or _agreed(views, _changed(views, every))
        for view, sides in views.items():
            own = shape or _agreed([view], sides) or _agreed([view], _changed([view], sides))
            if own is not None:
                found[name, view] = own
    return found


def _sides(log: Log, doers: Mapping[str, str]) -> dict[str, dict[View, list[list[Shape]]]]:
    """For each view of a tensor the shapes of which it may be one, by each kernel that has it."""
    of_node: dict[str, list[Node]] = {}
    for node in log.nodes:
        of_node.setdefault(node.name, []).append(node)
    makers = {tensor: name for name, parsed in log.graph.items() for tensor in parsed.outputs}
    sides: dict[str, dict[View, list[list[Shape]]]] = {}
    later = {layer.name for layer in log.layers}
    for layer in log.layers:
        later.discard(layer.name)  # a kernel that names a product of a later one prepares what that reads
        nodes = [node for name in layer.nodes for node in of_node.get(name, [])]
        made = [
            shape
            for node in nodes
            for shape in (node.inputs if doers.get(node.name, layer.name) in later else node.outputs)
            if shape is not None
        ]
        taken = [shape for node in nodes for shape in node.inputs if shape is not None]
        products = [node.outputs[0] or () for node in nodes if doers.get(node.name) == layer.name]
        if len({shape[:-1] for shape in products}) == 1 < len(products):  # of one tensor, which a compiler joins
            columns = sum(shape[-1].size for shape in products)
            made.append((*products[0][:-1], Axis(columns, columns)))
        for use in layer.inputs:
            sides.setdefault(use.name, {}).setdefault(use.axes, []).append(taken)
        for use in layer.outputs:
            own = [shape for node in of_node.get(makers.get(use.name, ""), []) for shape in node.outputs if shape]
            sides.setdefault(use.name, {}).setdefault(use.axes, []).append(own or made)
    return sides


def _agreed(views: Iterable[View], sides: list[list[Shape]]) -> Shape | None:
    """A shape that fits all views and is, but for its arrangement, the only one on all sides that have any such."""
    views = list(views)
    fitting = [[shape for shape in side if all(_fit(view, shape) is not None for view in views)] for side in sides]
    volumes = [{_volume(shape) for shape in side} for side in fitting if side]
    common = set.intersection(*volumes) if volumes else set()
    left = [shape for side in fitting for shape in side if _volume(shape) in common]
    for is_nearer in (_is_same, _joined):
        left = [shape for shape in left if any(is_nearer(view, shape) for view in views)] or left
    return left[0] if len({_volume(shape) for shape in left}) == 1 else None


def _changed(views: Iterable[View], sides: list[list[Shape]]) -> list[list[Shape]]:
    """Shapes whose last axis a compiler has reduced to 1 or padded."""
    lasts = {view[-1] for view in views if view}
    return [
        [
            (*shape[:-1], Axis(last, last))
            for shape in side
            for last in lasts
            if shape and shape[-1].is_fixed and (last == 1 or 0 < last - shape[-1].size < PADDING)
        ]
        for side in sides
    ]


def _volume(shape: Shape) -> int:
    return math.prod(axis.probe for axis in shape)


def _is_same(view: View, shape: Shape) -> bool:
    return view == tuple(axis.size if axis.is_fixed else -1 for axis in shape)


def _fit(view: View, shape: Shape) -> Shape | None:
    """The axes of a view of a tensor: those of the tensor in any order, neighbours joined, the first rather."""
    axes = [axis for axis in shape if axis.probe != 1]
    if view[-1:] == (1,) and shape and shape[-1].is_fixed and shape[-1].probe != 1:
        return None  # a sum over the last axis, no view
    for order in permutations(axes) if len(axes) < 6 else [tuple(axes)]:
        if (found := _joined(view, order)) is not None:
            return found
    return None


def _joined(view: View, shape: Shape) -> Shape | None:
    """The axes of a view whose axes are those of a shape in order, neighbours joined."""
    if not view:
        return None if shape else ()
    for count in range(len(shape) + 1):
        rest, last = shape[: len(shape) - count], shape[len(shape) - count :]
        joined = Axis(math.prod(axis.size for axis in last), _volume(last))
        if view[-1] == (joined.size if joined.is_fixed else -1):
            found = _joined(view[:-1], rest)
            if found is not None:
                return (*found, joined)
    return None


def _tensors(log: Log, layer: Layer, uses: list[Use], shapes: Mapping[tuple[str, View], Shape]) -> list[KernelTensor]:
    """A list of a kernel's tensors. What it is given twice it moves once; of a tensor it may be given several parts."""
    found = []
    left: dict[str, int] = {}
    for use in uses:
        shape: View | None = use.axes
        known = [math.prod(_sizes(shape) or ()) for (name, _), shape in shapes.items() if name == use.name]
        if len(log.inputs.get(use.name, ())) == len(use.axes):
            shape = log.inputs[use.name]
        elif -1 in use.axes:
            shape = _sizes(_fit(use.axes, shapes[use.name, use.axes])) if (use.name, use.axes) in shapes else None
        whole = max(math.prod(shape) if shape is not None else 0, *known, 0)
        rows = [
            math.prod(_sizes(node.outputs[0]) or ())
            for node in log.nodes
            if use in layer.constants and node.name in layer.nodes and node.type in ("GATHER", "SLICE")
            if _sizes(node.inputs[0]) == use.axes
        ]
        count = whole if shape is None else math.prod(shape)
        moved = min(count, sum(rows) or count, left.setdefault(use.name, whole))
        left[use.name] -= moved
        found.append(
            KernelTensor(
                name=use.name,
                dtype=use.dtype,
                format=use.format,
                shape=None if shape is None else list(shape),
                bytes=moved * _width(use.dtype),
            )
        )
    return found


def _sizes(shape: Shape | None) -> View | None:
    return None if shape is None else tuple(axis.size for axis in shape)


# Products.


def _kernels_of_products(log: Log) -> dict[str, str]:
    """The kernel that computes each product: copies that prepare its operands name its node as well."""
    found: dict[str, str] = {}
    names = {node.name for node in log.nodes if node.is_product}
    for layer in sorted(log.layers, key=_is_product_kernel):  # the last one wins
        found |= {node: layer.name for node in layer.nodes if node in names}
    return found


def _is_product_kernel(layer: Layer) -> bool:
    return layer.type in ("gemm", "runtime_fusion") or "gemm" in layer.name


def _product(node: Node, kernel: Kernel) -> Product:
    left, right, made = (_sizes(shape) or () for shape in (*node.inputs[:2], node.outputs[0]))
    rows, columns = made[-2:]
    return Product(
        node=node.name,
        kernel=kernel.name,
        part=kernel.part,
        batch=math.prod(made[:-2]),
        rows=rows,
        columns=columns,
        depth=math.prod(left[-2:]) // rows,
        dtype=_dtype_of_product(kernel, left, right),
    )


def _dtype_of_product(kernel: Kernel, left: View, right: View) -> str:
    """The wider of its two operands. What is as large as one, but wider, is added to the product: a sum, a mask."""
    tensors = [(tensor.shape, tensor.dtype) for tensor in (*kernel.inputs, *kernel.constants) if tensor.shape]
    operands = []
    for operand in (left, right):
        found = {dtype for shape, dtype in tensors if math.prod(shape) == math.prod(operand)}
        if not found:  # made in the kernel, or part of a larger one
            found = {dtype for shape, dtype in tensors if len(shape) > 1 and 1 not in shape[-2:]}
        operands.append(min(found, key=_width, default=""))
    return max(operands, key=_width)


def _width(dtype: str) -> int:
    return BYTES.get(dtype, 0)


# Parts, by rank: 0 embeddings, 1 layer 0 attention, 2 layer 0 feed-forward, 3 layer 1 attention, …


def _part_of(rank: int, layers: int) -> str:
    if rank == 0:
        return "embeddings"
    if rank > 2 * layers:
        return "head"
    return f"layer {(rank - 1) // 2} {'attention' if rank % 2 else 'feed-forward'}"


def _order_of(part: str) -> tuple[int, int, str]:
    """Where a part stands among the others."""
    layer = int(part.split()[1]) if part.startswith("layer ") else 0
    return ["embeddings", "layer", "head", ""].index(part.partition(" ")[0]), layer, part


class Anchors(NamedTuple):
    """The products that make a model's parts.

    Attributes:
        sources: Of each product, those whose results reach it without passing another, in the order of the graph.
        cores: Where an attention's weights meet its values.
        latest: Of each node, the products that reach it so.
    """

    sources: dict[str, list[str]]
    cores: list[str]
    latest: dict[str, set[str]]


def _parts(log: Log) -> tuple[dict[str, int], int]:
    """The rank of every node's part, and the number of layers; nothing if the graph is no stack of transformer layers.

    An attention is what multiplies its weights with its values (its core), the products that feed that, and the one
    that reads it. A feed-forward is the two products that follow, back to the same width. Before the first attention
    are the embeddings, after the last feed-forward is the head. Every other node belongs to the last of the products
    that it depends on.
    """
    anchors = _anchors(log)
    feeding = {source for core in anchors.cores for source in anchors.sources[core]}
    weighted = [name for name in anchors.sources if name not in anchors.cores]
    free = [name for name in weighted if name not in feeding]
    ranks: dict[str, int] = {}
    layers, closed = 0, False
    for core in anchors.cores:
        readers = [name for name in weighted if anchors.sources[name] == [core]]
        ups = [name for name in free if readers and anchors.sources[name][-1:] == readers]
        downs = [name for name in free if ups and anchors.sources[name] == ups]
        ranks |= dict.fromkeys([*anchors.sources[core], core, *readers], 2 * layers + 1)
        closed = len(downs) == 1 and log.graph[downs[0]].width == log.graph[readers[0]].width
        if len(readers) != 1 or (ups and not closed):
            return {}, 0
        if closed:
            ranks |= dict.fromkeys(ups + downs, 2 * layers + 2)
            layers += 1
    for name in free:
        if name not in ranks:
            before = [ranks.get(source, -1) for source in anchors.sources[name]]
            ranks[name] = 2 * layers + 1 if max(before, default=0) >= 2 * layers else max(before, default=0)
    if not closed or not set(ranks.values()) <= set(range(2 * layers + 2)):
        return {}, 0
    return {
        name: max((ranks[product] for product in latest), default=0) for name, latest in anchors.latest.items()
    }, layers


def _anchors(log: Log) -> Anchors:
    varying = set(log.inputs)
    weights: set[str] = set()  # what comes from a softmax, and from no product since
    reach: dict[str, set[str]] = {}
    order: dict[str, int] = {}
    found = Anchors({}, [], {})
    for name, node in log.graph.items():
        factors = [tensor in varying for tensor in node.inputs[:2]]
        latest = set().union(*(reach.get(tensor, set()) for tensor in node.inputs))
        is_core = node.op_type == "Attention" or (
            all(factors) and node.op_type in PRODUCTS and weights & {*node.inputs}
        )
        if is_core or (node.op_type in PRODUCTS and any(factors) and not all(factors)):
            order[name] = len(order)
            found.sources[name] = sorted(latest, key=order.__getitem__)
            latest = {name}
            if is_core:
                found.cores.append(name)
        elif node.op_type == "Softmax" or weights & {*node.inputs}:
            weights |= {*node.outputs}
        if varying & {*node.inputs}:
            varying |= {*node.outputs}
        reach |= dict.fromkeys(node.outputs, latest)
        found.latest[name] = latest
    return found
