"""``ScaledDotProductAttention``: one attention over heads, whatever its mask."""
