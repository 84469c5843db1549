"""python-socketio with its Redis manager: ``python_socketio.py gevent URL``, or ``asyncio`` (uvicorn, uvloop).

These two of the servers that it runs on were the fastest. It runs in an environment of its own and imports nothing of
roomkit.
"""

import asyncio
import socket
import sys


def serve_gevent(url):
    """Its synchronous server on greenlets. Serves until a signal comes."""
    from gevent import monkey

    monkey.patch_all()
    import socketio
    from gevent import pywsgi
    from geventwebsocket.handler import WebSocketHandler

    server = socketio.Server(async_mode="gevent", client_manager=socketio.RedisManager(url), transports=["websocket"])

    @server.on("join")
    def join(sid, room):
        server.enter_room(sid, room)
        server.save_session(sid, room)
        server.emit("in", to=sid)

    @server.on("m")
    def message(sid, text):
        server.emit("m", text, room=server.get_session(sid))

    application = socketio.WSGIApp(server)
    served = pywsgi.WSGIServer(("127.0.0.1", 0), application, log=None, handler_class=WebSocketHandler, backlog=4096)
    served.start()
    print(f"http://127.0.0.1:{served.server_port} ", flush=True)
    served.serve_forever()


async def serve_asyncio(url):
    """Its asyncio server. Serves until a signal comes."""
    import socketio
    import uvicorn

    server = socketio.AsyncServer(
        async_mode="asgi", client_manager=socketio.AsyncRedisManager(url), transports=["websocket"]
    )

    @server.on("join")
    async def join(sid, room):
        await server.enter_room(sid, room)
        await server.save_session(sid, room)
        await server.emit("in", to=sid)

    @server.on("m")
    async def message(sid, text):
        await server.emit("m", text, room=await server.get_session(sid))

    config = uvicorn.Config(
        socketio.ASGIApp(server),
        log_level="warning",
        access_log=False,
        ws="websockets-sansio",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
    )
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(f"http://127.0.0.1:{listening.getsockname()[1]} ", flush=True)
    await uvicorn.Server(config).serve([listening])


if __name__ == "__main__":
    kind, store = sys.argv[1:]
    if kind == "gevent":
        serve_gevent(store)
    else:
        import uvloop

        uvloop.install()
        asyncio.run(serve_asyncio(store))
