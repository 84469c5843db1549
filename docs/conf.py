"""The documentation site: ``sphinx-build -W --keep-going -b html docs build/docs``. Needs no network."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from site_pages import linkcode_resolve  # noqa: E402, F401

from roomkit import __version__  # noqa: E402

project = "roomkit"
author = "the roomkit developers"
project_copyright = f"{author}, MIT licence"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.linkcode", "site_pages"]
exclude_patterns = ["_ext", "_static"]
root_doc = "index"

# Pages are Markdown that reads as well where no Sphinx is.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_url_schemes = {"http": None, "https": None, "source": None}

# Docstrings: Google style; what they do not say is not shown.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"roomkit {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": dict.fromkeys(("color-brand-primary", "color-brand-content", "color-api-name"), "#1f6f5c"),
    "dark_css_variables": dict.fromkeys(("color-brand-primary", "color-brand-content", "color-api-name"), "#6fc3ad"),
}
