"""``ResidualLayerNorm``: add the residual, then normalise; both results in one pass over memory."""
