// Socket.IO with its adapter for Redis streams: `node node_socketio.cjs FOLDER URL`, where npm has put the packages
// into FOLDER. WebSocket alone, with `ws` and its native part.
"use strict";

const { createRequire } = require("node:module");
const path = require("node:path");
const [folder, url] = process.argv.slice(2);
const need = createRequire(path.join(path.resolve(folder), "package.json"));
const { createServer } = need("node:http");
const { createClient } = need("redis");
const { Server } = need("socket.io");
const { createAdapter } = need("@socket.io/redis-streams-adapter");

async function main() {
  const client = createClient({ url });
  await client.connect();
  const http = createServer();
  const io = new Server(http, { adapter: createAdapter(client), transports: ["websocket"], serveClient: false });
  io.on("connection", (socket) => {
    let room = null;
    socket.on("join", (name) => {
      room = name;
      socket.join(name);
      socket.emit("in");
    });
    socket.on("m", (text) => io.to(room).emit("m", text));
  });
  http.listen(0, "127.0.0.1", 4096, () => console.log(`http://127.0.0.1:${http.address().port} `));
}

for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => process.exit(0));
main();
