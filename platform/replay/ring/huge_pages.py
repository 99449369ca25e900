"""Shared memory in huge pages: one address is looked up where there were 512, and random draws pay for each look-up.

``/dev/shm`` has small pages where ``/sys/kernel/mm/transparent_hugepage/shmem_enabled`` is ``never``, the default of
Linux. Since Linux 6.1 ``madvise(MADV_COLLAPSE)`` joins them all the same, without a right or a setting. A mapping
profits only where its address and its place in the file agree up to a huge page, which ``mmap.mmap`` leaves to chance.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

# Linux's numbers that Python's mmap has no names for.
_MADV_COLLAPSE = 25
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


def join_pages(descriptor: int, size: int) -> None:
    """Give an empty file of ``size`` bytes on a memory file system its pages, huge ones as far as the system has them.

    What they could not be had for stays without pages: the caller reserves that (``posix_fallocate``). Silent where the
    system is too old or too full: small pages hold the same bytes.
    """
    page = huge_page_bytes()
    if size < page:
        return
    try:
        os.ftruncate(descriptor, size)
        # One byte in each: what is wholly empty is not joined. By a store into the mapping it would be SIGBUS where the
        # file system is full.
        for offset in range(0, size - page + 1, page):
            os.pwrite(descriptor, b"\0", offset)
        memory, begin = map_in_step(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        memory.madvise(_MADV_COLLAPSE, begin, size)
    except OSError:
        return


def map_in_step(descriptor: int, size: int, flags: int, protection: int) -> tuple[mmap.mmap, int]:
    """Map the first ``size`` bytes of a file so that huge pages of it are mapped as such.

    Where that cannot be had (limits of address space or of data), it is mapped as ever.

    Args: flags and protection as for ``mmap.mmap``.
    Returns: the mapping, and where in it the file begins; what lies before and behind is not the file's. It is unmapped
    as any other, with the last view of it.
    Raises: OSError.
    """
    page = huge_page_bytes()
    if size < page:
        return mmap.mmap(descriptor, size, flags=flags, prot=protection), 0
    # Address space of our own, a huge page longer; the file is then laid over the part of it that begins on a border.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    try:
        memory = mmap.mmap(-1, size + page, flags=private, prot=protection)
    except OSError:
        return mmap.mmap(descriptor, size, flags=flags, prot=protection), 0
    address = np.frombuffer(memory, np.uint8).ctypes.data
    begin = -address % page
    if _system_mmap()(address + begin, size, protection, flags | _MAP_FIXED, descriptor, 0) == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return memory, begin


@functools.cache
def huge_page_bytes() -> int:
    """How large a huge page is, in bytes; more than any file where the system has none."""
    try:
        return int(_SIZE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 2**62


@functools.cache
def _system_mmap() -> Callable[..., int | None]:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    return function
