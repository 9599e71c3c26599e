"""How much memory a process and its children take."""

from __future__ import annotations

import threading
from typing import Self

import psutil


class Peak(threading.Thread):
    """The most memory that this process and its children take while it runs: proportional set size, what they share
    counted once, the files that they have mapped among it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self._over = 0, threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while True:
            taken = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    memory = process.memory_full_info()
                    taken += getattr(memory, "pss", memory.uss)
                except psutil.Error:
                    pass
            self.bytes = max(self.bytes, taken)
            if self._over.wait(0.25):
                return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()
