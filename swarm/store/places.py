"""What the files of a store are called."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from swarm.encoding import Digest


def object_place(folder: Path, digest: Digest) -> Path:
    """Where the store in `folder` keeps an object, whether it has it or not."""
    name = digest.hex()
    return folder / "objects" / name[:2] / name[2:]


def leaves_place(place: Path) -> Path:
    """Where the leaves of the object at `place` are."""
    return place.with_name(place.name + ".leaves")


def part_place(folder: Path, digest: Digest) -> Path:
    """Where an object arrives."""
    return folder / "tmp" / f"{digest.hex()}.part"


def marks_place(folder: Path, digest: Digest) -> Path:
    """Which chunks of it came: a byte each, 1 for yes."""
    return folder / "tmp" / f"{digest.hex()}.have"


def objects_in(folder: Path) -> Iterator[tuple[Digest, Path]]:
    """The objects in a folder that nobody writes to now; leaves without an object are swept."""
    for place in (folder / "objects").glob("??/*"):
        digest = _digest_of_name(place.parent.name + place.name.removesuffix(".leaves"))
        if digest is None:
            continue
        if place.suffix != ".leaves":
            yield digest, place
        elif not place.with_suffix("").exists():
            place.unlink()


def arriving_in(folder: Path, here: Container[Digest]) -> Iterator[tuple[Digest, Path]]:
    """What can be resumed, of objects that are not `here`; the rest, spares and what a crash left, is swept."""
    for path in (folder / "tmp").iterdir():
        digest = _digest_of_name(path.stem)
        if digest is None or digest in here or not part_place(folder, digest).exists():
            path.unlink()
        elif path.suffix == ".part":
            yield digest, path


def _digest_of_name(name: str) -> Digest | None:
    if len(name) != 64 or name != name.lower():
        return None
    try:
        return bytes.fromhex(name)
    except ValueError:
        return None


def encode_leaves(size: int, leaves: Sequence[Digest]) -> bytes:
    """What stands in a file of leaves."""
    return size.to_bytes(8, "big") + b"".join(leaves)


def read_leaves(path: Path) -> tuple[int, tuple[Digest, ...]]:
    """The object's size and its leaves; ValueError or OSError where the file does not hold them."""
    data = path.read_bytes()
    if len(data) % 32 != 8:
        raise ValueError(f"{path} holds no list of leaves")
    return int.from_bytes(data[:8], "big"), tuple(data[at : at + 32] for at in range(8, len(data), 32))
