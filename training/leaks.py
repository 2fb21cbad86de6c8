"""The leak rule: no image that anybody scores on is ever learnt from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from runtime.errors import UserError

_BSD100 = """
101085 101087 102061 103070 105025 106024 108005 108070 108082 109053 119082 12084 123074 126007 130026
134035 14037 143090 145086 147091 148026 148089 156065 157055 159008 160068 16077 163085 167062 167083
170057 175032 175043 182053 189080 19021 196073 197017 208001 210088 21077 216081 219090 220075 223061
227092 229036 236037 24077 241004 241048 253027 253055 260058 271035 285079 291000 295087 296007 296059
299086 300091 302008 304034 304074 306005 3096 33039 351093 361010 37073 376043 38082 38092 385039 41033
41069 42012 42049 43074 45096 54082 55073 58060 62096 65033 66053 69015 69020 69040 76053 78004 8023 85048
86000 86016 86068 87046 89072 97033
"""
BSD100_IDS = frozenset(_BSD100.split())
"""BSDS ids of BSD100 (the test list of BSDS300)."""

BSDS_RELATED_IDS = frozenset({"302003", "108041", "160067"})
"""302003 is Set5's woman; the other two seem to show the animals of the test ids 108082 and 160068."""


def refuse_benchmarks(paths: Iterable[Path]) -> None:
    """Refuse known benchmark images by name.

    Raises:
        UserError: one of them is among ``paths``.
    """
    for path in paths:
        if path.stem.split("_")[0] in BSD100_IDS | BSDS_RELATED_IDS:
            raise UserError(f"{path} is a benchmark image or related to one and must not be learnt from; remove it.")
