"""What a checkpoint says about pooling, in the files that sentence-transformers writes.

modules.json             the steps from text to vector, in order: a transformer, a pooling, ...
1_Pooling/config.json    which tokens the pooling takes; its folder is named in modules.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhizome_engine.embedding.pooling import Pooling

_POOLING_FOLDER = "1_Pooling"
_MODES = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_lasttoken": Pooling.LAST_TOKEN,
    "pooling_mode_cls_token": Pooling.CLS,
}
_MODE_NAMES = {"mean": Pooling.MEAN, "lasttoken": Pooling.LAST_TOKEN, "cls": Pooling.CLS}
"""Newer files name one mode instead of having a flag for each."""
_UNDERSTOOD_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class PoolingRecommendation:
    """How a checkpoint wants to be pooled.

    Attributes:
        pooling: which tokens count; None where the checkpoint wants something that is not implemented.
        problem: what that is, for whoever asks without choosing.
    """

    pooling: Pooling | None = Pooling.MEAN
    problem: str = ""

    def choose(self) -> Pooling:
        """The pooling of somebody who chose none.

        Raises:
            ValueError: the checkpoint's is not implemented.
        """
        if self.pooling is None:
            text = f"the checkpoint's own pooling is not implemented ({self.problem})"
            raise ValueError(f"{text}; choose mean, last_token or cls")
        return self.pooling


def read_recommendation(checkpoint: Path) -> PoolingRecommendation:
    """Read a checkpoint's recommendation; the mean where it has none.

    Nothing here is an error: a checkpoint that wants what is not implemented still generates, and embeds for
    those who choose a pooling themselves.
    """
    try:
        folder = _POOLING_FOLDER
        if (checkpoint / "modules.json").exists():
            modules = json.loads((checkpoint / "modules.json").read_text(encoding="utf-8"))
            kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
            strange = [kind for kind in kinds if kind not in _UNDERSTOOD_MODULES]
            if strange:
                return PoolingRecommendation(None, f"its modules.json has a {strange[0]} module")
            folder = kinds.get("Pooling", folder)
        path = checkpoint / folder / "config.json"
        if not path.exists():
            return PoolingRecommendation()
        return _pooling_in(json.loads(path.read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return PoolingRecommendation(None, f"its sentence-transformers files are damaged ({error!r})")


def _pooling_in(config: dict[str, Any], folder: str) -> PoolingRecommendation:
    if isinstance(mode := config.get("pooling_mode"), str):
        found, known = [mode], _MODE_NAMES
    else:
        found = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        known = _MODES
    if len(found) == 1 and found[0] in known:
        return PoolingRecommendation(known[found[0]])
    return PoolingRecommendation(None, f"{folder}/config.json asks for {' and '.join(found) or 'no pooling'}")
