"""The disk below an object store, with notes of what is on the plates: a cut may take what was not synced.

A file's bytes are on the plates once the file was synced, a name once its folder was. Of what came since, any part may
be there: of the bytes any, torn anywhere; of a folder's changes the first ones, as journals keep them.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

Name = tuple[str, "Bytes | None"]


class PowerCut(BaseException):
    """The disk is off. No handler for errors catches it: nobody is there any more."""


@dataclass
class Bytes:
    """One file's content."""

    now: bytearray = field(default_factory=bytearray)
    synced: bytes = b""

    def lost(self, rng: random.Random) -> bytes:
        """What a cut leaves: what was synced, with any part of what came since."""
        data = bytearray(self.synced)
        data.extend(bytes(max(len(self.now) - len(data), 0)))
        for at in range(0, len(self.now), 4096):
            if rng.random() < 0.5:
                data[at : at + 4096] = self.now[at : at + 4096]
        shorter, longer = sorted((len(self.now), len(self.synced)))
        return bytes(data[: rng.choice((shorter, longer, rng.randint(shorter, longer)))])


class StoreDisk:
    """Counts and notes what is written below `folder`; `on_step` may end the world at any of it."""

    def __init__(self, folder: Path, on_step: Callable[[int], None]) -> None:
        self.folder = str(folder)
        self.steps = 0
        self._on_step = on_step
        self._files: dict[str, Bytes] = {}
        self._paths: dict[int, str] = {}
        self._synced: dict[str, dict[str, Bytes]] = {}
        self._pending: dict[str, list[Name]] = {}
        self._made: set[str] = {self.folder}
        names = ("open", "close", "write", "pwrite", "ftruncate", "fsync", "replace", "unlink", "mkdir", "link")
        self._real = {name: getattr(os, name) for name in names}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Everything that the store does to its folder goes through here."""
        with contextlib.ExitStack() as patched:
            for name in self._real:
                patched.enter_context(mock.patch.object(os, name, getattr(self, f"os_{name}")))
            yield

    def image(self, folder: Path, rng: random.Random) -> None:
        """What a cut leaves, as a new folder."""
        for place in self._made:
            (folder / os.path.relpath(place, self.folder)).mkdir(parents=True, exist_ok=True)
        for place in {*self._synced, *self._pending}:
            names = dict(self._synced.get(place, {}))
            pending = self._pending.get(place, [])
            for name, content in pending[: rng.randrange(len(pending) + 1)]:
                if content is None:
                    names.pop(name, None)
                else:
                    names[name] = content
            inside = folder / os.path.relpath(place, self.folder)
            for name, content in names.items():
                inside.mkdir(parents=True, exist_ok=True)
                (inside / name).write_bytes(content.lost(rng))

    # --- what the store calls

    def _step(self) -> None:
        self.steps += 1
        self._on_step(self.steps)

    def _mine(self, path: Any) -> bool:
        return not isinstance(path, int) and os.fspath(path).startswith(self.folder)

    def _name(self, path: str, content: Bytes | None) -> None:
        place, name = os.path.split(path)
        self._pending.setdefault(place, []).append((name, content))
        if content is None:
            self._files.pop(path, None)
        else:
            self._files[path] = content

    def os_open(self, path: Any, flags: int, *rest: Any, **more: Any) -> int:
        mine = self._mine(path)
        if mine and flags & os.O_CREAT and os.fspath(path) not in self._files:
            self._step()
            self._name(os.fspath(path), Bytes())
        descriptor: int = self._real["open"](path, flags, *rest, **more)
        if mine:
            self._paths[descriptor] = os.fspath(path)
        return descriptor

    def os_close(self, descriptor: int) -> None:
        self._paths.pop(descriptor, None)
        self._real["close"](descriptor)

    def _content(self, descriptor: int) -> Bytes | None:
        """The file behind a descriptor; a rename meanwhile changes nothing about which file that is."""
        return self._files.get(self._paths.get(descriptor, ""))

    def os_pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        content = self._content(descriptor)
        if content is not None:
            self._step()
            content.now.extend(bytes(max(offset - len(content.now), 0)))
            content.now[offset : offset + len(data)] = data
        written: int = self._real["pwrite"](descriptor, data, offset)
        assert content is None or written == len(data)
        return written

    def os_write(self, descriptor: int, data: bytes) -> int:
        if self._content(descriptor) is None:
            return int(self._real["write"](descriptor, data))
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        written = self.os_pwrite(descriptor, data, at)
        os.lseek(descriptor, at + written, os.SEEK_SET)
        return written

    def os_ftruncate(self, descriptor: int, size: int) -> None:
        content = self._content(descriptor)
        if content is not None:
            self._step()
            del content.now[size:]
            content.now.extend(bytes(size - len(content.now)))
        self._real["ftruncate"](descriptor, size)

    def os_fsync(self, descriptor: int) -> None:
        path = self._paths.get(descriptor, "")
        if path in self._files:
            self._step()
            self._files[path].synced = bytes(self._files[path].now)
        elif path in self._made:
            self._step()
            for name, content in self._pending.pop(path, []):
                if content is None:
                    self._synced.setdefault(path, {}).pop(name, None)
                else:
                    self._synced.setdefault(path, {})[name] = content

    def os_replace(self, source: Any, target: Any) -> None:
        self._step()
        source, target = os.fspath(source), os.fspath(target)
        self._real["replace"](source, target)
        content = self._files.get(source)
        if content is not None:
            self._name(target, content)
            self._name(source, None)
            self._paths = {fd: target if path == source else path for fd, path in self._paths.items()}

    def os_unlink(self, path: Any, *rest: Any, **more: Any) -> None:
        if self._mine(path) and os.fspath(path) in self._files:
            self._step()
            self._name(os.fspath(path), None)
        self._real["unlink"](path, *rest, **more)

    def os_link(self, source: Any, target: Any) -> None:
        self._step()
        self._real["link"](source, target)
        content = self._files.get(os.fspath(source))
        if content is not None:
            self._name(os.fspath(target), content)

    def os_mkdir(self, path: Any, *rest: Any, **more: Any) -> None:
        self._real["mkdir"](path, *rest, **more)
        if self._mine(path):
            self._made.add(os.fspath(path))
