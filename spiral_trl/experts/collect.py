"""Expert decisions as rows for supervised fine-tuning, collected game by game and written as they come.

Two kinds of expert:

- a solver (`cfr`, `minimax`, `mcts`), whose every decision is kept. An equilibrium loses games too, and its losing
  decisions are as good as any: with the winner's alone, a set of Kuhn poker would hold no fold;
- a model, of which the winner's decisions in games that were played to their end are kept, as in the SPIRAL paper's
  supervised baseline (arXiv 2506.24119: 25,000 winning trajectories of a stronger model's self-play).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PlayError
from ..games.chance import derive_seeds
from ..games.registry import canonical_name, first_turns, make_game
from ..games.table import tabulate
from ..players.base import Player
from ..players.registry import canonical_player_name, check_player, make_player
from ..records import ENDINGS, EpisodeBatch
from ..rollout import MAX_TURNS, IllegalMoves, play
from ..version import __version__
from .decisions import in_order, kept_turns, rows
from .player import ExpertPlayer, is_solver


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


KEEP = ("all", "winners")
STATE = "experts.json"
# Solvers that are tried, in this order, where the expert is called `solver`
SOLVERS = ("cfr", "minimax", "mcts")
_SCHEMA = 1
_TABLE_GAMES, _TEXT_GAMES = 8192, 256
# Games in a row without a decision to keep, after which more of them are not expected to give any
_FRUITLESS = 1000


@dataclass(frozen=True)
class ExpertSettings:
    r"""What determines a set of expert decisions.

    Args:
        games (`tuple[str, ...]`): Names of the games; decisions are shared equally among them.
        expert (`str`, *optional*, defaults to `"solver"`): A player by name: `cfr`, `minimax`, `mcts(...)`, a model's
            folder or Hub id, `model(path=...,temperature=...)`, `endpoint(...)`. `solver` takes for each game the first of `cfr`, `minimax` and `mcts`
            that can play it.
        decisions (`int`, *optional*, defaults to `25_000`): Rows, the paper's number by default.
        opponent (`str`, *optional*): Who sits in the other seats, whose decisions are not kept; the expert takes every
            seat in turn. By default the expert plays itself.
        keep (`str`, *optional*): `"all"` decisions, or the `"winners"` alone: those of the seat whose return exceeds
            every other's. By default `"all"` for solvers and `"winners"` for models.
        rationale (`bool`, *optional*, defaults to `False`): Whether a solver writes its reasons.
        think (`bool`, *optional*, defaults to `False`): Whether the reasons stand in `<think>...</think>`.
        boxed (`bool`, *optional*, defaults to `False`): Whether a solver writes `\boxed{bet}` instead of `[bet]`.
        seed (`int`, *optional*, defaults to `0`): Deals and replies derive from it and the index of the game.
        illegal (`str`, *optional*, defaults to `"forfeit"`): See [`~spiral_trl.rollout.IllegalMoves`]. Illegal replies
            are never kept.
        max_turns (`int`, *optional*, defaults to `1000`): Turns after which a game is truncated, and dropped.
        games_per_round (`int`, *optional*): Games played at once and written as one file. By default at most 8,192 where
            a solver plays a small game, else at most 256.
    """

    games: tuple[str, ...]
    expert: str = "solver"
    decisions: int = 25_000
    opponent: str | None = None
    keep: str | None = None
    rationale: bool = False
    think: bool = False
    boxed: bool = False
    seed: int = 0
    illegal: str = "forfeit"
    max_turns: int = MAX_TURNS
    games_per_round: int | None = None

    def __post_init__(self) -> None:
        names = tuple(canonical_name(game) for game in self.games)
        object.__setattr__(self, "games", names)
        if not names:
            raise ValueError("name at least one game, such as kuhn_poker")
        if len(set(names)) < len(names):
            raise ValueError(f"a game is named twice: {', '.join(names)}")
        if self.decisions < len(names):
            raise ValueError(f"decisions is {self.decisions}, but must be at least one for each game ({len(names)})")
        if self.keep is not None and self.keep not in KEEP:
            raise ValueError(f"keep is {self.keep!r}; allowed: {', '.join(KEEP)}")
        if self.games_per_round is not None and self.games_per_round < 1:
            raise ValueError(f"games_per_round is {self.games_per_round}, but must be at least 1")
        if self.think and not self.rationale:
            raise ValueError("think needs rationale: without reasons there is nothing to think")
        IllegalMoves.parse(self.illegal)


@dataclass
class Progress:
    """How far a collection has come, by game: `rows` kept, `played` games (the index of the next), and `seconds`."""

    rows: dict[str, int] = field(default_factory=dict)
    played: dict[str, int] = field(default_factory=dict)
    kept_games: dict[str, int] = field(default_factory=dict)
    endings: dict[str, int] = field(default_factory=dict)
    players: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    files: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.rows.values())


@dataclass(frozen=True)
class Seats:
    """Who plays: the expert of each game, its name, and the opponent; see [`seat_players`]."""

    experts: dict[str, Player]
    names: dict[str, str]
    opponent: Player | None


def seat_players(
    settings: ExpertSettings, players: Mapping[str, Player] | None = None, render: Callable | None = None
) -> Seats:
    """Makes the players, and asks solvers for a first turn of their games.

    Args:
        settings ([`ExpertSettings`]): What to collect.
        players (`Mapping[str, Player]`, *optional*): Players to take, by name, instead of making them.
        render (`Callable`, *optional*): See [`~spiral_trl.experts.player.ExpertPlayer`]; for solvers only.

    Raises:
        `ValueError`: If there is no such player, it cannot play a game, or it cannot give reasons.
    """
    known: dict[str, Player] = dict(players or {})
    names = {game: resolve(settings.expert, game) for game in settings.games}
    others = [] if settings.opponent is None else [settings.opponent]
    # Everything that can be wrong shows before a model is loaded
    for game, name in names.items():
        for asked in (name, *others):
            if asked not in known:
                check_player(asked, game)
        solver = is_solver(known[name]) if name in known else name.partition("(")[0].strip() in (*SOLVERS, "random")
        if not solver and (settings.rationale or settings.boxed or render is not None):
            raise ValueError(f"{name} writes its own replies: rationale and boxed are for solvers")

    def player_of(name: str) -> Player:
        if name not in known:
            known[name] = make_player(name)
        return known[name]

    experts: dict[str, Player] = {}
    for game, name in names.items():
        expert = player_of(name)
        if is_solver(expert):
            expert = ExpertPlayer(expert, settings.rationale, settings.think, settings.boxed, render)
            expert.reply(first_turns(game)[:1])
        experts[game] = expert
    # A set says who decided, and nothing of the machine
    shown = {game: name if name in (players or {}) else canonical_player_name(name) for game, name in names.items()}
    return Seats(experts, shown, None if settings.opponent is None else player_of(settings.opponent))


def make_decisions(
    settings: ExpertSettings, seats: Seats | None = None, progress: Callable[[Progress], None] | None = None
) -> Dataset:
    """A set in memory.

    Args:
        settings ([`ExpertSettings`]): What to collect.
        seats ([`Seats`], *optional*): Who plays, by default [`seat_players`] of the settings.
        progress (`Callable[[Progress], None]`, *optional*): Called after each round.

    Returns:
        [`~datasets.Dataset`]: With the columns of [`~spiral_trl.experts.decisions.features`].
    """
    import pyarrow as pa
    from datasets import Dataset

    state = Progress()
    tables = []
    for table, error in _rounds(settings, state, seats or seat_players(settings)):
        if error is not None:
            raise error
        tables.append(table)
        if progress is not None:
            progress(state)
    return Dataset(pa.concat_tables(tables))


def collect(
    settings: ExpertSettings,
    folder: str | Path,
    seats: Seats | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Collects a set into a folder: `data/train-*.parquet`, one file a round, and `experts.json`, which says how.

    A collection that was cut off goes on where it was when it is started again with the same settings; what is written
    then equals what would have been written at once, wherever players' replies derive from the game's seed.

    Args:
        settings ([`ExpertSettings`]): What to collect.
        folder (`str` or `Path`): Where to. It must be empty, or hold an unfinished set of the same settings.
        seats ([`Seats`], *optional*): Who plays, by default [`seat_players`] of the settings.
        progress (`Callable[[Progress], None]`, *optional*): Called after each round.

    Returns:
        [`Progress`]: What there is now.

    Raises:
        `ValueError`: If the folder holds another set, or a finished one.
        [`~spiral_trl.errors.PlayError`]: If games cannot be played on. The games that were finished are written.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    state = begin(settings, folder)
    seats = seats or seat_players(settings)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    _write_state(settings, state, folder)
    for table, error in _rounds(settings, state, seats):
        if len(table):
            name = f"data/train-{len(state.files):05d}.parquet"
            unfinished = folder / f"{name}.unfinished"
            pq.write_table(table, unfinished)
            os.replace(unfinished, folder / name)
            state.files.append(name)
        _write_state(settings, state, folder)
        if progress is not None:
            progress(state)
        if error is not None:
            raise PlayError(
                f"{error} ({state.total:,} of {settings.decisions:,} decisions are kept in {folder}; the same command "
                "goes on from there)",
                error.episodes,
            ) from error
    return state


def load_decisions(folder: str | Path) -> Dataset:
    """The set that [`collect`] wrote, finished or not.

    Raises:
        `ValueError`: If the folder holds none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    state = read_state(folder)
    if not state["files"]:
        raise ValueError(f"{folder} holds no decisions yet")
    return Dataset(pa.concat_tables([pq.read_table(Path(folder) / name) for name in state["files"]]))


