"""A page, an HTTP service and batches over the ordinary entry points (docs/app.md)."""
