"""``python -m onibi``: the same as the console command ``onibi``."""

from __future__ import annotations

from onibi.clusters.cli.main import main

if __name__ == "__main__":
    main()
