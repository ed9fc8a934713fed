"""Triton kernels and their launchers, for CUDA devices; imported only where one is used. The
readable twins live one level up.
"""
