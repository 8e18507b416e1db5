"""Benchmarks. They compare speeds with those of peers and of the bare wire in the same run, because
absolute times mean little on a shared machine.
"""
