"""Connected components of many pairs at once (pure): what belongs together, directly or over others."""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.intp]
"""Numbers of rows, from 0."""


def join(roots: Rows, left: Rows, right: Rows) -> Rows:
    """Union-find for many pairs at once: the smallest member of each row's set after ``left[i]`` joins ``right[i]``.

    ``roots`` holds the smallest member before. Each round hooks the larger root of every pair to the smaller one.
    """
    while True:
        lower, upper = np.minimum(roots[left], roots[right]), np.maximum(roots[left], roots[right])
        if np.array_equal(lower, upper):
            return roots
        roots = roots.copy()
        np.minimum.at(roots, upper, lower)
        while not np.array_equal(roots, above := roots[roots]):
            roots = above
