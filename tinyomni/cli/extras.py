"""Which extra of tinyomni installs a package: read from what is installed, so that it never differs from pyproject."""

import importlib.metadata
import re

IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn"}
"""Packages whose import name is not their own with `_` for `-`."""


def packages() -> dict[str, str]:
    """Import name → extra, "" for what every installation has."""
    found: dict[str, str] = {}
    for line in importlib.metadata.requires("tinyomni") or []:
        name = re.split(r"[^\w.-]", line)[0].lower()
        marker = re.search(r"extra == ['\"](\w+)['\"]", line)
        found.setdefault(IMPORTED_AS.get(name, name.replace("-", "_")).split(".")[0], marker[1] if marker else "")
    return found


def explain_missing(error: ModuleNotFoundError) -> str:
    """What to install for a package that tinyomni declares; "" for any other."""
    name = (error.name or "").split(".")[0]
    if name not in packages():
        return ""
    wanted = f"tinyomni[{packages()[name]}]" if packages()[name] else "tinyomni"
    return f'this needs the package {name}, which is not installed: pip install "{wanted}"'
