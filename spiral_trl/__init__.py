"""Self-play reinforcement learning for language models on zero-sum text games, inside TRL and Hugging Face."""

from typing import TYPE_CHECKING, Any

from .version import __version__


if TYPE_CHECKING:
    from .advantages import RoleConditionedAdvantage
    from .training.config import SelfPlayConfig
    from .training.trainer import SelfPlayTrainer

__all__ = ["RoleConditionedAdvantage", "SelfPlayConfig", "SelfPlayTrainer", "__version__"]

_HOMES = {
    "RoleConditionedAdvantage": ".advantages",
    "SelfPlayConfig": ".training.config",
    "SelfPlayTrainer": ".training.trainer",
}


def __getattr__(name: str) -> Any:
    # Games and bots need neither torch nor TRL, so the trainer is imported where it is used
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
