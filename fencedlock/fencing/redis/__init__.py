"""RedisFence, for data in Redis or Valkey: it refuses stale writes, in a script or a MULTI."""

from fencedlock.fencing.redis.fence import FencedScript, RedisFence

__all__ = ["FencedScript", "RedisFence"]
