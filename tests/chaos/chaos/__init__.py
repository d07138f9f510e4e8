"""Real processes under real faults, with everything recorded that agents did and saw, and checked afterwards.

A run (`run.py`) starts a cluster behind links that can be cut (`cluster.py`, `link.py`), lets agents work
(`agents.py`) while faults come and go by a seed (`faults.py`), heals everything, asks each node alone what it has
(`ending.py`), and gives the recorded history (`history.py`) to the checkers (`checkers/`). The seed chooses faults and
operations; what they meet is up to the machine, so a failing run is kept as its history and not as its seed.
"""
