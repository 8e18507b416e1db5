"""Claims and holds in a process: its threads, forks and signals, and the end of the interpreter."""
