"""The rules of a lock: answers, leases, claims and holds, without I/O, threads or clocks."""