def read_state(folder: str | Path) -> dict[str, Any]:
    """What `experts.json` says: `settings`, `version`, `finished` and the fields of [`Progress`].

    Raises:
        `ValueError`: If there is none.
    """
    path = Path(folder) / STATE
    if not path.is_file():
        raise ValueError(f"{folder} holds no set of expert decisions: there is no {STATE} in it")
    return json.loads(path.read_text(encoding="utf-8"))


def begin(settings: ExpertSettings, folder: Path) -> Progress:
    """How far the set in `folder` has come; nothing is written.

    Raises:
        `ValueError`: If the folder holds anything but an unfinished set of the same settings.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return Progress()
    state = read_state(folder)
    given = json.loads(json.dumps(asdict(settings)))
    differs = [name for name in given if given[name] != state["settings"].get(name)]
    if differs:
        name = differs[0]
        raise ValueError(
            f"{folder} holds a set with {name}={state['settings'].get(name)!r}, not {given[name]!r}; choose another "
            "folder"
        )
    if state["version"] != __version__:
        raise ValueError(
            f"{folder} was begun with version {state['version']}, not {__version__}; choose another folder"
        )
    if state["finished"]:
        raise ValueError(f"{folder} holds this set already, with {settings.decisions:,} decisions")
    return Progress(**{name: state[name] for name in Progress.__dataclass_fields__})


def _write_state(settings: ExpertSettings, state: Progress, folder: Path) -> None:
    told = {
        "schema": _SCHEMA,
        "version": __version__,
        "settings": asdict(settings),
        "finished": state.total >= settings.decisions,
        **asdict(state),
    }
    unfinished = folder / f"{STATE}.unfinished"
    unfinished.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / STATE)


# ---------------------------------------------------------------------------------------------------------- playing


def resolve(name: str, game: str) -> str:
    """The expert's name for one game: `solver` becomes the first solver that can play it.

    Raises:
        `ValueError`: If none can.
    """
    if name != "solver":
        return name
    refused = []
    for solver in SOLVERS:
        try:
            check_player(solver, game)
        except ValueError as error:
            refused.append(str(error))
        else:
            return solver
    raise ValueError(f"no solver plays {game}: {'; '.join(refused)}")


def _rounds(settings: ExpertSettings, state: Progress, seats: Seats) -> Iterator[tuple[pa.Table, PlayError | None]]:
    """Rows of each round, with `state` brought up to date before each is handed over, and what stopped play, if
    anything did: then the rows are those of the games that were finished, and this is the last round."""
    share = settings.decisions // len(settings.games)
    for g, game in enumerate(settings.games):
        quota = share + (g < settings.decisions % len(settings.games))
        expert, num_players = seats.experts[game], make_game(game).num_players
        state.players[game] = seats.names[game]
        keep = settings.keep or ("all" if isinstance(expert, ExpertPlayer) else "winners")
        fruitless = 0
        while (rows := state.rows.get(game, 0)) < quota:
            began = time.perf_counter()
            first = state.played.get(game, 0)
            size = _round_size(settings, game, expert, quota)
            if rows and settings.games_per_round is None:
                # As many games as the rest needs, by what games have given so far, and a few more
                size = min(size, 8 + int(1.1 * (quota - rows) * first / rows))
            episodes = np.arange(first, first + size)
            tables, error = [], None
            for seat in range(1 if seats.opponent is None else num_players):
                mine = episodes if seats.opponent is None else episodes[episodes % num_players == seat]
                if len(mine) and error is None:
                    table, error = _play(settings, state, game, seats, seat, mine, keep)
                    tables.append(table)
            table = in_order(tables, quota - rows)
            state.kept_games[game] = state.kept_games.get(game, 0) + len(set(table["episode_id"].to_pylist()))
            state.rows[game] = rows + len(table)
            state.played[game] = first + size
            state.seconds += time.perf_counter() - began
            fruitless = 0 if len(table) else fruitless + size
            yield table, error
            if error is not None:
                return
            if fruitless >= _FRUITLESS:
                raise PlayError(
                    f"{fruitless:,} games of {game} by {seats.names[game]} gave no decision to keep (keep={keep}): "
                    f"{_endings(state)}"
                )


def _endings(state: Progress) -> str:
    return "games ended " + ", ".join(f"{name} {count:,}" for name, count in sorted(state.endings.items()))


def _round_size(settings: ExpertSettings, game: str, expert: Player, quota: int) -> int:
    if settings.games_per_round is not None:
        return settings.games_per_round
    if isinstance(expert, ExpertPlayer) and tabulate(game) is not None:
        return min(_TABLE_GAMES, 8 + quota)
    # Games may be long, and search slow: a small set needs few of them
    return min(_TEXT_GAMES, 8 + quota // 8)


def _play(
    settings: ExpertSettings,
    state: Progress,
    game: str,
    seats: Seats,
    seat: int,
    episodes: np.ndarray,
    keep: str,
) -> tuple[pa.Table, PlayError | None]:
    """Kept rows of the games `episodes`, and what stopped play before their end, if anything did."""
    expert, opponent, num_players = seats.experts[game], seats.opponent, make_game(game).num_players
    seated = [expert if opponent is None or p == seat else opponent for p in range(num_players)]
    seeds = derive_seeds(settings.seed, settings.games.index(game), episodes)
    error = None
    try:
        batch = play(game, seated, seeds, illegal=settings.illegal, max_turns=settings.max_turns)
    except PlayError as stopped:
        error, batch = stopped, stopped.episodes
        if batch is None:
            batch = EpisodeBatch.from_episodes([])
    # Games that were cut off are missing from the batch: its own order says nothing
    id_of = dict(zip(seeds.tolist(), episodes.tolist(), strict=True))
    ids = np.array([id_of[seed] for seed in batch.seeds.tolist()], dtype=np.int64)
    for code, count in enumerate(np.bincount(batch.outcomes.endings, minlength=len(ENDINGS))):
        name = ENDINGS[code].value
        state.endings[name] = state.endings.get(name, 0) + int(count)
    own = np.ones(num_players, dtype=bool) if opponent is None else np.arange(num_players) == seat
    turns = kept_turns(batch, keep, own)
    return rows(batch, ids, turns, state.players[game]), error
