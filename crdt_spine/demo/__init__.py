"""What `make demo` shows: agents at work on three nodes, one of which is killed and comes back, and what held.

sample.py (what they write) → cast.py (who writes and follows what) → director.py (what happens when; stage.py has the
processes, agent.py the agents, inspection.py asks a node alone) → ledger.py (what was promised) → facts.py (what held).
"""
