"""GPU kernels in Triton: no compiler is needed at install, one C compiler at run time.

Installed as `ssl_fast.triton_kernels`. Nothing here imports Triton until a stem is imported.
"""
