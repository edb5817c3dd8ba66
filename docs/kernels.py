"""A Sphinx extension: kernels of cells may take long to start on a busy machine. myst-nb has no setting for it."""

from __future__ import annotations

from typing import Any

import nbclient.client
from sphinx.application import Sphinx
from traitlets import Integer


class Cells(nbclient.client.NotebookClient):
    """Waits longer for a kernel than a minute."""

    startup_timeout = Integer(300)  # seconds


def setup(_: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    nbclient.client.NotebookClient = Cells  # type: ignore[misc]
    return {"parallel_read_safe": True}
