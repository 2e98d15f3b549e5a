"""Shared by tests: small models, studies with given losses, a W&B server on loopback."""
