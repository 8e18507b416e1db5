"""How claims and holds live in a process."""
