"""The rules of the games of this package, in two sentences each, for readers of a card or a page."""

from __future__ import annotations


_CARDS = "Each of two players antes one chip and is dealt one card of a deck: jack, queen and king, or more ranks below them"
RULES = {
    "kuhn_poker": f"{_CARDS}. A player checks, bets one chip, calls or folds; the higher card takes the pot at a "
    "showdown.",
    "leduc_poker": "Two players ante one chip and are dealt one card each of a deck of six, two suits of three ranks. "
    "There are two rounds of betting, one public card is shown between them, and a pair with it, or else the higher "
    "card, takes the pot.",
    "tic_tac_toe": "Two players take turns to mark a free cell of a board of three by three. Three marks of one's own "
    "in a row, column or diagonal win; a full board without them is a draw.",
    "connect_four": "Two players take turns to drop a disc into one of seven columns of six cells. Four discs of "
    "one's own in a row, column or diagonal win; a full board without them is a draw.",
    "liars_dice": "Each player rolls dice that the others do not see, and players take turns to raise a bid on how "
    "many dice of one face there are in all. A player who doubts the last bid calls it a lie: who was wrong loses.",
    "pig": "Players take turns to roll a die as often as they like, adding up what it shows, until they hold and keep "
    "the sum, or roll a one and lose it. The first to reach the target wins.",
    "simple_negotiation": "Two players hold resources that each values differently in private, and trade them by "
    "making, accepting and refusing offers in words. Who has gained more value at the end wins.",
}


def rules_of(game: str) -> str:
    """The rules of `game` in two sentences, or where they are to be found."""
    source, _, rest = game.rpartition(":")
    name = rest.split("(")[0]
    if name in RULES:
        return RULES[name]
    library = {"openspiel": "OpenSpiel", "textarena": "TextArena"}.get(source)
    return f"The rules are those of {name} as {library} plays it." if library else f"The rules are those of {name}."
