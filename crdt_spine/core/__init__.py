"""The pure core: CRDTs, causality, the rules of a replica. No asyncio, NATS, SQLite, clock or randomness in here."""
