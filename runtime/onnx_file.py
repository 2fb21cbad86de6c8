"""The few fields of an ONNX file that the runtime must see and change, read without the onnx package.

An ``.onnx`` file is a protocol buffer: a sequence of (field number, wire type, value). This reader is strict: it takes
the wire types that ONNX uses where ONNX uses them, and anything else is ``MalformedError``. Weights are never copied: a
tensor is a view into the file's bytes. Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FEW = 64
MAX_FIELDS = 400_000
"""Fields that a file may have at the levels read here: GMIN has 4,000."""

ITEM_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16,
             21: 4, 22: 4}  # fmt: skip
"""Bits of one element by ``TensorProto.DataType``, for the types that networks here may have."""


class MalformedError(ValueError):
    """The bytes are no ONNX file, or not a well-formed one. The message says where."""


@dataclass(frozen=True)
class Tensor:
    """A constant: its shape, type and bytes. ``external`` says that the bytes are in another file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    raw: memoryview
    typed_bytes: int
    """Bytes of the typed fields (``float_data`` and so on), which small constants use instead of ``raw``."""
    integers: tuple[int, ...]
    external: bool
    floats: tuple[float, ...] = ()
    """The first of ``float_data``, where FLOAT values are kept there."""

    def values(self) -> tuple[int, ...]:
        """The integers of an INT32 or INT64 constant; empty for other types."""
        if self.kind not in (6, 7):
            return ()
        if self.integers:
            return self.integers
        code, size = ("i", 4) if self.kind == 6 else ("q", 8)
        return struct.unpack(f"<{len(self.raw) // size}{code}", self.raw[: len(self.raw) // size * size])


@dataclass(frozen=True)
class Attribute:
    """An attribute of a node. Of ``strings`` only the presence matters here."""

    name: str
    integer: int
    integers: tuple[int, ...]
    tensor: Tensor | None
    graph: bool
    """Whether it holds a graph of its own."""
    raw: memoryview
    floats: tuple[float, ...] = ()
    sparse: bool = False
    """Whether it holds a sparse tensor."""


@dataclass(frozen=True)
class Node:
    """One operation. ``raw`` is the serialised node."""

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]
    raw: memoryview


@dataclass(frozen=True)
class Value:
    """An input, an output or an inner value with its declared shape (None: not declared, or by name)."""

    name: str
    kind: int
    shape: tuple[int | None, ...] | None
    raw: memoryview


@dataclass(frozen=True)
class OnnxFile:
    """What the runtime sees of a model."""

    content: memoryview
    opsets: tuple[tuple[str, int], ...]
    functions: int
    metadata: dict[str, str]
    nodes: tuple[Node, ...]
    constants: dict[str, Tensor]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    inner: dict[str, Value]
    sparse: int


def read_onnx(content: bytes | memoryview) -> OnnxFile:
    """Read the structure of a model.

    Raises:
        MalformedError: not a well-formed ONNX file.
    """
    view, reader = memoryview(content), _Reader()
    opsets, metadata, functions, graphs = [], {}, 0, []
    for number, _, value in reader.fields(view, "the model"):
        if number == 7:
            graphs.append(_bytes(value, "graph"))
        elif number == 8:
            opsets.append(reader.opset(_bytes(value, "opset")))
        elif number == 14:
            pair = {n: _text(v, "metadata") for n, _, v in reader.fields(_bytes(value, "metadata"), "metadata")}
            metadata[pair.get(1, "")] = pair.get(2, "")
        elif number == 25:
            functions += 1
    if len(graphs) != 1:
        raise MalformedError("it holds no graph" if not graphs else "it holds more than one graph")
    nodes, constants, inputs, outputs, inner, sparse = [], {}, [], [], {}, 0
    for number, _, value in reader.fields(graphs[0], "the graph"):
        if number == 1:
            nodes.append(reader.node(_bytes(value, "node")))
        elif number == 5:
            tensor = reader.tensor(_bytes(value, "tensor"))
            if tensor.name in constants:
                raise MalformedError(f"two constants are called '{tensor.name}'")
            constants[tensor.name] = tensor
        elif number == 11:
            inputs.append(reader.value(_bytes(value, "input")))
        elif number == 12:
            outputs.append(reader.value(_bytes(value, "output")))
        elif number == 13:
            declared = reader.value(_bytes(value, "value"))
            inner[declared.name] = declared
        elif number == 15:
            sparse += 1
    return OnnxFile(view, tuple(opsets), functions, metadata, tuple(nodes), constants, tuple(inputs), tuple(outputs),
                    inner, sparse)  # fmt: skip


def elements(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)


def field(number: int, payload: bytes | memoryview | str | int) -> bytes:
    """Serialise one field: an integer as a varint, anything else with its length."""
    if isinstance(payload, int):
        return _varint(number << 3 | VARINT) + _varint(payload)
    content = payload.encode() if isinstance(payload, str) else bytes(payload)
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def with_graph(file: OnnxFile, graph: bytes) -> bytes:
    """The model with another graph; its opsets, version and metadata stay."""
    parts = [raw for number, raw in _raw_fields(file.content) if number != 7]
    return b"".join([*parts, field(7, graph)])


def graph_tensors(file: OnnxFile, names: set[str]) -> list[bytes]:
    """The serialised constants of those names, as fields of a graph."""
    reader = _Reader()
    (graph,) = [value for number, _, value in reader.fields(file.content, "the model") if number == 7]
    found = []
    for number, _, value in reader.fields(_bytes(graph, "graph"), "the graph"):
        if number == 5 and reader.tensor(_bytes(value, "tensor")).name in names:
            found.append(field(5, _bytes(value, "tensor")))
    return found


class _Reader:
    """Reads messages and counts what it reads: a hostile file may hold a hundred million tiny fields."""

    def __init__(self) -> None:
        self.left = MAX_FIELDS

    def fields(self, view: memoryview, where: str) -> Iterator[tuple[int, int, int | memoryview]]:
        position, end = 0, len(view)
        while position < end:
            key, position = _read_varint(view, position, where)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise MalformedError(f"{where} has a field number 0")
            value: int | memoryview
            if wire == VARINT:
                value, position = _read_varint(view, position, where)
            elif wire == BYTES:
                length, position = _read_varint(view, position, where)
                if length > end - position:
                    raise MalformedError(f"{where} ends in the middle of a field")
                value = view[position : position + length]
                position += length
            elif wire in (FIXED32, FIXED64):
                size = 4 if wire == FIXED32 else 8
                if size > end - position:
                    raise MalformedError(f"{where} ends in the middle of a field")
                value = view[position : position + size]
                position += size
            else:
                raise MalformedError(f"{where} has a field of the unknown wire type {wire}")
            self.left -= 1
            if self.left < 0:
                raise MalformedError(f"it has more than {MAX_FIELDS:,} fields")
            yield number, wire, value

    def node(self, view: memoryview) -> Node:
        op, domain, inputs, outputs, attributes = "", "", [], [], {}
        for number, _, value in self.fields(view, "a node"):
            if number == 1:
                inputs.append(_text(value, "node input"))
            elif number == 2:
                outputs.append(_text(value, "node output"))
            elif number == 4:
                op = _text(value, "operator")
            elif number == 7:
                domain = _text(value, "domain")
            elif number == 5:
                attribute = self.attribute(_bytes(value, "attribute"))
                if attribute.name in attributes:  # a check and an engine might each take another one
                    raise MalformedError(f"a node has two attributes called '{attribute.name[:80]}'")
                attributes[attribute.name] = attribute
        return Node(op, domain, tuple(inputs), tuple(outputs), attributes, view)

    def attribute(self, view: memoryview) -> Attribute:
        name, integer, integers, tensor, graph = "", 0, [], None, False
        floats: list[float] = []
        sparse = False
        for number, wire, value in self.fields(view, "an attribute"):
            if number == 1:
                name = _text(value, "attribute name")
            elif number == 3:
                integer = _integer(value, "attribute")
            elif number in (2, 7):
                floats += _few_floats(value, "attribute")
            elif number == 8:
                integers += self.integers(wire, value)
            elif number in (22, 23):
                sparse = True
            elif number == 5:
                tensor = self.tensor(_bytes(value, "attribute"))
            elif number in (6, 11):
                graph = True
        return Attribute(name, integer, tuple(integers), tensor, graph, view, tuple(floats), sparse)

    def opset(self, view: memoryview) -> tuple[str, int]:
        domain, version = "", 0
        for number, _, value in self.fields(view, "an opset"):
            if number == 1:
                domain = _text(value, "opset")
            elif number == 2:
                version = _integer(value, "opset")
        return domain, version

    def value(self, view: memoryview) -> Value:
        name, kind, shape = "", 0, None
        for number, _, value in self.fields(view, "a value"):
            if number == 1:
                name = _text(value, "value name")
            elif number == 2:
                for inner, _, tensor in self.fields(_bytes(value, "type"), "a type"):
                    if inner == 1:
                        kind, shape = self.tensor_type(_bytes(tensor, "type"))
        return Value(name, kind, shape, view)

    def tensor_type(self, view: memoryview) -> tuple[int, tuple[int | None, ...] | None]:
        kind, shape = 0, None
        for number, _, value in self.fields(view, "a type"):
            if number == 1:
                kind = _integer(value, "element type")
            elif number == 2:
                shape = tuple(
                    next(
                        (
                            _integer(v, "dimension")
                            for n, _, v in self.fields(_bytes(dim, "dimension"), "a shape")
                            if n == 1
                        ),
                        None,
                    )
                    for inner, _, dim in self.fields(_bytes(value, "shape"), "a shape")
                    if inner == 1
                )
        return kind, shape

    def integers(self, wire: int, value: int | memoryview) -> list[int]:
        """Repeated integers, packed or not."""
        if wire == VARINT:
            return [_integer(value, "number")]
        view, found, position = _bytes(value, "numbers"), [], 0
        while position < len(view):
            number, position = _read_varint(view, position, "packed numbers")
            found.append(_signed(number))
        self.left -= len(found)
        return found

    def tensor(self, view: memoryview) -> Tensor:
        """Read a constant's description."""
        name, shape, kind, raw, typed, integers, external = "", [], 0, memoryview(b""), 0, [], False
        floats: list[float] = []
        for number, wire, value in self.fields(view, "a tensor"):
            if number == 1:
                shape += self.integers(wire, value)
            elif number == 2:
                kind = _integer(value, "tensor type")
            elif number in (5, 7):
                integers += self.integers(wire, value)
                typed = len(integers) * 8
            elif number in (4, 6, 10, 11):
                typed += len(value) if isinstance(value, memoryview) else 8
                if number == 4 and len(floats) < _FEW:
                    floats += _few_floats(value, "tensor data")
            elif number == 8:
                name = _text(value, "tensor name")
            elif number == 9:
                raw = _bytes(value, "tensor data")
            elif number == 13 or (number == 14 and value == 1):
                external = True
        if typed and len(raw):  # a check and an engine might each take the other one
            raise MalformedError(f"the constant '{name[:80]}' holds its values twice")
        return Tensor(name, tuple(shape), kind, raw, typed, tuple(integers), external, tuple(floats))


def _raw_fields(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Like ``_fields``, each field with its key and length, to be copied."""
    position = 0
    while position < len(view):
        start = position
        key, position = _read_varint(view, position, "the model")
        if key & 7 == BYTES:
            length, position = _read_varint(view, position, "the model")
            position += length
        elif key & 7 == VARINT:
            _, position = _read_varint(view, position, "the model")
        else:
            position += 4 if key & 7 == FIXED32 else 8
        yield key >> 3, view[start:position]


def _read_varint(view: memoryview, position: int, where: str) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(view):
            raise MalformedError(f"{where} ends in the middle of a number")
        byte = view[position]
        position += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result & (1 << 64) - 1, position
        shift += 7
        if shift > 63:
            raise MalformedError(f"{where} has a number of more than 64 bits")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    value &= (1 << 64) - 1
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _integer(value: int | memoryview, what: str) -> int:
    if not isinstance(value, int):
        raise MalformedError(f"a {what} is no number")
    return _signed(value)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _bytes(value: int | memoryview, what: str) -> memoryview:
    if not isinstance(value, memoryview):
        raise MalformedError(f"a {what} is no sequence of bytes")
    return value


def _few_floats(value: int | memoryview, what: str) -> tuple[float, ...]:
    """The first of floats that are packed, or one that is alone: sizes and scales are few."""
    view = _bytes(value, what)
    return struct.unpack(f"<{min(len(view) // 4, _FEW)}f", view[: min(len(view) // 4, _FEW) * 4])


def _text(value: int | memoryview, what: str) -> str:
    try:
        return bytes(_bytes(value, what)).decode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"a {what} is no text") from error
