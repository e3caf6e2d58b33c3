"""``FusedBiasGelu``: add the bias of a matrix product, then GELU; one pass over the widest tensor of a layer."""
