"""Faults in the real program, after which it must go on as if nothing had happened."""
