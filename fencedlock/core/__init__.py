"""What a lock is: answers, leases, claims and holds, without I/O, threads or clocks."""
