"""What every test counts on, however pytest was started."""

from __future__ import annotations

import signal

# A shell without job control starts what it puts in the background with SIGINT ignored, and that is inherited: the
# commands that the tests start and interrupt would not hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
