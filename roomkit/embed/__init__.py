"""roomkit inside other people's WSGI servers: Flask, Django or any WSGI application (docs/embedding.md)."""

from roomkit.embed.handover import NoSocket
from roomkit.embed.wsgi import RoomsApp

__all__ = ["NoSocket", "RoomsApp"]
