"""OpenVINO IR files, read strictly and written anew: an engine then sees what was checked, and nothing else.

An ``.xml`` names layers, their ports and the edges between them; the weights lie in a ``.bin``, at offsets. The parser
is expat, as UTF-8 whatever the file says, without a document type, so without entities. Sizes that the file gives for
what flows between layers are left out: OpenVINO computes them itself, and a file may say anything.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from xml.parsers import expat

MAX_ELEMENTS = 400_000
"""Elements of the whole file: GMIN in 8 bits has 16,000."""
MAX_DEPTH = 32
VERSION = "11"
"""What OpenVINO has written since 2022.1."""

_NUMBER = re.compile(r"0|[1-9]\d{0,8}")
_NAME = re.compile(r"[A-Za-z_][\w.:-]{0,199}")
_DIMENSION = re.compile(r"\?|-1|\d{1,9}|\d{0,9}\.\.\d{0,9}")


class MalformedIrError(ValueError):
    """The text is no OpenVINO IR, or not a well-formed one. The message says where."""


@dataclass(slots=True)
class Element:
    """An XML element. Text is not kept: nothing that is needed stands in it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)

    def only(self, tag: str) -> Element | None:
        """The one child of that tag; None where there is none."""
        found = [child for child in self.children if child.tag == tag]
        if len(found) > 1:
            raise MalformedIrError(f"a <{self.tag}> holds more than one <{tag}>")
        return found[0] if found else None


@dataclass(frozen=True)
class IrLayer:
    """One operation. ``data`` are its attributes as text; ``inputs`` are (layer, port) that it reads, port by port."""

    number: int
    name: str
    kind: str
    version: str
    data: dict[str, str]
    inputs: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]
    notes: tuple[str, ...]
    """Names of what ``rt_info`` says about the layer and its ports."""

    def number_of(self, key: str) -> int:
        """An attribute that is one number, not negative."""
        return _number(self.data.get(key, ""), f"{key} of '{self.name[:80]}'")

    def numbers_of(self, key: str) -> tuple[int, ...]:
        """An attribute that is a list of numbers, any sign; () where it is missing."""
        text = self.data.get(key, "").strip()
        parts = [part.strip() for part in text.split(",")] if text else []
        if not all(re.fullmatch(r"-?\d{1,18}", part) for part in parts):
            raise MalformedIrError(f"{key} of '{self.name[:80]}' is no list of numbers")
        return tuple(map(int, parts))

    def shape(self) -> tuple[int | None, ...]:
        """The attribute ``shape``; None for what is left open."""
        text = self.data.get("shape", "").strip()
        parts = [part.strip() for part in text.split(",")] if text else []
        if not all(_DIMENSION.fullmatch(part) for part in parts):
            raise MalformedIrError(f"the shape of '{self.name[:80]}' is none")
        return tuple(int(part) if part.isdecimal() else None for part in parts)


@dataclass(frozen=True)
class IrFile:
    """A network: layers in an order in which each follows what it reads, the notes about all, and the text to load."""

    layers: tuple[IrLayer, ...]
    notes: tuple[str, ...]
    """Names of all elements below the network's own ``rt_info``."""
    xml: bytes


def read_ir(content: bytes) -> IrFile:
    """Read the ``.xml`` of a network.

    Raises:
        MalformedIrError: no IR of version 11, or not a well-formed one.
    """
    root = _parse(content)
    if root.tag != "net":
        raise MalformedIrError(f"its outermost element is <{root.tag[:40]}>, not <net>")
    if root.attributes.get("version") != VERSION:
        raise MalformedIrError(f"it is not of version {VERSION}; convert the network again with a newer ovc")
    _only_tags(root, "layers", "edges", "rt_info")
    layers, edges, notes = root.only("layers"), root.only("edges"), root.only("rt_info")
    if layers is None or edges is None:
        raise MalformedIrError("it has no layers, or no edges")
    _only_tags(layers, "layer")
    _only_tags(edges, "edge")
    read = [_layer(element) for element in layers.children]
    return IrFile(
        _in_order(read, _edges(edges)),
        tuple(_tags_below(notes)) if notes else (),
        b'<?xml version="1.0"?>\n' + _text(root).encode(),
    )


