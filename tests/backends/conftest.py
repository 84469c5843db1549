"""The stores."""

from support.stores import cluster_url, forgetful_server, own_server, redis_url

__all__ = ["cluster_url", "forgetful_server", "own_server", "redis_url"]
