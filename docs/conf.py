"""How `bash launch/docs.sh` makes a site of these pages."""

import blip3o_jax

project = "blip3o_jax"
copyright = "the authors of blip3o_jax"
release = blip3o_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"blip3o_jax {release}"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
napoleon_google_docstring = True
