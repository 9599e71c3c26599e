"""Zero-sum text games: rules as text, no model and no torch."""

from . import kuhn_poker as kuhn_poker  # games register themselves when imported
from . import openspiel as openspiel
from .parsing import parse_action
from .registry import canonical_name, game_names, make_game
from .table import tabulate


__all__ = ["canonical_name", "game_names", "make_game", "parse_action", "tabulate"]
