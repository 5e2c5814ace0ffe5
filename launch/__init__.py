"""Starts a run on a pod: several processes on one machine, Cloud TPU VMs, or GKE."""
