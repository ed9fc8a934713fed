"""The ranker: layers, target-to-history attention, the STCA stack, the mixer head."""