def _parse(content: bytes) -> Element:
    """The tree of elements, without text, and without ``dim``."""
    if content.count(b"<") - content.count(b"</") > MAX_ELEMENTS:  # before any of it is built, which takes seconds
        raise MalformedIrError(f"it has more than {MAX_ELEMENTS:,} elements")
    parser = expat.ParserCreate("utf-8")
    open_elements: list[Element] = []
    roots: list[Element] = []
    names: set[str] = set()

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(open_elements) >= MAX_DEPTH:
            raise MalformedIrError(f"its elements are nested deeper than {MAX_DEPTH}")
        for name in (tag, *attributes):
            if name not in names:
                if not _NAME.fullmatch(name):
                    raise MalformedIrError("an element or an attribute has an unusual name")
                names.add(name)
        element = Element(tag, attributes)
        if not open_elements:
            roots.append(element)
        elif tag != "dim":
            open_elements[-1].children.append(element)
        open_elements.append(element)

    def refuse(what: str) -> Callable[..., None]:
        def handler(*_: object) -> None:
            raise MalformedIrError(f"it holds {what}")

        return handler

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_elements.pop()
    parser.StartDoctypeDeclHandler = refuse("a document type (DTD)")
    parser.EntityDeclHandler = refuse("an entity")
    parser.ProcessingInstructionHandler = refuse("a processing instruction")
    try:
        parser.Parse(content.decode(), True)
    except UnicodeDecodeError as error:
        raise MalformedIrError("it is no text in UTF-8") from error
    except expat.ExpatError as error:
        raise MalformedIrError(f"it is no well-formed XML ({error})") from error
    return roots[0]


def _layer(element: Element) -> tuple[Element, IrLayer, tuple[int, ...]]:
    """The element, the layer without its inputs, and the input ports in order."""
    given = element.attributes
    _only_attributes(element, "id", "name", "type", "version", "output_names")
    _only_tags(element, "data", "input", "output", "rt_info")
    data, takes, gives = (element.only(tag) for tag in ("data", "input", "output"))
    notes = []
    ports: list[tuple[int, ...]] = []
    for side in (takes, gives):
        numbers = []
        for port in side.children if side else ():
            if port.tag != "port":
                raise MalformedIrError(f"a layer's <{side.tag if side else ''}> holds <{port.tag[:40]}>")
            _only_attributes(port, "id", "precision", "names")
            _only_tags(port, "rt_info")
            numbers.append(_number(port.attributes.get("id", ""), "the id of a port"))
            notes += _notes(port)
        ports.append(tuple(numbers))
    if len(set(ports[0] + ports[1])) != len(ports[0] + ports[1]):
        raise MalformedIrError("two ports of a layer have the same id")
    if data is not None and data.children:
        raise MalformedIrError("the attributes of a layer hold elements")
    layer = IrLayer(
        _number(given.get("id", ""), "the id of a layer"),
        given.get("name", ""),
        given.get("type", ""),
        given.get("version", ""),
        data.attributes if data else {},
        (),
        ports[1],
        tuple(notes + _notes(element)),
    )
    return element, layer, ports[0]


def _notes(element: Element) -> list[str]:
    notes = element.only("rt_info")
    names = []
    for note in notes.children if notes else ():
        if note.tag != "attribute" or note.children:
            raise MalformedIrError(f"the notes about a layer hold <{note.tag[:40]}>")
        names.append(note.attributes.get("name", ""))
    return names


