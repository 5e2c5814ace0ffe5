"""Runs the training program on Google Kubernetes Engine, see docs/gke.md."""
