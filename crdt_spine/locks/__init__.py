"""Locks: the service that gives leases out (service.py, epochs.py, process.py), and the agents' side (client.py)."""
