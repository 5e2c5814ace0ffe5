"""A look at what a trained network does well and what it confuses: ``evaluate --report``."""
