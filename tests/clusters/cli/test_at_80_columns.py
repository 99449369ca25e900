"""What the commands show on a terminal of 80 columns."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
import typer
from typer.testing import CliRunner

from onibi.clusters.cli.command_help import HelpfulCommand
from onibi.clusters.cli.main import app

ROOT = typer.main.get_command(app)
COMMANDS = {
    (name, *more): command
    for name, group in ROOT.commands.items()
    for more, command in (
        [((inner,), each) for inner, each in group.commands.items()] if hasattr(group, "commands") else [((), group)]
    )
}


def help_of(*command: str) -> list[str]:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": None})
    assert result.exit_code == 0
    return result.output.splitlines()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_examples_are_shown_as_they_are_typed(command):
    parsed = COMMANDS[command]
    assert isinstance(parsed, HelpfulCommand) and any(f"onibi {' '.join(command)}" in line for line in parsed.examples)
    lines = help_of(*command)
    assert max(map(len, lines)) <= 80
    below = lines[lines.index(" Examples:") + 1 :]
    assert [line.strip() for line in below if line.strip()] == [line.strip() for line in parsed.examples]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_prose_is_broken_where_the_line_is_full_and_nowhere_else(command):
    lines = help_of(*command)
    prose = lines[2 : next(place for place, line in enumerate(lines) if line.startswith("╭"))]
    for line, following in itertools.pairwise(prose):
        if line.strip() and following.strip():
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > 79, f"broken too early: {line!r}"


def on_a_terminal(*arguments: str, cwd) -> list[str]:
    """Lines that the command writes to a terminal of 80 columns, which breaks none."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ONIBI_", "COLUMNS", "LINES"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "onibi", *arguments],
        cwd=cwd,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**kept, "TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(terminal)
    written = b""
    try:
        while part := os.read(controller, 1 << 16):
            written += part
    except OSError:  # EIO: the other end is closed
        pass
    os.close(controller)
    assert process.wait(timeout=60) == 0
    return written.decode().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()


@pytest.mark.parametrize("arguments", [("presets",), ("experiment", "--list")], ids=" ".join)
def test_lists_of_names_are_broken_between_words(arguments, tmp_path):
    lines = on_a_terminal(*arguments, cwd=tmp_path)
    assert max(map(len, lines)) <= 80
    whole = subprocess.run(
        [sys.executable, "-m", "onibi", *arguments],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout
    assert " ".join(lines).split() == whole.split(), "the same words"
    assert all(line[:1].strip() for line in whole.splitlines()), "off a terminal each has one line"
