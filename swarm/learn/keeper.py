"""A node that lives no longer than the training process that started it.

`python -m swarm.learn.keeper SITE.toml` runs the node and watches its own standard input, a pipe that the
training process holds: when that closes, by a clean end or because the process was killed, the node is
asked to stop. The operating system closes the pipe in every case, so no node is left behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from swarm.config import SiteConfig
from swarm.errors import StorageError

STOP_S = 20.0
"""How long a node may take to close its ledger before it is killed."""


class Keeper:
    """The node that this process started for a site, with its log in the site's folder."""

    def __init__(self, site: SiteConfig) -> None:
        self.log = site.folder / "node.log"
        self.answered = False
        """It was reached at least once, so its settings are right."""
        try:
            site.folder.mkdir(parents=True, exist_ok=True)
            log = self.log.open("ab")
        except OSError as error:
            raise StorageError(f"the node's log {self.log} cannot be written: {error}") from error
        with log:
            # A session of its own: Ctrl-C in the terminal is for the training loop, which then ends the node.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "swarm.learn.keeper", str(site.path)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def ended(self) -> int | None:
        """The node's exit status, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End the node and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def last_words(self) -> str:
        """The end of the node's log, for the message that says why there is no node."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - 2000))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            return str(error)
        return "\n".join(lines[-5:])


def main(site: str) -> int:
    """Run the node until it ends or standard input closes; its exit status."""
    node = subprocess.Popen([sys.executable, "-m", "swarm", "node", site], stdin=subprocess.DEVNULL)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        node.terminate()
        try:
            node.wait(STOP_S)
        except subprocess.TimeoutExpired:
            node.kill()

    threading.Thread(target=watch, daemon=True).start()
    return node.wait()


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1]))))
