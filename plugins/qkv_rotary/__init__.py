"""``QKVRotary``: from the packed q/k/v product to three tensors of heads, q and k rotated, in one pass over memory."""
