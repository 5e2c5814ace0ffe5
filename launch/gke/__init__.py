"""The training program on Google Kubernetes Engine (docs/gke.md)."""
