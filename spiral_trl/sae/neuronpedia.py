"""Where a feature is described on Neuronpedia, for dictionaries that its registry knows."""

from __future__ import annotations

import re

from ..errors import UsageError, did_you_mean


# The release of SAELens that arXiv 2410.08869 is about; these are its layers' ids in SAELens's registry
PAPER_RELEASE = "gpt2-small-res-jb"
PAPER_MODEL = "gpt2-small"
_PAPER_LAYERS = 13
NEURONPEDIA = "https://www.neuronpedia.org"

_NEURONPEDIA_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)", re.ASCII)


def neuronpedia_ids(release: str) -> dict[int, str]:
    """Neuronpedia's ids of a release's dictionaries of the residual stream, such as `gpt2-small/9-res-jb`, by layer.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If SAELens knows no such release, or it has no ids, or several for a layer.
    """
    if release == PAPER_RELEASE:
        return {layer: f"{PAPER_MODEL}/{layer}-res-jb" for layer in range(_PAPER_LAYERS)}
    from .extra import require_extra

    require_extra()
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if release not in directory:
        raise UsageError(f"SAELens knows no release {release!r}{did_you_mean(release, directory)}")
    found = {
        int(match[1]) + (match[2] == "post"): name
        for sae_id, name in directory[release].neuronpedia_id.items()
        if name is not None and (match := _HOOK.fullmatch(sae_id)) is not None
    }
    if not found:
        raise UsageError(f"the release {release} has no ids on Neuronpedia that go by the layer alone")
    return found


def neuronpedia_link(name: str | None, feature: int) -> str | None:
    """Address of a feature's page on Neuronpedia.

    Args:
        name (`str`, *optional*): The dictionary's id there, such as `gpt2-small/9-res-jb`.
        feature (`int`): The feature.
    """
    if name is None or _NEURONPEDIA_ID.fullmatch(name) is None:
        return None
    return f"{NEURONPEDIA}/{name}/{feature}"
