"""Faults of the kinds seen in the field, planted into the nodes of a file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from poolexport.graph import module_path

Node, Model = onnx.NodeProto, onnx.ModelProto
#: Changes a node of a model in place; answers whether there was something to change.
Fault = Callable[[Model, Node], bool]


@dataclass(frozen=True)
class Planted:
    """A wrong file: its bytes, the module that is guilty, and the node."""

    content: bytes
    path: str
    node: str


def attribute(node: Node, name: str) -> onnx.AttributeProto | None:
    return next((each for each in node.attribute if each.name == name), None)


def put(node: Node, name: str, value: object) -> None:
    found = attribute(node, name)
    if found is not None:
        node.attribute.remove(found)
    node.attribute.append(helper.make_attribute(name, value))


def initializer(model: Model, name: str) -> onnx.TensorProto | None:
    return next((each for each in model.graph.initializer if each.name == name), None)


def weight(model: Model, node: Node, position: int, change: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Give one node a changed copy of a weight; others that share it keep theirs."""
    tensor = initializer(model, node.input[position]) if len(node.input) > position else None
    if tensor is None:
        return False
    old = numpy_helper.to_array(tensor)
    new = change(old.copy())
    if new.shape != old.shape or np.array_equal(new, old):
        return False
    name = f"{tensor.name}.{node.name}"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(new), name))
    node.input[position] = name
    return True


def after(model: Model, node: Node, *operators: tuple[str, Mapping[str, object]]) -> bool:
    """Put nodes behind the first output of a node."""
    name = node.output[0]
    position = list(model.graph.node).index(node)
    node.output[0] = f"{name}.0"
    for number, (operator, attributes) in enumerate(operators, 1):
        out = name if number == len(operators) else f"{name}.{number}"
        new = helper.make_node(operator, [f"{name}.{number - 1}"], [out], f"{node.name}.{number}", **attributes)
        new.metadata_props.extend(node.metadata_props)
        model.graph.node.insert(position + number, new)
    return True


def pads(model: Model, node: Node) -> bool:
    """All padding at the end."""
    found = attribute(node, "pads")
    if found is None or not any(found.ints):
        return False
    half = len(found.ints) // 2
    found.ints[:] = [0] * half + [a + b for a, b in zip(found.ints[:half], found.ints[half:])]
    return True


def include_pad(model: Model, node: Node) -> bool:
    found = attribute(node, "pads")
    if node.op_type != "AveragePool" or node.domain or found is None or not any(found.ints):
        return False
    counted = attribute(node, "count_include_pad")
    put(node, "count_include_pad", 0 if counted is not None and counted.i else 1)
    return True


def ceil_mode(model: Model, node: Node) -> bool:
    if node.op_type not in ("AveragePool", "MaxPool") or node.domain:
        return False
    found = attribute(node, "ceil_mode")
    put(node, "ceil_mode", 0 if found is not None and found.i else 1)
    return True


def epsilon(model: Model, node: Node) -> bool:
    """A variance of rounding size gets the epsilon of another layer."""
    if node.op_type != "BatchNormalization":
        return False
    put(node, "epsilon", 0.0)
    return True


