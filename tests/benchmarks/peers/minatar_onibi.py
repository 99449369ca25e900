"""Onibi's preset for a MinAtar game, trained in one process and played by its last weights.

python -m peers.minatar_onibi ORDER.json ANSWER.json
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Train, play, answer."""
    from onibi.clusters import evaluate, train

    order = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        result = train(order["preset"], overrides=order["overrides"], serial=True, runs_folder=folder, display=False)
        seconds = time.monotonic() - began
        report = evaluate(
            result.folder.name, checkpoint="last", episodes=order["episodes"], seed=10_000, runs_folder=folder
        )
    (player,) = report.players
    Path(sys.argv[2]).write_text(
        json.dumps({"return": player.episode_return.mean, "episodes": player.episodes, "seconds": seconds})
    )


if __name__ == "__main__":
    main()
