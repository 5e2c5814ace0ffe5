"""Bringing a run up: several processes on one machine, and Cloud TPU VMs."""
