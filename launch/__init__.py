"""Bringing a run up: several processes on one machine."""
