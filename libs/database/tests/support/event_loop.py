"""An event loop for a test that needs one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test in an event loop, for half a minute at most."""

    async def main() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(main())
