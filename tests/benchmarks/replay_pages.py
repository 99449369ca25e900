"""What huge pages give: two rings alike, one as it is made, one in small pages, drawn from and written to in turns.

    python tests/benchmarks/replay_pages.py [--seconds 5] [--folder /dev/shm]

Ratios are taken round by round as in ``replay_gather.py``. ``create`` is reserving and mapping an empty ring, once a
round. Where the system has no huge pages for shared memory both are the same, and the script says so.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from replay_gather import LANES, Case, case_list, create_ring, draws, full_ring, report, rounds

from onibi.platform.replay.ring import huge_pages
from onibi.platform.replay.ring.reader import RingReader


@contextmanager
def pages(size: str) -> Iterator[None]:
    """Rings made and mapped inside have huge pages where they can be had, or small ones."""
    found = huge_pages.huge_page_bytes() if size == "huge" else 2**62
    with mock.patch.object(huge_pages, "huge_page_bytes", return_value=found):
        yield


def sides(case: Case, path: Path) -> dict[str, Callable[[], object]]:
    """A full ring at ``path``: its draws, and insertion into it."""
    _, insert = full_ring(case, path)

    def create_another() -> None:
        other = path.with_name("other.ring")
        create_ring(case, other).close()
        other.unlink()

    return {**draws(case, RingReader(path)), "insert": insert, "create": create_another}


def main() -> None:
    """Print what each operation takes in small and in huge pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the rings lie")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onibi-benchmark-", dir=arguments.folder) as folder:
        for case in case_list():
            found = {}
            before = joined_bytes()
            for size in ("huge", "small"):
                with pages(size):
                    found[size] = sides(case, Path(folder, f"{size}.ring"))
            print(f"{case.name}: {(joined_bytes() - before) / 2**20:.0f} MiB in huge pages")
            for name in found["huge"]:
                calls = []
                for size in ("huge", "small"):
                    calls.append(in_pages(size, found[size][name]) if name == "create" else found[size][name])
                huge, small = rounds(calls, arguments.seconds, 1 if name == "create" else 16).T
                per_call, unit = {"insert": (LANES * case.fragment_rows, "rows"), "create": (1, "rings")}.get(
                    name, (case.batch_size, "samples")
                )
                report(name, huge, small, per_call, unit, "small pages")
            for path in Path(folder).iterdir():
                path.unlink()


def in_pages(size: str, call: Callable[[], object]) -> Callable[[], object]:
    """The call, made with pages of that size."""

    def made() -> None:
        with pages(size):
            call()

    return made


def joined_bytes() -> int:
    """Shared memory of the machine that is in huge pages."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return int(np.sum([int(line.split()[1]) * 1024 for line in lines if line.startswith("ShmemHugePages:")]))


if __name__ == "__main__":
    main()
