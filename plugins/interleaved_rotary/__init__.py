"""``InterleavedRotary``: the rotation of adjacent pairs by the position's angles."""
