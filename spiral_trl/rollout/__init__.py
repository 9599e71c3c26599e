"""Plays many games at once, any players, to episodes.

[`play_matches`] gathers the turns of all live games of all matches, asks each player once, and steps; [`play`] is the
form for one match. Games small enough to tabulate are stepped as arrays instead of one by one; the episodes are equal
either way.
"""

from .illegal import IllegalMoves
from .matches import MAX_TURNS, Match, play, play_matches
from .replay import replay


__all__ = ["MAX_TURNS", "IllegalMoves", "Match", "play", "play_matches", "replay"]
