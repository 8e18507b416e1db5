"""Speed, as ratios against peers and the bare wire in one run: absolute times mean little on a
shared machine.
"""
