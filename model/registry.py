"""Networks by name, and what a caller must know of each before building it.

Importing this module does not import torch: only ``create`` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Network:
    """Descriptor of one registered network.

    ``tiling`` is "exact" where a tile with ``receptive_radius`` LR pixels of context gives the same pixels as the
    whole image, and "approximate" where the network looks at all of it (a global mean, a pooled attention grid).
    """

    name: str
    scale: int
    builder: str
    """Where the class is: ``module:attribute``, called with ``scale`` and ``options``."""
    minimum_size: int
    """Smallest height and width of the LR input, in pixels."""
    tiling: Literal["exact", "approximate"]
    receptive_radius: int
    """LR pixels around a tile that can change it; the pooled branches of "approximate" networks left out."""
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    """File name of the released weights: under ``model/weights/`` if ours, else the name of a ``data`` asset."""
    dtype_note: str = ""
    """What a user of low precision must know."""


_GMIN_SOURCE = "GMIN (doi 10.1177/30504554261430601), reconstructed: the paper's block tables are not public"
_GMIN_ABLATIONS: dict[str, dict[str, Any]] = {
    "sau_none": {"sau": "none"},
    "sau_conv": {"sau": "conv"},
    "esdb": {"mixer": "esdb"},
    "mlka": {"mixer": "mlka"},
    "ffn": {"feed_forward": "ffn"},
    "glu_ffn": {"feed_forward": "glu_ffn"},
    "conv_ffn": {"feed_forward": "conv_ffn"},
    "residual": {"residual": True},
}
_MIXER_RADIUS = {"gmib": 11, "esdb": 4, "mlka": 19}
_FEED_FORWARD_RADIUS = {"egsfn": 4, "ffn": 0, "glu_ffn": 0, "conv_ffn": 1}


def _gmin(name: str, scale: int, *, modules: int = 7, weights: str | None = None, **options: Any) -> Network:
    module_radius = (
        _MIXER_RADIUS[options.get("mixer", "gmib")] + _FEED_FORWARD_RADIUS[options.get("feed_forward", "egsfn")]
    )
    return Network(
        name=name,
        scale=scale,
        builder="model.gmin:Gmin",
        options={"modules": modules, **options},
        minimum_size=1,
        tiling="approximate" if options.get("sau", "full") == "full" else "exact",
        receptive_radius=modules * module_radius + 11 + 2,  # modules, LKA, head and tail
        source=_GMIN_SOURCE,
        weights=weights,
    )


_NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        *(_gmin(f"gmin_x{s}", s, weights="gmin_x4.safetensors" if s == 4 else None) for s in (2, 3, 4)),
        *(_gmin(f"gmin_l_x{s}", s, modules=9) for s in (2, 3, 4)),
        *(_gmin(f"gmin_{label}_x{s}", s, **o) for label, o in _GMIN_ABLATIONS.items() for s in (2, 3, 4)),
    )
}


def names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_NETWORKS)


def describe(name: str) -> Network:
    """The descriptor of a registered network.

    Raises:
        UserError: no network has that name; the message lists the close ones.
    """
    if name not in _NETWORKS:
        import difflib

        close = difflib.get_close_matches(name, _NETWORKS, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"No network is called '{name}'.{hint} Known: {', '.join(names())}.")
    return _NETWORKS[name]


def create(name: str) -> nn.Module:
    """Build a registered network with fresh weights, in evaluation mode.

    Returns:
        A module from (N, 3, H, W) float32 RGB in [0, 1] to (N, 3, scale·H, scale·W), unclamped.

    Raises:
        UserError: no network has that name.
    """
    network = describe(name)
    module, attribute = network.builder.split(":")
    builder = getattr(importlib.import_module(module), attribute)
    built: nn.Module = builder(scale=network.scale, **network.options)
    return built.eval()
