"""The bridge between regions, a deployable of its own, will live here; it is not there yet."""
