"""Games played one by one through their text, all live games of all matches together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import PlayerError
from ..games.base import Game
from ..games.registry import make_game
from ..players.base import Player
from ..records import BatchBuilder, Ending, Reply, Step, Turn
from .failure import game_failed, player_failed
from .illegal import IllegalMoves, complaint, random_legal, told


if TYPE_CHECKING:
    from .matches import Match


# What a process tells the others of a player that generates collectively
_OVER, _GOING, _ASKED = range(3)


@dataclass(slots=True)
class _Live:
    """One game in play, and what this round has come to: accepted actions, and what refused seats are told."""

    game: Game
    match: Match
    position: int
    seed: int
    samples: list[int] = field(default_factory=list)
    seats: list[int] = field(default_factory=list)
    retries: int = 0
    actions: dict[int, str] = field(default_factory=dict)
    complaints: dict[int, str] = field(default_factory=dict)


def play_text(
    matches: Sequence[Match],
    positions: Sequence[np.ndarray],
    policy: IllegalMoves,
    max_turns: int,
    builder: BatchBuilder,
    synchronize: Callable[[int], int] | None,
    collective: Sequence[Player],
) -> None:
    """Plays all games of `matches` into `builder`, which holds the finished ones too where this raises.

    Args:
        matches (`Sequence[Match]`): Game names are canonical.
        positions (`Sequence[np.ndarray]`): For each match `[G]`, where its games stand among those of the whole call.
        policy ([`IllegalMoves`]), max_turns (`int`), synchronize (`Callable`, *optional*): See [`play_matches`].
        builder ([`~spiral_trl.records.BatchBuilder`]): Takes the games.
        collective (`Sequence[Player]`): The players that every process asks in every round in which any does.

    Raises:
        [`~spiral_trl.errors.PlayError`]: If a game's code raises, or a player raises
            [`~spiral_trl.errors.PlayerError`].
    """
    seatings = {id(match): tuple(player.name for player in match.players) for match in matches}
    # Every process asks collective players in the same order
    players = list({id(player): player for match in matches for player in match.players}.values())
    spare = _spare_turns(matches, collective) if synchronize is not None else {}

    def steps(entry: _Live) -> list[Step]:
        return [builder.samples[sample] for sample in entry.samples]

    def finish(entry: _Live, returns: Sequence[float], ending: Ending) -> None:
        builder.add(
            position=entry.position,
            game=entry.match.game,
            roles=entry.game.roles,
            seed=entry.seed,
            players=seatings[id(entry.match)],
            samples=entry.samples,
            seats=entry.seats,
            indices=range(len(entry.samples)),
            returns=returns,
            ending=ending,
        )

    live: list[_Live] = []
    for match, where in zip(matches, positions, strict=True):
        for position, seed in zip(where.tolist(), match.seeds.tolist(), strict=True):
            entry = _Live(make_game(match.game), match, position, seed)
            try:
                entry.game.reset(seed)
                if entry.game.ending is None:
                    live.append(entry)
                else:
                    finish(entry, entry.game.returns(), entry.game.ending)
            except Exception as error:
                raise game_failed(match.game, seed, (), error) from error

    while live or synchronize is not None:
        pending: list[tuple[_Live, Turn]] = []
        asked: dict[int, list[int]] = {}
        for entry in live:
            try:
                turns = _turns(entry)
            except Exception as error:
                raise game_failed(entry.match.game, entry.seed, steps(entry), error) from error
            if not turns:
                raise game_failed(entry.match.game, entry.seed, steps(entry), "asks nobody though it is not over")
            for turn in turns:
                asked.setdefault(id(entry.match.players[turn.player]), []).append(len(pending))
                pending.append((entry, turn))

        going = bool(live)
        replies: list[Reply | None] = [None] * len(pending)
        for player in players:
            mine = asked.get(id(player), [])
            turns = [pending[i][1] for i in mine]
            if synchronize is not None and any(player is other for other in collective):
                # Every process takes part in every generation; the reply to a spare turn is dropped
                most = synchronize(_ASKED if mine else _GOING if live else _OVER)
                going = going or most != _OVER
                if mine:
                    spare[id(player)] = turns[0]
                elif most >= _ASKED:
                    player.reply([spare[id(player)]])
            if not mine:
                continue
            try:
                answers = player.reply(turns)
            except PlayerError as error:
                entry = pending[mine[0]][0]
                raise player_failed(
                    player.name, len(mine), entry.match.game, entry.seed, steps(entry), error
                ) from error
            for i, answer in zip(mine, answers, strict=True):
                replies[i] = answer
        if not going:
            break

        for entry in live:
            if entry.complaints:
                entry.complaints = {}
        for (entry, turn), reply in zip(pending, replies, strict=True):
            assert reply is not None
            try:
                parsed = entry.game.parse(turn.player, reply.text)
            except Exception as error:
                raise game_failed(entry.match.game, entry.seed, steps(entry), error) from error
            action = parsed.action
            entry.samples.append(builder.sample(turn, _parsed(reply, action, parsed.error)))
            entry.seats.append(turn.player)
            if action is None and policy.policy == "random_legal":
                action = random_legal(turn)
            if action is None:
                entry.complaints[turn.player] = complaint(turn)
            else:
                entry.actions[turn.player] = action

        played, live = live, []
        for entry in played:
            try:
                over = _step(entry, policy, max_turns)
            except Exception as error:
                raise game_failed(entry.match.game, entry.seed, steps(entry), error) from error
            if over is None:
                live.append(entry)
            else:
                finish(entry, *over)


def _turns(entry: _Live) -> list[Turn]:
    """What the seats are asked that have not answered in this round."""
    turns = []
    # Seats that are asked at once have an index each: replies that derive from it must not coincide
    index = len(entry.samples)
    for turn in entry.game.turns():
        if turn.player in entry.actions:
            continue
        messages = turn.messages
        if entry.complaints:
            messages = told(messages, entry.complaints.get(turn.player))
        # Ten times as fast as `dataclasses.replace`
        turns.append(
            Turn(
                game=turn.game,
                episode=entry.position,
                seed=entry.seed,
                index=index,
                player=turn.player,
                role=turn.role,
                messages=messages,
                legal_actions=turn.legal_actions,
                infoset=turn.infoset,
                state=turn.state,
            )
        )
        index += 1
    return turns


def _parsed(reply: Reply, action: str | None, error: str | None) -> Reply:
    """The reply with what the game read out of it."""
    return Reply(
        text=reply.text,
        action=action,
        error=error,
        prompt_ids=reply.prompt_ids,
        completion_ids=reply.completion_ids,
        logprobs=reply.logprobs,
        finish_reason=reply.finish_reason,
        policy_version=reply.policy_version,
    )


def _step(entry: _Live, policy: IllegalMoves, max_turns: int) -> tuple[Sequence[float], Ending] | None:
    """Ends the round: plays the accepted actions. Answers returns and ending where the game is over by it."""
    game = entry.game
    if entry.complaints:
        if policy.policy == "retry" and entry.retries < policy.retries and len(entry.samples) < max_turns:
            entry.retries += 1
            return None
        return policy.returns(entry.complaints.keys(), game.worst_returns), Ending.ILLEGAL
    game.step(entry.actions)
    entry.retries, entry.actions = 0, {}
    if game.ending is not None:
        return game.returns(), game.ending
    if len(entry.samples) >= max_turns:
        return [0.0] * game.num_players, Ending.TRUNCATED
    return None


def _spare_turns(matches: Sequence[Match], collective: Sequence[Player]) -> dict[int, Turn]:
    """A turn for each collective player to be asked where it has none of its own."""
    spare: dict[int, Turn] = {}
    for match in matches:
        missing = [player for player in match.players if id(player) not in spare]
        if any(player is other for player in missing for other in collective):
            game = make_game(match.game)
            game.reset(0)
            spare |= {id(player): game.turns()[0] for player in missing}
    return spare
