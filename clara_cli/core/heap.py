"""What the C library does with freed memory (glibc; elsewhere nothing here has an effect).

By default it hands large blocks back at once and asks for them again: every page is then zeroed
anew, which costs a batch of small matrices a tenth of its time.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_NEVER = 2**31 - 1


def keep_heap() -> None:
    """Keep freed memory for what comes next, in the whole process: for batches of like shape, one
    after the other."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, _NEVER)


def trim_heap() -> None:
    """Give freed memory back to the system. Activations of ever other shapes leave the heap in
    pieces, and the peak would creep up with the corpus."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
