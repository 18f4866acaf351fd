"""Sphinx's settings for the book. `build.py` names the folders."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for the last two

project = "R1-lite"
author = "the R1-lite authors"
copyright = "2026 the R1-lite authors, MIT licence"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",  # carries MathJax; the page asks no other host
    "docstrings",
    "figures",
]

# Chapters are shown as they are stored; the tests run them, not the build.
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # myst-nb would load require.js from another host
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}
highlight_language = "none"  # a block without a language is a command or a text

smartquotes_action = "D"  # "--" is a dash; quotes stay as they are typed

default_role = "py:obj"  # `name` in a docstring links to it, where it is ours
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the fields of a class as one list
napoleon_use_rtype = False  # "Returns:" in one piece, shapes included
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 70
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "R1-lite"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_domain_indices = False
html_favicon = "static/mark.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_theme_options = {
    "navbar_persistent": [],  # the search field stands in the sidebar
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "search_bar_text": "Search the book",
    "logo": {
        "text": "R1-lite",
        "image_light": "static/mark.svg",
        "image_dark": "static/mark.svg",
        "alt_text": "",  # decoration: the name stands beside it
    },
}
