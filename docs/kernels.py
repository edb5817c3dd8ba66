"""A Sphinx extension: kernels of cells that start on a busy machine, too. None of this is a setting of myst-nb."""

from __future__ import annotations

from typing import Any

import nbclient.client
from jupyter_client.manager import AsyncKernelManager
from sphinx.application import Sphinx
from traitlets import Enum, Integer, Type


class Kernel(AsyncKernelManager):
    """Talks through files: a port that was free may be another program's when the kernel takes it."""

    transport = Enum(["tcp", "ipc"], default_value="ipc")


class Cells(nbclient.client.NotebookClient):
    """Waits longer for a kernel than a minute."""

    startup_timeout = Integer(300)  # seconds
    kernel_manager_class = Type(Kernel, klass=AsyncKernelManager)


def setup(_: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    nbclient.client.NotebookClient = Cells  # type: ignore[misc]
    return {"parallel_read_safe": True}
