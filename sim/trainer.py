"""A training process without a model: it attaches, trains for a while, submits, waits, as `swarm.learn` does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import MutableMapping
from pathlib import Path

from sim.site import Site
from sim.training import File, train
from swarm.config import Policy
from swarm.encoding import Digest, short
from swarm.node.training import Checkpoint


class Trainer:
    """One site's training: outlives its node, as a process of its own does.

    Args:
        files: where every update goes whose bytes exist.
        folder: for the files that it hands to the node.
    """

    def __init__(
        self,
        site: Site,
        *,
        run: str,
        train_s: float,
        rng: random.Random,
        files: MutableMapping[Digest, File],
        folder: Path,
    ) -> None:
        self.result: Digest | None = None
        """The checkpoint that it was left with when the run was over."""
        self._site = site
        self._run = run
        self._train_s = train_s
        self._rng = rng
        self._files = files
        self._folder = folder

    async def train(self) -> None:
        """Take part until the run is over; after a power cut from the start, with nothing remembered."""
        while self.result is None:
            work, cut = asyncio.ensure_future(self._take_part()), asyncio.ensure_future(self._site.power_cut())
            try:
                await asyncio.wait({work, cut}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    self.result = work.result()
            finally:
                for task in (work, cut):
                    task.cancel()
                await asyncio.gather(work, cut, return_exceptions=True)

    async def _take_part(self) -> Digest:
        place = await self._take()
        while not place.finished:
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * self._train_s)
            place = await self._exchange(place)
        return place.digest

    async def _take(self) -> Checkpoint:
        place, _ = await self._site.ask(lambda node: node.attach(self._run), self._again)
        return place

    async def _again(self) -> tuple[Checkpoint, Policy]:
        assert self._site.node is not None
        return await self._site.node.training.attach(self._run)

    async def _exchange(self, place: Checkpoint) -> Checkpoint:
        update = train(self._rng, round_=place.round)
        self._files[update.digest] = update
        path = self._folder / f"{place.round}-{short(update.digest)}.safetensors"
        self._folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(update.data)
        weight = self._rng.randint(1, 500)
        while True:
            _, submitted = await self._site.ask(
                lambda node: node.submit(place.run, place.round, path, weight, {"loss": 1.0 / (1 + place.round)}),
                self._again,
            )
            if not submitted:
                return await self._take()
            after = await self._site.ask(lambda node: node.wait(place.run, place.round), self._again)
            if after.round > place.round or after.finished:
                return after
