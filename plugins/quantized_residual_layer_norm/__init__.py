"""``QuantizedResidualLayerNorm``: ``ResidualLayerNorm`` whose result goes to an int8 product, quantised on the way."""
