"""Evidence against validators, one small file each: kept for the operators, who decide what follows from it.

A file is JSON with the two signed messages; it proves itself to whoever has it. A liar makes as many contradictions as
it likes: a few of each member are enough.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from swarm.consensus.contradiction import Contradiction
from swarm.encoding import Address, from_hex, to_hex
from swarm.errors import PeerError
from swarm.identity import checksum

logger = logging.getLogger(__name__)

KEPT_PER_MEMBER = 8
# 128 members and those that were removed since; about 1 KB each.
KEPT = 2048
_FILE_BYTES_MAX = 8 << 10


@dataclass(frozen=True)
class Kept:
    """A contradiction on disk, checked again."""

    member: Address
    contradiction: Contradiction
    path: Path


class Contradictions:
    """The evidence in a node's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, member: Address, found: Contradiction) -> bool:
        """Write it, unless it is there or there is enough of this member; True if it is new.

        A disk that does not take it is logged: evidence is not worth a node that stops.
        """
        first = found.first
        path = self.folder / f"{member.hex()}-{first.height}-{first.view}-{found.kind.lower()}.json"
        content = {
            "member": checksum(member),
            "kind": found.kind,
            "height": first.height,
            "view": first.view,
            "evidence": to_hex(found.encode()),
        }
        try:
            self.folder.mkdir(exist_ok=True)
            names = [one.name for one in self.folder.glob("*.json")]
            mine = sum(name.startswith(member.hex()) for name in names)
            if path.name in names or mine >= KEPT_PER_MEMBER or len(names) >= KEPT:
                return False
            draft = path.with_suffix(".part")
            draft.write_text(json.dumps(content, indent=1) + "\n")
            os.replace(draft, path)
        except OSError as error:
            logger.warning("evidence against %s cannot be kept in %s: %s", checksum(member), self.folder, error)
            return False
        return True

    def kept(self) -> list[Kept]:
        """All of it, by member, height and view; a file that proves nothing is logged and left out."""
        found = []
        for path in sorted(self.folder.glob("*.json"))[:KEPT]:
            try:
                found.append(_read(path))
            except (OSError, ValueError, KeyError, TypeError, RecursionError, PeerError) as error:
                logger.warning("%s is no evidence: %s", path, error)
        return sorted(found, key=lambda one: (one.member, one.contradiction.first.height, one.contradiction.first.view))


def _read(path: Path) -> Kept:
    with path.open("rb") as file:
        data = file.read(_FILE_BYTES_MAX + 1)
    if len(data) > _FILE_BYTES_MAX:
        raise ValueError(f"it has more than {_FILE_BYTES_MAX} bytes")
    contradiction = Contradiction.decode(from_hex(json.loads(data)["evidence"]))
    return Kept(contradiction.signer(), contradiction, path)
