"""Settings of the site: `make docs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
# What the cells of pages see: this clone's calogen, `desk.py`, and one thread.
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
os.environ["OMP_NUM_THREADS"] = "1"

import calogen  # noqa: E402

project = "calogen"
author = project_copyright = "the calogen authors"
version = release = calogen.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "kernels", "made"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 900  # seconds a cell: the first one of a new clone compiles, on a busy machine for minutes
nb_merge_streams = True
suppress_warnings = ["myst.header"]  # cards and the changelog have titles of their own levels

autodoc_typehints = "none"  # signatures say them
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False

html_theme = "furo"
html_title = "calogen"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"
