"""The calls of the SDK, a file a resource; `Client` and `AsyncClient` both carry them out."""
