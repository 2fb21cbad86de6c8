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
    """LR pixels around a tile that can change it; the pooled branches of "approximate" networks left out.

    HNCT's holds for tiles that begin at multiples of 8, where its windows begin.
    """
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


def _published(
    family: str,
    builder: str,
    *,
    weights: Mapping[int, str | None],
    radius: int,
    source: str,
    minimum_size: int = 15,  # below it the spatial attention that most of them share has nothing to pool
    tiling: Literal["exact", "approximate"] = "approximate",
    dtype_note: str = "",
    **options: Any,
) -> list[Network]:
    """A network of others, at each scale of ``weights``."""
    return [
        Network(
            name=f"{family}_x{scale}",
            scale=scale,
            builder=builder,
            minimum_size=minimum_size,
            tiling=tiling,
            receptive_radius=radius,
            source=source,
            options=options,
            weights=file_name,
            dtype_note=dtype_note,
        )
        for scale, file_name in weights.items()
    ]


_LKDN_NOTE = (
    "The released weights overflow float16 (activations of 1e9 and more inside the attention): "
    "apply model.rescaling.rescale_lkdn before float16 or INT8, and keep pixel norm in float32."
)
_HNCT_SOURCE = "Fang et al., HNCT, CVPR Workshops 2022 (lhjthp/HNCT; no licence: bring the official x4.pt yourself)"
_SMFANET_SOURCE = "Zheng et al., SMFANet, ECCV 2024 (Zheng-MJ/SMFANet, Apache-2.0)"
_SMFANET_NOTE = "Keep the pixel normalisation (its 1e-12 vanishes in float16) and the frame variance in float32."

_NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        *(_gmin(f"gmin_x{s}", s, weights=f"gmin_x{s}.safetensors") for s in (2, 3, 4)),
        *(_gmin(f"gmin_l_x{s}", s, modules=9) for s in (2, 3, 4)),
        *(_gmin(f"gmin_{label}_x{s}", s, **o) for label, o in _GMIN_ABLATIONS.items() for s in (2, 3, 4)),
        *_published(
            "lkdn",
            "model.lkdn:Lkdn",
            weights={s: f"lkdn_x{s}.pth" for s in (2, 3, 4)},
            minimum_size=1,
            tiling="exact",
            radius=1 + 8 * (4 + 8) + 1 + 1,  # head; distillation and attention; fusion; tail
            source="Xie et al., LKDN, CVPR Workshops 2023 (stella-von/LKDN, MIT)",
            dtype_note=_LKDN_NOTE,
        ),
        *_published(
            "bsrn",
            "model.bsrn:Bsrn",
            weights={s: f"bsrn_x{s}.pth" for s in (2, 3, 4)},
            radius=1 + 8 * 4 + 1 + 1,
            source="Li et al., BSRN, CVPR Workshops 2022 (xiaom233/BSRN, MIT)",
            dtype_note="Keep the channel attention's mean and deviation over the frame in float32.",
        ),
        *_published(
            "hnct",
            "model.hnct:Hnct",
            weights={s: f"hnct_x{s}.pt" for s in (2, 3, 4)},
            radius=1 + (11 + 1) + 3 * (7 + 1) + 1 + 1,  # windows begin alike in all blocks: 11 pixels once, then 7
            source=_HNCT_SOURCE,
            dtype_note="Keep LayerNorm, softmax and the masked logits in float16 or better.",
        ),
        *_published(
            "rlfn",
            "model.rlfn:Rlfn",
            weights={2: None, 4: "rlfn_x4.pth"},
            radius=1 + 6 * 3 + 1 + 1,
            source="Kong et al., RLFN, CVPR Workshops 2022 (bytedance/RLFN, Apache-2.0)",
            dtype_note="Inside it works on [0, 255]: watch float16 accumulation.",
        ),
        *_published(
            "efdn",
            "model.efdn:Efdn",
            weights={4: "efdn_ntire2022_x4.pth"},
            radius=1 + 4 * 2 + 1,
            source="Wang, EFDN, CVPR Workshops 2022 (ofsoundof/NTIRE2022_ESR team01, MIT)",
            dtype_note="PReLU slopes are of either sign: its input must keep both.",
        ),
        *_published(
            "smfanet",
            "model.smfanet:Smfanet",
            weights={2: None, 3: None, 4: "smfanet_div2k_x4.pth"},
            minimum_size=8,
            radius=1 + 8 * 2 + 1,
            source=_SMFANET_SOURCE,
            dtype_note=_SMFANET_NOTE,
        ),
        *_published(
            "smfanet_plus",
            "model.smfanet:Smfanet",
            weights={2: None, 3: None, 4: "smfanet_plus_div2k_x4.pth"},
            minimum_size=8,
            radius=1 + 12 * 2 + 1,
            source=_SMFANET_SOURCE,
            dtype_note=_SMFANET_NOTE,
            width=48,
            blocks=12,
        ),
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
