"""A Redis or Valkey that keeps data: writes that refuse stale tokens, by script or by MULTI."""

from fencedlock.fencing.redis.fence import FencedScript, RedisFence

__all__ = ["FencedScript", "RedisFence"]
