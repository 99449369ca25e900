"""Reverb: a server in a process of its own, ``trajectory_writer`` in, ``TrajectoryDataset`` out.

With the server in the worker's process, where datasets read its tables without gRPC, draws stood still for minutes once
two tables were read or a table was written in between.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ctypes
import itertools
import multiprocessing
import signal
from pathlib import Path

import numpy as np
import reverb
import tensorflow as tf
from peers.rows import WIDTHS, Width, fill_steps, newest_observation, transitions, wrong_transitions
from peers.worker import BATCH, Case, Contender

IN_FLIGHT = 3 * BATCH  # "2-3x times the batch size", says its documentation
NAMES = ("observation", "action", "reward", "terminated")


def fragment(width: Width, number: np.ndarray) -> list[list[dict]]:
    """Of each lane the steps, each a dictionary, and the observation after the last one.

    A final observation stands in a row of its own, as Onibi's do: no item begins at it (``starts``).
    """
    lanes = []
    for lane in number:
        columns = transitions(width, lane)
        rows = []
        for i in range(len(lane)):
            rows.append({name: columns[name][i] for name in NAMES} | {"starts": True})
            if columns["terminated"][i] or i == len(lane) - 1:
                nothing = {name: np.zeros_like(columns[name][i]) for name in NAMES}
                rows.append(nothing | {"observation": columns["next_observation"][i], "starts": False})
        lanes.append(rows)
    return lanes


def insert_fragment(client: reverb.Client, table: str, lanes: list[list[dict]]) -> int:
    """One writer for each lane, flushed once; one item for each step: its row and the next observation.

    (Flushing every 16 rows was slower, one writer kept for all lanes was not faster.)
    """
    items = 0
    for rows in lanes:
        with client.trajectory_writer(2) as writer:
            begun = False
            for row in rows:
                writer.append({name: row[name] for name in NAMES})
                if begun:
                    trajectory = {name: writer.history[name][-2:-1] for name in NAMES}
                    trajectory["observation"] = writer.history["observation"][-2:]
                    writer.create_item(table, 1.0, trajectory)
                    items += 1
                begun = row["starts"]
            writer.flush()
    return items


def serve(pipe, rows: int) -> None:
    """The server's process; it dies with the worker."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    tables = [
        reverb.Table(
            name,
            reverb.selectors.Uniform(),
            reverb.selectors.Fifo(),
            max_size=rows,
            rate_limiter=reverb.rate_limiters.MinSize(1),
        )
        for name in WIDTHS
    ]
    server = reverb.Server(tables)
    pipe.send(server.port)
    server.wait()


def prepare(rows: int, folder: Path) -> Contender:
    """Start the server, fill the tables, check one batch of each."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, rows), daemon=True)
    server.start()
    address = f"localhost:{ours.recv()}"
    client = reverb.Client(address)
    cases, wrong, kept = {}, {}, []
    for width in WIDTHS.values():
        numbers = fill_steps(rows)
        for number in numbers:
            insert_fragment(client, width.name, fragment(width, number))
        shapes = ([2, *width.shape], [1], [1], [1])
        dataset = reverb.TrajectoryDataset(
            address,
            width.name,
            dtypes=dict(zip(NAMES, (width.dtype, np.int64, np.float32, np.uint8), strict=True)),
            shapes={name: tf.TensorShape(shape) for name, shape in zip(NAMES, shapes, strict=True)},
            max_in_flight_samples_per_worker=IN_FLIGHT,
        )
        batches = dataset.batch(BATCH).as_numpy_iterator()
        sources = itertools.cycle([fragment(width, number) for number in fill_steps(rows)[:4]])
        data = next(batches).data
        wrong[f"{width.name} uniform"] = wrong_transitions(
            width,
            1,
            newest_observation(numbers),
            data["observation"][:, 0],
            data["observation"][:, 1],
            data["action"],
            data["reward"],
            data["terminated"],
        )

        def draw(batches=batches) -> int:
            next(batches)
            return BATCH

        def insert(name=width.name, sources=sources) -> int:
            return insert_fragment(client, name, next(sources))

        cases[f"{width.name} uniform"] = Case(draw, warm_calls=2 + 2 * IN_FLIGHT // BATCH, settle_seconds=0.3)
        cases[f"{width.name} insert"] = Case(insert, warm_calls=0, settle_seconds=0.1)
        kept.append(batches)
    return Contender(cases=cases, wrong=wrong, close=server.kill)
