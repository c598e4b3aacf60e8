"""What axis names mean, for error messages: each package registers its own glossary, so that nobody's model is
explained in another one's terms."""

from collections.abc import Mapping

_registered: dict[str, Mapping[str, str]] = {}


def register_glossary(package: str, axes: Mapping[str, str]) -> None:
    """Explain the axis names of a package's functions: `register_glossary("mine", {"genes": "measured genes"})`."""
    _registered[package] = axes


def glossary_of(module: str) -> Mapping[str, str]:
    """The glossary of the top-level package that a module belongs to."""
    return _registered.get(module.partition(".")[0], {})
