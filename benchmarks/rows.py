"""Rows of a table that is measured piece by piece: a file of JSON lines, added to, and read by the same script later."""

import json
import os
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RowFile:
    """What was measured before, and what is now."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def read(self) -> list[Row]:
        """Every row, oldest first."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def has(self, asked: Row) -> bool:
        """Was something measured under all of these names?"""
        return any(all(row.get(name) == value for name, value in asked.items()) for row in self.read())

    def add(self, row: Row) -> None:
        """Kept with the machine's load and the date, and printed."""
        line = json.dumps(row | {"load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d %H:%M")})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
