"""Zero-sum text games: rules as text, no model and no torch."""

# Games register themselves when imported
from . import connect_four as connect_four
from . import kuhn_poker as kuhn_poker
from . import leduc_poker as leduc_poker
from . import liars_dice as liars_dice
from . import openspiel as openspiel
from . import pig as pig
from . import simple_negotiation as simple_negotiation
from . import textarena as textarena
from . import tic_tac_toe as tic_tac_toe
from .parsing import parse_action
from .registry import canonical_name, game_names, make_game
from .table import tabulate


__all__ = ["canonical_name", "game_names", "make_game", "parse_action", "tabulate"]
