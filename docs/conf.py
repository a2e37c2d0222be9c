"""Sphinx: the documentation site; ``make docs`` builds it into ``site/``."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from sparseconv import SparseConv1d, __version__

project = "sparseconv"
version = release = __version__
language = "en-GB"

extensions = [
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
default_role = "code"  # docstrings may write `x` as well as ``x``
pygments_style, pygments_dark_style = "friendly", "github-dark"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Links to other projects' pages need their inventories, and so the network: `sphinx -t online`.
if tags.has("online"):  # type: ignore[name-defined]  # noqa: F821 (Sphinx defines it)
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }

# No font, script or style sheet comes from another server: the site works without a network.
html_theme = "furo"
html_title = f"sparseconv {release}"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_permalinks_icon = "#"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5f8a", "color-brand-content": "#0b5f8a"},
    "dark_css_variables": {"color-brand-primary": "#6cb8e6", "color-brand-content": "#6cb8e6"},
}


def show_directives(app: Any, page: str, source: list[str]) -> None:
    """Show what ``<!-- site`` hides from code hosts, which cannot render directives."""
    source[0] = re.sub(r"(?ms)^<!-- site\n(.*?)^-->$", r"\n\1", source[0])


def setup(app: Any) -> None:
    # Sphinx would show the arguments of the __new__ that the layer inherits.
    signature = inspect.signature(SparseConv1d)
    SparseConv1d.__signature__ = signature.replace(return_annotation=inspect.Signature.empty)
    app.connect("source-read", show_directives)
