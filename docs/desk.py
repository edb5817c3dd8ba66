"""Where the cells of a page run: a folder that looks like the clone. ``import desk`` is the first thing they do."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch

for name in ("data", "configs"):
    if not Path(name).exists():
        Path(name).symlink_to(Path(__file__).resolve().parents[1] / name)
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel|zmq|traitlets|matplotlib_inline")
torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 110, "figure.constrained_layout.use": True, "axes.grid": False, "font.size": 9})
