"""Sphinx configuration; also writes ``api.rst`` from what the package exports."""

import importlib
import inspect
import os
import pkgutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import skvae  # noqa: E402

project = "skvae"
author = "the skvae developers"
copyright = "2026, the skvae developers"
version = release = skvae.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_title = f"skvae {release}"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False

# Links into other projects need their inventories, so they are asked for: by default
# the build needs no network and scikit-learn's glossary terms stay plain text.
if os.environ.get("SKVAE_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "numpy": ("https://numpy.org/doc/stable", None),
        "python": ("https://docs.python.org/3", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
else:
    suppress_warnings = ["ref.term"]


def public_modules():
    """The modules that users import from, the package itself first."""
    found = [skvae]
    for entry in pkgutil.iter_modules(skvae.__path__):
        if not entry.name.startswith("_") and entry.name not in {"cli", "estimators"}:
            found.append(importlib.import_module(f"skvae.{entry.name}"))
    return found


def public_names():
    """What each public module exports, every object once."""
    listed, found = set(), {}
    for module in public_modules():
        found[module] = []
        for name in getattr(module, "__all__", []):
            exported = getattr(module, name)
            if not inspect.ismodule(exported) and id(exported) not in listed:
                listed.add(id(exported))
                found[module].append(name)
    return {module: names for module, names in found.items() if names}


def own_methods(cls):
    """The public methods that the package defines, inherited ones included."""
    names = [name for name in dir(cls) if not name.startswith("_")]
    return [
        name
        for name in names
        if inspect.isroutine(method := getattr(cls, name, None))
        and (getattr(method, "__module__", None) or "").startswith("skvae")
    ]


def api_page(names_of):
    """Return the page that lists every exported name where users find it."""
    lines = ["API reference", "=============", ""]
    for module, names in names_of.items():
        title = module.__name__
        summary = inspect.getdoc(module).split("\n\n")[0]
        lines += [title, "-" * len(title), "", summary, ""]
        lines += [f".. currentmodule:: {title}", ""]
        lines += [".. autosummary::", "   :toctree: _autosummary", "   :nosignatures:"]
        lines += ["", *(f"   {name}" for name in names), ""]
    return "\n".join(lines)


def write_if_changed(path, text):
    # An untouched file keeps incremental builds short.
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


names_of = public_names()
write_if_changed(HERE / "api.rst", api_page(names_of))
autosummary_context = {
    "own_methods": {
        f"{module.__name__}.{name}": own_methods(getattr(module, name))
        for module, names in names_of.items()
        for name in names
        if inspect.isclass(getattr(module, name))
    }
}
