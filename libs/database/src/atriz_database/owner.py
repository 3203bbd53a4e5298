"""Who does something: the task that runs, else the thread."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

Owner = threading.Thread | asyncio.Task[Any]


def owner() -> Owner:
    """Return the task that runs, and where none does the thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.current_thread() if task is None else task


def shown(who: Owner) -> str:
    """Return the name that its maker gave it."""
    return f"task {who.get_name()}" if isinstance(who, asyncio.Task) else f"thread {who.name}"
