"""The hostile set: broken and malicious pictures, models, checkpoints and manifests, made here and not stored.

Every case names what must be refused. ``write_hostile_set`` writes them; the tests beside it feed them to the program.
Another kind is one more generator at the end and one more way to feed it in ``feed.py``.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

Kind = Literal["picture", "model", "checkpoint", "manifest"]


@dataclass(frozen=True)
class Case:
    """A file, what it pretends to be, and its path."""

    kind: Kind
    path: Path


def write_hostile_set(folder: Path) -> list[Case]:
    """Write every case into ``folder`` and list them."""
    cases = []
    sources: list[tuple[Kind, Iterator[tuple[str, bytes]]]] = [
        ("picture", _pictures()), ("model", _models()), ("model", _ir_models()), ("checkpoint", _checkpoints()),
        ("manifest", _manifests()),
    ]  # fmt: skip
    for kind, files in sources:
        for name, content in files:
            path = folder / name
            assert not path.exists(), name
            path.write_bytes(content)
            if path.suffix != ".bin":  # weights of the network beside, no case of their own
                cases.append(Case(kind, path))
    return cases


# Pictures


def _saved(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _tiff(entries: list[tuple[int, int, int, int]]) -> bytes:
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\x00" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 0) + bytes(64)


def _pictures() -> Iterator[tuple[str, bytes]]:
    yield "empty.png", b""
    yield "one_byte.png", b"\x89"
    yield "text.png", b"this is no picture, whatever its name says\n" * 20
    yield "zeros.jpg", bytes(5000)
    yield "elf.png", b"\x7fELF" + bytes(500)
    yield "script.svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    yield "gif.png", b"GIF89a" + bytes(100)
    yield "exr.png", b"v/1\x01" + bytes(100)
    yield "jp2.png", b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100)
    yield "hdr.png", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 99999 +X 99999\n"
    yield "pfm.png", b"PF\n99999 99999\n-1.0\n"
    yield "ppm.png", b"P6 99999 99999 255\n"
    yield "tga.png", bytes([0, 0, 2]) + bytes(9) + struct.pack("<HH", 65535, 65535) + b"\x20\x00"
    png, jpeg, webp, tiff, bmp = (_saved(kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"))
    for name, content in {"png": png, "jpg": jpeg, "webp": webp, "tif": tiff, "bmp": bmp}.items():
        yield f"only_signature.{name}", content[:12]
        yield f"header_only.{name}", content[:30]
    yield "half.png", png[: len(png) // 2]
    yield "half.webp", webp[: len(webp) // 2]
    yield "half.bmp", bmp[: len(bmp) // 2]
    huge = 2**31 - 1
    rows = zlib.compress(bytes(1000))
    yield "claims_2_31.png", _png(huge, huge, rows)
    yield "claims_one_row_2_31.png", _png(huge, 1, rows)
    yield "claims_zero.png", _png(0, 0, rows)
    yield "claims_60000.png", _png(60_000, 60_000, rows)
    yield "negative_size.png", _png(0xFFFFFFFF, 0xFFFFFFFF, rows)
    yield "bomb.png", _png(50_000, 50_000, zlib.compress(bytes(30_000_000), 9))
    yield "bomb_30000.png", _png(30_000, 30_000, zlib.compress(bytes(30_000_000), 9))
    yield "bomb_1_bit.png", _png(65_000, 65_000, zlib.compress(bytes(20_000_000), 9), depth=1, colour=0)
    yield "bad_depth.png", _png(8, 8, rows, depth=77)
    yield "bad_colour.png", _png(8, 8, rows, colour=9)
    yield "no_palette.png", _png(8, 8, zlib.compress(bytes(72)), colour=3)
    yield "no_zlib.png", _png(8, 8, b"no zlib stream at all")
    yield "chunk_too_long.png", b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR" + bytes(50)
    yield "second_chunk_4_gb.png", png[:33] + struct.pack(">I", 2**32 - 1) + png[37:]
    frame = jpeg.index(b"\xff\xc0")
    yield "claims_65535.jpg", jpeg[: frame + 5] + struct.pack(">HH", 65535, 65535) + jpeg[frame + 9 :]
    yield "zero_height.jpg", jpeg[: frame + 5] + struct.pack(">HH", 0, 0) + jpeg[frame + 9 :]
    yield "no_scan.jpg", jpeg[: frame + 4] + b"\xff\xd9"
    yield "riff_lies.webp", b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8 " + bytes(64)
    yield (
        "canvas_2_24.webp",
        (b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff" * 6),
    )
    yield "claims_2_31.bmp", bmp[:18] + struct.pack("<ii", huge, huge) + bmp[26:]
    yield "negative.bmp", bmp[:18] + struct.pack("<ii", -huge, -huge) + bmp[26:]
    sizes = [(256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1)]
    layout = [(258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (278, 4, 1, 2**31 - 1), (279, 4, 1, 64)]
    yield "claims_2_31.tif", _tiff(sizes + layout)
    yield "claims_60000.tif", _tiff([(256, 4, 1, 60_000), (257, 4, 1, 60_000), *layout])
    yield "no_size.tif", _tiff(layout)
    yield "directory_outside.tif", b"II*\x00" + struct.pack("<I", 2**32 - 2) + bytes(64)
    yield "directory_loop.tif", b"II*\x00" + struct.pack("<IHI", 8, 0, 8) + bytes(64)
    yield "many_entries.tif", b"II*\x00" + struct.pack("<IH", 8, 65535) + bytes(120)


# Models


def _value(name: str, shape: list[object] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or ["N", 3, "H", "W"])


def _model(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto] | None = None,
    *,
    shape: list[object] | None = None,
    domains: tuple[str, ...] = ("",),
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [_value("x", shape)], [_value("y")], constants or [])
    opsets = [helper.make_opsetid(domain, 17 if not domain else 1) for domain in domains]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    return model


def _constant(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _external(location: str) -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return _model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor]).SerializeToString()


def _models() -> Iterator[tuple[str, bytes]]:
    relu = helper.make_node("Relu", ["x"], ["y"])
    good = _model([relu]).SerializeToString()
    yield "empty.onnx", b""
    yield "text.onnx", b"just text, and no protocol buffer"
    yield "zeros.onnx", bytes(4096)
    yield "cut.onnx", good[:-5]
    yield "length_lies.onnx", b"\x3a\xff\xff\xff\xff\x7f" + good
    yield "endless_number.onnx", b"\x3a" + b"\xff" * 64
    yield "two_graphs.onnx", good + good
    yield "no_graph.onnx", b"\x08\x09"
    yield "million_fields.onnx", b"\x08\x00" * 4_000_000
    yield "external_passwd.onnx", _external("../../../../../../etc/passwd")
    yield "external_absolute.onnx", _external("/etc/passwd")
    yield "external_device.onnx", _external("/dev/zero")
    custom = helper.make_node("Backdoor", ["x"], ["y"], domain="evil")
    yield "custom_operator.onnx", _model([custom], domains=("", "evil")).SerializeToString()
    python = helper.make_node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib")
    yield "python_operator.onnx", _model([python], domains=("", "ai.onnx.contrib")).SerializeToString()
    contrib = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    yield "contrib_operator.onnx", _model([contrib], domains=("", "com.microsoft")).SerializeToString()
    body = helper.make_graph([relu], "body", [], [_value("y")])
    condition = numpy_helper.from_array(np.array(True), "c")
    branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    yield "sub_graph.onnx", _model([branch], [condition]).SerializeToString()
    yield "unknown_operator.onnx", _model([helper.make_node("Nonsense", ["x"], ["y"])]).SerializeToString()
    doubling = [helper.make_node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=1) for i in range(40)]
    doubling.insert(0, helper.make_node("Identity", ["x"], ["v0"]))
    doubling.append(helper.make_node("Identity", ["v40"], ["y"]))
    yield "doubling.onnx", _model(doubling).SerializeToString()
    scales = numpy_helper.from_array(np.array([1, 1, 10_000, 10_000], np.float32), "s")
    yield "resize_bomb.onnx", _model([helper.make_node("Resize", ["x", "", "s"], ["y"])], [scales]).SerializeToString()
    repeats = _constant("r", 1, 1, 50_000, 50_000)
    yield "tile_bomb.onnx", _model([helper.make_node("Tile", ["x", "r"], ["y"])], [repeats]).SerializeToString()
    shape = _constant("s", 1, 3, 10**6, 10**6)
    fill = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    yield "fill_bomb.onnx", _model(fill, [shape]).SerializeToString()
    expand = [helper.make_node("Expand", ["x", "s"], ["y"])]
    yield "expand_bomb.onnx", _model(expand, [shape]).SerializeToString()
    pads = _constant("p", 0, 0, 10**9, 10**9, 0, 0, 0, 0)
    yield "pad_bomb.onnx", _model([helper.make_node("Pad", ["x", "p"], ["y"])], [pads]).SerializeToString()
    ends = [_constant(name, value) for name, value in (("a", 0), ("b", 10**12), ("d", 1))]
    ends = [onnx.TensorProto(name=t.name, data_type=t.data_type, raw_data=t.raw_data) for t in ends]
    counting = [helper.make_node("Range", ["a", "b", "d"], ["c"]), helper.make_node("Cast", ["c"], ["f"], to=1)]
    yield "range_bomb.onnx", _model([*counting, helper.make_node("Add", ["x", "f"], ["y"])], ends).SerializeToString()
    many = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(25_000)]
    many[0].input[0], many[-1].output[0] = "x", "y"
    yield "too_many_nodes.onnx", _model(many).SerializeToString()
    lying = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40], raw_data=b"1234")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    yield "constant_lies.onnx", _model([add], [lying]).SerializeToString()
    short = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 1, 1], raw_data=b"1234")
    yield "constant_short.onnx", _model([add], [short]).SerializeToString()
    negative = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-1], raw_data=b"1234")
    yield "constant_negative.onnx", _model([add], [negative]).SerializeToString()
    strings = TensorProto(name="w", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"])
    yield "constant_text.onnx", _model([add], [strings]).SerializeToString()
    wide = helper.make_node("Conv", ["x", "w"], ["y"], pads=[20_000] * 4)
    kernel = numpy_helper.from_array(np.zeros((3, 3, 1, 1), np.float32), "w")
    yield "conv_pad_bomb.onnx", _model([wide], [kernel]).SerializeToString()
    yield "fixed_large_input.onnx", _model([relu], shape=[1, 3, 16_384, 16_384]).SerializeToString()
    yield "fixed_huge_input.onnx", _model([relu], shape=[1, 3, 10**6, 10**6]).SerializeToString()
    for key, value in (("scale", "four"), ("scale", "-4"), ("scale", "9" * 40), ("receptive_radius", "1e9")):
        stated = {"gmin.scale": "1", f"gmin.{key}": value}
        yield f"says_{key}_{value[:4]}.onnx", _model([relu], metadata=stated).SerializeToString()
    yield "lies_about_scale.onnx", _model([relu], metadata={"gmin.scale": "4"}).SerializeToString()
    cycle = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    yield "cycle.onnx", _model([*cycle, helper.make_node("Relu", ["b"], ["y"])]).SerializeToString()
    nothing = helper.make_node("GlobalAveragePool", [], ["y"])
    yield "reads_nothing.onnx", _model([nothing]).SerializeToString()
    yield "no_input.onnx", _model([helper.make_node("Relu", ["nowhere"], ["y"])]).SerializeToString()
    function = _model([relu])
    function.functions.add(name="f", domain="evil")
    yield "functions.onnx", function.SerializeToString()


# OpenVINO IR: a text and, where there are constants, the weights beside it

Layer = tuple[str, dict[str, object], list[int]]
"""Type, attributes and the layers that are read."""
_PICTURE: Layer = ("Parameter", {"shape": "?,3,?,?", "element_type": "f32"}, [])


def _layer(number: int, layer: Layer, inside: str = "") -> str:
    kind, attributes, reads = layer
    version = attributes.get("version", "opset1")
    data = " ".join(f'{key}="{value}"' for key, value in attributes.items() if key != "version")
    takes = "".join(f'<port id="{i}"/>' for i in range(len(reads)))
    gives = "" if kind == "Result" else f'<output><port id="{len(reads)}"/></output>'
    return (
        f'<layer id="{number}" name="{kind}_{number}" type="{kind}" version="{version}"><data {data}/>{inside}'
        f"<input>{takes}</input>{gives}</layer>"
    )


def _ir(
    *middle: Layer, before: str = "", version: str = "11", notes: str = "", inside: str = "", more: str = ""
) -> bytes:
    """A network of a picture, these layers, and the result of the last; ``inside`` goes into each of these layers."""
    layers = [_PICTURE, *middle, ("Result", {}, [len(middle)])]
    edges = [
        f'<edge from-layer="{source}" from-port="{len(layers[source][2]) if source < len(layers) else 0}" '
        f'to-layer="{number}" to-port="{port}"/>'
        for number, (_, _, reads) in enumerate(layers)
        for port, source in enumerate(reads)
    ]
    text = [_layer(n, layer, inside if 0 < n < len(layers) - 1 else "") for n, layer in enumerate(layers)]
    return (
        f'<?xml version="1.0"?>{before}<net name="n" version="{version}"><layers>{"".join(text)}{more}</layers>'
        f"<edges>{''.join(edges)}</edges><rt_info>{notes}</rt_info></net>"
    ).encode()


def _const(*shape: int, kind: str = "i64", bytes_each: int = 8, **changed: object) -> Layer:
    size = int(np.prod([float(n) for n in shape])) * bytes_each
    described = {"element_type": kind, "shape": ", ".join(map(str, shape)), "offset": 0, "size": size}
    return ("Const", {**described, **changed}, [])


def _with_weights(name: str, *middle: Layer, weights: bytes) -> Iterator[tuple[str, bytes]]:
    yield f"{name}.xml", _ir(*middle)
    yield f"{name}.bin", weights


def _ir_models() -> Iterator[tuple[str, bytes]]:
    relu: Layer = ("ReLU", {}, [0])
    good = _ir(relu)
    yield "empty.xml", b""
    yield "text.xml", b"just text, and no XML"
    yield "cut.xml", good[:-20]
    yield "page.xml", b"<html><script>alert(1)</script></html>"
    yield "utf16.xml", good.decode().encode("utf-16")
    laughs = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(12))
    laughing = _ir(relu, before=f'<!DOCTYPE net [<!ENTITY l0 "ha">{laughs}]>')
    yield "billion_laughs.xml", laughing.replace(b'"n"', b'"&l12;"')
    outside = '<!DOCTYPE net [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    yield "external_entity.xml", _ir(relu, before=outside, notes="<note>&e;</note>")
    yield "document_type.xml", _ir(relu, before='<!DOCTYPE net SYSTEM "http://127.0.0.1/evil.dtd">')
    yield "instruction.xml", _ir(relu, before='<?xml-stylesheet href="file:///etc/passwd"?>')
    yield "nested.xml", b'<net version="11">' + b"<layers>" * 200_000
    yield "million_elements.xml", b'<net version="11"><layers>' + b"<layer/>" * 1_000_000
    yield "old_version.xml", _ir(relu, version="10")
    yield "no_layers.xml", b'<net name="n" version="11"><layers/><edges/></net>'
    yield "unknown_operator.xml", _ir(("Nonsense", {}, [0]))
    yield "extension.xml", _ir(("Relu", {"version": "extension"}, [0]))
    yield "state.xml", _ir(("ReadValue", {"version": "opset6", "variable_id": "v"}, [0]))
    body = f"<body>{good.decode().partition('?>')[2]}</body>"
    yield "sub_graph.xml", _ir(("TensorIterator", {}, [0]), inside=body)
    yield "body_in_relu.xml", _ir(relu, inside=body)
    yield "blobs.xml", _ir(relu, inside='<blobs><weights offset="0" size="4"/></blobs>')
    yield "own_notes.xml", _ir(relu, notes='<__weights_path value="/etc/passwd"/>')
    cached = '<rt_info><attribute name="WeightlessCacheAttribute" version="0"/></rt_info>'
    yield "cache_note.xml", _ir(relu, inside=cached)
    yield "circle.xml", _ir(("Add", {}, [0, 2]), ("ReLU", {}, [1]))
    yield "nowhere.xml", _ir(("Add", {}, [0, 77]))
    yield "reads_nothing.xml", _ir(("ReLU", {}, []))
    yield "typeless_input.xml", good.replace(b'"f32"', b'"dynamic"')
    yield "same_id.xml", _ir(relu, more=_layer(1, relu))
    yield "two_inputs.xml", _ir(relu, more=_layer(9, _PICTURE))
    yield "number_lies.xml", good.replace(b'id="1"', b'id="0x1"')
    yield "negative_number.xml", good.replace(b'from-layer="0"', b'from-layer="-1"')
    yield "huge_number.xml", good.replace(b'to-port="0"', b'to-port="' + b"9" * 5000 + b'"')
    yield "huge_input.xml", good.replace(b"?,3,?,?", b"1,3,1000000,1000000")
    yield "large_input.xml", good.replace(b"?,3,?,?", b"1,3,16384,16384")
    add: Layer = ("Add", {}, [0, 1])
    weight = _const(3, 1, 1, kind="f32", bytes_each=4)
    yield "no_weights.xml", _ir(weight, add)
    outside_weights = _const(3, 1, 1, kind="f32", bytes_each=4, offset=999)
    yield from _with_weights("outside_weights", outside_weights, add, weights=bytes(99))
    yield from _with_weights("size_lies", _const(10**9 - 1, kind="f32", size=4), add, weights=bytes(4))
    yield from _with_weights("short_weight", _const(3, 1, 1, kind="f32", bytes_each=1), add, weights=bytes(99))
    yield from _with_weights("negative_offset", _const(1, kind="f32", bytes_each=4, offset=-4), add, weights=bytes(99))
    yield from _with_weights("text_weight", _const(1, kind="string", bytes_each=4), add, weights=bytes(99))
    elsewhere = _const(1, kind="f32", bytes_each=4, location="/etc/passwd")
    yield from _with_weights("weight_elsewhere", elsewhere, add, weights=bytes(99))
    doubling: list[Layer] = [("Concat", {"axis": 1}, [i, i]) for i in range(40)]
    yield "doubling.xml", _ir(*doubling)
    yield "conv_pads.xml", _ir(("MaxPool", {"pads_begin": "90000, 90000", "pads_end": "0, 0", "kernel": "1, 1"}, [0]))
    yield "space_to_depth.xml", _ir(("SpaceToDepth", {"block_size": 9999, "mode": "blocks_first"}, [0]))

    def numbers(*values: int) -> bytes:
        return np.array(values, "<i8").tobytes()

    large = numbers(1, 1, 50_000, 50_000)
    yield from _with_weights("tile", _const(4), ("Tile", {}, [0, 1]), weights=large)
    yield from _with_weights("broadcast", _const(4), ("Broadcast", {"mode": "numpy"}, [0, 1]), weights=large)
    pads: Layer = ("Pad", {"pad_mode": "edge"}, [0, 1, 1])
    yield from _with_weights("pad", _const(4), pads, weights=numbers(0, 0, 10**9, 10**9))
    target: Layer = ("Interpolate", {"version": "opset4", "mode": "nearest"}, [0, 1])
    yield from _with_weights("interpolate_sizes", _const(2), target, weights=numbers(10**6, 10**6))
    enlarged = _const(2, kind="f32", bytes_each=4)
    bigger = np.array([1e4, 1e4], "<f4").tobytes()
    yield from _with_weights("interpolate_scales", enlarged, target, weights=bigger)
    counting: list[Layer] = [_const(offset=0), _const(offset=8), _const(offset=16)]
    counting += [("Range", {"output_type": "f32", "version": "opset4"}, [1, 2, 3]), ("Add", {}, [0, 4])]
    yield from _with_weights("range", *counting, weights=numbers(0, 10**12, 1))


# Checkpoints


def _safetensors(header: dict[str, object] | bytes, data: bytes = b"", *, claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


class _Touch:
    """Runs a command when it is unpickled by a loader that allows it."""

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("touch /tmp/gmin-hostile-was-here",)


def _archive(pickled: bytes, *, padding: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        if padding:
            archive.writestr("archive/data/0", bytes(padding))
    return stream.getvalue()


def _checkpoints() -> Iterator[tuple[str, bytes]]:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    yield "empty.safetensors", b""
    yield "short.safetensors", b"\x01\x02"
    yield "header_2_63.safetensors", _safetensors({}, claimed=2**63 - 1)
    yield "header_longer_than_file.safetensors", _safetensors({"a": tensor}, bytes(8), claimed=10_000)
    yield "no_json.safetensors", _safetensors(b"{not json at all")
    yield "no_utf8.safetensors", _safetensors(b"\xff\xfe\xfd\xfc")
    yield "offsets_outside.safetensors", _safetensors({"a": {**tensor, "data_offsets": [0, 10**12]}}, bytes(8))
    yield "offsets_backwards.safetensors", _safetensors({"a": {**tensor, "data_offsets": [8, 0]}}, bytes(8))
    yield "offsets_overlap.safetensors", _safetensors({"a": tensor, "b": tensor}, bytes(8))
    yield "shape_overflows.safetensors", _safetensors({"a": {**tensor, "shape": [2**62, 4]}}, bytes(8))
    yield "unknown_type.safetensors", _safetensors({"a": {**tensor, "dtype": "F7"}}, bytes(8))
    yield "deep_json.safetensors", _safetensors(b'{"a":' * 100_000)
    yield "other_network.safetensors", _safetensors({"a": tensor}, bytes(8))
    yield "runs_code.pth", pickle.dumps({"weight": _Touch()})
    yield "runs_code_zip.pth", _archive(pickle.dumps({"weight": _Touch()}))
    yield "zip_bomb.pth", _archive(pickle.dumps({"weight": 1}), padding=50_000_000)
    yield "text.pth", b"no pickle"
    yield "empty_archive.pth", _archive(b"")


# Manifests of folder runs


def _manifests() -> Iterator[tuple[str, bytes]]:
    good = {
        "input": "a.png", "output": "a_x4.png", "input_sha256": "ab" * 32, "options_sha256": "cd" * 32,
        "output_sha256": "ef" * 32, "status": "done", "error": "",
    }  # fmt: skip

    def line(**changed: object) -> bytes:
        return json.dumps({**good, **changed}).encode() + b"\n"

    yield "cut_line.jsonl", line() + line()[:40] + b"\n" + line()
    yield "text.jsonl", b"this is no manifest\n"
    yield "zeros.jsonl", bytes(4096) + b"\n"
    yield "no_object.jsonl", b"[1, 2, 3]\n"
    yield "missing_field.jsonl", b'{"input": "a.png", "output": "a_x4.png"}\n'
    yield "extra_field.jsonl", line(command="rm -rf /")
    yield "numbers.jsonl", line(input=7)
    yield "unknown_status.jsonl", line(status="perhaps")
    yield "short_sum.jsonl", line(output_sha256="abc")
    yield "parent_output.jsonl", line(output="../../etc/passwd")
    yield "parent_inside.jsonl", line(output="a/../../b.png")
    yield "absolute_input.jsonl", line(input="/etc/passwd")
    yield "zero_in_path.jsonl", line(output="a\0.png")
    yield "no_utf8.jsonl", b'{"input": "\xff\xfe"}\n'
    yield "deep.jsonl", b'{"a":' * 100_000 + b"\n"
    yield "endless_number.jsonl", b'{"a":' + b"9" * 1_000_000 + b"}\n"
    yield "huge_line.jsonl", b'{"a": "' + b"x" * 40_000_000 + b'"}\n'
