"""Locks on one Redis or Valkey server."""
