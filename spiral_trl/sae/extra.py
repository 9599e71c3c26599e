"""The libraries of the extra `sae`, which are looked for before anything slow begins."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import UsageError


_LIBRARIES = {"sae_lens": "sae-lens", "numba": "numba", "sknetwork": "scikit-network"}


def require_extra() -> None:
    """Refuses to go on without the extra.

    Raises:
        [`~spiral_trl.errors.UsageError`]: With what is missing and how to install it.
    """
    missing = [name for module, name in _LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise UsageError(f'{", ".join(missing)} not installed: pip install "spiral-trl[sae]"')
