"""The library for asyncio programs: the same names as the blocking ones, to be awaited.

>>> from antfarm import aio
>>> async def main() -> None:
...     async with await aio.connect("127.0.0.1:50051") as farm:
...         job = await farm.map("squares.square", range(10))
...         async for done in job.as_completed():
...             print(done.key, await done.result())
"""

from antfarm.client.farm import AsyncFarm as Farm
from antfarm.client.job import AsyncFuture as Future
from antfarm.client.job import AsyncJob as Job
from antfarm.client.opening import connect_async as connect

__all__ = ["Farm", "Future", "Job", "connect"]
