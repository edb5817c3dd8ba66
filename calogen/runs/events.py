"""The log of a run as TensorBoard events (extra ``tensorboard``): every number of every record, by its step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import require

Record = dict[str, Any]
_AXES = ("step", "steps")
_JUDGED = ("score", "floor", "critic_gap", "loss_gap", "diversity", "validation_auc")  # of validations


class Events:
    """Writes records into a run folder, as they come.

    Args:
        folder: The run folder.
        resumed: Step that a resumed run goes on from: what a stopped session wrote beyond it is struck out.

    Raises:
        ConfigError: If tensorboard is not installed.
    """

    def __init__(self, folder: Path, resumed: int | None = None) -> None:
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resumed is None else resumed + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge)

    def write(self, record: Record) -> None:
        """Write the numbers of a record; notes and warnings become texts."""
        step = int(record["step"])
        for name, value in record.items():
            if name in _AXES:
                continue
            if isinstance(value, str):
                self._writer.add_text(name, value, step)
            elif isinstance(value, int | float) and math.isfinite(value):
                group = "validation" if name.removesuffix("_error") in _JUDGED else "training"
                self._writer.add_scalar(f"{group}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
