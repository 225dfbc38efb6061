"""What the C library does with memory that tensors gave back: keep it, because the next step wants as much again."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3        # of glibc's malloc.h
LARGEST_KEPT_BYTES = 32 * 2**20                      # larger blocks go back to the system at once; glibc's own bound
KEPT_BYTES = 512 * 2**20                             # free memory at a heap's end above which it is given back


def keep_freed_memory() -> bool:
    """Lets this process keep up to `KEPT_BYTES` of freed memory a heap for its next tensors. Returns whether it will.

    A training step frees and asks for the same few megabytes again and again. By default glibc returns them to the
    system each time, which then has to find and clear new pages: some 40,000 page faults a second, a twentieth of the
    time. It holds for the whole process, so programs call it at their start, not libraries. On other systems than
    Linux with glibc nothing is done. Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES), (_M_TRIM_THRESHOLD, KEPT_BYTES))
    done = [mallopt(name, value) for name, value in settings]
    return all(one == 1 for one in done)
