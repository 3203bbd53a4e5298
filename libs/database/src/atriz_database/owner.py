"""Who does something: the task that runs, else the thread."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

Owner = threading.Thread | asyncio.Task[Any]


def owner() -> Owner:
    """Return the task that runs, and where none does the thread."""
    # Asked so because where no loop runs, as in most threads, `current_task` raises, which takes longer.
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    return threading.current_thread() if task is None else task


def shown(who: Owner) -> str:
    """Return the name that its maker gave it."""
    return f"task {who.get_name()}" if isinstance(who, asyncio.Task) else f"thread {who.name}"
