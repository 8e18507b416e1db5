"""What a lock is, without a server."""
