"""Engines, kernels, console and the machine that a process runs on."""
