"""Benchmarks: `ssl-fast bench`, `python -m ssl_fast.bench`, and in a clone `python -m bench`."""