def transposed(model: Model, node: Node) -> bool:
    """Weights of a square kernel, or of a square matrix, the other way round."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    return weight(model, node, 1, lambda w: w.swapaxes(-1, -2))


def one_bit(model: Model, node: Node) -> bool:
    def flip(w: np.ndarray) -> np.ndarray:
        largest = int(np.abs(w).argmax())
        w.view(np.uint32).flat[largest] ^= 1 << 21
        return w

    return node.op_type in ("Conv", "Gemm") and weight(model, node, 1, flip)


def scale(model: Model, node: Node) -> bool:
    return node.op_type in ("Conv", "Gemm", "BatchNormalization") and weight(
        model, node, 1, lambda w: w * w.dtype.type(1.001)
    )


def bias(model: Model, node: Node) -> bool:
    """The bias is gone."""
    position = 2 if node.op_type in ("Conv", "Gemm", "BatchNormalization") else 0
    return bool(position) and weight(model, node, position, np.zeros_like)


def axis(model: Model, node: Node) -> bool:
    """Softmax along another axis, channels in another order, or lengths swapped."""
    if node.op_type == "Softmax":
        found = attribute(node, "axis")
        put(node, "axis", 1 if found is None or found.i != 1 else 2)
        return True
    if node.op_type == "Concat" and len(node.input) > 1:
        names = list(node.input)[::-1]
        node.input[:] = names
        return True
    return False


def divisor(model: Model, node: Node) -> bool:
    """A mean is a sum."""
    if node.op_type != "ReduceMean":
        return False
    node.op_type = "ReduceSum"
    return True


def sign(model: Model, node: Node) -> bool:
    """What is added is subtracted, and the reverse; or negative values lose their sign."""
    if node.op_type in ("Add", "Sub") and initializer(model, node.input[1]) is None:
        node.op_type = "Sub" if node.op_type == "Add" else "Add"
        return True
    return node.op_type == "Conv" and after(model, node, ("Abs", {}))


def half(model: Model, node: Node) -> bool:
    """A cast too much."""
    kinds = ("Conv", "Gemm", "BatchNormalization", "AveragePool")
    return node.op_type in kinds and after(model, node, ("Cast", {"to": 10}), ("Cast", {"to": 1}))


def rectifier(model: Model, node: Node) -> bool:
    if node.op_type != "Relu":
        return False
    node.op_type = "LeakyRelu"
    return True


def body(model: Model, node: Node) -> bool:
    """Something in the body of the function that a node calls, in a copy of it that only this node calls."""
    changes = {"Exp": "Abs", "Max": "Min", "Div": "Mul", "ReduceMax": "ReduceMin", "Mul": "Add", "Sum": "Max"}
    return changed_body(
        model, node, lambda inner: inner.op_type in changes, lambda inner: to(inner, changes[inner.op_type])
    )


def stride(model: Model, node: Node) -> bool:
    """Twice as many cells are passed over; the answer has another shape, and what comes after may not run."""
    found = attribute(node, "strides")
    if node.op_type not in ("Conv", "MaxPool", "AveragePool") or node.domain or found is None:
        return False
    found.ints[:] = [2 if n == 1 else 1 for n in found.ints]
    return True


def rounding(model: Model, node: Node) -> bool:
    """Bins that are rounded to the nearest even number instead of down, in the body of a function."""
    return changed_body(model, node, lambda inner: inner.op_type in ("Floor", "Ceil"), lambda inner: to(inner, "Round"))


def off_by_one(model: Model, node: Node) -> bool:
    """A bin, or whatever a whole number in the body of a function stands for, begins one cell later."""

    def counts(inner: Node) -> bool:
        found = attribute(inner, "value_ints")
        return inner.op_type == "Constant" and found is not None and len(found.ints) == 1 and 0 < found.ints[0] < 9

    def later(inner: Node) -> None:
        found = attribute(inner, "value_ints")
        assert found is not None
        found.ints[0] += 1

    return changed_body(model, node, counts, later)


def other_epsilon(model: Model, node: Node) -> bool:
    """The epsilon that another framework takes where none is said."""
    if node.op_type != "BatchNormalization":
        return False
    put(node, "epsilon", 1e-3)
    return True


def lost_epsilon(model: Model, node: Node) -> bool:
    """A small number in the body of a function is 0."""

    def is_small(inner: Node) -> bool:
        found = attribute(inner, "value_float")
        return inner.op_type == "Constant" and found is not None and 0 < found.f < 1e-3

    return changed_body(model, node, is_small, lambda inner: put(inner, "value_float", 0.0))


def random(model: Model, node: Node) -> bool:
    """The answer of a layer is multiplied by numbers that are drawn at every run."""
    if node.op_type not in ("Conv", "Gemm"):
        return False
    name = node.output[0]
    node.output[0] = f"{name}.0"
    lot = {"low": 0.999, "high": 1.001}
    drawn = helper.make_node("RandomUniformLike", [f"{name}.0"], [f"{name}.1"], f"{node.name}.1", **lot)
    product = helper.make_node("Mul", [f"{name}.0", f"{name}.1"], [name], f"{node.name}.2")
    position = list(model.graph.node).index(node)
    for number, new in enumerate((drawn, product), 1):
        new.metadata_props.extend(node.metadata_props)
        model.graph.node.insert(position + number, new)
    return True


def other_pool(model: Model, node: Node) -> bool:
    """The largest cell instead of the mean of all, or the reverse."""
    swap = {"MaxPool": "AveragePool", "AveragePool": "MaxPool", "GlobalAveragePool": "GlobalMaxPool"}
    if node.domain or node.op_type not in swap or len(node.output) > 1:
        return False
    for name in ("count_include_pad", "storage_order", "dilations"):
        found = attribute(node, name)
        if found is not None:
            node.attribute.remove(found)
    return to(node, swap[node.op_type])


def to(node: Node, operator: str) -> bool:
    node.op_type = operator
    return True


def changed_body(model: Model, node: Node, fits: Callable[[Node], bool], change: Callable[[Node], object]) -> bool:
    """Change the last node that fits in the body of the function that a node calls, in a copy that only it calls."""
    found = next((f for f in model.functions if (f.domain, f.name) == (node.domain, node.op_type)), None)
    if found is None:
        return False
    own = copy.deepcopy(found)
    own.name = f"{found.name}{len(model.functions)}"
    for inner in reversed(own.node):
        if fits(inner):
            change(inner)
            model.functions.append(own)
            return to(node, own.name)
    return False


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        each.__name__: each
        for each in (
            pads,
            include_pad,
            ceil_mode,
            epsilon,
            transposed,
            one_bit,
            scale,
            bias,
            axis,
            divisor,
            sign,
            half,
            rectifier,
            body,
            stride,
        )
    }
)
MORE: tuple[Fault, ...] = (rounding, off_by_one, other_epsilon, lost_epsilon, random, other_pool)
#: Those, and more for the benchmark of the verifier, which has many networks to plant them in.
ALL_FAULTS: Mapping[str, Fault] = MappingProxyType({**FAULTS, **{each.__name__: each for each in MORE}})


def module_of(node: Node) -> str:
    """The module that a node says it is from."""
    said = {each.key: each.value for each in node.metadata_props}
    return module_path(ir.Node("", node.op_type, [], metadata_props=said))


def plant(content: bytes, fault: str, choose: int | str = 0) -> Planted | None:
    """The file with a fault in it; None where there is no place for it.

    Args:
        content: the file.
        fault: the name of one of ALL_FAULTS.
        choose: the number of the place among those that there are, counted from the end where it is negative; or the
            path of the module.
    """
    found = list(places(content, fault))
    if isinstance(choose, str):
        found = [(number, path) for number, path in found if path == choose]
        choose = 0
    if not -len(found) <= choose < len(found):
        return None
    number, path = found[choose]
    model = onnx.load_from_string(content)
    node = model.graph.node[number]
    name = node.name
    ALL_FAULTS[fault](model, node)
    return Planted(model.SerializeToString(), path, name)


def places(content: bytes, fault: str) -> Iterator[tuple[int, str]]:
    """Where there is something to change: numbers of nodes, and their modules."""
    model = onnx.load_from_string(content)
    for number, node in enumerate(model.graph.node):
        probe = copy.deepcopy(node)
        if ALL_FAULTS[fault](_Probe(model, probe), probe):
            yield number, module_of(node)


class _Probe:
    """A model that has one node, and takes changes that nobody sees."""

    def __init__(self, model: Model, node: Node) -> None:
        self.graph = _ProbeGraph(model, node)
        self.functions = list(model.functions)


class _ProbeGraph:
    def __init__(self, model: Model, node: Node) -> None:
        self.initializer = list(model.graph.initializer)
        self.node = [node]


def stripped(content: bytes) -> bytes:
    """The file without a word on modules: other names for all nodes and values, and no metadata."""
    model = ir.from_proto(onnx.load_from_string(content))
    ports = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for position, node in enumerate(model.graph):
        node.metadata_props.clear()
        node.name = f"n{position}"
        for number, value in enumerate(node.outputs):
            if value.name not in ports:
                value.name = f"v{position}_{number}"
    for position, value in enumerate(list(model.graph.initializers.values())):
        value.name = f"w{position}"
    return ir.to_proto(model).SerializeToString()
