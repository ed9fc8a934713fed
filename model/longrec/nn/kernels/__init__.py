"""Triton kernels and their launchers for CUDA devices.

Functions import them where they run them, so machines without Triton can import longrec. The
reference implementations run on any device. They are in longrec.nn.layers, longrec.nn.tokens,
longrec.nn.stca_layer, longrec.nn.target_attention and longrec.nn.baselines.hstu.

Shape letters are listed in each file (see longrec.nn). BLOCK_X is the size of a tile along X, and
BLOCK_M one along the rows or queries of attention. A name in capitals is a constant of one compiled
variant. Kernels have no types, so each file disables mypy's checks of untyped functions.
"""
