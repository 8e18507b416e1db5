"""How claims and holds live in a process: its threads, its forks, its signals, and its end."""
