"""Tests of claims and holds in a process: threads, signals, outages, losses and the end."""
