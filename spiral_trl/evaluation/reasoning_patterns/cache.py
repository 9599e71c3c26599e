"""Answers that were paid for, on disk."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout


FILE = "answers.jsonl"


@dataclass(frozen=True)
class Answer:
    """What a judge answered.

    Args:
        text (`str`): The answer; untrusted.
        finish_reason (`str`): `"stop"`, or `"length"` where it was cut.
    """

    text: str
    finish_reason: str


def digest(value: object) -> str:
    """A hash of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()


class AnswerCache:
    """Answers by the key of their request, in a file that only grows. To be used in a `with` block.

    Each answer is handed to the operating system before the next is asked for, so that a killed process loses none. A
    line that was cut, by a full disk or a lost machine, is passed over.

    Args:
        folder (`Path`): Where the file is, or is made. Only one process at a time may use it: two would both pay.

    Raises:
        `ValueError`: If another process uses the folder, or it is a file.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = FileLock(folder / ".lock")
        self._write_lock = threading.Lock()
        self._answers: dict[str, Answer] = {}
        self._file: TextIOWrapper | None = None

    def __enter__(self) -> Self:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file, not a folder for answers")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{self.folder} is in use by another run, which would pay for the same answers") from None
        path = self.folder / FILE
        whole = True
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    whole = line.endswith(b"\n")
                    self._read(line)
        self._file = path.open("a", encoding="ascii")
        if not whole:
            self._file.write("\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.release()

    def _read(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            key, text, finish_reason = row["key"], row["text"], row["finish_reason"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        if isinstance(key, str) and isinstance(text, str) and isinstance(finish_reason, str):
            self._answers[key] = Answer(text, finish_reason)

    def get(self, key: str) -> Answer | None:
        """The answer to a request, if there is one."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Keeps an answer. Threads may call it at once."""
        line = json.dumps({"key": key, "text": answer.text, "finish_reason": answer.finish_reason})
        with self._write_lock:
            assert self._file is not None, "the cache is not open"
            self._file.write(line + "\n")
            self._file.flush()
            self._answers[key] = answer
