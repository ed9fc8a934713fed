"""Triton kernels and their launchers for CUDA devices, imported only by the paths that run them.

The reference implementations live one level up and run on any device.
"""