def _edges(element: Element) -> dict[tuple[int, int], tuple[int, int]]:
    """From each input (layer, port) to the output that it reads."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for edge in element.children:
        _only_attributes(edge, "from-layer", "from-port", "to-layer", "to-port")
        if edge.children:
            raise MalformedIrError("an edge holds elements")
        ends = [
            _number(edge.attributes.get(key, ""), f"{key} of an edge")
            for key in ("from-layer", "from-port", "to-layer", "to-port")
        ]
        if (ends[2], ends[3]) in found:
            raise MalformedIrError(f"two edges end at port {ends[3]} of layer {ends[2]}")
        found[ends[2], ends[3]] = (ends[0], ends[1])
    return found


def _in_order(
    read: list[tuple[Element, IrLayer, tuple[int, ...]]], edges: dict[tuple[int, int], tuple[int, int]]
) -> tuple[IrLayer, ...]:
    """Layers with their inputs, each behind those that it reads."""
    outputs = {(layer.number, port) for _, layer, _ in read for port in layer.outputs}
    layers: dict[int, IrLayer] = {}
    used = 0
    for _, layer, ports in read:
        if layer.number in layers:
            raise MalformedIrError(f"two layers have the id {layer.number}")
        inputs = []
        for port in ports:
            source = edges.get((layer.number, port))
            if source is None or source not in outputs:
                raise MalformedIrError(f"nothing leads to port {port} of '{layer.name[:80]}'")
            inputs.append(source)
        used += len(inputs)
        layers[layer.number] = IrLayer(
            layer.number, layer.name, layer.kind, layer.version, layer.data, tuple(inputs), layer.outputs, layer.notes
        )
    if used != len(edges):
        raise MalformedIrError("an edge leads to a port that is not there")
    waiting = {number: len(layer.inputs) for number, layer in layers.items()}
    readers: dict[int, list[int]] = {}
    for layer in layers.values():
        for number, _ in layer.inputs:
            readers.setdefault(number, []).append(layer.number)
    ready = [number for number, count in waiting.items() if count == 0]
    ordered = []
    while ready:
        number = ready.pop()
        ordered.append(layers[number])
        for reader in readers.get(number, ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                ready.append(reader)
    if len(ordered) != len(layers):
        raise MalformedIrError("its layers read one another in a circle")
    return tuple(ordered)


def _only_tags(element: Element, *allowed: str) -> None:
    for child in element.children:
        if child.tag not in allowed:
            raise MalformedIrError(f"a <{element.tag}> holds <{child.tag[:40]}>")


def _only_attributes(element: Element, *allowed: str) -> None:
    for name in element.attributes:
        if name not in allowed:
            raise MalformedIrError(f"a <{element.tag}> has the attribute '{name[:40]}'")


def _tags_below(element: Element) -> list[str]:
    return [tag for child in element.children for tag in (child.tag, *_tags_below(child))]


def _number(text: str, what: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise MalformedIrError(f"{what} is {text[:40]!r}, no number")
    return int(text)


def _text(element: Element) -> str:
    """The element as XML; breaks inside of attributes are kept by their numbers."""
    parts: list[str] = []

    def write(one: Element) -> None:
        given = "".join(f' {name}="{_escaped(value)}"' for name, value in one.attributes.items())
        if not one.children:
            parts.append(f"<{one.tag}{given}/>")
            return
        parts.append(f"<{one.tag}{given}>")
        for child in one.children:
            write(child)
        parts.append(f"</{one.tag}>")

    write(element)
    return "".join(parts)


def _escaped(value: str) -> str:
    text = html.escape(value, quote=True)
    for character in "\t\n\r":
        text = text.replace(character, f"&#{ord(character)};")
    return text


def elements(shape: tuple[int | None, ...]) -> int:
    """Number of elements of a shape that leaves nothing open.

    Raises:
        MalformedIrError: it leaves something open.
    """
    if any(size is None for size in shape):
        raise MalformedIrError("a constant leaves its size open")
    return math.prod(size for size in shape if size is not None)
