"""What several tests build on: small models, made studies, a W&B server of our own."""
